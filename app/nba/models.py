"""The tables. SQLAlchemy Core: this much needs no ORM, which would double the time of a request."""

from sqlalchemy import Column, Integer, MetaData, String, Table

# Names do not depend on the server, so that a later migration can say which constraint it means.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(50), nullable=False),
    Column("email", String(100), unique=True),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
)
