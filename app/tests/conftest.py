"""A database of the tests' own, built by the real migrations, and the application on top of it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest
from fastapi.testclient import TestClient

from nba.application import create_app
from nba.settings import Settings
from tests.proxy import Proxy

APP = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def quote(value: str) -> str:
    """Quote so that python-dotenv, which expands variables, reads the value back."""
    stand_ins = {"\\": r"${:-\}", "$": "${:-$}", "'": r"\'"}
    return "'" + "".join(stand_ins.get(character, character) for character in value) + "'"


def write_env(path: Path, values: dict[str, Any]) -> None:
    path.write_text("".join(f"{key}={quote(str(value))}\n" for key, value in values.items()), encoding="utf-8")


def run(directory: Path, *arguments: str, package: Path = APP, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in a release directory, with the application that is in ``package``."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package), "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=directory,
        env={**own, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def alembic(directory: Path, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    return run(directory, "alembic", "-c", str(APP / "alembic.ini"), *arguments, **variables)


@dataclass
class Server:
    """The MySQL server of the tests, by an account that may create databases and accounts."""

    host: str
    port: int
    user: str
    password: str
    tls_ca: str

    def connect(self, **options: Any) -> pymysql.Connection[Any]:
        tls: dict[str, Any] = {"ssl": {"ca": self.tls_ca}} if self.tls_ca else {"ssl_disabled": True}
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password.encode(),
            connect_timeout=5,
            **tls,
            **options,
        )

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        connection = self.connect(autocommit=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())

    def env(self, database: str) -> dict[str, Any]:
        """What `.env` says for a database on this server."""
        return {
            "ENVIRONMENT": "test",
            "DATABASE_HOST": self.host,
            "DATABASE_PORT": self.port,
            "DATABASE_NAME": database,
            "DATABASE_USER": self.user,
            "DATABASE_PASSWORD": self.password,
            "DATABASE_TLS_CA": self.tls_ca,
            "DATABASE_CONNECT_TIMEOUT_SECONDS": 2,
        }


@pytest.fixture(scope="session")
def server() -> Server:
    names = ("HOST", "PORT", "USER", "PASSWORD")
    missing = [f"TEST_DATABASE_{name}" for name in names if not os.environ.get(f"TEST_DATABASE_{name}")]
    if missing:
        pytest.fail(
            f"set {', '.join(missing)} to a MySQL account that may create databases and accounts,"
            " or leave the database tests out with -m 'not database'",
            pytrace=False,
        )
    host, port, user, password = (os.environ[f"TEST_DATABASE_{name}"] for name in names)
    return Server(host, int(port), user, password, os.environ.get("TEST_DATABASE_TLS_CA", ""))


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    yield from _database(server)


@pytest.fixture(scope="session")
def migrated_database(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for name in _database(server):
        directory = tmp_path_factory.mktemp("release")
        write_env(directory / ".env", server.env(name))
        result = alembic(directory, "upgrade", "head")
        assert result.returncode == 0, result.stderr
        yield name


def _database(server: Server) -> Iterator[str]:
    name = f"nba_test_{uuid.uuid4().hex[:12]}"
    server.query(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    yield name
    server.query(f"DROP DATABASE `{name}`")


@pytest.fixture
def database(server: Server, migrated_database: str) -> str:
    """The name of a migrated database without rows."""
    server.query(f"TRUNCATE TABLE `{migrated_database}`.users")
    return migrated_database


def settings_of(values: dict[str, Any], **others: Any) -> Settings:
    return Settings(_env_file=None, **{key.lower(): value for key, value in values.items()}, **others)


NOWHERE = {
    "ENVIRONMENT": "test",
    "DATABASE_HOST": "127.0.0.1",
    "DATABASE_PORT": 1,  # nothing listens there
    "DATABASE_NAME": "nba",
    "DATABASE_USER": "nba",
    "DATABASE_PASSWORD": "hunter2-secret",
    "DATABASE_CONNECT_TIMEOUT_SECONDS": 1,
}

MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """Makes clients of applications that have been started."""
    clients: list[TestClient] = []

    def make(values: dict[str, Any] = NOWHERE, **others: Any) -> TestClient:
        client = TestClient(create_app(settings_of(values, **others)), raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: MakeClient, server: Server, database: str) -> TestClient:
    """The application on the migrated, empty database."""
    return make_client(server.env(database))


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A way to the MySQL server that can be cut."""
    with Proxy(server.host, server.port) as opened:
        yield opened


@pytest.fixture
def proxied_client(make_client: MakeClient, server: Server, database: str, proxy: Proxy) -> TestClient:
    """The application, with the proxy between it and its database. No TLS: the proxy has another name."""
    return make_client(
        {**server.env(database), "DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": proxy.port, "DATABASE_TLS_CA": ""}
    )
