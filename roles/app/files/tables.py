"""The tables of an application without Alembic: by a command of its own, or by a file of SQL (`app_schema_command`).

It runs at each deploy before the start, once for an environment, as the migration account and with its settings. So it
must be possible to run it again over what is there, such as `CREATE TABLE IF NOT EXISTS` does.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from application import Application
from basics import OPTION_FILE, ReleaseError, digest_of
from database import Database, complaint
from releases import Releases
from schema import NOTHING_PLANNED, alone, back_up

if TYPE_CHECKING:
    from messages import Migration, Plan, Revision

LINES_SHOWN = 25


@dataclass
class Tables:
    """The schema command of a release."""

    releases: Releases
    release: str

    @property
    def folder(self) -> Path:
        """Return the release's folder."""
        return self.releases.folder(self.release)

    @property
    def command(self) -> list[str]:
        """Return the command: a program of the release with its arguments, or the name of one file of SQL."""
        stated = Application.of(self.folder)
        return stated.schema_command if stated else []

    @property
    def words(self) -> str:
        """Return the command as a person would write it."""
        return " ".join(self.command)

    def digest(self) -> str:
        """Return a digest of the command and of the files that it names.

        If it names none, such as `python -m club.tables`, any file of the artefact may be what it runs.
        """
        files = [path for path in (self.folder / word for word in self.command) if path.is_file()]
        parts = [*self.command, *(digest_of(path) for path in files)]
        if not files:
            parts.append(str(self.releases.facts(self.release).get("artefact")))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def changed(self) -> bool:
        """Return True if the live release has another command, or other files of it, or if none is live."""
        live = self.releases.live_release
        return not live or Tables(self.releases, live).digest() != self.digest()

    def plan(self) -> Plan:
        """Return what would be done to the database, as schema.py returns it for Alembic."""
        step: Revision = {
            "revision": "app_schema_command",
            "message": self.words,
            "compatible": False,
            "statements": [],
            "warnings": ["what it does is not known before it runs"],
        }
        return {**NOTHING_PLANNED, "pending": [step] if self.changed() else []}

    def apply(self, backup: bool) -> Migration:
        """Run the command, after a backup if it is another one than that of the live release; return what was done.

        Raises:
            ReleaseError: it failed.
        """
        with alone(self.releases.config.root):
            made = back_up(self.folder) if backup and self.changed() else None
            done = self.run()
        if done.returncode == 0:
            return {"plan": [f"release {self.release}", f"app_schema_command: {self.words}"], "backup": made}
        said = complaint(done.stderr) if self.is_sql else done.stderr or done.stdout
        why = "\n".join(said.strip().splitlines()[-LINES_SHOWN:]) or "it said nothing"
        before = f"; its backup from before is {made}: playbooks/restore.yml -l ENV -e backup={made}" if made else ""
        raise ReleaseError(
            f"`{self.words}` (app_schema_command) exited with status {done.returncode}:\n{why}\n"
            f"What was live before still is; what the command did to the database stays{before}. "
            "Fix: correct it, so that it can run again over what is there, and run the same playbook again"
        )

    @property
    def is_sql(self) -> bool:
        """Return True if the command is a file of SQL."""
        return len(self.command) == 1 and self.command[0].endswith(".sql")

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the command as the migration account."""
        user = self.releases.config.migration_user
        if not self.is_sql:
            return self.releases.runtime(self.folder).run(self.folder, user, self.command)
        file, options = (self.folder / self.command[0]).resolve(), self.folder / OPTION_FILE
        if not file.is_relative_to(self.folder.resolve()) or not file.is_file():
            raise ReleaseError(
                f"there is no file {self.command[0]} in the application (app_schema_command). "
                "Fix: commit it, or name the one that creates the tables"
            )
        if not options.exists():
            raise ReleaseError(
                f"{self.command[0]} (app_schema_command) cannot be applied: the release has no access to a database. "
                "Fix: set app_backup_connection in group_vars/all/vars.yml"
            )
        account = pwd.getpwnam(user)
        with file.open("rb") as stream:
            # Not as root, and without the statements that send a file of the host to the server.
            return subprocess.run(
                Database(options).client("--local-infile=0"),
                check=False,
                stdin=stream,
                capture_output=True,
                text=True,
                errors="replace",
                user=user,
                group=account.pw_gid,
                extra_groups=os.getgrouplist(user, account.pw_gid),
            )
