"""The program that runs a release's migrations, with the application's own Alembic on SQLite.

What only MySQL can show is in tests/hosts/test_migrations.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, module_at

# Takes no lab, but the application's environment, which scripts/test makes.
pytestmark = pytest.mark.lab
PYTHON = ROOT / ".tools/app/bin/python"
PROGRAM = ROOT / "roles/app/files/migrations.py"
ENV = """
from alembic import context
from sqlalchemy import create_engine

print("env.py speaks")
if context.is_offline_mode():
    context.configure(dialect_name="mysql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    # By themselves: else the mark, which is written on a connection of its own, would wait for the file.
    with create_engine("sqlite:///test.db", isolation_level="AUTOCOMMIT").connect() as connection:
        context.configure(connection=connection)
        try:
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.exec_driver_sql("SELECT 1")  # as one that lets go of a lock
"""
REVISION = '''"""Revision {name}."""
import sqlalchemy as sa
from alembic import op
revision = "{name}"
down_revision = {down!r}
{marks}
def upgrade():
    {up}
def downgrade():
    {back}
'''
USERS = 'op.create_table("users", sa.Column("id", sa.Integer(), primary_key=True))'


class Application:
    """An application that is nothing but migrations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "migrations/versions").mkdir(parents=True)
        (folder / "migrations/env.py").write_text(ENV)
        (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")

    place = "migrations"

    def add(self, name: str, up: str, *, down: str | None = None, marks: str = "", back: str = "pass") -> None:
        text = REVISION.format(name=name, down=down, marks=marks, up=up.replace("\n", "\n    "), back=back)
        (self.folder / f"{self.place}/versions/{name}.py").write_text(text)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert PYTHON.exists(), "the application's environment is missing: scripts/test makes it"
        command = [str(PYTHON), "-I", "-B", str(PROGRAM), *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def result(self, *arguments: str) -> Any:
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def application(tmp_path: Path) -> Application:
    made = Application(tmp_path)
    made.add("a1", USERS, back='op.drop_table("users")')
    return made


def warnings_of(application: Application, *revisions: list[str]) -> list[list[str]]:
    """Return the warnings of revisions with these statements, on a database that has the tables already."""
    application.result("upgrade")
    for number, statements in enumerate(revisions, 2):
        up = "\n".join(f"op.execute({statement!r})" for statement in statements)
        application.add(f"a{number}", up, down=f"a{number - 1}")
    planned = application.result("plan")["pending"]
    assert [one["statements"] for one in planned] == list(revisions)
    return [one["warnings"] for one in planned]


def test_a_plan_an_upgrade_and_the_way_back(application: Application) -> None:
    create = "CREATE TABLE users ( id INTEGER NOT NULL, PRIMARY KEY (id) )"
    pending = {"revision": "a1", "message": "Revision a1", "compatible": False, "statements": [create], "warnings": []}
    planned = {"current": None, "head": "a1", "pending": [{**pending, "problems": []}], "interrupted": None}
    assert application.result("plan") == planned
    done = application.result("upgrade")
    assert (done["from"], done["to"]) == (None, "a1")
    assert [(step["revision"], step["statements"]) for step in done["applied"]] == [("a1", 1)]
    assert application.result("upgrade") == {"from": "a1", "to": "a1", "applied": []}
    assert application.result("plan") == {"current": "a1", "head": "a1", "pending": [], "interrupted": None}
    assert application.result("downgrade", "base")["to"] is None
    assert application.result("stamp", "a1")["to"] == "a1"


def test_two_heads_stop_it(application: Application) -> None:
    application.add("b1", "pass", down="a1")
    application.add("b2", "pass", down="a1")
    for command in ("plan", "upgrade"):
        refused = application.call(command)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "2 heads: " in refused.stderr and "alembic merge" in refused.stderr and "b1" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_database_ahead_of_the_release_is_named(application: Application) -> None:
    application.add("a2", "pass", down="a1")
    application.result("upgrade")
    (application.folder / "migrations/versions/a2.py").unlink()
    for command in (["plan"], ["upgrade"], ["downgrade", "a1"]):
        refused = application.call(*command)
        assert refused.returncode == 1
        assert "the database is at revision a2, which this release does not have" in refused.stderr


def test_marks_tell_whether_older_code_works(application: Application) -> None:
    application.add("a2", "pass", down="a1", marks="compatible = True")
    application.add("a3", "pass", down="a2", marks="compatible = 'yes'")
    assert [one["compatible"] for one in application.result("plan")["pending"]] == [False, True, False]
    assert application.result("compatible", "a1", "a2") == {"compatible": True, "unmarked": []}
    assert application.result("compatible", "a1", "a3") == {"compatible": False, "unmarked": ["a3"]}
    unknown = application.call("compatible", "a1", "a9")
    assert unknown.returncode == 1 and "a9" in unknown.stderr and "Traceback" not in unknown.stderr


def test_a_revision_that_asks_the_database_cannot_be_shown_and_the_next_one_can(application: Application) -> None:
    application.add("a2", "op.get_bind().execute(sa.text('SELECT 1')).scalar()", down="a1")
    application.add("a3", 'op.execute("DROP TABLE users")', down="a2")
    _, asking, dropping = application.result("plan")["pending"]
    assert asking["statements"] == [] and "cannot be shown" in asking["warnings"][0]
    assert dropping["statements"] == ["DROP TABLE users"]


HURTING = {
    "DROP TABLE orders": "drops a table",
    "ALTER TABLE orders DROP COLUMN total": "drops a column",
    "ALTER TABLE orders DROP total": "drops a column",
    "ALTER TABLE orders DROP INDEX ix_total": "drops an index or a constraint",
    "DROP INDEX ix_total ON orders": "drops an index or a constraint",
    "DROP VIEW totals": "drops a view",
    "ALTER TABLE orders RENAME TO bills": "renames",
    "RENAME TABLE orders TO bills": "renames",
    "ALTER TABLE orders CHANGE total sum INTEGER NULL": "renames",
    "ALTER TABLE orders MODIFY total SMALLINT NULL": "redefines a column",
    "ALTER TABLE orders ADD COLUMN tax INTEGER NOT NULL": "must not be NULL",
    "CREATE UNIQUE INDEX ix_total ON orders (total)": "fails where rows share a value",
    "DELETE FROM orders": "removes rows",
    "TRUNCATE TABLE orders": "removes every row",
}
HARMLESS = [
    "CREATE TABLE bills (id INTEGER NOT NULL)",
    "ALTER TABLE orders ADD COLUMN tax INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE orders ADD COLUMN tax INTEGER",
    "CREATE INDEX ix_total ON orders (total)",
    "INSERT INTO orders (note) VALUES ('DROP TABLE users')",
]


def test_what_may_hurt_is_warned_of(application: Application) -> None:
    found = warnings_of(application, *([statement] for statement in HURTING))
    for (statement, expected), warnings in zip(HURTING.items(), found, strict=True):
        assert any(expected in warning for warning in warnings), statement


def test_what_is_harmless_is_not(application: Application) -> None:
    assert warnings_of(application, *([statement] for statement in HARMLESS)) == [[]] * len(HARMLESS)


def test_several_statements_that_mysql_commits_are_warned_of(application: Application) -> None:
    two = ["CREATE TABLE t1 (id INTEGER)", "CREATE TABLE t2 (id INTEGER)"]
    rows = ["INSERT INTO users (id) VALUES (1)", "CREATE TABLE t3 (id INTEGER)"]
    alone = ["INSERT INTO users (id) VALUES (2)", "INSERT INTO users (id) VALUES (3)"]
    found = warnings_of(application, two, rows, alone)
    assert [["leaves the revision half applied" in warning for warning in one] for one in found] == [[True], [True], []]


def test_a_table_of_the_same_plan_may_be_changed_at_will(application: Application) -> None:
    made, changed = ["CREATE TABLE t1 (id INTEGER)"], ["ALTER TABLE t1 ADD COLUMN x INTEGER NOT NULL"]
    assert warnings_of(application, made, changed) == [[], []]


def test_a_failure_tells_what_was_applied_and_what_was_not(application: Application) -> None:
    application.add("a2", 'op.execute("CREATE TABLE t1 (id INTEGER)")', down="a1")
    three = ("CREATE TABLE t2 (id INTEGER)", "CREATE TABLE users (id INTEGER)", "CREATE TABLE t3 (id INTEGER)")
    application.add("a3", "\n".join(f"op.execute({one!r})" for one in three), down="a2")
    failed = application.call("upgrade")
    assert failed.returncode == 1
    report = json.loads(failed.stdout)["failure"]
    assert (report["revision"], report["file"]) == ("a3", "migrations/versions/a3.py")
    assert report["before"] == ["a1", "a2"]
    assert (report["applied"], report["failed"], report["missing"]) == ([three[0]], three[1], [three[2]])
    assert "table users already exists" in report["reason"]
    for statement in three:
        assert statement in failed.stderr
    assert "Traceback" not in failed.stderr


def test_rows_changed_before_a_failure_are_said_to_be_rolled_back(application: Application) -> None:
    up = 'op.execute("INSERT INTO users (id) VALUES (1)")\nop.execute("INSERT INTO nowhere VALUES (1)")'
    application.add("a2", up, down="a1")
    report = json.loads(application.call("upgrade").stdout)["failure"]
    assert (report["applied"], report["rolled_back"]) == ([], ["INSERT INTO users (id) VALUES (1)"])


def test_an_error_in_the_code_of_a_revision_is_reported_like_one_of_the_database(application: Application) -> None:
    application.add("a2", 'op.execute("CREATE TABLE t1 (id INTEGER)")\nraise ValueError("not today")', down="a1")
    report = json.loads(application.call("upgrade").stdout)["failure"]
    assert (report["reason"], report["failed"]) == ("ValueError: not today", None)
    assert report["applied"] == ["CREATE TABLE t1 (id INTEGER)"]


def mark_of(application: Application) -> dict[str, Any] | None:
    """Return the report of the mark in the database."""
    report: dict[str, Any] | None = application.result("interrupted")["interrupted"]
    return report


NOTE = json.dumps({"backup": "b1.sql.gz", "release": "r1", "host": "prod1", "at": 0})
THREE = ("CREATE TABLE t2 (id INTEGER)", "UPDATE users SET id = 1", "CREATE TABLE t3 (id INTEGER)")
# Not where its SQL is only shown.
KILLED = "import os\nimport signal\nif not op.get_context().as_sql:\n    os.kill(os.getpid(), signal.SIGKILL)"


def killed_in_a2(application: Application) -> None:
    """Kill an upgrade in its second revision, before the last of three statements."""
    executed = [f"op.execute({one!r})" for one in THREE]
    application.add("a2", "\n".join([*executed[:2], KILLED, executed[2]]), down="a1")
    application.add("a3", "pass", down="a2")
    assert application.call("upgrade", "--note", NOTE).returncode == -signal.SIGKILL


def test_a_killed_migration_is_reported_and_not_run_again(application: Application) -> None:
    killed_in_a2(application)
    for _ in range(2):
        again = application.call("upgrade")
        report = json.loads(again.stdout)["failure"]
        assert again.returncode == 1 and "revision a2 (Revision a2) was interrupted" in again.stderr
        assert (report["before"], report["after"], report["version"]) == (["a1"], ["a3"], "a1")
        assert (report["applied"], report["unknown"], report["rolled_back"]) == ([THREE[0]], [THREE[1]], [])
        assert (report["backup"], report["from"], report["to"]) == ("b1.sql.gz", "a1", "a2")
    assert application.result("plan")["interrupted"]["applied"] == [THREE[0]]
    assert application.call("downgrade", "base").returncode == 1
    application.result("stamp", "a2")
    assert mark_of(application) is None
    assert application.result("upgrade")["to"] == "a3"


def test_a_statement_that_was_running_is_reported_as_unknown(application: Application) -> None:
    up = "op.execute('UPDATE users SET id = 1')\nop.execute('CREATE TABLE t2 AS SELECT killed() AS id')"
    application.add("a2", up, down="a1")
    env = application.folder / "migrations/env.py"
    killing = "connection.connection.create_function('killed', 0, lambda: os.kill(os.getpid(), 9))"
    text = env.read_text().replace(
        "        context.configure(connection", f"        {killing}\n        context.configure(connection"
    )
    env.write_text(f"import os\n{text}")
    assert application.call("upgrade").returncode == -signal.SIGKILL
    report = mark_of(application)
    assert report and report["applied"] == report["rolled_back"] == []
    assert report["unknown"] == ["UPDATE users SET id = 1", "CREATE TABLE t2 AS SELECT killed() AS id"]


def test_a_migration_killed_at_a_whole_revision_leaves_nothing_to_decide(application: Application) -> None:
    """Before the first statement, and between two revisions."""
    application.add("a2", KILLED, down="a1")
    assert application.call("upgrade").returncode == -signal.SIGKILL
    assert mark_of(application) is None
    application.add("a2", "pass", down="a1")
    assert application.result("upgrade")["from"] == "a1"


def tables_of(application: Application) -> set[str]:
    with contextlib.closing(sqlite3.connect(application.folder / "test.db")) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.mark.parametrize("look", ["plan", "interrupted"])
def test_who_only_looks_takes_no_mark_of_a_migration_at_work(application: Application, look: str) -> None:
    """Its env.py need not hold a lock, and between two revisions its mark is like that of one that has ended."""
    looks = "import subprocess, sys\nif not op.get_context().as_sql:\n    subprocess.run({}, check=True)"
    command = [str(PYTHON), "-I", "-B", str(PROGRAM), look]
    application.add("a2", looks.format(command), down="a1")
    killed = "import os\nif not op.get_context().as_sql:\n    os.kill(os.getpid(), 9)"
    application.add("a3", f"op.execute({THREE[0]!r})\n{killed}", down="a2")
    assert application.call("upgrade").returncode == -signal.SIGKILL
    report = mark_of(application)
    assert report and (report["revision"], report["before"]) == ("a3", ["a1", "a2"])


def test_the_mark_of_a_migration_that_came_to_a_whole_revision_goes_with_the_next(application: Application) -> None:
    application.add("a2", KILLED, down="a1")
    assert application.call("upgrade").returncode == -signal.SIGKILL
    assert mark_of(application) is None and "waffle_iron_migration" in tables_of(application)
    application.add("a2", "pass", down="a1")
    application.result("upgrade")
    assert "waffle_iron_migration" not in tables_of(application)


def test_the_report_comes_also_to_code_that_does_not_have_the_revision(application: Application) -> None:
    """The release that migrated may be of a branch; the one that is deployed now knows nothing of it."""
    application.add("a2", "pass", down="a1")
    application.result("upgrade")
    application.add("a3", f"op.execute({THREE[0]!r})\n{KILLED}", down="a2")
    assert application.call("upgrade").returncode == -signal.SIGKILL
    for name in ("a2", "a3"):
        (application.folder / f"migrations/versions/{name}.py").unlink()
    plan = application.result("plan")
    assert (plan["interrupted"]["revision"], plan["pending"], plan["current"]) == ("a3", [], "a2")
    failed = application.call("upgrade")
    assert failed.returncode == 1 and json.loads(failed.stdout)["failure"]["revision"] == "a3"


def test_a_migration_that_ends_leaves_no_table(application: Application) -> None:
    application.result("upgrade")
    application.add("a2", 'op.execute("INSERT INTO nowhere VALUES (1)")', down="a1")
    report = json.loads(application.call("upgrade").stdout)["failure"]
    assert report["interrupted"] is False, "nothing of it is left"
    assert tables_of(application) == {"users", "alembic_version"}


def test_rows_that_a_revision_commits_itself_are_not_said_to_be_rolled_back(application: Application) -> None:
    up = 'op.execute("INSERT INTO users (id) VALUES (1)")\nop.get_bind().commit()\nraise ValueError("not today")'
    application.add("a2", up, down="a1")
    report = json.loads(application.call("upgrade").stdout)["failure"]
    assert (report["applied"], report["interrupted"]) == (["INSERT INTO users (id) VALUES (1)"], True)
    assert mark_of(application), "it would be inserted twice"


def test_nothing_is_executed_without_the_mark(application: Application) -> None:
    """As on a full disk."""
    application.result("upgrade")
    application.add("a2", 'op.execute("CREATE TABLE t1 (id INTEGER)")', down="a1")
    with contextlib.closing(sqlite3.connect(application.folder / "test.db")) as connection:
        connection.execute("CREATE VIEW waffle_iron_migration AS SELECT 1 AS backup WHERE 0")
        failed = application.call("upgrade")
        assert failed.returncode == 1
        assert not connection.execute("SELECT * FROM sqlite_master WHERE name = 't1'").fetchall()


def test_an_id_that_alembic_s_table_does_not_hold_is_a_problem(application: Application) -> None:
    name = "a" * 33
    application.add(name, "pass", down="a1")
    first, second = application.result("plan")["pending"]
    assert first["problems"] == []
    (problem,) = second["problems"]
    assert "33 characters" in problem and "holds 32" in problem


# --- the templates of `alembic init`, as they are ---


class Stock(Application):
    """An application with the `env.py` that Alembic wrote, in a folder of its own."""

    place = "backend/alembic"

    def __init__(self, folder: Path, template: str) -> None:
        self.folder, backend = folder, folder / "backend"
        backend.mkdir()
        command = [str(PYTHON), "-m", "alembic", "init", "--template", template, "alembic"]
        subprocess.run(command, cwd=backend, check=True, capture_output=True)
        driver = {"async": "sqlite+aiosqlite", "generic": "sqlite"}[template]
        # By themselves: else the mark, which is written on a connection of its own, would wait for the file.
        self.write("sqlalchemy.url", f"{driver}:///{folder}/test.db\nsqlalchemy.isolation_level = AUTOCOMMIT")
        self.state({"alembic": "backend/alembic.ini"})

    def write(self, key: str, value: str) -> None:
        ini = self.folder / "backend/alembic.ini"
        lines = ini.read_text().splitlines()
        ini.write_text("\n".join(f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines))

    def state(self, stated: dict[str, Any]) -> None:
        (self.folder / "release.json").write_text(json.dumps({"application": stated}))


@pytest.fixture(params=["generic", "async"])
def stock(request: pytest.FixtureRequest, tmp_path: Path) -> Stock:
    made = Stock(tmp_path, request.param)
    made.add("a1", USERS, back='op.drop_table("users")')
    return made


def test_the_templates_of_alembic_need_no_change(stock: Stock) -> None:
    stock.add("a2", 'op.execute("CREATE TABLE t1 (id INTEGER)")', down="a1", back='op.execute("DROP TABLE t1")')
    _, second = stock.result("plan")["pending"]
    assert second["statements"] == ["CREATE TABLE t1 (id INTEGER)"]
    assert stock.result("current") == {"revision": "base"}
    done = stock.result("upgrade")
    assert [(step["revision"], step["statements"]) for step in done["applied"]] == [("a1", 1), ("a2", 1)]
    assert stock.result("current") == stock.result("head") == {"revision": "a2"}
    assert stock.result("downgrade", "a1")["to"] == "a1"
    assert stock.result("stamp", "a2")["to"] == "a2"


def test_a_failure_in_a_template_of_alembic_is_reported_and_marked(stock: Stock) -> None:
    two = ("CREATE TABLE t1 (id INTEGER)", "CREATE TABLE users (id INTEGER)")
    stock.add("a2", "\n".join(f"op.execute({one!r})" for one in two), down="a1")
    report = json.loads(stock.call("upgrade").stdout)["failure"]
    assert (report["file"], report["applied"], report["failed"]) == ("backend/alembic/versions/a2.py", [two[0]], two[1])
    again = stock.call("upgrade")
    assert again.returncode == 1 and "revision a2 (Revision a2) failed" in again.stderr
    stock.result("stamp", "a2")
    assert stock.result("interrupted") == {"interrupted": None}


def test_an_engine_that_the_application_keeps_may_be_used_by_every_run(tmp_path: Path) -> None:
    """Its pool has connections of an event loop that has ended."""
    made = Stock(tmp_path, "async")
    made.add("a1", USERS)
    made.state({"alembic": "backend/alembic.ini", "folder": "src"})
    (tmp_path / "src").mkdir()
    (tmp_path / "src/store.py").write_text(
        "from sqlalchemy.ext.asyncio import create_async_engine\n"
        "from sqlalchemy.pool import AsyncAdaptedQueuePool\n"
        f"engine = create_async_engine('sqlite+aiosqlite:///{tmp_path}/test.db', isolation_level='AUTOCOMMIT',\n"
        "    poolclass=AsyncAdaptedQueuePool)\n"
    )
    (tmp_path / "backend/alembic/env.py").write_text(
        "import asyncio\nfrom alembic import context\nfrom store import engine\n"
        "def work(connection):\n    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n"
        "async def main():\n    async with engine.connect() as connection:\n        await connection.run_sync(work)\n"
        "asyncio.run(main())\n"
    )
    done = made.call("upgrade")
    assert done.returncode == 0 and json.loads(done.stdout)["to"] == "a1", done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("names", [{"url": "SHOP_URL"}, {"host": "DB_HOST", "port": "DB_PORT", "user": "DB_USER"}])
def test_an_address_in_alembic_ini_is_named_with_the_line_to_write(stock: Stock, names: dict[str, str]) -> None:
    stock.write("sqlalchemy.url", "driver://user:pass@localhost/dbname")
    stock.state({"alembic": "backend/alembic.ini", "database": names})
    refused = stock.call("plan")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "backend/alembic.ini has an address of a database of its own (sqlalchemy.url)" in refused.stderr
    assert 'config.set_main_option("sqlalchemy.url", ' in refused.stderr
    assert all(f'os.environ["{name}"]' in refused.stderr for name in names.values())
    # The line is true.
    line = next(line for line in refused.stderr.splitlines() if "set_main_option" in line and "os.environ" in line)
    if "url" in names:
        env = stock.folder / "backend/alembic/env.py"
        below = f"config = context.config\nimport os\n{line.strip()}\n"
        env.write_text(env.read_text().replace("config = context.config\n", below))
        assert "KeyError: 'SHOP_URL'" in stock.call("plan").stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nowhere", "add nowhere to the application's dependencies"),
        ("import os; os.environ['SHOP_URL']", "add 'SHOP_URL' to app_settings"),
    ],
)
def test_what_env_py_stumbles_over_is_named_with_its_place(application: Application, code: str, words: str) -> None:
    (application.folder / "migrations/env.py").write_text(f"\n{code}\n")
    refused = application.call("plan")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "env.py failed (migrations/env.py, line 2): " in refused.stderr and words in refused.stderr


