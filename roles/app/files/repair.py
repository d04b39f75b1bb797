"""The live slot is made what it should be: unchanged, enabled, running, answering."""

from __future__ import annotations

from dataclasses import dataclass

from activation import Progress
from basics import ReleaseError, run
from deployment import Deployment
from inspection import Inspection
from preparation import Preparation
from releases import Releases
from slots import Slot


@dataclass(frozen=True)
class Repair:
    """Repairs the live slot; where its release still answers, no request is lost."""

    releases: Releases
    preparation: Preparation
    inspection: Inspection
    deployment: Deployment

    def live_slot(self, progress: Progress, renewed: bool = False) -> None:
        """Repair the live slot: unchanged, running, enabled, answering; the idle one stopped.

        Args:
            progress: how far this may go by itself.
            renewed: whether the release has to start anew even where it answers: something that it had been
                started with is gone.

        Raises:
            ReleaseError: no release is live, or something is left that could not be repaired.
        """
        live = self.releases.live
        if live is None:
            raise ReleaseError("no release is live; deploy one")
        self.repair_files(live)
        self.repair_units(live)
        answers = live.answering() == live.release
        shown = live.show("MainPID", "FragmentPath", "DropInPaths")
        if answers and (renewed or self.releases.integrity.process_problems(live, shown)):
            self.renew(live, progress)
            live = self.releases.live or live
        else:
            run("systemctl", "start" if answers else "restart", live.service)
            self.deployment.gate(live).await_ready(live.release)
            self.releases.idle.stop()
        # A run that was torn after its switch left it live, and not yet marked good, or not yet the last good one.
        if self.releases.good()[:1] != [live.release]:
            self.deployment.mark_healthy(live)
        if left := self.inspection.problems():
            raise ReleaseError("could not be repaired: " + "; ".join(left))

    def repair_files(self, live: Slot) -> None:
        """Repair the files of the releases, and move away what is none of them."""
        integrity = self.releases.integrity
        integrity.clear(self.releases.config.root)
        integrity.repair_accounts([self.releases.folder(name) for name in self.releases.ids()])
        with self.releases.lock():
            self.releases.quarantine_unusable(live.release)
        self.preparation.repair_runtime(live.release)

    def repair_units(self, live: Slot) -> None:
        """Repair the units of the live slot: read by systemd, enabled, with a socket that listens."""
        live.contain(self.releases.runtime(self.releases.folder(live.release)).contained)
        run("systemctl", "daemon-reload")
        run("systemctl", "unmask", "--quiet", live.service, live.socket_unit)
        live.enable()
        if not (live.folder / "socket").is_socket():
            run("systemctl", "stop", live.service, live.socket_unit)
        run("systemctl", "start", live.socket_unit)

    def renew(self, live: Slot, progress: Progress) -> None:
        """Start the live release anew in the other slot and switch to that, so that no request is lost."""
        release, idle = live.release, self.releases.idle
        try:
            self.deployment.start(idle, release, lasting=False)
            switched = self.deployment.switch(live, idle, progress)
            self.deployment.finish(idle, switched)
        finally:
            # It served before, and it serves now, whatever kept it from starting once more.
            self.releases.update_state(release, state="good")
