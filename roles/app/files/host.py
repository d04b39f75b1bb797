"""The releases on this host: prepared, started, switched to, watched, taken back and cleaned up."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activation import Abandoned, DeployRequest, Progress, Run
from application import Application
from basics import (
    OPTION_FILE,
    ReleaseError,
    digest_of,
    locked,
    parsed,
    quarantine,
    read_json,
    replace_link,
    run,
    write_whole,
)
from bundle import Bundle
from connections import Account, Pool, Server, fit
from gate import Gate
from integrity import Integrity, exchange, in_words, unknown
from reasons import start_reason
from records import Records, release_redactor, settings_changed
from runtimes import KINDS, WORKERS, Runtime, runtime_of
from schema import AccessDenied, Schema, recorded
from serve import import_command, older, server_command, workers
from slots import SLOTS, Config, Slot, alive
from tables import Tables
from unconfirmed import Switch, Unconfirmed

RECENT_SECONDS = 3600
SAMPLES_KEPT = 40
# The live one, and the good one before it.
WAY_BACK = 2
# Longer than a release takes whose dependencies are there, and shorter than a person waits without a word.
SOON_SECONDS = 10.0
# What is assumed of a release from before releases stated their application.
BEFORE_IT_WAS_STATED = Application("", alembic="alembic.ini")


class Busy(ReleaseError):
    """Another run is at work on this host; neither of the two releases is to blame."""


@dataclass(frozen=True)
class SchemaChange:
    """What one host of an environment does to the database for all of them: up, down to a revision, or nothing.

    ``workers`` are those of all hosts, whose connections must fit the server; 0 leaves that out.
    """

    migrate: bool = False
    downgrade: str = ""
    backup: bool = True
    workers: int = 0


@dataclass
class Host:
    """The releases of one application on this host."""

    config: Config
    steps: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    migration: dict[str, Any] = field(default_factory=dict)

    # --- looking ---

    @property
    def activation(self) -> Run:
        """Return the run that may be changing the live release."""
        return Run(self.config.name, self.unconfirmed.path)

    @property
    def unconfirmed(self) -> Unconfirmed:
        """Return the record of a switch that is not confirmed."""
        return Unconfirmed(self.config.root)

    @property
    def records(self) -> Records:
        """Return what is kept of each run."""
        return Records(self.config.name, self.config.root)

    @property
    def integrity(self) -> Integrity:
        """Return what compares this host with what it was made to be."""
        return Integrity(self.config.root, self.config.user, self.config.migration_user)

    @property
    def runtimes(self) -> dict[str, Runtime]:
        """Return what releases can run in."""
        return {name: kind(self.config, self.integrity) for name, kind in KINDS.items()}

    def runtime(self, folder: Path) -> Runtime:
        """Return what the release in a folder runs in."""
        return self.runtimes[runtime_of(folder)]

    @property
    def live(self) -> Slot | None:
        """Return the slot that gets the public requests."""
        try:
            target = (self.config.root / "live").readlink()
        except OSError:
            return None
        return next((slot for slot in map(self.slot, SLOTS) if slot.folder == target), None)

    @property
    def live_release(self) -> str:
        """Return the id of the release that gets the public requests; empty where none does."""
        live = self.live
        return live.release if live else ""

    @property
    def idle(self) -> Slot:
        """Return the slot that gets none."""
        live = self.live
        return self.slot(SLOTS[1] if live and live.name == SLOTS[0] else SLOTS[0])

    def slot(self, name: str) -> Slot:
        """Return a slot by its name."""
        return Slot(self.config, name)

    def folder(self, release: str) -> Path:
        """Return the folder of a release."""
        return self.config.root / "releases" / release

    def state(self, release: str) -> dict[str, Any]:
        """Return what is known of a release."""
        return read_json(self.config.root / "state" / f"{release}.json")

    def update_state(self, release: str, **facts: Any) -> None:
        """Add facts to what is known of a release."""
        path = self.config.root / "state" / f"{release}.json"
        write_whole(path, json.dumps({**self.state(release), **facts}, indent=1) + "\n")

    def set_state(self, release: str, state: str, **facts: Any) -> None:
        """Set the state of a release: prepared, good or failed.

        What came last is told by ``turn``, a count, and not by the clock, which may have been wrong.
        """
        turns = [int(self.state(name).get("turn", 0)) for name in {*self.releases(), release}]
        self.update_state(release, state=state, at=time.time(), turn=max(turns) + 1, **facts)

    def forget(self, release: str) -> None:
        """Keep nothing of a release that is gone."""
        (self.config.root / "state" / f"{release}.json").unlink(missing_ok=True)
        self.integrity.forget(self.folder(release))

    def releases(self) -> list[str]:
        """Return the ids of all finished releases, the one used last first."""
        folder = self.config.root / "releases"
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        known = {name: self.state(name) for name in found}
        return sorted(found, key=lambda name: (known[name].get("turn", 0), known[name].get("at", 0)), reverse=True)

    def good(self) -> list[str]:
        """Return the ids of the releases that were live and well, the last one first."""
        return [name for name in self.releases() if self.state(name).get("state") == "good"]

    def problems(self, at_work: bool = False) -> list[str]:
        """Return what keeps the live release from being what it should be, in words.

        While another run is ``at_work`` the other slot may be in use, and systemd is told last what is enabled.
        """
        live = self.live
        if live is None:
            return ["no release is live"]
        if not (live.folder / "release" / ".env").is_file():
            return [f"the live slot {live.name} points to a release that is not there: {live.release or 'none'}"]
        found = self.service_problems(live, at_work)
        found += self.external_changes(live.release)
        if at_work:
            return found
        return found + self.incomplete_steps(live)

    def incomplete_steps(self, live: Slot) -> list[str]:
        """Return what a run leaves that was torn after its switch, in words."""
        found = []
        if switch := self.unconfirmed.read():
            name = self.config.name
            found.append(
                f"the switch to {switch.release} was not confirmed, and could not be undone: "
                f"journalctl -u {name}-release -u {name}-revert"
            )
        if self.idle.show("ActiveState").get("ActiveState") == "active" or "enabled" in self.idle.at_boot().values():
            found.append(f"{self.idle.service} still runs or is enabled, though it is not live")
        if self.state(live.release).get("state") != "good":
            found.append(f"the live release {live.release} is not recorded as a good one")
        good = self.good()
        if good and good[0] != live.release:
            found.append(f"the release {good[0]} was made live last, and {live.release} is live")
        return found

    def service_problems(self, live: Slot, at_work: bool) -> list[str]:
        """Return what is wrong with the units and the processes of the live slot, in words."""
        found = []
        shown = live.show("ActiveState", "NeedDaemonReload", "MainPID", "FragmentPath", "DropInPaths")
        found += [f"{unit} is {state}, not enabled" for unit, state in live.at_boot().items() if state != "enabled"]
        runtime = self.runtime(self.folder(live.release))
        if live.drop_in.is_symlink() != runtime.contained:
            found.append(f"{live.service} is not made for the {runtime.title} of {live.release}")
        if shown.get("NeedDaemonReload") == "yes" and not at_work:
            found.append(f"{live.service} was changed since systemd read it")
        if shown.get("ActiveState") != "active":
            found.append(f"{live.service} is {shown.get('ActiveState')}")
        elif not (live.folder / "socket").is_socket():
            found.append(f"the socket of {live.socket_unit} is gone")
        elif (answering := live.answering()) != live.release:
            found.append(f"{answering or 'nothing'} answers where {live.release} is live")
        return found + self.integrity.process_problems(live, shown)

    def external_changes(self, live: str) -> list[str]:
        """Return what somebody changed in releases and what they need, in words."""
        found = self.integrity.account_problems(self.folder(live))
        if changes := self.integrity.changes(self.folder(live)):
            found.append(f"release {live}: {in_words(changes)}")
        runtime = self.runtime(self.folder(live))
        if changes := runtime.changes(self.folder(live)):
            found.append(f"the {runtime.title} of {live}: {in_words(changes)}")
        for path in self.unusable(live):
            why = f": {in_words(changes)}" if (changes := self.integrity.changes(path)) else ""
            found.append(f"{path} is no release that could be gone back to{why}")
        return found

    def unusable(self, live: str) -> list[Path]:
        """Return what is no release, and those that somebody changed and nobody may go back to; never the live one."""
        folder = self.config.root / "releases"
        made = {name for name in self.releases() if self.state(name)}
        changed = {name for name in made - {live} if self.integrity.changes(self.folder(name))}
        return unknown(folder, made - changed | {live})

    def quarantine_unusable(self, live: str) -> None:
        """Move away what nobody may go back to; a release that only has attributes loses them and stays."""
        for path in self.unusable(live):
            self.integrity.clear(path)
        for path in self.unusable(live):
            quarantine(path)
            self.forget(path.name)

    def status(self) -> dict[str, Any]:
        """Return the live release, what is wrong with it, and the other releases."""
        live, running = self.live, self.activation.holder()
        return {
            "live": live.release if live else "",
            "slot": live.name if live else "",
            "problems": self.problems(at_work=bool(running)),
            "damaged": bool(live and live.release and self.integrity.changes(self.folder(live.release))),
            "running": running,
            "workers": self.workers(),
            # Keyed hashes: what a plan compares with those of the release that is to come.
            "settings": self.facts(live.release).get("settings", {}) if live else {},
            "releases": [{"id": name, **self.state(name)} for name in self.releases()],
            # Where the world finds it; an older release does not state it.
            **({"application": stated} if live and (stated := self.facts(live.release).get("application")) else {}),
        }

    def listing(self) -> list[str]:
        """Return a line for each release: id, state, when (UTC), schema, seconds, who, commit and its subject."""
        live = self.live_release
        lines = []
        for name in self.releases():
            known = self.state(name)
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(known.get("at", 0))))
            columns = (
                name,
                f"{'live' if name == live else known.get('state', 'unknown'):<10}",
                at,
                f"{known.get('schema') or '-':<12}",
                f"{float(known.get('seconds', 0)):5.1f} s",
                f"{known.get('by', '-'):<20}",
                f"{str(known.get('commit', ''))[:8]:<8}",
                str(known.get("subject", "")),
            )
            lines.append("  ".join(columns))
        return lines

    def rollback_target(self, wanted: str, schema: str) -> dict[str, str]:
        """Return the release to go back to, and the revision that the database has to go back to, if it has to.

        Args:
            wanted: a release, or nothing for the good one that was live before.
            schema: "keep" lets the old code run on a newer schema whose revisions are marked compatible; "downgrade"
                takes the schema back with it.

        Raises:
            ReleaseError: there is none, it never was good, or its schema is another one and neither was asked for.
        """
        live = self.live_release
        good = [name for name in self.good() if name != live]
        if wanted in good and not Application.of(self.folder(wanted)):
            raise ReleaseError(
                f"{wanted} was made by an older version of Waffle Iron, and cannot be gone back to. "
                "Fix: deploy its commit: ansible-playbook playbooks/deploy.yml -l ENV -e app_version=COMMIT"
            )
        good = [name for name in good if Application.of(self.folder(name))]
        if not wanted and (unacknowledged := self.activation.unacknowledged("rollback")):
            # The same command again after an interruption: what it was for, not what it has just left.
            wanted, good = unacknowledged, self.good()
        if not good or (wanted and wanted not in good):
            known = ", ".join(good) or "none"
            raise ReleaseError(
                f"{wanted or 'a previous release'} is not a release to go back to; good ones here: {known}"
            )
        target = wanted or good[0]
        if target == live:
            return {"release": target, "downgrade": ""}
        if not any(self.application(name).alembic for name in (live, target) if name):
            return {"release": target, "downgrade": ""}
        asked = Schema(self, self.knowing(live or target))
        # A run at work, which this may join, may be changing the schema just now.
        if self.live and not self.activation.active():
            asked.refuse_interrupted()
        if not self.application(target).alembic:
            self.refuse_unknown_schema(target, schema)
            return {"release": target, "downgrade": ""}
        # What the database has now, which a restore may have changed since the live release came.
        now, then = asked.revision(), str(self.state(target).get("schema") or Schema(self, target).head())
        if then == now:
            return {"release": target, "downgrade": ""}
        if schema == "downgrade":
            return {"release": target, "downgrade": then}
        marks = asked.run("compatible", then, now)
        if schema == "keep" and marks["compatible"]:
            return {"release": target, "downgrade": ""}
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
        live = self.live_release
        raise ReleaseError(
            f"release {target} has no migrations (no alembic.ini), and {live} has: nobody knows whether the code of "
            f"{target} works on the schema that the database has now. Fix: if it does, -e schema=keep; else restore a "
            "backup from its time (playbooks/restore.yml) and use that option"
        )

    def unguarded(self, release: str) -> list[str]:
        """Return the note that nobody compares the schema with a release that has a database and no Alembic."""
        stated = self.application(release)
        if stated.alembic or not (stated.database or stated.schema_command):
            return []
        return [
            f"release {release} has no migrations (no alembic.ini): whether its code works on the schema that the "
            "database has now was not checked"
        ]

    def application(self, release: str) -> Application:
        """Return what a release states about its application."""
        return Application.of(self.folder(release)) or BEFORE_IT_WAS_STATED

    def revision(self, release: str) -> str | None:
        """Return the revision of the database of a release with Alembic; None if it is not known.

        Without a start of Alembic, and for records alone: a database that does not answer stops no run here.
        """
        if not self.application(release).alembic:
            return None
        with contextlib.suppress(ReleaseError):
            return recorded(self.config.root)
        return None

    # --- preparing ---

    def prepare(self, release: str, bundle: Bundle, request: str = "", wait_seconds: float = math.inf) -> None:
        """Make ``releases/<id>`` of what was brought, whole or not at all.

        Args:
            release: its id.
            bundle: what was brought.
            request: who wants it and what for; the same request waits for itself, and finds it made.
            wait_seconds: how long to wait for another one.

        Raises:
            Busy: another one still prepares its release.
            ReleaseError: it cannot be made.
        """
        target = self.folder(release)
        with self.only_one_prepares(request, wait_seconds):
            # Looked at inside the lock: another run may have made it while this one waited.
            if target.is_dir():
                self.integrity.clear(target)  # what is immutable could not be replaced
                if not self.integrity.changes(target):
                    return
            begin = time.monotonic()
            with self.made_aside(release, bundle) as partial:
                if os.path.lexists(target):
                    # Somebody changed it: the same release once more takes its place, maybe under running requests.
                    exchange(partial, target)
                    self.integrity.record(target)
                    quarantine(partial)
                    return
                partial.rename(target)
            self.integrity.record(target)
            facts = {
                key: value for key, value in bundle.facts.items() if key not in ("release", "settings", "application")
            }
            self.set_state(release, "prepared", preparation=round(time.monotonic() - begin, 2), **facts)

    @contextlib.contextmanager
    def made_aside(self, release: str, bundle: Bundle) -> Iterator[Path]:
        """Make a release of what was brought, in a folder that is gone afterwards unless it was renamed."""
        service, migrator = self.config.user, self.config.migration_user
        partial = self.folder(f".{release}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            bundle.unpack(partial, {".env": service, ".env.migrate": migrator, OPTION_FILE: migrator})
            self.runtime(partial).make(partial)
            self.check_settings(partial)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def preview(self, release: str, bundle: Bundle, workers: int) -> dict[str, Any]:
        """Return what a release would do to the database, and leave nothing of it on this host.

        Args:
            release: the one that was brought; it may be here already.
            bundle: what was brought.
            workers: worker processes of all hosts of the environment.
        """
        with self.only_one_prepares(), contextlib.ExitStack() as stack:
            for runtime in self.runtimes.values():
                stack.enter_context(runtime.left_as_it_was())
            try:
                if self.folder(release).is_dir():
                    return self.dry_run(release, workers)
                with self.made_aside(release, bundle) as folder:
                    return self.dry_run(folder.name, workers)
            except AccessDenied as error:
                present = self.with_present_access(bundle)
                if present == bundle:
                    raise
                # The run itself gives the account its new password before it comes to the release.
                try:
                    with self.made_aside(release, present) as folder:
                        return self.dry_run(folder.name, workers)
                except AccessDenied:
                    raise error from None

    def with_present_access(self, bundle: Bundle) -> Bundle:
        """Return what was brought with the live release's access to the database as the migration account."""
        live = self.folder(self.live_release) if self.live_release else None
        paths = [live / name for name in (".env.migrate", OPTION_FILE)] if live else []
        present = {path.name: path.read_text() for path in paths if path.is_file()}
        return dataclasses.replace(bundle, files={**bundle.files, **present})

    def dry_run(self, release: str, workers: int) -> dict[str, Any]:
        """Return the migrations of a release, and whether its connections fit; each problem is a text."""
        migrations = self.schema_plan(release)
        try:
            return {"migrations": migrations, "connections": self.connections(release, workers)}
        except ReleaseError as error:
            return {"migrations": migrations, "connections": {"checked": True, "problem": str(error)}}

    def schema_plan(self, release: str) -> dict[str, Any] | None:
        """Return what a release would do to the schema; None if it has neither Alembic nor a schema command."""
        stated = self.application(release)
        if stated.alembic:
            return Schema(self, release).plan()
        return Tables(self, release).plan() if stated.schema_command else None

    def connections(self, release: str, workers: int) -> dict[str, Any]:
        """Return whether the connections of all hosts fit the database server.

        Raises:
            ReleaseError: they do not; the message says which number to change.
        """
        folder = self.folder(release)
        pool = Pool.of(folder, self.config.pool_settings)
        if pool is None or not (folder / OPTION_FILE).exists():
            return {"checked": False}
        return fit(pool, Server.ask(folder / OPTION_FILE, self.config.connection_reserve), workers)

    @contextlib.contextmanager
    def only_one_prepares(self, words: str = "", wait_seconds: float = math.inf) -> Iterator[None]:
        """Hold a lock that ends with this process.

        Args:
            words: the request that a release is prepared for, which the file of the lock then tells, and since when.
            wait_seconds: how long to wait for another request; whoever holds the lock without one is waited for.

        Raises:
            Busy: another request held it for all of that time, and for what is over soon.
        """
        deadline = time.monotonic() + wait_seconds + SOON_SECONDS
        with (self.config.root / "state" / ".prepare.lock").open("a+") as stream:
            while not locked(stream):
                stream.seek(0)
                holder = stream.read()
                if time.monotonic() > deadline and holder.partition(", since ")[0] not in ("", words):
                    raise Busy(
                        f"another run prepares a release on this host: {holder}.\n"
                        "Wait for it (-e app_lock_wait_seconds=120 does), and run the same command again"
                    )
                time.sleep(0.1)
            # On a full disk there is room for nothing, and those without words are to make some.
            stream.truncate(0)
            if words:
                stream.write(f"{words}, since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}")
                stream.flush()
            yield

    def renew_runtime(self, release: str) -> None:
        """Make anew what a release runs in, for all that share it."""
        folder = self.folder(release)
        with self.only_one_prepares(), self.step(f"make the {self.runtime(folder).title} anew"):
            others = [self.folder(name) for name in self.releases() if name != release]
            self.runtime(folder).renew(folder, [path for path in others if runtime_of(path) == runtime_of(folder)])

    def check_settings(self, folder: Path) -> None:
        """Check the release's ``.env`` with its own code."""
        application = Application.of(folder)
        if application is None:
            raise ReleaseError(older(folder.name))
        if command := application.settings_command:
            done = self.runtime(folder).run(folder, self.config.user, command)
            if done.returncode != 0:
                raise ReleaseError(
                    f"the application refuses its settings:\n{(done.stderr or done.stdout).strip()}\n"
                    "correct them in group_vars and run the same command again; nothing was switched"
                )
            return
        seconds = int(self.config.start_timeout_seconds)
        done = self.runtime(folder).run(folder, self.config.user, import_command(application, seconds), WORKERS)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            words = "\n".join(lines[-25:])
            raise ReleaseError(
                f"the application cannot be imported: {start_reason(done.stderr) or lines[-1]}\n{words}\n"
                "Nothing was switched"
            )

    def execute(self, release: str, command: list[str]) -> str:
        """Run a command of a release as its service account."""
        folder = self.folder(release)
        done = self.runtime(folder).run(folder, self.config.user, command)
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-40:])
        if done.returncode != 0:
            raise ReleaseError(
                f"`{' '.join(command)}` in release {release} exited with status {done.returncode}:\n{output}"
            )
        return output

    # --- activating ---

    def activate(self, request: DeployRequest, progress: Progress, change: SchemaChange = SchemaChange()) -> None:
        """Make a release live, by phases; where it fails, what was live before still is, or is again.

        Args:
            request: the release, and who wants it.
            progress: how far this may go by itself.
            change: what this host does to the database's schema on the way.

        Raises:
            ReleaseError: the release, its migrations or the public address refused.
            Abandoned: another host refused, or the one who began this is gone.
        """
        release, old, new = request.release, self.live, self.idle
        if old and old.release == release:
            self.finish_interrupted_deploy(old, progress)
            return
        if request.before and (not old or old.release != request.before):
            raise Abandoned(
                f"it was chosen when {request.before} was live, and {old.release if old else 'nothing'} is now: "
                "run the same command again"
            )
        folder = self.folder(release)
        if not folder.is_dir():
            raise ReleaseError(f"{release} is not on this host; `{self.config.name}-release list` names those that are")
        if request.kind == "rollback":
            self.notes += self.unguarded(release)
        try:
            self.meet_database(release, change)
        except ReleaseError:
            # One that was good before is not worse for what the database is like now.
            if not self.was_good(release):
                self.set_state(release, "failed")
            raise
        progress.checkpoint("migrated")
        if self.runtime(folder).changes(folder):
            self.renew_runtime(release)
        self.start(new, release, lasting=not self.was_good(release))
        with contextlib.ExitStack() as stack:
            try:
                progress.checkpoint("ready")
                if change.downgrade and old:
                    stack.enter_context(self.schema_taken_back(old, new, change))
                progress.checkpoint("downgraded")
            except (ReleaseError, OSError):
                new.stop()
                raise
            self.switch(old, new, release, progress)

    @contextlib.contextmanager
    def schema_taken_back(self, old: Slot, new: Slot, change: SchemaChange) -> Iterator[None]:
        """Take the schema back before a switch; where what follows fails, bring it forward for what goes on serving."""
        # Only a release that knows the schema knows the way down; the one that comes has shown that it can start.
        knowing = self.knowing(old.release)
        schema = Schema(self, knowing)
        self.unconfirmed.record(Switch(new.release, new.name, old.name, schema_of=knowing))
        try:
            with self.step(f"downgrade to {change.downgrade}"):
                self.migration = schema.downgrade(change.downgrade, change.backup)
        except ReleaseError:
            # What it did is marked in the database, and a person decides.
            self.unconfirmed.clear()
            raise
        try:
            yield
        except (ReleaseError, OSError) as error:
            backup = self.migration.get("backup")
            held = f"; what only that held is in the backup {backup}" if backup else ""
            try:
                with self.step("bring the schema forward again"):
                    schema.change(["upgrade"], backup=False, made=backup)
                self.unconfirmed.clear()
            except (ReleaseError, OSError) as second:
                raise ReleaseError(
                    f"{error}\nThe schema is at {change.downgrade}, which is not that of {old.release}, and could not "
                    f"be brought forward again: {second}\nWhen that is repaired: playbooks/migrate.yml{held}"
                ) from None
            if isinstance(error, Abandoned):
                # Whoever takes it back hears no reason of this host.
                self.notes.append(f"the schema was brought forward again{held}")
            kind = type(error) if isinstance(error, ReleaseError) else ReleaseError
            raise kind(f"{error}\nThe schema was brought forward again{held}") from None

    def knowing(self, live: str) -> str:
        """Return a release that knows the database's revision: the live one, unless a rollback kept a later schema."""
        asked = [name for name in (live, *self.releases()) if self.application(name).alembic]
        schema = Schema(self, asked[0]).revision() if asked else None
        return next((name for name in asked if self.state(name).get("schema") == schema), (asked or [live])[0])

    def start(self, slot: Slot, release: str, lasting: bool) -> None:
        """Start a release in an idle slot and wait until it is ready; on failure the live one is untouched.

        Args:
            slot: the idle one.
            release: one that is on this host.
            lasting: whether it has to show that it lasts; one that was good before already has.
        """
        with self.step("clear the idle slot"):
            if slot.show("ActiveState").get("ActiveState") != "inactive":
                slot.stop()
            replace_link(slot.folder / "release", self.folder(release))
            if slot.contain(self.runtime(self.folder(release)).contained):
                run("systemctl", "daemon-reload")
        try:
            with self.step(f"start {release} in {slot.name}"):
                run("systemctl", "start", slot.socket_unit, slot.service)
            with self.step("wait until it is ready"):
                self.gate(slot).await_ready(release)
            # Where nothing was live, there is nothing to keep.
            if self.live and lasting:
                with self.step("see whether it lasts"):
                    self.gate(slot).settle()
        except ReleaseError as error:
            reason, log = self.reason(slot, error), self.last_words(slot, release)
            slot.stop()
            if self.blames(release):
                self.set_state(release, "failed")
            raise ReleaseError(
                f"release {release} was refused, and what was live before still is: {reason}\n{log}"
            ) from None

    def reason(self, slot: Slot, error: ReleaseError) -> str:
        """Return why a release did not start: the exception that ended it comes before what was seen of that."""
        try:
            gone = not alive(slot.main())
            found = start_reason(slot.journal()) if gone else ""
        except (OSError, ReleaseError):
            found = ""
        return f"{found}\n({error})" if found else str(error)

    def was_good(self, release: str) -> bool:
        """Return True if a release was live and well, so that others may be to blame for what becomes of it now."""
        return bool(self.state(release).get("state") == "good")

    def blames(self, release: str) -> bool:
        """Return True if a release is to blame for not starting: no good one is, where the live one is not ready."""
        live = self.live
        return not self.was_good(release) or not live or self.gate(live).healthy()

    @staticmethod
    def still_answers(slot: Slot, release: str) -> bool:
        """Return True if a release answers on its socket; if that cannot be asked, the host has failed."""
        try:
            return alive(slot.main()) and slot.answering() == release
        except (OSError, ReleaseError):
            return True

    def last_words(self, slot: Slot, release: str) -> str:
        """Return the end of a slot's log for a person to read; what cannot be read keeps nothing from being undone."""
        try:
            return "the last lines of its log:\n" + release_redactor(self.folder(release)).redact(slot.journal())
        except (OSError, ReleaseError) as error:
            return f"its log cannot be read: {error}"

    def switch(self, old: Slot | None, new: Slot, release: str, progress: Progress) -> None:
        """Give the public requests to a started release, watch it, and stop the old one; on failure switch back."""
        link, good = self.config.root / "live", self.was_good(release)
        try:
            with self.step("switch"):
                # Enabled before it gets a request: a host that goes down in the middle comes back with it.
                new.enable()
                if not self.unconfirmed.read():
                    self.unconfirmed.record(Switch(release, new.name, old.name if old else ""))
                replace_link(link, new.folder)
            switched = time.monotonic()
            with self.step("watch the public address"):
                self.gate(new).watch(release, self.config.watch_seconds if old else 0)
            progress.checkpoint("switched")
            with self.step("confirm"):
                self.unconfirmed.clear()
            progress.checkpoint("confirmed", patient=True)
        except (ReleaseError, OSError) as error:
            refused = not isinstance(error, Abandoned)
            with self.switched_back(link, old, new):
                # A good one that answers on its own socket is not to blame: it is nginx, or a full disk.
                blamed = refused and not (good and self.still_answers(new, release))
                log = self.last_words(new, release) if refused else ""
            # The schema comes forward first, if it was taken back.
            if (switch := self.unconfirmed.read()) and not switch.schema_of:
                self.unconfirmed.clear()
            if blamed:
                self.set_state(release, "failed")
            kind = type(error) if isinstance(error, ReleaseError) else ReleaseError
            raise kind(f"switched back to {old.release if old else 'nothing'}: {error}\n{log}") from None
        self.finish(new, switched if old else None)

    def finish(self, live: Slot, switched: float | None = None) -> None:
        """Call the release good that was switched to, stop the other slot, and clean up.

        What fails here is no fault of the release, which serves: nobody is to go back for it.

        Args:
            live: the slot that was switched to.
            switched: when requests went from one slot to the other, by the monotonic clock; None for long ago.
        """
        release = live.release
        # Also where nothing was live: if somebody removed the link, the release that it led to still runs.
        left = self.idle
        try:
            self.mark_healthy(live)
        except OSError as error:
            self.notes.append(f"{release} is live, but that could not be kept: {error}. site.yml does it")
        try:
            with self.step(f"drain and stop {left.name}"):
                if switched is not None:
                    time.sleep(max(0.0, switched + self.config.drain_seconds - time.monotonic()))
                left.stop()
        except (ReleaseError, OSError) as error:
            self.notes.append(f"{release} is live, but {left.service} could not be stopped: {error}. site.yml stops it")
        try:
            self.clean_up()
        except (ReleaseError, OSError) as error:
            note = f"{release} is live, but old releases could not be removed: {error}. The next deploy removes them"
            self.notes.append(note)

    def finish_interrupted_deploy(self, live: Slot, progress: Progress) -> None:
        """Finish a deploy that was interrupted after its confirmation, as by a reboot of the host.

        Raises:
            ReleaseError: the live release is not ready.
            Abandoned: another host refused.
        """
        if self.incomplete_steps(live):
            progress.checkpoint("switched", patient=True)
            with self.step("wait until it is ready"):
                # After a reboot it may still be about to start.
                run("systemctl", "start", live.socket_unit, live.service)
                self.gate(live).await_ready(live.release)
            self.finish(live)

    def mark_healthy(self, slot: Slot) -> None:
        """Mark a slot's release as good, with the schema that the database had when it first was."""
        schema = self.state(slot.release).get("schema") or self.revision(slot.release)
        self.set_state(slot.release, "good", schema=schema)

    @contextlib.contextmanager
    def switched_back(self, link: Path, old: Slot | None, new: Slot) -> Iterator[None]:
        """Give the public requests back to the slot that had them, and, after the block, stop the one that is left."""
        with self.step("switch back"):
            back = old if old and link.readlink() != old.folder else None
            if back:
                replace_link(link, back.folder)
            elif not old:
                # A first release that does not answer must not look like a good one to the next run.
                link.unlink(missing_ok=True)
            yield
            if back:
                time.sleep(self.config.drain_seconds)
            new.stop()

    def revert(self, at_boot: bool = False) -> str:
        """Go back from a switch that was not confirmed; return the release that is left, or nothing.

        Args:
            at_boot: whether the host has just come up, so that no request is under way.

        Raises:
            ReleaseError: the slot that is left does not stop, or the schema could not be brought forward again.
        """
        switch = self.unconfirmed.read()
        if switch is None:
            return ""
        new = self.slot(switch.slot)
        with self.step(f"revert the switch to {switch.release}"):
            link = self.config.root / "live"
            switched = self.live is not None and self.live.name == new.name
            if switched and switch.previous:
                replace_link(link, self.slot(switch.previous).folder)
            elif switched:
                link.unlink()
            if switched and not at_boot:
                time.sleep(self.config.drain_seconds)
            new.stop()
            if switch.schema_of:
                Schema(self, switch.schema_of).change(["upgrade"], backup=False)
            self.unconfirmed.clear()
        return switch.release

    def meet_database(self, release: str, change: SchemaChange) -> None:
        """Check that the database takes a release's account and connections, and bring it to the release's schema."""
        if account := Account.of(self.folder(release), self.application(release).database):
            with self.step("sign in to the database"):
                account.sign_in()
        if change.workers:
            with self.step("see whether the connections fit"):
                self.connections(release, change.workers)
        if change.migrate:
            with self.step("migrate"):
                self.bring_schema(release, change.backup)

    def bring_schema(self, release: str, backup: bool) -> None:
        """Migrate the database to a release's schema, and insert the sample data if that changed something."""
        stated = self.application(release)
        if stated.alembic:
            schema = Schema(self, release)
            if self.has_schema_of(release):
                schema.refuse_interrupted()
            else:
                self.migration = schema.migrate(backup)
        elif stated.schema_command:
            self.migration = Tables(self, release).apply(backup)
        if stated.seed_command and (self.migration.get("applied") or not self.live):
            self.execute(release, stated.seed_command)

    def restore(self, backup: str) -> None:
        """Put a backup in place of what is in the database, after a backup of that."""
        program = Path(__file__).resolve().with_name("backup.py")
        with self.step(f"restore {backup}"):
            self.migration = parsed(run(sys.executable, program, "restore", backup).stdout)

    def has_schema_of(self, release: str) -> bool:
        """Return True if the database already has the schema that a release wants, without a start of Alembic.

        Starting Alembic takes a second, and most releases bring no migration.
        """
        live = self.live
        wanted = self.migrations_of(release)
        if not live or not wanted or self.migrations_of(live.release) != wanted:
            return False
        schema = self.state(live.release).get("schema")
        return bool(schema) and self.revision(release) == schema

    def migrations_of(self, release: str) -> dict[str, str]:
        """Return the digest of each file of a release's migrations; nothing if only Alembic knows where they are."""
        folder = self.folder(release)
        ini = folder / self.application(release).alembic
        settings = configparser.ConfigParser(defaults={"here": str(ini.parent)})
        try:
            settings.read(ini)
            if settings.has_option("alembic", "version_locations"):
                return {}  # anywhere, and separated by whatever else it states
            location = ini.parent / settings.get("alembic", "script_location")
        except configparser.Error:
            return {}
        return {str(path.relative_to(location)): digest_of(path) for path in sorted(location.rglob("*.py"))}

    def facts(self, release: str) -> dict[str, Any]:
        """Return what the control node wrote about a release that is on this host."""
        return read_json(self.folder(release) / "release.json")

    def keep_records(self, receipt: dict[str, Any], brought: dict[str, Any] | None = None) -> None:
        """Complete a run's receipt and keep it, with a line in the audit log; the list of releases gets its share.

        ``brought`` are the facts of a release that could not even be prepared.
        """
        live = self.live
        release = live.release if live and receipt["kind"] == "repair" else receipt["release"]
        facts = self.facts(release) or brought or {}
        before = self.facts(receipt["before"]) if receipt["before"] else {}
        # It was made before the run began, and its time counts once: an earlier run may have failed with it.
        preparation = self.state(release).get("preparation", 0) if receipt["kind"] == "deploy" else 0
        made = [{"step": "prepare", "seconds": preparation}] if preparation else []
        receipt.update(
            release=release,
            **{key: facts.get(key) for key in ("artefact", "lock", "commit", "subject", "frontend", "dirty")},
            settings=facts.get("settings", {}),
            settings_changed=settings_changed(before.get("settings", {}), facts.get("settings", {})) if facts else [],
            schema=self.revision(live.release) if live else None,
            migration=self.migration,
            steps=made + self.steps,
            health=self.samples[-SAMPLES_KEPT:],
            notes=[release_redactor(self.folder(release)).redact(note) for note in self.notes],
            seconds=round(time.time() - receipt["began"] + preparation, 2),
        )
        if self.state(release):
            counted = {"preparation": 0} if made else {}
            self.update_state(release, by=receipt["by"], seconds=receipt["seconds"], **counted)
        self.records.keep(receipt)

    def gate(self, slot: Slot) -> Gate:
        """Return what asks a slot's release; answers of the application are kept for the receipt."""
        return Gate(self.config, slot, self.sample)

    def sample(self, path: str, status: int, milliseconds: float) -> None:
        """Keep what the application answered, and how fast, for the receipt."""
        self.samples.append({"path": path, "status": status, "milliseconds": milliseconds})

    def renew(self, live: Slot, progress: Progress) -> None:
        """Start the live release anew in the other slot and switch to that, so that no request is lost."""
        release = live.release
        try:
            self.start(self.idle, release, lasting=False)
            self.switch(live, self.idle, release, progress)
        finally:
            # It served before, and it serves now, whatever kept it from starting once more.
            self.update_state(release, state="good")

    def repair(self, progress: Progress, renewed: bool = False) -> None:
        """Repair the live slot: unchanged, running, enabled, answering; the idle one stopped.

        Args:
            progress: how far this may go by itself.
            renewed: whether the release has to start anew even where it answers: something that it had been
                started with is gone.
        """
        live = self.live
        if live is None:
            raise ReleaseError("no release is live; deploy one")
        self.integrity.clear(self.config.root)
        self.integrity.repair_accounts([self.folder(name) for name in self.releases()])
        with self.only_one_prepares():
            self.quarantine_unusable(live.release)
        runtime = self.runtime(self.folder(live.release))
        if runtime.changes(self.folder(live.release)):
            self.renew_runtime(live.release)
        live.contain(runtime.contained)
        run("systemctl", "daemon-reload")
        run("systemctl", "unmask", "--quiet", live.service, live.socket_unit)
        live.enable()
        if not (live.folder / "socket").is_socket():
            run("systemctl", "stop", live.service, live.socket_unit)
        run("systemctl", "start", live.socket_unit)
        answers = live.answering() == live.release
        shown = live.show("MainPID", "FragmentPath", "DropInPaths")
        if answers and (renewed or self.integrity.process_problems(live, shown)):
            self.renew(live, progress)
            live = self.live or live
        else:
            run("systemctl", "start" if answers else "restart", live.service)
            self.gate(live).await_ready(live.release)
            self.idle.stop()
        # A run that was torn after its switch left it live, and not yet called good, or not yet the last good one.
        if self.good()[:1] != [live.release]:
            self.mark_healthy(live)
        if left := self.problems():
            raise ReleaseError("could not be repaired: " + "; ".join(left))

    def clean_up(self) -> None:
        """Remove old releases and what they ran in; what a slot points to and the newest good ones stay."""
        # What another run is making is then either whole, and kept, or not begun.
        with self.only_one_prepares():
            if live := self.live:
                self.quarantine_unusable(live.release)
            pointed = {self.slot(name).release for name in SLOTS}
            names = self.releases()
            # Another run may have prepared one that it is about to start.
            recent = [name for name in names if time.time() - float(self.state(name).get("at", 0)) < RECENT_SECONDS]
            prepared = {name for name in recent if self.state(name).get("state") == "prepared"}
            kept = pointed | prepared | set(self.good()[: max(self.config.keep_releases, WAY_BACK)])
            for name in names:
                if name not in kept:
                    self.integrity.clear(self.folder(name))
                    shutil.rmtree(self.folder(name))
                    self.forget(name)
            folders = [self.folder(name) for name in kept if name]
            for name, runtime in self.runtimes.items():
                runtime.clean([folder for folder in folders if runtime_of(folder) == name])
            for leftover in (self.config.root / "releases").glob(".*.partial"):
                shutil.rmtree(leftover)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Log a step and keep its seconds for the result."""
        begin = time.monotonic()
        print(name, flush=True)
        try:
            yield
        finally:
            self.steps.append({"step": name, "seconds": round(time.monotonic() - begin, 2)})

    # --- running ---

    def workers(self) -> int:
        """Return how many worker processes a slot of this host has: they follow the CPUs, up to a ceiling."""
        return workers(self.config.workers_max)

    def serve(self, slot: str) -> None:
        """Become the server of a slot that systemd starts for podman, in the release's folder (else: serve.py)."""
        release = Path.cwd()
        application = Application.of(release)
        if application is None:
            raise ReleaseError(older(release.name))
        command = server_command(release, application, dataclasses.asdict(self.config))
        self.runtime(release).serve(self.slot(slot), ["python", *command])

    def probe(self, slot_name: str, pid: int) -> None:
        """Wait until a starting slot, whose main process is ``pid``, answers at all."""
        Gate(self.config, self.slot(slot_name)).answered_live(pid)