def test_an_environment_without_alembic_is_named(application: Application) -> None:
    bare = application.folder / "bare"
    subprocess.run([str(PYTHON), "-m", "venv", "--without-pip", str(bare)], check=True)
    command = [str(bare / "bin/python"), "-I", "-B", str(PROGRAM), "plan"]
    refused = subprocess.run(command, cwd=application.folder, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "alembic is not among the packages of its lock file. Fix: add it" in refused.stderr


# --- merges ---


@pytest.fixture
def merged(application: Application) -> Application:
    """Return an application with two branches that were merged, each with a statement."""
    for name in ("b1", "b2"):
        up, back = f'op.execute("CREATE TABLE {name} (id INTEGER)")', f'op.execute("DROP TABLE {name}")'
        application.add(name, up, down="a1", back=back)
    application.add("m1", "pass", marks='down_revision = ("b1", "b2")\ncompatible = True')
    return application


def test_a_merge_goes_up_and_down(merged: Application) -> None:
    assert merged.result("upgrade")["to"] == "m1"
    assert merged.result("downgrade", "b1")["to"] == "b1", "and not the other branch beside it"
    assert merged.result("upgrade")["to"] == "m1"
    assert merged.result("downgrade", "base")["to"] is None


def test_the_other_branch_of_a_merge_counts_as_newer(merged: Application) -> None:
    merged.result("upgrade")
    assert merged.result("compatible", "b1", "m1") == {"compatible": False, "unmarked": ["b2"]}
    assert merged.result("compatible", "base", "a1") == {"compatible": False, "unmarked": ["a1"]}
    assert "a release on m1 takes the revision(s) b2, m1" in merged.call("compatible", "m1", "b1").stderr


def test_a_migration_that_fails_between_branches_goes_on_there(merged: Application) -> None:
    file = merged.folder / "migrations/versions/m1.py"
    whole = file.read_text()
    file.write_text(whole.replace("def upgrade():\n    pass", "def upgrade():\n    raise ValueError('not today')"))
    report = json.loads(merged.call("upgrade").stdout)["failure"]
    assert (report["revision"], report["version"], report["interrupted"]) == ("m1", "b1,b2", False)
    assert merged.result("plan")["current"] == "b1,b2"
    file.write_text(whole)
    assert merged.result("upgrade")["to"] == "m1"
    assert merged.result("stamp", "b1,b2")["to"] == "b1,b2"
    assert merged.result("stamp", "m1")["to"] == "m1"


def in_migrations(expression: str) -> Any:
    """Return the value of an expression in the program's module."""
    script = f"import json, sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\nimport migrations\n"
    done = subprocess.run(
        [str(PYTHON), "-B", "-c", f"{script}print(json.dumps({expression}))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_statements_that_the_account_may_not_run_are_problems() -> None:
    granted = [
        "GRANT USAGE ON *.* TO `shop`@`%`",
        "GRANT SELECT, INSERT, CREATE, ALTER, CREATE VIEW, TRIGGER ON `shop`.* TO `shop`@`%`",
    ]
    refused = {
        "CREATE TRIGGER t BEFORE INSERT ON users FOR EACH ROW SET NEW.id = 1": "log_bin_trust_function_creators",
        "CREATE DEFINER=`a`@`%` PROCEDURE p() SELECT 1": "CREATE ROUTINE",
        "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SELECT 1": "EVENT",
        "DROP TABLE users": "DROP",
        "CREATE UNIQUE INDEX i ON users (id)": "INDEX",
    }
    allowed = ["CREATE OR REPLACE VIEW v AS SELECT 1", "ALTER TABLE users ADD COLUMN x INT", "CREATE TABLE t (id INT)"]
    state = f"migrations.State(None, None, 32, migrations.privileges_in({granted!r}), True)"
    found = in_migrations(f"[{state}.problems('a', [one]) for one in {[*refused, *allowed]!r}]")
    for (statement, word), (problem,) in zip(refused.items(), found[: len(refused)], strict=True):
        assert word in problem and statement in problem
    assert found[len(refused) :] == [[], [], []]
    anything = ["GRANT ALL PRIVILEGES ON `shop`.* TO `shop`@`%`", "GRANT `role`@`%` TO `shop`@`%`"]
    assert in_migrations(f"[migrations.privileges_in([one]) for one in {anything!r}]") == [None, None]


def test_what_mysql_commits_by_itself() -> None:
    waits = ["UPDATE users SET id = 1", "SELECT 1", "SET SESSION sort_buffer_size = 1", "SAVEPOINT a"]
    commits = ["ALTER TABLE users ADD COLUMN x INT", "LOCK TABLES users WRITE", "CALL p()", "COMMIT"]
    commits += ["SET autocommit = 1", "SET @@session.autocommit = 1"]
    assert in_migrations(f"[migrations.commits(one) for one in {waits + commits!r}]") == [False] * 4 + [True] * 6


def test_the_programs_mean_the_same_table() -> None:
    assert in_migrations("migrations.Mark.TABLE.name") == module_at("roles/app/files/database.py").MARK_TABLE


@pytest.mark.parametrize(
    ("code", "words", "shown"),
    [
        (
            1062,
            "Duplicate entry 'o'neil@example.com' for key 'users.name'",
            "Duplicate entry '...' for key 'users.name'",
        ),
        (1292, "Truncated incorrect DOUBLE value: 'o'neil'", "Truncated incorrect DOUBLE value: '...'"),
        (1060, "Duplicate column name 'nick'", "Duplicate column name 'nick'"),
    ],
)
def test_the_database_s_words_are_shown_without_values(code: int, words: str, shown: str) -> None:
    script = (
        f"import sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        "import migrations\nfrom sqlalchemy.exc import DBAPIError\n"
        f"print(migrations.reason(DBAPIError('', None, Exception({code}, {words!r})), ''))"
    )
    done = subprocess.run([str(PYTHON), "-B", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"MySQL's error {code}: {shown}\n"
