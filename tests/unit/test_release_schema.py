"""The schema of the database: backups, marks, plans."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.releases import (
    Account,
    DeployRequest,
    Progress,
    ReleaseError,
    Schema,
    SchemaChange,
    SchemaChanges,
    Systemd,
    Tables,
    activate,
    applies,
    deploy,
    put,
    release,
    runtimes,
    schema,
)


class Programs:
    """Plays migrations.py and backup.py, and keeps what they were asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        revision: dict[str, Any] = {"revision": "0002", "message": "Add", "compatible": False}
        self.pending = [{**revision, "statements": ["A"], "warnings": [], "problems": []}]
        self.failure: dict[str, Any] | None = None
        self.interrupted: dict[str, Any] | None = None
        self.notes: list[dict[str, Any]] = []
        self.killed = False
        self.folder = folder

    def run_in(self, _folder: Path, user: str, command: list[str], program: Path) -> subprocess.CompletedProcess[str]:
        assert (user, command[:3]) == ("nba-migrate", ["python", "-I", str(program)])
        assert program.name == "migrations.py"
        if "--note" in command:
            self.notes.append(json.loads(command.pop()))
            command.remove("--note")
        self.asked.append(" ".join(command[3:]))
        if command[3] == "plan":
            result: dict[str, Any] = {"current": "0001", "head": "0002", "pending": self.pending}
            return subprocess.CompletedProcess(command, 0, json.dumps({**result, "interrupted": self.interrupted}), "")
        if command[3] == "interrupted":
            return subprocess.CompletedProcess(command, 0, json.dumps({"interrupted": self.interrupted}), "")
        if self.killed:
            self.interrupted = HALF
            return subprocess.CompletedProcess(command, -9, "", "")
        if self.failure:
            return subprocess.CompletedProcess(
                command, 1, json.dumps({"failure": self.failure}), "revision 0002 failed"
            )
        result = {"from": "0001", "to": "0002", "applied": [{"revision": "0002"}]}
        return subprocess.CompletedProcess(command, 0, json.dumps(result), "")

    def run(self, *command: object, **_options: Any) -> subprocess.CompletedProcess[str]:
        assert [Path(str(part)).name for part in command[1:3]] == ["backup.py", "create"]
        self.asked.append("backup")
        return subprocess.CompletedProcess([], 0, '{"backup": "b1.sql.gz"}', "")


