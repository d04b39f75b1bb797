"""Dumps and loads the application's database, and exchanges it for another one, with the client's own programs.

The client is that of MySQL or of MariaDB. Host, account and password come from the option file `.mysql.cnf` of a
release, never from a command line.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

BLOCK_BYTES = 1 << 20
# For how long a restore waits for the transactions that are open, and requests wait behind it.
LOCK_SECONDS = 30
# For how long a backup waits for one that another host makes.
TURN_SECONDS = 3600
OPTIONS = (
    "--default-character-set=utf8mb4",
    "--max-allowed-packet=1G",  # then only the server's own limit counts
)
DUMP_OPTIONS = (
    *OPTIONS,
    "--single-transaction",
    "--quick",
    "--triggers",
    "--hex-blob",
    "--no-tablespaces",  # would take the privilege PROCESS
    "--skip-add-locks",
    # What only MySQL's client knows, and takes more than the account may: statistics of a server that has none, what
    # takes SUPER to restore, what is read from the server's own tables.
    "--loose-column-statistics=0",
    "--loose-set-gtid-purged=OFF",
    "--loose-masking-policies=0",
)
# A view that refers to something that is not there, which a failed migration leaves: it cannot be dumped.
BROKEN = "BROKEN VIEW"
# MySQL says so in the view's comment; in MariaDB it has no columns.
OBJECTS = """\
SELECT CASE WHEN table_type <> 'VIEW' THEN 'TABLE' WHEN table_comment = 'VIEW' AND table_name IN
(SELECT table_name FROM information_schema.columns WHERE table_schema = DATABASE()) THEN 'VIEW' ELSE 'BROKEN VIEW' END,
table_name FROM information_schema.tables WHERE table_schema = DATABASE()
UNION ALL SELECT 'TRIGGER', trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE()
UNION ALL SELECT routine_type, routine_name FROM information_schema.routines WHERE routine_schema = DATABASE()
UNION ALL SELECT 'EVENT', event_name FROM information_schema.events WHERE event_schema = DATABASE()"""
BYTES = "SELECT COALESCE(SUM(data_length), 0) FROM information_schema.tables WHERE table_schema = DATABASE()"
# Where Alembic keeps the revision, unless an env.py names another table.
VERSION_TABLE = "alembic_version"
REVISION = "SELECT version_num FROM alembic_version ORDER BY version_num"
# In the database from before a migration's first statement until its end is known (migrations.py).
MARK_TABLE = "waffle_iron_migration"
PINNED = "SELECT COALESCE(backup, '') FROM waffle_iron_migration"
# MariaDB's dump has values for generated columns, which MySQL refuses; each takes the word DEFAULT.
COLUMNS = """\
SELECT table_name, extra LIKE '%GENERATED%' AND extra NOT LIKE '%DEFAULT_GENERATED%' FROM information_schema.columns
WHERE table_schema = DATABASE() ORDER BY table_name, ordinal_position"""
INSERT = re.compile(rb"INSERT INTO `((?:[^`]|``)+)` VALUES$")
VALUE = re.compile(rb"'[^'\\]*(?:\\.[^'\\]*)*'|[^',]+", re.DOTALL)
# How a dump begins to create what has a definer. Only there is it looked for: never in rows or in a program's text.
DEFINER = re.compile(
    rb"(/\*!\d+ CREATE\*/ /\*!\d+ |CREATE |/\*!50013 )DEFINER=`(?:[^`]|``)+`@`(?:[^`]|``)*` ?", re.DOTALL
)
VIEW = b"/*!50001 CREATE ALGORITHM="
EVENT = re.compile(
    rb"(/\*!\d+ CREATE\*/ .*?EVENT `((?:[^`]|``)+)` ON SCHEDULE .+? ON COMPLETION (?:NOT )?PRESERVE )"
    rb"(ENABLE|DISABLE(?: ON \w+)?)",
    re.DOTALL,
)
WARNING = re.compile(r"^Warning: |\[Warning\]|Deprecated program name")
# What to do about an error, by what its text holds.
FIXES = {
    "ERROR 1044 ": "ansible-playbook playbooks/database.yml -l ENV, which grants what a backup and a restore take",
    "ERROR 1205 ": "end the transaction that is open (SHOW PROCESSLIST), or try again when fewer requests come",
    "ERROR 1227 ": "drop what the message names as the account that created it, which the migration account may not",
    "ERROR 1419 ": "set log_bin_trust_function_creators to 1 on the server (its parameter group on RDS)",
    "insufficient privileges to SHOW CREATE": "create the routine anew as the migration account, such as in a revision",
}


class BackupError(Exception):
    """A backup cannot be made or restored; the message says why and what to do."""


def program(*names: str) -> str:
    """Return the first of the programs that is installed.

    Raises:
        BackupError: none is.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    raise BackupError(f"neither {' nor '.join(names)} is installed: ansible-playbook playbooks/database.yml -l ENV")


