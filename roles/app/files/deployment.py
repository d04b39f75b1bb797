"""A release is made live: started beside the live one, switched to, watched, confirmed; or the host goes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from activation import Abandoned, DeployRequest, Progress
from basics import ReleaseError, replace_link, run
from gate import Gate
from inspection import Inspection
from preparation import Preparation
from reasons import start_reason
from records import release_redactor
from releases import Releases
from rollback import unchecked_schema
from run_log import RunLog
from schema import Schema
from schema_changes import SchemaChange, SchemaChanges
from slots import Slot, alive
from unconfirmed import Switch


@dataclass(frozen=True)
class Deployment:
    """Makes a release live in the idle slot, and goes back from it."""

    releases: Releases
    preparation: Preparation
    schema: SchemaChanges
    inspection: Inspection
    log: RunLog

    # --- a deploy, step by step ---

    def activate(self, request: DeployRequest, progress: Progress, change: SchemaChange) -> None:
        """Make a release live, by phases; where it fails, what was live before still is, or is again.

        Args:
            request: the release, and who wants it.
            progress: how far this may go by itself.
            change: what this host does to the database's schema on the way.

        Raises:
            ReleaseError: the release, its migrations or the public address refused.
            Abandoned: another host refused, or the one who began this is gone.
        """
        release, old, new = request.release, self.releases.live, self.releases.idle
        if old and old.release == release:
            self.finish_interrupted_deploy(old, progress)
            return
        self.check(request, old)
        self.prepare_database(release, change)
        progress.checkpoint("migrated")
        self.preparation.repair_runtime(release)
        self.start(new, release, lasting=not self.releases.was_good(release))
        with contextlib.ExitStack() as stack:
            try:
                progress.checkpoint("ready")
                if change.downgrade and old:
                    stack.enter_context(self.schema.downgraded(old, new, change))
                progress.checkpoint("downgraded")
            except (ReleaseError, OSError):
                new.stop()
                raise
            switched = self.switch(old, new, progress)
        self.finish(new, switched if old else None)

    def check(self, request: DeployRequest, old: Slot | None) -> None:
        """Check that a request still fits the live release, and that its own release is here.

        Raises:
            Abandoned: it was chosen when another release was live.
            ReleaseError: its release is not on this host, or a rollback chose one that never was good here.
        """
        release, config = request.release, self.releases.config
        if request.before and (not old or old.release != request.before):
            raise Abandoned(
                f"it was chosen when {request.before} was live, and {old.release if old else 'nothing'} is now: "
                "run the same command again"
            )
        if not self.releases.folder(release).is_dir():
            raise ReleaseError(f"{release} is not on this host; `{config.name}-release list` names those that are")
        if request.kind == "rollback":
            # One that only goes back from a deploy was live before, whatever is recorded of it.
            if request.before and not self.releases.was_good(release):
                raise ReleaseError(f"{release} was never live and well on this host. Fix: name another: -e release=ID")
            self.log.notes += unchecked_schema(release, self.releases.application(release))

    def prepare_database(self, release: str, change: SchemaChange) -> None:
        """Prepare the database for a release; mark the release failed if that is refused."""
        try:
            self.schema.prepare_database(release, change)
        except ReleaseError:
            # One that was good before is not worse for what the database is like now.
            if not self.releases.was_good(release):
                self.releases.set_state(release, "failed")
            raise

    def start(self, slot: Slot, release: str, lasting: bool) -> None:
        """Start a release in an idle slot and wait until it is ready; on failure the live one is untouched.

        Args:
            slot: the idle one.
            release: one that is on this host.
            lasting: whether it has to show that it lasts; one that was good before already has.

        Raises:
            ReleaseError: it was refused, with the reason and the end of its log.
        """
        folder = self.releases.folder(release)
        with self.log.step("clear the idle slot"):
            if slot.show("ActiveState").get("ActiveState") != "inactive":
                slot.stop()
            replace_link(slot.folder / "release", folder)
            if slot.contain(self.releases.runtime(folder).contained):
                run("systemctl", "daemon-reload")
        try:
            with self.log.step(f"start {release} in {slot.name}"):
                run("systemctl", "start", slot.socket_unit, slot.service)
            with self.log.step("wait until it is ready"):
                self.gate(slot).await_ready(release)
            # Where nothing was live, there is nothing to keep.
            if self.releases.live and lasting:
                with self.log.step("see whether it lasts"):
                    self.gate(slot).settle()
        except ReleaseError as error:
            reason, log = start_failure(slot, error), self.end_of_log(slot, release)
            slot.stop()
            if self.is_to_blame(release):
                self.releases.set_state(release, "failed")
            raise ReleaseError(
                f"release {release} was refused, and what was live before still is: {reason}\n{log}"
            ) from None

    def switch(self, old: Slot | None, new: Slot, progress: Progress) -> float:
        """Give the public requests to a started release, watch it, and confirm it; on failure switch back.

        Returns:
            When requests went from one slot to the other, by the monotonic clock.

        Raises:
            ReleaseError: the release or the host failed, and the old one has the requests again.
            Abandoned: another host refused, and the old one has them again.
        """
        with self.back_on_failure(old, new):
            with self.log.step("switch"):
                # Enabled before it gets a request: a host that goes down in the middle comes back with it.
                new.enable()
                if not self.releases.unconfirmed.read():
                    self.releases.unconfirmed.record(Switch(new.release, new.name, old.name if old else ""))
                replace_link(self.releases.link, new.folder)
            switched = time.monotonic()
            with self.log.step("watch the public address"):
                self.gate(new).watch(new.release, self.releases.config.watch_seconds if old else 0)
            progress.checkpoint("switched")
            with self.log.step("confirm"):
                self.releases.unconfirmed.clear()
            progress.checkpoint("confirmed", patient=True)
        return switched

    @contextlib.contextmanager
    def back_on_failure(self, old: Slot | None, new: Slot) -> Iterator[None]:
        """Switch back if the block fails, and mark a release that is to blame for that."""
        release, was_good = new.release, self.releases.was_good(new.release)
        try:
            yield
        except (ReleaseError, OSError) as error:
            refused = not isinstance(error, Abandoned)
            with self.switched_back(old, new):
                # A good one that answers on its own socket is not to blame: it is nginx, or a full disk.
                blamed = refused and not (was_good and still_answers(new, release))
                log = self.end_of_log(new, release) if refused else ""
            # The schema comes forward first, if it was taken back.
            if (switch := self.releases.unconfirmed.read()) and not switch.schema_of:
                self.releases.unconfirmed.clear()
            if blamed:
                self.releases.set_state(release, "failed")
            kind = type(error) if isinstance(error, ReleaseError) else ReleaseError
            raise kind(f"switched back to {old.release if old else 'nothing'}: {error}\n{log}") from None

    @contextlib.contextmanager
    def switched_back(self, old: Slot | None, new: Slot) -> Iterator[None]:
        """Give the public requests back to the slot that had them, and, after the block, stop the one that is left."""
        link = self.releases.link
        with self.log.step("switch back"):
            back = old if old and link.readlink() != old.folder else None
            if back:
                replace_link(link, back.folder)
            elif not old:
                # A first release that does not answer must not look like a good one to the next run.
                link.unlink(missing_ok=True)
            yield
            if back:
                time.sleep(self.releases.config.drain_seconds)
            new.stop()

    def finish(self, live: Slot, switched: float | None = None) -> None:
        """Mark the release good that was switched to, stop the other slot, and clean up.

        What fails here is no fault of the release, which serves: nobody is to go back for it.

        Args:
            live: the slot that was switched to.
            switched: when requests went from one slot to the other, by the monotonic clock; None for long ago.
        """
        release, notes = live.release, self.log.notes
        # Also where nothing was live: if somebody removed the link, the release that it led to still runs.
        left = self.releases.idle
        try:
            self.mark_healthy(live)
        except OSError as error:
            notes.append(f"{release} is live, but that could not be kept: {error}. site.yml does it")
        try:
            with self.log.step(f"drain and stop {left.name}"):
                if switched is not None:
                    time.sleep(max(0.0, switched + self.releases.config.drain_seconds - time.monotonic()))
                left.stop()
        except (ReleaseError, OSError) as error:
            notes.append(f"{release} is live, but {left.service} could not be stopped: {error}. site.yml stops it")
        try:
            self.releases.clean_up()
        except (ReleaseError, OSError) as error:
            notes.append(
                f"{release} is live, but old releases could not be removed: {error}. The next deploy removes them"
            )

    def finish_interrupted_deploy(self, live: Slot, progress: Progress) -> None:
        """Finish a deploy that was interrupted after its confirmation, as by a reboot of the host.

        Raises:
            ReleaseError: the live release is not ready.
            Abandoned: another host refused.
        """
        if self.inspection.incomplete_steps(live):
            progress.checkpoint("switched", patient=True)
            with self.log.step("wait until it is ready"):
                # After a reboot it may still be about to start.
                run("systemctl", "start", live.socket_unit, live.service)
                self.gate(live).await_ready(live.release)
            self.finish(live)

    def mark_healthy(self, slot: Slot) -> None:
        """Mark a slot's release as good, with the schema that the database had when it first was."""
        release = slot.release
        schema = self.releases.state(release).get("schema") or self.schema.revision(release)
        self.releases.set_state(release, "good", schema=schema)

    def revert(self, switch: Switch, at_boot: bool) -> None:
        """Go back from a switch that was not confirmed.

        Args:
            switch: the one that is recorded.
            at_boot: whether the host has just come up, so that no request is under way.

        Raises:
            ReleaseError: the slot that is left does not stop, or the schema could not be brought forward again.
        """
        new, link = self.releases.slot(switch.slot), self.releases.link
        with self.log.step(f"revert the switch to {switch.release}"):
            switched = self.releases.live == new
            if switched and switch.previous:
                replace_link(link, self.releases.slot(switch.previous).folder)
            elif switched:
                link.unlink()
            if switched and not at_boot:
                time.sleep(self.releases.config.drain_seconds)
            new.stop()
            if switch.schema_of:
                Schema(self.releases, switch.schema_of).change(["upgrade"], backup=False)
            self.releases.unconfirmed.clear()

    # --- what a release shows ---

    def gate(self, slot: Slot) -> Gate:
        """Return what asks a slot's release; answers of the application are kept for the receipt."""
        return Gate(self.releases.config, slot, self.log.sample)

    def is_to_blame(self, release: str) -> bool:
        """Return True if a release is to blame for not starting: no good one is, where the live one is not ready."""
        live = self.releases.live
        return not self.releases.was_good(release) or not live or self.gate(live).healthy()

    def end_of_log(self, slot: Slot, release: str) -> str:
        """Return the end of a slot's log for a person to read; what cannot be read keeps nothing from being undone."""
        try:
            redactor = release_redactor(self.releases.folder(release))
            return "the last lines of its log:\n" + redactor.redact(slot.journal())
        except (OSError, ReleaseError) as error:
            return f"its log cannot be read: {error}"


def start_failure(slot: Slot, error: ReleaseError) -> str:
    """Return why a release did not start: the exception that ended it comes before what was seen of that."""
    try:
        found = "" if alive(slot.main()) else start_reason(slot.journal())
    except (OSError, ReleaseError):
        found = ""
    return f"{found}\n({error})" if found else str(error)


def still_answers(slot: Slot, release: str) -> bool:
    """Return True if a release answers on its socket; if that cannot be asked, the host has failed."""
    try:
        return alive(slot.main()) and slot.answering() == release
    except (OSError, ReleaseError):
        return True
