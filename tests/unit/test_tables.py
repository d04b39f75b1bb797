"""The tables of an application without Alembic: when the command runs, what comes before, and what a failure says."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import module_at

module = module_at("roles/app/files/tables.py")
basics = sys.modules["basics"]
SQL = "CREATE TABLE IF NOT EXISTS players (id INT);\n"
# Plays the client: keeps its command line and what it read.
CLIENT = """#!/bin/sh
echo "$* as $(id -u)" >"$PLAY/argv"
cat >"$PLAY/read"
test ! -e "$PLAY/refuse" || { echo "Warning: deprecated" >&2; echo "ERROR 1064 (42000) at line 1: no" >&2; exit 1; }
"""


class Host:
    """A host with releases, one of them live, that records what ran."""

    def __init__(self, root: Path) -> None:
        self.config = SimpleNamespace(root=root, migration_user=pwd.getpwuid(os.getuid()).pw_name)
        self.live_release = ""
        self.ran: list[tuple[str, list[str]]] = []
        self.done = subprocess.CompletedProcess([], 0, "made", "")

    def folder(self, release: str) -> Path:
        folder: Path = self.config.root / "releases" / release
        return folder

    def facts(self, release: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(release) / "release.json").read_text())
        return found

    def runtime(self, folder: Path) -> Any:
        def run(_folder: Path, user: str, command: list[str]) -> subprocess.CompletedProcess[str]:
            self.ran.append((user, command))
            return self.done

        return SimpleNamespace(run=run)

    def put(self, release: str, command: list[str], artefact: str = "a", **files: str) -> Any:
        folder = self.folder(release)
        folder.mkdir(parents=True)
        stated = {"module": "main:app", "schema_command": command}
        (folder / "release.json").write_text(json.dumps({"artefact": artefact, "application": stated}))
        (folder / ".mysql.cnf").touch()
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        return module.Tables(self, release)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(module, "alone", lambda root: contextlib.nullcontext())
    monkeypatch.setattr(module, "back_up", lambda folder: f"{folder.name}.sql.gz")
    client = tmp_path / "bin/mariadb"
    client.parent.mkdir()
    client.write_text(CLIENT)
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PLAY", str(tmp_path))
    return made


def test_a_file_of_sql_is_applied_by_the_client_and_sends_no_file_of_the_host(host: Host, tmp_path: Path) -> None:
    made = host.put("r1", ["tables.sql"], tables_sql=SQL)
    done = made.apply(backup=True)
    assert done == {"plan": ["release r1", "app_schema_command: tables.sql"], "backup": "r1.sql.gz"}
    assert (tmp_path / "read").read_text() == SQL
    called = (tmp_path / "argv").read_text()
    assert "/r1/.mysql.cnf" in called and "--local-infile=0" in called and "--binary-mode" in called
    assert host.ran == []


def test_a_command_runs_in_the_release_as_the_migration_account(host: Host) -> None:
    host.put("r1", ["python", "tables.py"], tables_py="").apply(backup=True)
    assert host.ran == [(host.config.migration_user, ["python", "tables.py"])]


@pytest.mark.parametrize(
    ("command", "live", "changed"),
    [
        (["tables.sql"], {"tables_sql": SQL, "artefact": "other"}, False),
        (["tables.sql"], {"tables_sql": "CREATE TABLE t (id INT);\n"}, True),
        (["python", "-m", "club"], {"artefact": "a"}, False),
        (["python", "-m", "club"], {"artefact": "other"}, True),
    ],
)
def test_a_backup_comes_before_another_command_and_the_command_runs_each_time(
    host: Host, command: list[str], live: dict[str, str], changed: bool
) -> None:
    host.put("live", command, **live)
    made = host.put("r1", command, tables_sql=SQL)
    assert made.changed(), "nothing is live"
    host.live_release = "live"
    assert made.changed() is changed
    done = made.apply(backup=True)
    assert (done["backup"], bool(made.plan()["pending"])) == ("r1.sql.gz" if changed else None, changed)
    assert made.apply(backup=False)["backup"] is None


def test_a_failure_shows_the_error_without_what_was_printed(host: Host) -> None:
    host.done = subprocess.CompletedProcess([], 3, "made players", "OperationalError: no")
    with pytest.raises(basics.ReleaseError) as refused:
        host.put("r1", ["python", "tables.py"], tables_py="").apply(backup=True)
    text = str(refused.value)
    assert text.startswith("`python tables.py` (app_schema_command) exited with status 3:\nOperationalError: no\n")
    assert (
        "made players" not in text and "-e backup=r1.sql.gz" in text and "Fix: correct it, so that it can run" in text
    )


def test_a_failure_of_the_client_is_shown_without_its_warnings(host: Host, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(basics.ReleaseError, match=r"status 1:\nERROR 1064 \(42000\) at line 1: no\n"):
        host.put("r1", ["tables.sql"], tables_sql=SQL).apply(backup=False)


def test_a_file_outside_of_the_release_is_not_applied(host: Host, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    made = host.put("r1", ["tables.sql"])
    for place in (tmp_path / "secret", tmp_path / "nowhere"):
        (host.folder("r1") / "tables.sql").symlink_to(place)
        with pytest.raises(basics.ReleaseError, match=r"there is no file tables\.sql in the application"):
            made.apply(backup=False)
        (host.folder("r1") / "tables.sql").unlink()
    assert not (tmp_path / "read").exists()


def test_sql_without_access_to_a_database_says_what_to_set(host: Host) -> None:
    made = host.put("r1", ["tables.sql"], tables_sql=SQL)
    (host.folder("r1") / ".mysql.cnf").unlink()
    with pytest.raises(basics.ReleaseError, match="Fix: set app_backup_connection"):
        made.apply(backup=False)
