"""The database on the way of a deploy or a rollback: access, connections, migrations and a downgrade."""

from __future__ import annotations

import configparser
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from activation import Abandoned
from basics import OPTION_FILE, ReleaseError, digest_of, parsed, run
from connections import Account, Pool, Server, fit
from releases import Releases
from run_log import RunLog
from schema import Schema, recorded
from slots import Slot
from tables import Tables
from unconfirmed import Switch

if TYPE_CHECKING:
    from messages import Connections, Plan


@dataclass(frozen=True)
class SchemaChange:
    """What one host of an environment does to the database for all of them: up, down to a revision, or nothing.

    ``workers`` are those of all hosts, whose connections must fit the server; 0 leaves that out.
    """

    migrate: bool = False
    downgrade: str = ""
    backup: bool = True
    workers: int = 0


@dataclass(frozen=True)
class SchemaChanges:
    """What runs do to the database of the application, and what they ask of it."""

    releases: Releases
    log: RunLog

    # --- asking ---

    def revision(self, release: str) -> str | None:
        """Return the revision of the database of a release with Alembic; None if it is not known.

        Without a start of Alembic, and for records alone: a database that does not answer stops no run here.
        """
        if not self.releases.application(release).alembic:
            return None
        with contextlib.suppress(ReleaseError):
            return recorded(self.releases.config.root)
        return None

    def plan(self, release: str) -> Plan | None:
        """Return what a release would do to the schema; None if it has neither Alembic nor a schema command."""
        stated = self.releases.application(release)
        if stated.alembic:
            return Schema(self.releases, release).plan()
        return Tables(self.releases, release).plan() if stated.schema_command else None

    def connections(self, release: str, workers: int) -> Connections:
        """Return whether the connections of all hosts fit the database server.

        Raises:
            ReleaseError: they do not; the message says which number to change.
        """
        folder, config = self.releases.folder(release), self.releases.config
        pool = Pool.of(folder, config.pool_settings)
        if pool is None or not (folder / OPTION_FILE).exists():
            return {"checked": False}
        return fit(pool, Server.ask(folder / OPTION_FILE, config.connection_reserve), workers)

    def release_that_knows(self, live: str) -> str:
        """Return a release that knows the database's revision: the live one, unless a rollback kept a later schema."""
        asked = [name for name in (live, *self.releases.ids()) if self.releases.application(name).alembic]
        revision = Schema(self.releases, asked[0]).revision() if asked else None
        knows = (name for name in asked if self.releases.state(name).get("schema") == revision)
        return next(knows, (asked or [live])[0])

    # --- changing ---

    def prepare_database(self, release: str, change: SchemaChange) -> None:
        """Check that the database takes a release's account and connections, and bring it to the release's schema.

        Raises:
            ReleaseError: it takes one of them not, or the migration failed.
        """
        stated = self.releases.application(release)
        if account := Account.of(self.releases.folder(release), stated.database):
            with self.log.step("sign in to the database"):
                account.sign_in()
        if change.workers:
            with self.log.step("see whether the connections fit"):
                self.connections(release, change.workers)
        if change.migrate:
            with self.log.step("migrate"):
                self.migrate(release, change.backup)

    def migrate(self, release: str, backup: bool) -> None:
        """Migrate the database to a release's schema, and insert the sample data if that changed something."""
        stated = self.releases.application(release)
        if stated.alembic:
            schema = Schema(self.releases, release)
            if self.has_schema_of(release):
                schema.refuse_interrupted()
            else:
                self.log.migration = schema.migrate(backup, self.log)
        elif stated.schema_command:
            self.log.migration = Tables(self.releases, release).apply(backup)
        if stated.seed_command and (self.log.migration.get("applied") or not self.releases.live):
            self.releases.execute(release, stated.seed_command)

    def has_schema_of(self, release: str) -> bool:
        """Return True if the database already has the schema that a release wants, without a start of Alembic.

        Starting Alembic takes a second, and most releases bring no migration.
        """
        live = self.releases.live
        wanted = self.migration_files(release)
        if not live or not wanted or self.migration_files(live.release) != wanted:
            return False
        schema = self.releases.state(live.release).get("schema")
        return bool(schema) and self.revision(release) == schema

    def migration_files(self, release: str) -> dict[str, str]:
        """Return the digest of each file of a release's migrations; nothing if only Alembic knows where they are."""
        ini = self.releases.folder(release) / self.releases.application(release).alembic
        settings = configparser.ConfigParser(defaults={"here": str(ini.parent)})
        try:
            settings.read(ini)
            if settings.has_option("alembic", "version_locations"):
                return {}  # anywhere, and separated by whatever else it states
            location = ini.parent / settings.get("alembic", "script_location")
        except configparser.Error:
            return {}
        return {str(path.relative_to(location)): digest_of(path) for path in sorted(location.rglob("*.py"))}

    @contextlib.contextmanager
    def downgraded(self, old: Slot, new: Slot, change: SchemaChange) -> Iterator[None]:
        """Take the schema back before a switch; if what follows fails, bring it forward for what goes on serving.

        Raises:
            ReleaseError: it cannot be taken back; or the block failed, and the message says where the schema is.
        """
        # Only a release that knows the schema knows the way down; the one that comes has shown that it can start.
        knows = self.release_that_knows(old.release)
        schema, unconfirmed = Schema(self.releases, knows), self.releases.unconfirmed
        unconfirmed.record(Switch(new.release, new.name, old.name, schema_of=knows))
        try:
            with self.log.step(f"downgrade to {change.downgrade}"):
                self.log.migration = schema.downgrade(change.downgrade, change.backup)
        except ReleaseError:
            # What it did is marked in the database, and a person decides.
            unconfirmed.clear()
            raise
        try:
            yield
        except (ReleaseError, OSError) as error:
            backup = self.log.migration.get("backup")
            held = f"; what only that held is in the backup {backup}" if backup else ""
            try:
                with self.log.step("bring the schema forward again"):
                    schema.change(["upgrade"], backup=False, made=backup)
                unconfirmed.clear()
            except (ReleaseError, OSError) as second:
                raise ReleaseError(
                    f"{error}\nThe schema is at {change.downgrade}, which is not that of {old.release}, and could not "
                    f"be brought forward again: {second}\nWhen that is repaired: playbooks/migrate.yml{held}"
                ) from None
            if isinstance(error, Abandoned):
                # The command that takes it back shows no reason of this host.
                self.log.notes.append(f"the schema was brought forward again{held}")
            kind = type(error) if isinstance(error, ReleaseError) else ReleaseError
            raise kind(f"{error}\nThe schema was brought forward again{held}") from None

    def restore(self, backup: str) -> None:
        """Put a backup in place of what is in the database, after a backup of that."""
        program = Path(__file__).resolve().with_name("backup.py")
        with self.log.step(f"restore {backup}"):
            self.log.migration = parsed(run(sys.executable, program, "restore", backup).stdout)
