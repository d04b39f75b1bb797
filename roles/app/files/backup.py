#!/usr/bin/python3
"""Backs up the application's database to this host, lists the backups and restores one.

The configuration is the file `backup.json` beside this program. A backup is a compressed dump of all tables, views
and triggers, `<folder>/<UTC time>-<schema revision>.sql.gz`, which only root can read. It is written aside and gets its
name when it is whole and on the disk; where a bucket is set, a copy goes there. Host, account and password come from
the option file `.mysql.cnf` of a release, never from a command line.

Runs on Python 3.10 or newer, with nothing but its standard library, beside the client of MySQL or of MariaDB; a
bucket takes boto3.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basics import OPTION_FILE, locked
from bucket import Bucket, BucketError

CONFIG = Path(__file__).resolve().with_suffix(".json")
NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[\w.+-]+\.sql\.gz")
# The dump's last line: without it the dump was cut off.
CLOSING_LINE = b"-- Dump completed"
WARNING = re.compile(r"^Warning: |\[Warning\]|Deprecated program name")
SPARE_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
DUMP_OPTIONS = (
    "--single-transaction",
    "--quick",
    "--triggers",
    "--hex-blob",
    "--default-character-set=utf8mb4",
    "--no-tablespaces",  # would take the privilege PROCESS
    "--skip-add-locks",  # would take LOCK TABLES to restore
    # What only MySQL's client knows, and takes more than the account may: statistics of a server that has none, what
    # takes SUPER to restore, what is read from the server's own tables.
    "--loose-column-statistics=0",
    "--loose-set-gtid-purged=OFF",
    "--loose-masking-policies=0",
)
EMPTY = "SET SESSION FOREIGN_KEY_CHECKS = 0;\n"
OBJECTS = "SELECT table_type, table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
BYTES = "SELECT COALESCE(SUM(data_length), 0) FROM information_schema.tables WHERE table_schema = DATABASE()"
REVISION = "SELECT version_num FROM alembic_version ORDER BY version_num"

# In the database from before a migration's first statement until its end is known (migrations.py).
MARK_TABLE = "waffle_iron_migration"
PINNED = "SELECT COALESCE(backup, '') FROM waffle_iron_migration"


class BackupError(Exception):
    """A backup cannot be made or restored; the message says why and what to do."""


@dataclass(frozen=True)
class Config:
    """What the role tells this program."""

    name: str
    root: Path
    folder: Path
    keep: int
    bucket: Bucket | None = None

    @classmethod
    def load(cls) -> Config:
        """Read the file beside this program."""
        values = json.loads(CONFIG.read_text())
        bucket = Bucket(**values["bucket"]) if values["bucket"]["name"] else None
        return cls(values["name"], Path(values["root"]), Path(values["folder"]), int(values["keep"]), bucket)


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
    """The database that an option file names, through the client's own programs."""

    option_file: Path

    def client(self, *options: str) -> list[str]:
        """Return the command line of the client for scripts."""
        # In binary mode the client takes no commands of its own from a dump, such as one that starts a shell.
        fixed = ("--batch", "--skip-column-names", "--binary-mode", "--default-character-set=utf8mb4")
        return [program("mariadb", "mysql"), f"--defaults-file={self.option_file}", *fixed, *options]

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
        return self.ask("SELECT DATABASE()")[0][0]

    def objects(self) -> dict[str, list[str]]:
        """Return the names of what is in the database, by `TABLE` and `VIEW`."""
        found: dict[str, list[str]] = {"TABLE": [], "VIEW": []}
        for kind, name in self.ask(OBJECTS):
            found["VIEW" if "VIEW" in kind else "TABLE"].append(name)
        return found

    def revision(self) -> str:
        """Return the schema's revision, `none` where there is none."""
        tables = self.objects()["TABLE"]
        rows = self.ask(REVISION) if "alembic_version" in tables else []
        return re.sub(r"[^\w.-]", "_", "-".join(row[0] for row in rows)) or "none"

    def marked(self) -> bool:
        """Return True if a migration has not come to its end."""
        return MARK_TABLE in self.objects()["TABLE"]

    def pinned(self) -> str:
        """Return the backup from before a migration that has not come to its end, the way back from it; else empty."""
        rows = self.ask(PINNED) if self.marked() else []
        return rows[0][0] if rows else ""

    def dump(self, path: Path) -> None:
        """Write a compressed dump to a new file that only root can read, and to the disk."""
        command = [
            program("mariadb-dump", "mysqldump"),
            f"--defaults-file={self.option_file}",
            *DUMP_OPTIONS,
            self.name(),
        ]
        with (
            os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
            tempfile.TemporaryFile() as errors,
        ):
            with (
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
                gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, filename="") as stream,
            ):
                assert process.stdout is not None  # noqa: S101 (it is a pipe)
                shutil.copyfileobj(process.stdout, stream, BLOCK_BYTES)
            if process.returncode != 0:
                errors.seek(0)
                raise BackupError(f"the dump failed: {complaint(errors.read().decode(errors='replace'))}")
            raw.flush()
            os.fsync(raw.fileno())

    def empty(self) -> None:
        """Drop every table and view."""
        statements = [
            f"DROP {kind} IF EXISTS `{name.replace('`', '``')}`;\n"
            for kind in ("VIEW", "TABLE")
            for name in self.objects()[kind]
        ]
        script = (EMPTY + "".join(statements)).encode()
        done = subprocess.run(self.client(), input=script, capture_output=True, check=False)
        if done.returncode != 0:
            raise BackupError(complaint(done.stderr.decode(errors="replace")))

    def load(self, path: Path) -> None:
        """Run the statements of a compressed dump."""
        with tempfile.TemporaryFile() as errors, gzip.open(path) as stream:
            with subprocess.Popen(self.client(), stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process:
                assert process.stdin is not None  # noqa: S101 (it is a pipe)
                # A client that gives up closes the pipe; its exit code and words say why.
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    shutil.copyfileobj(stream, process.stdin, BLOCK_BYTES)
            if process.returncode != 0:
                errors.seek(0)
                raise BackupError(complaint(errors.read().decode(errors="replace")))


def complaint(text: str) -> str:
    """Return what a client says of an error, without its warnings and without people's data."""
    lines = [line for line in text.strip().splitlines() if not WARNING.search(line)]
    return re.sub(r"(Duplicate entry) '.*'(?= for key)", r"\1 '...'", "\n".join(lines[-10:])) or "no reason given"


def whole(path: Path) -> bool:
    """Tell whether a backup can be read to its end and ends as a dump does."""
    tail = b""
    try:
        with gzip.open(path) as stream:
            while block := stream.read(BLOCK_BYTES):
                tail = (tail + block)[-4096:]
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False
    lines = tail.strip().splitlines()
    return bool(lines) and lines[-1].startswith(CLOSING_LINE)


@dataclass(frozen=True)
class Backups:
    """The backups of one application on this host."""

    config: Config

    def names(self) -> list[str]:
        """Return the names of the backups on this host, the newest first."""
        if not self.config.folder.is_dir():
            return []
        return sorted((path.name for path in self.config.folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)

    def away(self) -> dict[str, int]:
        """Return the sizes in bytes of the backups in the bucket, by their names; nothing without a bucket."""
        found = self.config.bucket.sizes() if self.config.bucket else {}
        return {name: size for name, size in found.items() if NAME.fullmatch(name)}

    def listing(self) -> list[str]:
        """Return a line for each backup, the newest first: name, size, and where it is if not on this host."""
        here = {name: (self.config.folder / name).stat().st_size for name in self.names()}
        return [
            f"{name}  {size / (1 << 20):.1f} MiB{'' if name in here else f'  {self.config.bucket}'}"
            for name, size in sorted({**self.away(), **here}.items(), reverse=True)
        ]

    def database(self) -> Database:
        """Return the database of the release prepared last, which has the newest password.

        Raises:
            BackupError: there is no release with an option file.
        """
        found = (self.config.root / "releases").glob(f"*/{OPTION_FILE}")
        files = sorted(found, key=lambda path: path.stat().st_mtime)
        if not files:
            raise BackupError(
                f"no release below {self.config.root}/releases has a {OPTION_FILE}: set app_backup_connection in "
                "group_vars/all/vars.yml, then: ansible-playbook playbooks/deploy.yml -l ENV"
            )
        return Database(files[-1])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock that ends with this process; make the folder where it is missing."""
        self.config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.config.folder / ".lock").open("w") as stream:
            if not locked(stream):
                raise BackupError("another backup or restore runs on this host; try again when it has ended")
            # With the lock held, a partial file belongs to nobody: its writer was killed.
            for leftover in self.config.folder.glob(".*.partial"):
                leftover.unlink()
            yield

    def create(self, option_file: Path | None) -> str | None:
        """Make a backup, remove the oldest beyond those to keep; return its name, None for an empty database.

        Raises:
            BackupError: it could not be made, or was not copied to the bucket.
        """
        with self.alone():
            database = Database(option_file) if option_file else self.database()
            name = self.write(database)
            if name and self.config.bucket:
                try:
                    self.config.bucket.put(self.config.folder / name)
                except BucketError as error:
                    raise BackupError(f"the backup {name} is on this host alone: {error}") from None
            kept = {name, database.pinned()} if name else set()
            for old in self.names()[max(self.config.keep, 1) :] if name else []:
                # A clock that was ahead has left names that look newer than this one.
                if old not in kept:
                    (self.config.folder / old).unlink()
        return name

    def write(self, database: Database) -> str | None:
        """Write a backup whole or not at all; return its name, None for an empty database."""
        if not any(database.objects().values()):
            return None
        # A compressed dump is well below half of what its rows take in the server.
        needed = int(database.ask(BYTES)[0][0]) // 2 + SPARE_BYTES
        free = shutil.disk_usage(self.config.folder).free
        if free < needed:
            raise BackupError(
                f"a backup may need {needed >> 20} MiB below {self.config.folder}, where {free >> 20} MiB are free: "
                "free some space, or lower app_keep_backups in group_vars/all/vars.yml, then run the same command again"
            )
        now = datetime.datetime.now(datetime.timezone.utc)
        name = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z-{database.revision()}.sql.gz"
        partial = self.config.folder / f".{name}.partial"
        try:
            database.dump(partial)
            if not whole(partial):
                raise BackupError("the dump has no closing line: it was cut off. Run the same command again")
            partial.rename(self.config.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(self.config.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return name

    def fetch(self, name: str) -> None:
        """Bring a backup from the bucket to this host.

        Raises:
            BackupError: there is none of this name.
        """
        if self.config.bucket is None or name not in self.away():
            there = "\n  ".join(self.listing()) or "none"
            raise BackupError(f"{name} is not a backup on this host; there are:\n  {there}")
        partial = self.config.folder / f".{name}.partial"
        try:
            self.config.bucket.fetch(name, partial)
            partial.rename(self.config.folder / name)
        finally:
            partial.unlink(missing_ok=True)

    def restore(self, name: str) -> str | None:
        """Replace what is in the database by a backup; return the backup made of it before.

        Raises:
            BackupError: there is no such backup, it is damaged, or it could not be loaded.
        """
        path = self.config.folder / name
        with self.alone():
            if name not in self.names():
                self.fetch(name)
            if not whole(path):
                raise BackupError(f"{path} is damaged: it was cut off. Nothing was changed; take another one")
            database = self.database()
            before = self.write(database)
            try:
                database.empty()
                database.load(path)
            except BackupError as error:
                raise BackupError(
                    f"{name} was not restored, and the database is incomplete now: {error}\n"
                    "mend the cause and restore again, or go back to what was there: "
                    f"{self.config.name}-backup restore {before or name}"
                ) from None
        return before


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="backup", description=__doc__.splitlines()[0] if __doc__ else "")
    commands = top.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a backup and print its name as JSON")
    create.add_argument("--option-file", type=Path, help="instead of that of the release prepared last")
    commands.add_parser("list", help="print the backups, the newest first")
    commands.add_parser("restore", help="replace what is in the database by a backup").add_argument("name")
    return top


def dispatch(backups: Backups, options: argparse.Namespace) -> dict[str, Any] | list[str]:
    """Run one command; return what to print."""
    if options.command == "create":
        return {"backup": backups.create(options.option_file)}
    if options.command == "restore":
        return {"restored": options.name, "backup": backups.restore(options.name)}
    return backups.listing()


def main() -> int:
    """Parse, run, and turn a failure into one message."""
    os.umask(0o077)
    options = parser().parse_args()
    try:
        result = dispatch(Backups(Config.load()), options)
    except (BackupError, BucketError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(result) if isinstance(result, list) else json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
