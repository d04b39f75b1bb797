"""The connection pool, and what becomes of a request when the database is not well."""

from __future__ import annotations

import select
import ssl
from collections.abc import Sequence
from typing import Any

from sqlalchemy import URL, CursorResult, Engine, RowMapping, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql import Executable

from nba.settings import Settings

STATEMENT_TIMEOUT_SECONDS = 10
DUPLICATE_KEY = 1062

DATABASE_ERRORS = (DBAPIError, PoolTimeoutError)

# MySQL's error numbers, where the database and not the request is at fault. No host, no account.
REASONS = {
    1040: "database has no free connection",
    1044: "database refused the account",
    1045: "database refused the account",
    1049: "database does not exist",
    1129: "database refused the host",
    1130: "database refused the host",
    1142: "database refused the account",
    1146: "database has no schema",
    1203: "database has no free connection",
    1205: "database is busy",
    1213: "database is busy",
    1226: "database has no free connection",
    1290: "database is read-only",
    1836: "database is read-only",
    1862: "database refused the account",
    2026: "database offered no TLS",
    3118: "database refused the account",
    3159: "database insists on TLS",
    **dict.fromkeys((0, 1053, 1077, 1079, 2002, 2003, 2006, 2013, 2014, 2055, 3169, 4031), "database unreachable"),
}


def unavailable_reason(error: Exception) -> str | None:
    """Return why the database is unavailable, in words fit for the public; None if the error is another one."""
    if isinstance(error, PoolTimeoutError):
        return "database connections are all in use"
    if not isinstance(error, DBAPIError) or not error.orig or not error.orig.args:
        return None
    if isinstance(getattr(error.orig, "original_exception", None), ssl.SSLError):
        return "database certificate refused"
    return REASONS.get(error.orig.args[0])


def build_engine(settings: Settings, **options: Any) -> Engine:
    """Return an engine for the settings' database; nothing connects before its first use.

    Every request is one statement, so statements commit by themselves (AUTOCOMMIT) and a returned connection
    needs no ROLLBACK: one round trip instead of three. Code that needs several statements to succeed or fail
    together sets another isolation level with `execution_options` and uses `begin()`.

    Args:
        settings: where and as whom to connect.
        options: further arguments of `create_engine`, which win over the ones chosen here.
    """
    connect_args: dict[str, Any] = {
        # PyMySQL would encode it as Latin-1, which MySQL does not.
        "password": settings.database_password.get_secret_value().encode(),
        "charset": "utf8mb4",
        "autocommit": True,
        "connect_timeout": settings.database_connect_timeout_seconds,
        "read_timeout": STATEMENT_TIMEOUT_SECONDS,
        "write_timeout": STATEMENT_TIMEOUT_SECONDS,
    }
    if settings.database_tls_ca:
        # Built once, as reading a bundle takes longer than connecting.
        context = ssl.create_default_context(cafile=settings.database_tls_ca)
        # Python 3.13 began to refuse authorities without extensions that MySQL's own and older RDS ones lack.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connect_args["ssl"] = context
    else:
        connect_args["ssl_disabled"] = True
    defaults: dict[str, Any] = {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_pool_overflow,
        "pool_timeout": settings.database_connect_timeout_seconds,
        "pool_recycle": settings.database_pool_recycle_seconds,
        "pool_reset_on_return": None,
        "pool_use_lifo": True,
        "hide_parameters": True,  # people's data does not belong in a log
        "connect_args": connect_args,
    }
    connect_args.update(options.pop("connect_args", {}))
    engine = create_engine(
        URL.create(
            "mysql+pymysql",
            username=settings.database_user,
            host=settings.database_host,
            port=settings.database_port,
            database=settings.database_name,
        ),
        **{**defaults, **options},
    )
    event.listen(engine, "checkout", _refuse_dead_connection)
    return engine


def _refuse_dead_connection(connection: Any, _record: Any, _proxy: Any) -> None:
    """Make the pool replace a connection that the server has closed while it was idle.

    The server never speaks first on a healthy idle connection, so anything to read is its goodbye. Asking the
    socket costs microseconds where `pool_pre_ping` costs a round trip, and it comes before anything is sent:
    writes are as safe as reads.
    """
    # PyMySQL has no public name for its socket; tests/test_resilience.py guards this.
    poll = select.poll()
    poll.register(connection._sock, select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("the server has closed the connection")


class Database:
    """Single statements on pooled connections. Methods block: call them from a worker thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def read(self, statement: Executable) -> Sequence[RowMapping]:
        """Return the rows of a statement that changes nothing.

        It is sent a second time if the connection breaks under the first, as in a failover. A write is not,
        because nobody could tell whether the first one took effect.

        Raises:
            DBAPIError: the database refused the statement or cannot be reached.
            sqlalchemy.exc.TimeoutError: no connection of the pool came free.
        """
        try:
            return self._read_once(statement)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return self._read_once(statement)

    def _read_once(self, statement: Executable) -> Sequence[RowMapping]:
        with self.engine.connect() as connection:
            return connection.execute(statement).mappings().all()

    def write(self, statement: Executable) -> CursorResult[Any]:
        """Run a statement that returns no rows; it is committed when this returns.

        Raises:
            IntegrityError: a constraint refused the row.
            DBAPIError: the database refused the statement or cannot be reached.
            sqlalchemy.exc.TimeoutError: no connection of the pool came free.
        """
        with self.engine.connect() as connection:
            return connection.execute(statement)
