"""Run migrations: as the account of the settings, one run per database at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging.config import fileConfig

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from nba.database import build_engine, unavailable_reason
from nba.models import metadata
from nba.settings import Settings, SettingsError, load

DEFAULT_LOCK_TIMEOUT_SECONDS = 60
# A statement that waits for a table holds up every query that comes after it: give up early instead.
DDL_WAIT_SECONDS = 10


def lock_timeout() -> int:
    """Return the value of `-x lock_timeout=SECONDS`.

    Raises:
        CommandError: it is not a number from 0 to 3600, or -x names something else.
    """
    arguments = context.get_x_argument(as_dictionary=True)
    value = arguments.pop("lock_timeout", str(DEFAULT_LOCK_TIMEOUT_SECONDS))
    if arguments:
        raise CommandError(f"-x knows lock_timeout=SECONDS only, not {', '.join(arguments)}")
    if not value.isdecimal() or int(value) > 3600:
        raise CommandError("-x lock_timeout should be a number of seconds from 0 to 3600")
    return int(value)


@contextmanager
def migration_lock(connection: Connection, database: str, timeout: int) -> Iterator[None]:
    """Hold the database's migration lock. It lives in the session, so nothing stays behind when this dies.

    Raises:
        CommandError: another run held the lock for all of `timeout` seconds.
    """
    name = f"{database}.migrate"[-64:]  # as long as MySQL allows
    acquired = connection.scalar(select(func.get_lock(name, timeout)))
    connection.commit()
    if acquired != 1:
        raise CommandError(f"another migration holds the lock {name!r}; gave up after {timeout} seconds")
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.scalar(select(func.release_lock(name)))
            connection.commit()


def migrate(settings: Settings) -> None:
    """Run what the alembic command asks for.

    Raises:
        CommandError: the database cannot be reached, or another run holds the lock.
    """
    engine = build_engine(
        settings,
        isolation_level="REPEATABLE READ",
        # A migration may take long, and so may the one that it waits for.
        connect_args={"autocommit": False, "read_timeout": None, "write_timeout": None},
    )
    timeout = lock_timeout()
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise CommandError(f"{unavailable_reason(error) or 'database error'}: {error.orig}") from error
    with connection, migration_lock(connection, settings.database_name, timeout):
        connection.execute(text("SET SESSION lock_wait_timeout = :seconds"), {"seconds": DDL_WAIT_SECONDS})
        connection.commit()
        context.configure(connection=connection, target_metadata=metadata, compare_type=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():  # `alembic upgrade head --sql`: show, do not connect
    context.configure(dialect_name="mysql", target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    try:
        migrate(load())
    except SettingsError as error:
        raise CommandError(f"the settings are not usable\n{error}") from None
