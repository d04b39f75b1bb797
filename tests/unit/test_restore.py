"""A restore that fails or is interrupted at any of its steps, against a server played in memory."""

from __future__ import annotations

import contextlib
import copy
import gzip
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import module_at

program = module_at("roles/app/files/backup.py")
databases: Any = sys.modules["database"]

NAME = "20260101T000000.000Z-0001.sql.gz"
# Tables with their rows, views and procedures, of the database as it is and of the backup.
WAS = {"TABLE": {"users": "new", "extra": "1"}, "VIEW": {"names": ""}, "PROCEDURE": {"sum": ""}}
THEN = {"TABLE": {"users": "old", "gone": "2"}, "VIEW": {"titles": ""}, "PROCEDURE": {"sum": "other"}}


class Killed(BaseException):
    """The program was killed: nothing that it does any more has an effect."""


class Server:
    """A server that knows the statements of a restore, and stops it at one of its calls."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {"shop": copy.deepcopy(WAS)}
        self.calls = 0
        self.stop_at: int | None = None
        self.error: type[BaseException] = Killed
        self.dead = False

    def begin(self, stop_at: int) -> None:
        """Make the database as it was, and stop at a call."""
        self.schemas, self.calls, self.stop_at = {"shop": copy.deepcopy(WAS)}, 0, stop_at

    def call(self, work: Any) -> Any:
        """Do the work of a call, unless it is the one to be stopped."""
        self.calls += 1
        if self.dead or self.calls == self.stop_at:
            self.dead = self.error is Killed
            raise self.error("stopped")
        return work()

    def run(self, schema: str, script: str) -> None:
        """Run statements."""
        for line in script.splitlines():
            if found := re.match(r"(CREATE|DROP) DATABASE (?:IF EXISTS )?`(.+?)`", line):
                self.schemas.pop(found[2], None)
                if found[1] == "CREATE":
                    self.schemas[found[2]] = {"TABLE": {}, "VIEW": {}, "PROCEDURE": {}}
            elif found := re.match(r"DROP (\w+) IF EXISTS `(.+?)`\.`(.+?)`", line):
                self.schemas[found[2]][found[1]].pop(found[3], None)
            elif line.startswith("RENAME"):
                for here, name, there, target in re.findall(r"`(.+?)`\.`(.+?)` TO `(.+?)`\.`(.+?)`", line):
                    assert target not in self.schemas[there]["TABLE"]
                    self.schemas[there]["TABLE"][target] = self.schemas[here]["TABLE"].pop(name)
            elif found := re.match(r"CREATE (\w+) (\w+) AS (\w*);", line):
                assert found[2] not in self.schemas[schema][found[1]]
                self.schemas[schema][found[1]][found[2]] = found[3]

    def text(self, schema: str, kinds: Iterable[str]) -> bytes:
        """Return the statements that create what is in a database."""
        known = self.schemas[schema]
        return "".join(
            f"CREATE {kind} {name} AS {text};\n" for kind in kinds for name, text in known[kind].items()
        ).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    def name(self: Any) -> str:
        return self.schema or "shop"

    def ask(self: Any, statement: str) -> Any:
        def answer() -> list[list[str]]:
            if statement == "SHOW DATABASES":
                return [[each] for each in made.schemas]
            if statement == databases.OBJECTS:
                return [[kind, each] for kind, names in made.schemas[name(self)].items() for each in names]
            return [["0", "0"]] if "collation" in statement else [["0"]]

        return made.call(answer)

    def run(self: Any, pieces: Iterable[bytes], *_options: str) -> None:
        script = b"".join(pieces).decode()
        made.call(lambda: made.run(name(self), script))

    def dump(self: Any, path: Path) -> None:
        text = made.call(lambda: made.text(name(self), ("TABLE", "VIEW", "PROCEDURE")))
        path.write_bytes(gzip.compress(text + b"-- Dump completed\n"))

    def programs(self: Any) -> Any:
        return made.call(lambda: made.text(name(self), ("PROCEDURE", "VIEW")))

    @contextlib.contextmanager
    def turn(self: Any) -> Iterator[None]:
        yield

    for function in (name, ask, run, dump, programs, turn):
        monkeypatch.setattr(databases.Database, function.__name__, function)
    return made


@pytest.fixture
def backups(server: Server, tmp_path: Path) -> Any:
    (tmp_path / "srv/releases/r1").mkdir(parents=True)
    (tmp_path / "srv/releases/r1/.mysql.cnf").touch()
    (tmp_path / "backups").mkdir()
    then = Server()
    then.schemas["shop"] = THEN
    text = then.text("shop", ("TABLE", "VIEW", "PROCEDURE"))
    (tmp_path / "backups" / NAME).write_bytes(gzip.compress(text + b"-- Dump completed\n"))
    return program.Backups(program.Config("shop", tmp_path / "srv", tmp_path / "backups", 2))


def calls_of_a_restore(backups: Any, server: Server) -> int:
    """Restore without a fault; return how often the server was called."""
    backups.restore(NAME)
    assert server.schemas == {"shop": THEN}
    made, server.calls, server.schemas = server.calls, 0, {"shop": copy.deepcopy(WAS)}
    return made


def test_a_restore_that_is_killed_anywhere_is_completed_by_the_same_command(backups: Any, server: Server) -> None:
    for call in range(1, calls_of_a_restore(backups, server) + 1):
        server.begin(call)
        with pytest.raises(Killed):
            backups.restore(NAME)
        server.stop_at, server.dead = None, False
        before = backups.restore(NAME)
        assert server.schemas == {"shop": THEN}
        # What was there before is in a backup, also if the first run had got far.
        backups.restore(before)
        assert server.schemas in ({"shop": WAS}, {"shop": THEN})
        assert not list(backups.config.folder.glob(".*.sql"))


def test_a_restore_that_fails_anywhere_leaves_the_database_as_it_was(backups: Any, server: Server) -> None:
    server.error = program.BackupError
    for call in range(1, calls_of_a_restore(backups, server) + 1):
        server.begin(call)
        with contextlib.suppress(program.BackupError):
            backups.restore(NAME)
            # What could not be dropped at the end is dropped by the next one.
            assert server.schemas["shop"] == THEN
            continue
        assert server.schemas["shop"] == WAS, call
        assert "shop-replaced" not in server.schemas


def test_another_host_takes_over_where_one_was_lost_in_the_exchange(backups: Any, server: Server) -> None:
    for call in range(1, calls_of_a_restore(backups, server) + 1):
        server.begin(call)
        with pytest.raises(Killed):
            backups.restore(NAME)
        server.stop_at, server.dead = None, False
        (backups.config.folder / program.REPLACED_PROGRAMS).unlink(missing_ok=True)
        backups.restore(NAME)
        assert server.schemas == {"shop": THEN}


def test_a_backup_without_a_table_replaces_nothing(backups: Any, server: Server) -> None:
    (backups.config.folder / NAME).write_bytes(gzip.compress(b"CREATE VIEW alone AS ;\n-- Dump completed\n"))
    with pytest.raises(program.BackupError, match="was not restored, and the database is as it was: it has no table"):
        backups.restore(NAME)
    assert server.schemas == {"shop": WAS}


def test_the_last_restore_s_leftovers_do_not_disturb(backups: Any, server: Server) -> None:
    server.schemas["shop-restore"] = copy.deepcopy(WAS)
    backups.restore(NAME)
    assert server.schemas == {"shop": THEN}
