"""The schema of the database on its way to that of a release: planned, backed up, changed, taken back.

Alembic itself runs in the release's own environment (migrations.py), as the migration account.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basics import OPTION_FILE, ReleaseError, option_files, parsed, run
from database import BackupError, Database
from records import release_redactor
from releases import Releases
from run_log import RunLog

if TYPE_CHECKING:
    from messages import Interrupted, Migration, MigrationPlan, Migrations, Note, Plan, Report

# Alembic's word for a database before the first revision.
BASE = "base"
# For how long a migration waits for another one of the same database.
LOCK_SECONDS = 60
NOTHING_PLANNED: Plan = {"current": None, "head": None, "pending": [], "interrupted": None, "stops": []}


@dataclass
class Schema:
    """The database's schema on its way to that of a release: planned, backed up, changed."""

    releases: Releases
    release: str

    def run(self, *arguments: str) -> Any:
        """Run migrations.py in the release, as the migration account, and return its result.

        Raises:
            MigrationFailed: a revision failed.
            AccessDenied: the database refused the account.
            ReleaseError: anything else.
        """
        folder, program = self.releases.folder(self.release), Path(__file__).resolve().with_name("migrations.py")
        if not folder.is_dir():
            known = f"`{self.releases.config.name}-release list` names those that are"
            raise ReleaseError(f"{self.release} is not on this host; {known}")
        # Isolated: nothing beside migrations.py is importable by the application's env.py.
        command = ["python", "-I", str(program), *arguments]
        done = self.releases.runtime(folder).run(folder, self.releases.config.migration_user, command, program)
        result = parsed(done.stdout)
        if done.returncode != 0:
            text = "\n".join(done.stderr.strip().splitlines()[-60:])
            text = text or f"migrations.py {arguments[0]} exited with status {done.returncode}"
            if "failure" in result:
                raise MigrationFailed(text, result["failure"])
            raise AccessDenied(text) if result.get("denied") else ReleaseError(text)
        return result

    def plan(self) -> Plan:
        """Return what the release would do to the database, and in words what keeps it from that."""
        plan: MigrationPlan = self.run("plan")
        report, pending = plan["interrupted"], plan["pending"]
        problems = [f"{one['revision']}: {why}" for one in pending for why in one["problems"]]
        return {
            "current": plan["current"],
            "head": plan["head"],
            "pending": [*pending],
            "interrupted": None,
            "stops": [self.ways_out(report)] if report else problems,
        }

    def migrate(self, backup: bool, log: RunLog) -> Migration:
        """Migrate the database to the release's revision, after a backup; return what was planned and done.

        The log has the plan before anything is done, so that it is known also of a migration that fails.
        """
        with alone(self.releases.config.root):
            plan = self.plan()
            if not plan["pending"] and not plan["stops"]:
                return {"backup": None, "from": plan["current"], "to": plan["current"], "applied": []}
            planned = release_redactor(self.releases.folder(self.release)).redact_all(plan_lines(self.release, plan))
            print("\n".join(planned), flush=True)
            log.migration = {"plan": planned}
            if plan["stops"]:
                raise ReleaseError("the migration was not begun:\n" + "\n".join(plan["stops"]))
            return {"plan": planned, **self.change(["upgrade"], backup)}

    def downgrade(self, revision: str, backup: bool) -> Migration:
        """Take the database back to an earlier revision of this release, after a backup; return what was done."""
        with alone(self.releases.config.root):
            self.refuse_interrupted()
            return self.change(["downgrade", revision], backup)

    def change(self, command: list[str], backup: bool, made: str | None = None) -> Migration:
        """Run migrations after a backup, or one ``made`` before; report what is left if they do not end well."""
        made = back_up(self.releases.folder(self.release)) if backup else made
        note: Note = {"backup": made, "release": self.release, "host": socket.gethostname(), "at": time.time()}
        try:
            done: Migration = self.run(*command, "--note", json.dumps(note))
            return {"backup": made, **done}
        except MigrationFailed as error:
            raise ReleaseError(self.ways_out(error.report)) from None
        except ReleaseError as error:
            # It may have been killed; where the database does not answer, the next run reports what it left.
            report = None
            with contextlib.suppress(ReleaseError):
                report = self.interruption()
            raise ReleaseError(f"{error}\n{self.ways_out(report)}") if report else error from None

    def revision(self) -> str:
        """Return the revision that the database is at, `base` for one without any.

        Alembic is started only if the revision is not in the table that is its custom.

        Raises:
            ReleaseError: it cannot be asked.
        """
        return recorded(self.releases.config.root) or str(self.run("current")["revision"])

    def head(self) -> str:
        """Return the revision that the release's own code wants, `base` for none."""
        return str(self.run("head")["revision"])

    def interruption(self) -> Report | None:
        """Return the report on a migration of the database that has not come to its end; None if there is none.

        Starting Alembic takes a second, so it is asked only if there is a mark, or no other way to look for one.
        """
        files = option_files(self.releases.config.root)
        if files and not has_mark(files):
            return None
        found: Interrupted = self.run("interrupted")
        return found["interrupted"]

    def refuse_interrupted(self) -> None:
        """Raise ReleaseError if a migration of the database has not come to its end."""
        if report := self.interruption():
            raise ReleaseError(self.ways_out(report))

    def ways_out(self, report: Report) -> str:
        """Return the report on a revision that failed or was interrupted, with what to do about it."""
        name, revision, before = self.releases.config.name, report["revision"], report["from"] or "base"
        if not report["interrupted"]:
            return (
                f"{report['text']}\nWhat was live before still is. Nothing of revision {revision} was applied. "
                "Fix: correct it, and run the same command again"
            )
        backup = report["backup"] or "NAME (the same command without -e backup lists them)"
        return (
            f"{report['text']}\n"
            "What was live before still is. No deploy, migration or rollback begins before one of these:\n"
            f"  back:    ansible-playbook playbooks/restore.yml -l ENV -e backup={backup}\n"
            "  forward: apply what is missing, as root on this host, and stamp the revision:\n"
            f"           mysql --defaults-file={self.releases.folder(self.release)}/{OPTION_FILE}\n"
            f"           {name}-release stamp {self.release} {report['to'] or 'base'}\n"
            f"  again:   undo what was applied, or change {report['file']} so that it skips what is there; then\n"
            f"           {name}-release stamp {self.release} {before}\n"
            "           and run the same command again"
        )