@dataclass(frozen=True)
class Database:
    """A database on the server of an option file: the one that the file names, or another ``schema``."""

    option_file: Path
    schema: str = ""

    def client(self, *options: str) -> list[str]:
        """Return the command line of the client for scripts."""
        # In binary mode the client takes no commands of its own from a dump, such as one that starts a shell.
        fixed = (*OPTIONS, "--batch", "--skip-column-names", "--binary-mode", "--comments")
        named = (f"--database={self.schema}",) if self.schema else ()
        return [program("mariadb", "mysql"), f"--defaults-file={self.option_file}", *fixed, *named, *options]

    def dumper(self, *options: str) -> list[str]:
        """Return the command line of the client that dumps this database, without views that are broken."""
        name = self.name()
        left_out = [f"--ignore-table={name}.{view}" for view in self.objects().get(BROKEN, ())]
        command = [program("mariadb-dump", "mysqldump"), f"--defaults-file={self.option_file}"]
        return [*command, *DUMP_OPTIONS, *options, *left_out, name]

    def ask(self, statement: str) -> list[list[str]]:
        """Return the rows of a query, each a list of texts."""
        done = subprocess.run(
            [*self.client(), f"--execute={statement}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise BackupError(f"the database does not answer: {complaint(done.stderr)}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def name(self) -> str:
        """Return the name of the database."""
        return self.schema or named(self.option_file)

    def objects(self) -> dict[str, list[str]]:
        """Return the names of what is in the database, by `TABLE`, `VIEW`, `TRIGGER`, `FUNCTION` and so on."""
        found: dict[str, list[str]] = {"TABLE": [], "VIEW": []}
        for kind, name in self.ask(OBJECTS):
            found.setdefault(kind, []).append(name)
        return {kind: sorted(names) for kind, names in found.items()}

    def versions(self) -> list[str] | None:
        """Return the revisions in Alembic's table, several only between branches; None if there is no such table."""
        return [row[0] for row in self.ask(REVISION)] if VERSION_TABLE in self.objects()["TABLE"] else None

    def revision(self) -> str:
        """Return the schema's revision as a part of a file's name, `none` where there is none."""
        return re.sub(r"[^\w.-]", "_", "-".join(self.versions() or [])) or "none"

    def marked(self) -> bool:
        """Return True if a migration has not come to its end."""
        return MARK_TABLE in self.objects()["TABLE"]

    def pinned(self) -> str:
        """Return the backup from before a migration that has not come to its end, the way back from it; else empty."""
        rows = self.ask(PINNED) if self.marked() else []
        return rows[0][0] if rows else ""

    def row_bytes(self) -> int:
        """Return what the rows take in the server."""
        return int(self.ask(BYTES)[0][0])

    def generated(self) -> dict[bytes, list[bool]]:
        """Return for each table that has generated columns which of its columns they are."""
        found: dict[bytes, list[bool]] = {}
        for table, is_generated in self.ask(COLUMNS):
            found.setdefault(table.replace("`", "``").encode(), []).append(is_generated == "1")
        return {table: columns for table, columns in found.items() if any(columns)}

    def dump(self, path: Path) -> None:
        """Write a compressed dump to a new file that only root can read, and to the disk."""
        generated = self.generated()
        with (
            os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
            tempfile.TemporaryFile() as errors,
        ):
            with (
                subprocess.Popen(
                    self.dumper("--routines", "--events"),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                ) as process,
                gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, filename="") as stream,
            ):
                assert process.stdout is not None  # noqa: S101 (it is a pipe)
                if generated:
                    stream.writelines(without_generated(process.stdout, generated))
                else:
                    shutil.copyfileobj(process.stdout, stream, BLOCK_BYTES)
            if process.returncode != 0:
                errors.seek(0)
                raise BackupError(f"the dump failed: {complaint(errors.read().decode(errors='replace'))}")
            raw.flush()
            os.fsync(raw.fileno())

    def programs(self) -> bytes:
        """Return the statements that create the triggers, routines, events and views."""
        views = self.objects()["VIEW"]
        commands = [self.dumper("--routines", "--events", "--no-data", "--no-create-info", "--skip-dump-date")]
        if views:
            # After the functions that they use.
            commands.append([*self.dumper("--skip-triggers", "--no-data", "--skip-dump-date"), *views])
        found = b""
        for command in commands:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if done.returncode != 0:
                raise BackupError(f"the dump failed: {complaint(done.stderr.decode(errors='replace'))}")
            found += done.stdout
        return found

    def run(self, pieces: Iterable[bytes], *options: str) -> None:
        """Run statements, with more options of the client.

        Raises:
            BackupError: one failed; none after it was run.
        """
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(
                self.client(*options), stdin=subprocess.PIPE, stdout=errors, stderr=errors
            ) as process:
                assert process.stdin is not None  # noqa: S101 (it is a pipe)
                # A client that gives up closes the pipe; its exit code and words say why.
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.writelines(pieces)
            if process.returncode != 0:
                errors.seek(0)
                raise BackupError(complaint(errors.read().decode(errors="replace")))

    def load(self, path: Path) -> dict[bytes, bytes]:
        """Run the statements of a compressed dump; return the state of each event, which all are disabled here."""
        events: dict[bytes, bytes] = {}
        with gzip.open(path) as stream:
            self.run(portable(stream, events, "DISABLE"))
        return events

    def create(self, programs: bytes, events: Mapping[bytes, bytes]) -> None:
        """Create the triggers, routines, events and views of `programs`, the events with these states."""
        self.run(portable(io.BytesIO(programs), dict(events)))

    def beside(self, suffix: str) -> Database:
        """Return the database `NAME-suffix`, which may not exist."""
        # No preview has such a name: there, a dash becomes an underscore.
        return replace(self, schema=f"{self.name()}-{suffix}")

    @property
    def home(self) -> Database:
        """Return the database that the option file names."""
        return replace(self, schema="")

    def exists(self) -> bool:
        """Return True if there is such a database; without the account's grants, none is seen."""
        return [self.schema] in self.home.ask("SHOW DATABASES")

    def make(self) -> None:
        """Create this database anew and empty, with the character set of the option file's."""
        ((characters, collation),) = self.home.ask("SELECT @@character_set_database, @@collation_database")
        self.drop()
        made = f"CREATE DATABASE {quoted(self.schema)} CHARACTER SET {characters} COLLATE {collation};\n"
        self.home.run([made.encode()])

    def drop(self) -> None:
        """Drop this database, which must be one beside that of the option file."""
        self.home.run([f"DROP DATABASE IF EXISTS {quoted(self.schema)};\n".encode()])

    def exchange(self, new: Database, old: Database) -> None:
        """Move the tables of this database to `old` and those of `new` here, all at once or none.

        Triggers, views, routines and events of this database are dropped, as none of them can be moved.

        Raises:
            BackupError: a table is in use for longer than `LOCK_SECONDS`; then nothing was changed.
        """
        here, mine, theirs = self.name(), self.objects(), new.objects()
        moves = [(table_in(here, name), table_in(old.name(), name)) for name in mine["TABLE"]]
        moves += [(table_in(new.name(), name), table_in(here, name)) for name in theirs["TABLE"]]
        lock = [f"LOCK TABLES {', '.join(f'{table} WRITE' for table, _ in moves)}"] if moves else []
        # MySQL renames what is locked. In MariaDB the locks end before, and a request may get in between.
        unlock = ["UNLOCK TABLES"] if lock and "MariaDB" in self.ask("SELECT VERSION()")[0][0] else []
        rename = [f"RENAME TABLE {', '.join(f'{table} TO {target}' for table, target in moves)}"] if moves else []
        self.run(
            statements(
                [
                    f"SET SESSION lock_wait_timeout = {LOCK_SECONDS}, FOREIGN_KEY_CHECKS = 0",
                    # First what may fail: a table that is in use, a view that this account may not drop.
                    *lock,
                    "UNLOCK TABLES",
                    *drops(here, mine, but=("TABLE", "TRIGGER")),
                    *lock,
                    *drops(here, mine, only=("TRIGGER",)),
                    *drops(new.name(), theirs, only=("TRIGGER",)),
                    *unlock,
                    *rename,
                    "UNLOCK TABLES",
                ]
            )
        )

    def revert(self, programs: bytes) -> None:
        """Create the triggers, routines, events and views of `programs` in place of those that are there.

        Raises:
            BackupError: they are not the same.
        """
        if same(programs, self.programs()):
            return
        # One that cannot be dropped is still there.
        self.run(statements(drops(self.name(), self.objects(), but=("TABLE",))), "--force")
        self.run(portable(io.BytesIO(programs), {}), "--force")
        if not same(programs, self.programs()):
            raise BackupError("not all of its triggers, routines, events and views could be created again")

    @contextlib.contextmanager
    def turn(self, work: str = "backup", seconds: int = TURN_SECONDS) -> Iterator[None]:
        """Hold the lock in the server for a kind of work on this database; it ends with this process.

        Raises:
            BackupError: another process, of this host or another one, has it for longer than ``seconds``.
        """
        # GET_LOCK's names are the server's, so the database's name is in it, as far as they may be long.
        lock = f"{self.name()}-{work}"[-64:]
        wait = f"SET SESSION wait_timeout = 1000000; SELECT GET_LOCK('{lock}', {seconds});\n"
        with (
            tempfile.TemporaryFile() as errors,
            # Unbuffered, so that nothing is left to be written to a client that has ended.
            subprocess.Popen(
                self.client("--unbuffered"), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            ) as session,
        ):
            assert session.stdin is not None and session.stdout is not None  # noqa: S101 (they are pipes)
            with contextlib.suppress(BrokenPipeError):
                session.stdin.write(wait.encode())
            answer = session.stdout.readline().strip()
            if answer != b"1":
                errors.seek(0)
                busy = f"another run holds the lock {lock} in the database since more than {seconds} s"
                reason = busy if answer else complaint(errors.read().decode(errors="replace"))
                raise BackupError(f"a {work} cannot begin: {reason}")
            yield


@functools.cache
def named(option_file: Path) -> str:
    """Return the name of the database that an option file names."""
    return Database(option_file).ask("SELECT DATABASE()")[0][0]


def quoted(name: str) -> str:
    """Return a name as SQL takes it."""
    return f"`{name.replace('`', '``')}`"


def table_in(schema: str, name: str) -> str:
    """Return the full name of what is in a database, as SQL takes it."""
    return f"{quoted(schema)}.{quoted(name)}"


def drops(
    schema: str, objects: Mapping[str, list[str]], only: Iterable[str] = (), but: Iterable[str] = ()
) -> list[str]:
    """Return the statements that drop what is in a database, of `only` these kinds, or of all `but` these."""
    kinds = tuple(only) or tuple(kind for kind in objects if kind not in but)
    return [
        f"DROP {kind.removeprefix('BROKEN ')} IF EXISTS {table_in(schema, name)}"
        for kind in kinds
        for name in objects.get(kind, ())
    ]


def statements(script: Iterable[str]) -> list[bytes]:
    """Return statements as the client takes them."""
    return [f"{statement};\n".encode() for statement in script]


def same(programs: bytes, others: bytes) -> bool:
    """Return True if two dumps differ at most in their definers."""
    return list(portable(io.BytesIO(programs), {})) == list(portable(io.BytesIO(others), {}))


def portable(stream: IO[bytes] | gzip.GzipFile, events: dict[bytes, bytes], state: str = "") -> Iterator[bytes]:
    """Yield a dump so that any account may load it: what it creates gets that account as its definer.

    With a ``state``, every event gets it, and ``events`` the former one; else each gets the one in ``events``.
    """

    def switch(found: re.Match[bytes]) -> bytes:
        if state:
            events[found[2]] = found[3]
        return found[1] + (state.encode() or events.get(found[2], found[3]))

    previous = b""
    for piece in iter(lambda: stream.readline(BLOCK_BYTES), b""):
        first = previous.endswith(b";;\n") or previous.startswith(VIEW)
        previous = piece
        yield EVENT.sub(switch, DEFINER.sub(rb"\1", piece, count=1), count=1) if first else piece


def without_generated(lines: Iterable[bytes], generated: Mapping[bytes, list[bool]]) -> Iterator[bytes]:
    """Yield a dump with DEFAULT in place of each value of a generated column.

    Raises:
        BackupError: a row has not as many values as its table has columns.
    """
    columns: list[bool] = []
    for line in lines:
        if found := INSERT.match(line):
            columns = generated.get(found[1], [])
        elif columns and line.startswith(b"("):
            end = line.rindex(b")")
            values = VALUE.findall(line[1:end])
            if len(values) != len(columns):
                raise BackupError("the dump failed: a row of a table with generated columns cannot be read")
            kept = (b"DEFAULT" if is_generated else value for value, is_generated in zip(values, columns, strict=True))
            yield b"(" + b",".join(kept) + line[end:]
            continue
        else:
            columns = []
        yield line


def complaint(text: str) -> str:
    """Return what a client says of an error and how to fix it, without its warnings and without people's data."""
    lines = [line for line in text.strip().splitlines() if not WARNING.search(line)]
    said = re.sub(r"(Duplicate entry) '.*'(?= for key)", r"\1 '...'", "\n".join(lines[-10:])) or "no reason given"
    return "\n".join([said, *(f"Fix: {fix}" for mark, fix in FIXES.items() if mark in said)])
