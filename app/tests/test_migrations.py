"""Migrations: one head, in step with the models, one run at a time, any password."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.conftest import APP, Server, alembic, run, write_env
from tests.test_settings import AWKWARD


def test_one_head() -> None:
    script = ScriptDirectory.from_config(Config(APP / "alembic.ini"))
    assert len(script.get_heads()) == 1


def test_sql_without_a_database(tmp_path: Path) -> None:
    result = alembic(tmp_path, "upgrade", "head", "--sql")
    assert result.returncode == 0, result.stderr
    assert "CREATE TABLE users" in result.stdout


def test_bad_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_PASSWORD='s3cr3t'\nDATABASE_PORT=s3cr3t\n")
    result = alembic(tmp_path, "upgrade", "head")
    assert result.returncode != 0
    assert "DATABASE_PORT: should be a valid integer" in result.stdout + result.stderr
    assert "s3cr3t" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def release(tmp_path: Path, server: Server, empty_database: str) -> Path:
    write_env(tmp_path / ".env", server.env(empty_database))
    return tmp_path


@pytest.mark.database
def test_up_check_down_up(release: Path, server: Server, empty_database: str) -> None:
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
    for arguments in (("upgrade", "head"), ("check",), ("downgrade", "base")):
        result = alembic(release, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    assert server.query(tables, empty_database) == [("alembic_version",)]
    assert alembic(release, "upgrade", "head").returncode == 0
    assert alembic(release, "upgrade", "head").returncode == 0  # nothing to do
    assert len(server.query(tables, empty_database)) == 2
    seeded = [run(release, "nba.seed").stdout for _ in range(2)]
    assert seeded == ["seed: 2 row(s) added\n", "seed: 0 row(s) added\n"]


@pytest.mark.database
def test_autogenerate_writes_what_a_changed_model_needs(release: Path) -> None:
    """On a laptop: a column more in the models, and `alembic revision --autogenerate` writes the revision."""
    theirs = release / "app"
    shutil.copytree(APP, theirs, ignore=shutil.ignore_patterns(".*_cache", "__pycache__", ".venv", ".env*"))
    shutil.copy(release / ".env", theirs / ".env")
    models = theirs / "nba" / "models.py"
    email = '    Column("email", String(100), unique=True),\n'
    models.write_text(models.read_text().replace(email, f'{email}    Column("nickname", String(50)),\n'))
    generate = ("revision", "--autogenerate", "-m", "Add nickname", "--rev-id", "0002")
    for arguments in (("upgrade", "head"), generate, ("upgrade", "head"), ("check",), ("downgrade", "-1")):
        result = run(theirs, "alembic", *arguments, package=theirs)
        assert result.returncode == 0, result.stdout + result.stderr
    (written,) = (theirs / "migrations/versions").glob("*0002*.py")
    assert "op.add_column(" in written.read_text() and "nickname" in written.read_text()


@pytest.mark.database
def test_an_awkward_password(release: Path, server: Server, empty_database: str) -> None:
    user = empty_database[-16:]
    server.query("CREATE USER %s@'%%' IDENTIFIED BY %s", user, AWKWARD)
    try:
        server.query(f"GRANT ALL ON `{empty_database}`.* TO %s@'%%'", user)
        result = alembic(release, "upgrade", "head", DATABASE_USER=user, DATABASE_PASSWORD=AWKWARD)
        assert result.returncode == 0, result.stderr
        refused = alembic(release, "upgrade", "head", DATABASE_USER=user, DATABASE_PASSWORD=AWKWARD + "x")
        assert refused.returncode != 0
        assert "database refused the account" in refused.stdout + refused.stderr
        assert AWKWARD not in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        server.query("DROP USER %s@'%%'", user)


@pytest.mark.database
def test_one_run_at_a_time(release: Path, server: Server, empty_database: str) -> None:
    with server.connect() as holder, holder.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (f"{empty_database}.migrate",))
        blocked = alembic(release, "-x", "lock_timeout=1", "upgrade", "head")
        assert blocked.returncode != 0
        assert "another migration holds the lock" in blocked.stdout + blocked.stderr
        assert "Traceback" not in blocked.stderr
    assert alembic(release, "-x", "lock_timeout=1", "upgrade", "head").returncode == 0


@pytest.mark.database
def test_a_table_that_is_in_use_is_not_waited_for_long(release: Path, server: Server, empty_database: str) -> None:
    """Every query that comes after a waiting statement waits, too: requests would be lost."""
    assert alembic(release, "upgrade", "head").returncode == 0
    with server.connect(database=empty_database) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT * FROM users")  # in a transaction, which holds the table's definition
        given_up = alembic(release, "downgrade", "base")
        assert given_up.returncode != 0
        assert "Lock wait timeout exceeded" in given_up.stdout + given_up.stderr
        assert server.query(f"SELECT COUNT(*) FROM {empty_database}.users") == [(0,)]
    assert alembic(release, "downgrade", "base").returncode == 0


@pytest.mark.database
@pytest.mark.parametrize("argument", ["lock_timeout=soon", "lock_timeout=-1", "lock_timout=5"])
def test_bad_arguments(release: Path, argument: str) -> None:
    result = alembic(release, "-x", argument, "upgrade", "head")
    assert result.returncode != 0
    assert "lock_timeout" in result.stdout + result.stderr