def accepted(files: list[Path]) -> Database:
    """Return the database by the first option file that it accepts.

    Raises:
        ReleaseError: it accepts none.
    """
    reason = ""
    # Passwords are few, and releases many.
    for file in {path.read_bytes(): path for path in files}.values():
        try:
            Database(file).name()
            return Database(file)
        except BackupError as error:
            reason = str(error)
    raise ReleaseError(
        f"the state of the schema is not known: {reason}. Fix: ansible-playbook playbooks/doctor.yml -l ENV"
    )


def has_mark(files: list[Path]) -> bool:
    """Return True if the database has the mark of a migration."""
    try:
        return accepted(files).marked()
    except BackupError as error:
        raise ReleaseError(f"the database cannot be asked whether a migration was interrupted: {error}") from None


def recorded(root: Path) -> str | None:
    """Return the revision in Alembic's table, `base` for none; None if there is no such table, or no access to it.

    Raises:
        ReleaseError: the database does not answer.
    """
    files = option_files(root)
    if not files:
        return None
    try:
        versions = accepted(files).versions()
    except BackupError as error:
        raise ReleaseError(str(error)) from None
    return None if versions is None else ",".join(versions) or BASE


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock of the migrations of the database: an `env.py` takes none by itself.

    Raises:
        ReleaseError: another run has it.
    """
    with contextlib.ExitStack() as stack:
        if files := option_files(root):
            try:
                stack.enter_context(accepted(files).turn("migration", LOCK_SECONDS))
            except BackupError as error:
                raise ReleaseError(f"{error}. Fix: wait for its end, and run the same command again") from None
        yield


def back_up(release: Path) -> str | None:
    """Make a backup of the database; return its name, None if there is nothing in it or no access was given."""
    option_file = release / OPTION_FILE
    if not option_file.exists():
        return None
    program = Path(__file__).resolve().with_name("backup.py")
    done = run(sys.executable, program, "create", "--option-file", option_file)
    made: str | None = json.loads(done.stdout)["backup"]
    return made


class AccessDenied(ReleaseError):
    """The database refused the migration account."""


class MigrationFailed(ReleaseError):
    """A revision failed; `report` is what migrations.py tells of it."""

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)
        self.report = report


def plan_lines(release: str, plan: Migrations) -> list[str]:
    """Return the plan of a release for people: revisions, their SQL, and warnings."""
    lines = [
        f"release {release}",
        f"the database is at {plan['current'] or 'no revision'}, this release wants {plan['head'] or 'none'}",
    ]
    if not plan["pending"]:
        lines.append("nothing is to be done")
    for revision in plan["pending"]:
        mark = ", older code works on it" if revision["compatible"] else ""
        lines.append(f"{revision['revision']}: {revision['message']}{mark}")
        lines += [f"    {statement};" for statement in revision["statements"]]
        lines += [f"    WARNING: {warning}" for warning in revision["warnings"]]
    lines += [f"WOULD STOP: {line}" for text in plan.get("stops", []) for line in text.splitlines()]
    return lines
