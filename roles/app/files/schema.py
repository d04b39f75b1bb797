"""The schema of the database on its way to that of a release: planned, backed up, changed, taken back.

Alembic itself runs in the release's own environment (migrations.py), as the migration account.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basics import HALF_APPLIED, OPTION_FILE, ReleaseError, digest_of, parsed, read_json, run, write_whole

if TYPE_CHECKING:
    from host import Host


@dataclass
class Schema:
    """The database's schema on its way to that of a release: planned, backed up, changed."""

    host: Host
    release: str

    @property
    def half_applied(self) -> Path:
        """Return the file that remembers a migration that failed half-way."""
        return self.host.config.root / HALF_APPLIED

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run migrations.py in the release, as the migration account, and return its result.

        Raises:
            MigrationFailed: a revision failed.
            ReleaseError: anything else.
        """
        folder, program = self.host.folder(self.release), Path(__file__).resolve().with_name("migrations.py")
        if not folder.is_dir():
            known = f"`{self.host.config.name}-release list` names those that are"
            raise ReleaseError(f"{self.release} is not on this host; {known}")
        # Isolated: nothing beside migrations.py is importable by the application's env.py.
        command = ["python", "-I", str(program), *arguments]
        done = self.host.runtime(folder).run(folder, self.host.config.migration_user, command, program)
        result = parsed(done.stdout)
        if done.returncode != 0:
            text = "\n".join(done.stderr.strip().splitlines()[-60:])
            raise MigrationFailed(text, result["failure"]) if "failure" in result else ReleaseError(text)
        return result

    def migrate(self, backup: bool) -> dict[str, Any]:
        """Bring the database to the release's revision, after a backup; return what was planned and done."""
        plan = self.run("plan")
        self.refuse_half_applied(plan["current"])
        if not plan["pending"]:
            return {"backup": None, "from": plan["current"], "to": plan["current"], "applied": []}
        # Before anything is done, in the log and in the receipt: so it is known also of a run that fails.
        planned = plan_lines(self.release, plan)
        print("\n".join(planned), flush=True)
        self.host.migration = {"plan": planned}
        return {**self.host.migration, **self.change(["upgrade"], backup)}

    def downgrade(self, revision: str, backup: bool) -> dict[str, Any]:
        """Take the database back to an earlier revision of this release, after a backup; return what was done."""
        self.refuse_half_applied(self.run("plan")["current"])
        return self.change(["downgrade", revision], backup)

    def change(self, command: list[str], backup: bool) -> dict[str, Any]:
        """Make a backup, then run migrations; remember one that failed half-way."""
        made = self.back_up() if backup else None
        try:
            result = self.run(*command)
        except MigrationFailed as error:
            text = f"{error}\n{self.ways_out(error.report, made)}"
            if error.report["applied"]:
                kept = {"text": text, "version": error.report["version"], "file": error.report["file"]}
                digest = digest_of(self.host.folder(self.release) / kept["file"])
                write_whole(self.half_applied, json.dumps({**kept, "digest": digest, "at": time.time()}, indent=1))
            raise ReleaseError(text) from None
        self.half_applied.unlink(missing_ok=True)
        return {"backup": made, **result}

    def back_up(self) -> str | None:
        """Make a backup of the database; return its name, None where there is nothing in it or no access was given."""
        option_file = self.host.folder(self.release) / OPTION_FILE
        if not option_file.exists():
            return None
        program = Path(__file__).resolve().with_name("backup.py")
        done = run(sys.executable, program, "create", "--option-file", option_file)
        made: str | None = json.loads(done.stdout)["backup"]
        return made

    def refuse_half_applied(self, current: str | None) -> None:
        """Stop where a revision is known to be half applied and nothing was done about it.

        Raises:
            ReleaseError: with the report of the run that failed.
        """
        known = read_json(self.half_applied)
        if not known:
            return
        file = self.host.folder(self.release) / known["file"]
        mended = not file.is_file() or digest_of(file) != known["digest"]
        if current == known["version"] and not mended:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(known["at"]))
            raise ReleaseError(
                f"a migration failed half-way at {at} UTC, and nothing was done about it since. It said:\n"
                f"{known['text']}\n"
                f"  undone by hand: rm {self.half_applied}, and run the same command again"
            )

    def ways_out(self, report: dict[str, Any], backup: str | None) -> str:
        """Return what to do about a revision that failed."""
        name, folder = self.host.config.name, self.host.folder(self.release)
        if not report["applied"] and not report["done_already"]:
            nothing = f"What was live before still is. Nothing of revision {report['revision']} was applied"
            return f"{nothing}: mend it, and run the same command again"
        restore = backup or "NAME (the same command without -e backup lists them)"
        return (
            "What was live before still is. There are two ways out:\n"
            f"  back:    ansible-playbook playbooks/restore.yml -l ENV -e backup={restore}\n"
            f"  forward: mend {report['file']} so that it also skips what is there, and run the same command again;\n"
            "           or make by hand what was not applied, and then say so, as root on this host:\n"
            f"           mysql --defaults-file={folder}/{OPTION_FILE}\n"
            f"           {name}-release stamp {self.release} {report['revision']}"
        )


class MigrationFailed(ReleaseError):
    """A revision failed; `report` is what migrations.py tells of it."""

    def __init__(self, text: str, report: dict[str, Any]) -> None:
        super().__init__(text)
        self.report = report


def plan_lines(release: str, plan: dict[str, Any]) -> list[str]:
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
    return lines