@pytest.fixture
def programs(host: Any, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = put(host, "r1")
    (folder / ".mysql.cnf").touch()
    (folder / "0002.py").write_text("broken")
    programs = Programs(folder)
    monkeypatch.setattr(runtimes.Venv, "run", programs.run_in)
    monkeypatch.setattr(schema, "run", programs.run)
    databases = schema.Database
    monkeypatch.setattr(databases, "marked", lambda database: programs.interrupted is not None)
    monkeypatch.setattr(databases, "name", lambda database: "shop")
    monkeypatch.setattr(databases, "turn", lambda database, work, seconds: contextlib.nullcontext())
    return programs


HALF = {"revision": "0002", "file": "0002.py", "from": "0001", "to": "0002", "applied": ["ALTER TABLE t ADD a INT"],
        "backup": "b1.sql.gz", "interrupted": True, "text": "revision 0002 failed"}  # fmt: skip


NOTHING = {**HALF, "applied": [], "interrupted": False}


def migrate(host: Any, backup: bool = True) -> Any:
    return Schema(host.releases, "r1").migrate(backup, host.log)


def test_a_backup_is_made_where_something_is_pending_and_only_there(host: Any, programs: Programs) -> None:
    assert migrate(host)["backup"] == "b1.sql.gz"
    assert programs.asked == ["plan", "backup", "upgrade"]
    programs.asked.clear()
    assert migrate(host, backup=False)["backup"] is None
    assert programs.asked == ["plan", "upgrade"]
    programs.asked.clear()
    programs.pending = []
    assert migrate(host) == {"backup": None, "from": "0001", "to": "0001", "applied": []}
    assert programs.asked == ["plan"]


def test_what_is_planned_is_known_also_of_a_migration_that_fails(host: Any, programs: Programs) -> None:
    planned = ["release r1", "the database is at 0001, this release wants 0002", "0002: Add", "    A;"]
    programs.failure = NOTHING
    with pytest.raises(ReleaseError):
        migrate(host)
    assert host.log.migration == {"plan": planned}
    programs.failure = None
    assert migrate(host) == {
        "plan": planned, "backup": "b1.sql.gz", "from": "0001", "to": "0002", "applied": [{"revision": "0002"}]
    }  # fmt: skip


def test_a_release_without_access_to_the_database_makes_no_backup(host: Any, programs: Programs) -> None:
    (programs.folder / ".mysql.cnf").unlink()
    assert migrate(host)["backup"] is None
    assert programs.asked == ["plan", "upgrade"]


def test_a_downgrade_comes_after_a_backup(host: Any, programs: Programs) -> None:
    assert Schema(host.releases, "r1").downgrade("0001", True)["backup"] == "b1.sql.gz"
    assert programs.asked == ["backup", "downgrade 0001"]


def test_a_half_applied_revision_names_the_ways_out(host: Any, programs: Programs) -> None:
    programs.failure = HALF
    with pytest.raises(ReleaseError, match="revision 0002 failed") as failed:
        migrate(host)
    assert "playbooks/restore.yml -l ENV -e backup=b1.sql.gz" in str(failed.value)
    assert "change 0002.py" in str(failed.value)
    assert "nba-release stamp r1 0002\n" in str(failed.value) and "nba-release stamp r1 0001\n" in str(failed.value)
    (note,) = programs.notes
    assert (note["backup"], note["release"]) == ("b1.sql.gz", "r1")


def test_a_mark_stops_whatever_changes_the_schema_and_nothing_is_backed_up(host: Any, programs: Programs) -> None:
    programs.interrupted = HALF
    schema = Schema(host.releases, "r1")
    for begin in (lambda: migrate(host), lambda: schema.downgrade("0001", True), schema.refuse_interrupted):
        with pytest.raises(ReleaseError, match=r"(?s)revision 0002 failed.*-e backup=b1\.sql\.gz"):
            begin()
    assert programs.asked == ["plan", "interrupted", "interrupted"]


def test_a_mark_stops_a_release_that_needs_no_migration(
    host: Any, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SchemaChanges, "has_schema_of", lambda host, release: True)
    host.schema.migrate("r1", True)
    assert programs.asked == [], "without a mark, Alembic is not started"
    programs.interrupted = HALF
    with pytest.raises(ReleaseError, match="No deploy, migration or rollback begins"):
        host.schema.migrate("r1", True)


def test_a_killed_migration_is_reported_at_once(host: Any, programs: Programs) -> None:
    programs.killed = True
    with pytest.raises(ReleaseError, match="stamp r1 0002"):
        migrate(host)


def test_what_would_fail_is_not_begun(host: Any, programs: Programs) -> None:
    programs.pending[0]["problems"] = ["refused without SUPER"]
    with pytest.raises(ReleaseError, match="0002: refused without SUPER"):
        migrate(host)
    assert programs.asked == ["plan"]


def test_the_mark_is_looked_for_with_a_password_that_the_database_takes(
    host: Any, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r2")
    (host.releases.folder("r2") / ".mysql.cnf").write_text("new")
    os.utime(programs.folder / ".mysql.cnf", (1, 1))
    asked: list[str] = []

    def name(database: Any) -> str:
        asked.append(database.option_file.parent.name)
        if len(asked) == 1:
            raise schema.BackupError("1045")
        return "shop"

    monkeypatch.setattr(schema.Database, "name", name)
    assert Schema(host.releases, "r1").interruption() is None
    assert asked == ["r2", "r1"]


def test_where_nothing_was_applied_the_next_run_tries_again(host: Any, programs: Programs) -> None:
    programs.failure = NOTHING
    with pytest.raises(ReleaseError, match="Nothing of revision 0002 was applied"):
        migrate(host)
    programs.failure = None
    assert migrate(host)["applied"]


def test_a_plan_is_shown_to_people_with_its_warnings() -> None:
    revision = {"revision": "0002", "message": "Add", "compatible": True, "statements": ["A", "B"], "warnings": ["w"]}
    assert schema.plan_lines("r1", {"current": None, "head": "0002", "pending": [revision]}) == [
        "release r1",
        "the database is at no revision, this release wants 0002",
        "0002: Add, older code works on it",
        "    A;",
        "    B;",
        "    WARNING: w",
    ]
    nothing = schema.plan_lines("r1", {"current": "1", "head": "1", "pending": []})
    assert nothing[-1] == "nothing is to be done"


def test_a_plan_of_an_application_without_migrations_says_so(host: Any) -> None:
    applies(put(host, "r1"), alembic="")
    plan = release.parser().parse_args(["plan", "--text", "r1"])
    assert "release r1 has no migrations (no alembic.ini)" in release.dispatch(host, plan)
    assert release.dispatch(host, release.parser().parse_args(["plan", "r1"]))["pending"] == []
    applies(host.releases.folder("r1"), alembic="", schema_command=["tables.sql"])
    assert "app_schema_command: tables.sql" in release.dispatch(host, plan)


def test_a_schema_command_runs_once_for_an_environment(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, bool]] = []

    def apply(tables: Any, backup: bool) -> dict[str, Any]:
        ran.append((tables.release, backup))
        return {"backup": "b1.sql.gz"}

    monkeypatch.setattr(Tables, "apply", apply)
    applies(put(host, "r1"), alembic="", schema_command=["tables.sql"])
    deploy(host, "r1")
    assert ran == [], "another host did it"
    put(host, "r2")
    applies(host.releases.folder("r2"), alembic="", schema_command=["tables.sql"])
    activate(host, DeployRequest("deploy", "r2", "me"), Progress(), SchemaChange(migrate=True))
    assert (ran, host.log.migration) == ([("r2", True)], {"backup": "b1.sql.gz"})


def test_a_release_that_cannot_sign_in_is_refused_before_its_database_is_touched(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(account: Any) -> None:
        raise ReleaseError(f"the release cannot sign in to its database as {account.user}")

    monkeypatch.setattr(Account, "sign_in", refuse)
    monkeypatch.setattr(SchemaChanges, "migrate", lambda *_: pytest.fail("it was touched"))
    applies(put(host, "r1"), database={"host": "DB_HOST", "user": "DB_USER"})
    (host.releases.folder("r1") / ".env").write_text("DB_HOST=db\nDB_USER=shop\n")
    with pytest.raises(ReleaseError, match="cannot sign in to its database as shop"):
        activate(host, DeployRequest("deploy", "r1", "me"), Progress(), SchemaChange(migrate=True))
    assert (host.releases.live, host.releases.state("r1")["state"]) == (None, "failed")


def test_a_release_whose_migration_fails_is_marked(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(schema: Any, backup: bool, log: Any) -> None:
        raise ReleaseError("revision 0002 failed")

    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    monkeypatch.setattr(Schema, "migrate", refuse)
    with pytest.raises(ReleaseError, match="revision 0002 failed"):
        activate(host, DeployRequest("deploy", "new", "me"), Progress(), SchemaChange(migrate=True))
    assert (host.releases.live.release, host.releases.state("new")["state"], systemd.active) == (
        "old",
        "failed",
        {"nba@blue.service", "nba@blue.socket"},
    )
