#!/usr/bin/python3
"""Backs up the application's database to this host, lists the backups and restores one.

The configuration is the file `backup.json` beside this program. A backup is a compressed dump of all tables, views,
triggers, routines and events, `<folder>/<UTC time>-<schema revision>.sql.gz`, which only root can read. It is written
aside and gets its name when it is whole, on the disk, and was loaded into a scratch database; where a bucket is set, a
copy goes there. A restore loads the backup into the scratch database, and then exchanges the tables in one statement.

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
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basics import OPTION_FILE, locked, option_files, write_whole
from bucket import Bucket, BucketError
from database import BLOCK_BYTES, BROKEN, BackupError, Database

CONFIG = Path(__file__).resolve().with_suffix(".json")
NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[\w.+-]+\.sql\.gz")
# The dump's last line: without it the dump was cut off.
CLOSING_LINE = b"-- Dump completed"
SPARE_BYTES = 64 << 20
# Databases beside the application's: `NAME-restore` has a backup that is loaded to see that it loads, `NAME-replaced`
# what was there before while a restore takes its place. The second one exists only then.
SCRATCH, REPLACED = "restore", "replaced"
# Below the folder: the triggers, views, routines and events of what is in `NAME-replaced`.
REPLACED_PROGRAMS = ".replaced.sql"


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


def whole(path: Path) -> bool:
    """Return True if a backup can be read to its end and ends as a dump does."""
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
        files = option_files(self.config.root)
        if not files:
            raise BackupError(
                f"no release below {self.config.root}/releases has a {OPTION_FILE}: set app_backup_connection in "
                "group_vars/all/vars.yml, then: ansible-playbook playbooks/deploy.yml -l ENV"
            )
        return Database(files[0])

    @contextlib.contextmanager
    def alone(self, database: Database) -> Iterator[None]:
        """Hold a lock on this host and one in the server, which end with this process; make the folder if missing."""
        self.config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.config.folder / ".lock").open("w") as stream:
            if not locked(stream):
                raise BackupError("another backup or restore runs on this host; try again when it has ended")
            # With the lock held, a partial file belongs to nobody: its writer was killed.
            for leftover in self.config.folder.glob(".*.partial"):
                leftover.unlink()
            with database.turn():
                yield

    def create(self, option_file: Path | None) -> str | None:
        """Make a backup, remove the oldest beyond those to keep; return its name, None for an empty database.

        Raises:
            BackupError: it could not be made, or was not copied to the bucket.
        """
        database = Database(option_file) if option_file else self.database()
        with self.alone(database):
            self.refuse_interrupted(database)
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

    def write(self, database: Database, accepted: frozenset[str] = frozenset()) -> str | None:
        """Write a backup that was seen to load, or none; return its name, None for an empty database.

        What is of an ``accepted`` kind need not be in it.
        """
        if not any(database.objects().values()):
            return None
        # A compressed dump is well below half of what its rows take in the server.
        needed = database.row_bytes() // 2 + SPARE_BYTES
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
            self.prove(database, partial, accepted)
            partial.rename(self.config.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(self.config.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return name

    @contextlib.contextmanager
    def loaded(self, database: Database, path: Path) -> Iterator[tuple[Database, dict[bytes, bytes]]]:
        """Load a backup into the scratch database; yield that and the states of its events, and drop it at the end.

        Raises:
            BackupError: the backup does not load.
        """
        scratch = database.beside(SCRATCH)
        try:
            scratch.make()
            yield scratch, scratch.load(path)
        finally:
            # What cannot be dropped now is dropped by the next one; after a failed exchange it is still needed.
            with contextlib.suppress(BackupError):
                if not database.beside(REPLACED).exists():
                    scratch.drop()

    def prove(self, database: Database, path: Path, accepted: frozenset[str]) -> None:
        """Check that a new backup of a database can be restored, with all that is in it but the ``accepted`` kinds.

        Raises:
            BackupError: it cannot.
        """
        try:
            with self.loaded(database, path) as (scratch, _):
                wanted, found = database.objects(), scratch.objects()
        except BackupError as error:
            raise BackupError(f"the backup was not kept, as it could not be restored: {error}") from None
        # Not events: one that is over is not created again.
        missing = [
            f"{kind} {name}"
            for kind in wanted.keys() - {"EVENT"} - accepted
            for name in wanted[kind]
            if name not in found.get(kind, ())
        ]
        if missing:
            raise BackupError(
                f"the backup was not kept, as these would not be restored: {', '.join(sorted(missing))}. "
                "Fix: repair or drop them, then run the same command again"
            )

    def fetch(self, name: str) -> None:
        """Fetch a backup from the bucket to this host.

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
        path, database = self.config.folder / name, self.database()
        with self.alone(database):
            if name not in self.names():
                self.fetch(name)
            if not whole(path):
                raise BackupError(f"{path} is damaged: it was cut off. Nothing was changed; take another one")
            self.put_back(database)
            # A view that a failed migration broke must not keep people from going back.
            before = self.write(database, accepted=frozenset((BROKEN,)))
            self.replace(database, path)
        return before

    def replace(self, database: Database, path: Path) -> None:
        """Load a backup into the scratch database, then exchange it for what is in the database.

        While `NAME-replaced` exists, the exchange has begun and not ended; `put_back` undoes it.

        Raises:
            BackupError: the backup could not be restored.
        """
        replaced, programs = database.beside(REPLACED), self.config.folder / REPLACED_PROGRAMS
        try:
            with self.loaded(database, path) as (scratch, events):
                if not scratch.objects()["TABLE"]:
                    raise BackupError("it has no table")
                created = scratch.programs()
                write_whole(programs, database.programs().decode())
                replaced.make()
                database.exchange(scratch, replaced)
                database.create(created, events)
                replaced.drop()
        except BackupError as error:
            self.put_back(database, error)
            raise BackupError(f"{path.name} was not restored, and the database is as it was: {error}") from None
        programs.unlink()

    def put_back(self, database: Database, reason: BackupError | None = None) -> None:
        """Undo a restore that did not end, if there is one: the database becomes what it was before.

        Raises:
            BackupError: the database is not as it was; with the ``reason`` of the failed restore.
        """
        scratch, replaced = database.beside(SCRATCH), database.beside(REPLACED)
        programs = self.config.folder / REPLACED_PROGRAMS
        try:
            if replaced.exists():
                # Before the exchange all tables of the backup are in the scratch database, after it none.
                if not scratch.objects()["TABLE"]:
                    database.exchange(replaced, scratch)
                # They are not here if another host was interrupted; then the tables alone come back.
                if programs.exists():
                    database.revert(programs.read_bytes())
                replaced.drop()
                scratch.drop()
        except BackupError as error:
            raise BackupError(
                f"a restore failed half-way: {reason or 'it was interrupted'}\n"
                f"The database could not be put back to what was there, now in `{REPLACED}` beside it: {error}\n"
                "Fix: run the same command again"
            ) from None
        programs.unlink(missing_ok=True)

    def refuse_interrupted(self, database: Database) -> None:
        """Check that no restore was interrupted.

        Raises:
            BackupError: one was.
        """
        if (replaced := database.beside(REPLACED)).exists():
            raise BackupError(
                f"no backup was made: a restore was interrupted, and what was there before is in `{replaced.schema}`. "
                "Fix: run the same restore again: ansible-playbook playbooks/restore.yml -l ENV -e backup=NAME"
            )


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
