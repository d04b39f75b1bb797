"""The choice of a rollback: the release to go back to, and what becomes of the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from activation import Run
from application import Application
from basics import ReleaseError
from releases import Releases
from schema import Schema
from schema_changes import SchemaChanges

if TYPE_CHECKING:
    from messages import RollbackChoice


@dataclass(frozen=True)
class Rollback:
    """Chooses the release to go back to, and refuses one that the present schema does not fit."""

    releases: Releases
    activation: Run
    schema: SchemaChanges

    def target(self, wanted: str, schema: str) -> RollbackChoice:
        """Return the release to go back to, and the revision that the database has to go back to, if it has to.

        Args:
            wanted: a release, or nothing for the good one that was live before.
            schema: "keep" lets the old code run on a newer schema whose revisions are marked compatible; "downgrade"
                takes the schema back with it.

        Returns:
            ``release``, and ``downgrade``, which is empty if the schema stays.

        Raises:
            ReleaseError: there is none, it never was good, or its schema is another one and neither was asked for.
        """
        target = self.release(wanted)
        return {"release": target, "downgrade": self.downgrade(target, schema)}

    def release(self, wanted: str) -> str:
        """Return the release to go back to.

        Raises:
            ReleaseError: there is none, or the wanted one never was good, or is of an older version.
        """
        live = self.releases.live_release
        good = [name for name in self.releases.good() if name != live]
        if wanted in good and not Application.of(self.releases.folder(wanted)):
            raise ReleaseError(
                f"{wanted} was made by an older version of Waffle Iron, and cannot be gone back to. "
                "Fix: deploy its commit: ansible-playbook playbooks/deploy.yml -l ENV -e app_version=COMMIT"
            )
        good = [name for name in good if Application.of(self.releases.folder(name))]
        if not wanted and (unacknowledged := self.activation.unacknowledged("rollback")):
            # The same command again after an interruption: what it was for, not what it has just left.
            wanted, good = unacknowledged, self.releases.good()
        if not good or (wanted and wanted not in good):
            known = ", ".join(good) or "none"
            raise ReleaseError(
                f"{wanted or 'a previous release'} is not a release to go back to; good ones here: {known}"
            )
        return wanted or good[0]

    def downgrade(self, target: str, schema: str) -> str:
        """Return the revision that the database has to go back to for a release; empty if the schema stays.

        Raises:
            ReleaseError: a migration was interrupted, or the schemas differ and ``schema`` does not say what to do.
        """
        live = self.releases.live_release
        stated = [self.releases.application(name) for name in (live, target) if name]
        if target == live or not any(application.alembic for application in stated):
            return ""
        present = Schema(self.releases, self.schema.release_that_knows(live or target))
        # A run at work, which this may join, may be changing the schema just now.
        if self.releases.live and not self.activation.active():
            present.refuse_interrupted()
        if not self.releases.application(target).alembic:
            self.refuse_unknown_schema(target, schema)
            return ""
        # What the database has now, which a restore may have changed since the live release came.
        now = present.revision()
        then = str(self.releases.state(target).get("schema") or Schema(self.releases, target).head())
        if then == now:
            return ""
        if schema == "downgrade":
            return then
        marks = present.run("compatible", then, now)
        if schema == "keep" and marks["compatible"]:
            return ""
        ways = "-e schema=downgrade takes the schema back, after a backup; what only the new one holds is lost then"
        keep = (
            "-e schema=keep leaves it, since every revision between is marked compatible"
            if marks["compatible"]
            else f"it cannot be kept, since these are not marked compatible: {', '.join(marks['unmarked'])}"
        )
        raise ReleaseError(f"release {target} ran on schema {then}, and the database has {now}: {keep}; {ways}")

    def refuse_unknown_schema(self, target: str, schema: str) -> None:
        """Raise ReleaseError for a release without Alembic that would follow one with it, unless a person said so."""
        if schema == "keep":
            return
        live = self.releases.live_release
        raise ReleaseError(
            f"release {target} has no migrations (no alembic.ini), and {live} has: nobody knows whether the code of "
            f"{target} works on the schema that the database has now. Fix: if it does, -e schema=keep; else restore a "
            "backup from its time (playbooks/restore.yml) and use that option"
        )


def unchecked_schema(release: str, application: Application) -> list[str]:
    """Return the note that nobody compares the schema with a release that has a database and no Alembic."""
    if application.alembic or not (application.database or application.schema_command):
        return []
    return [
        f"release {release} has no migrations (no alembic.ini): whether its code works on the schema that the "
        "database has now was not checked"
    ]
