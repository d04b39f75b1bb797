"""What is found on a host: the live release, what is wrong with it, and the other releases."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from activation import Run
from integrity import in_words
from releases import Releases
from serve import workers
from slots import Slot

if TYPE_CHECKING:
    from messages import KnownRelease, ReleaseFacts, Status


@dataclass(frozen=True)
class Inspection:
    """Reads the state of the releases and of the slots, and changes nothing."""

    releases: Releases
    activation: Run

    def problems(self, at_work: bool = False) -> list[str]:
        """Return what keeps the live release from being what it should be, in words.

        While another run is ``at_work`` the other slot may be in use, and systemd is told last what is enabled.
        """
        live = self.releases.live
        if live is None:
            return ["no release is live"]
        if not (live.folder / "release" / ".env").is_file():
            return [f"the live slot {live.name} points to a release that is not there: {live.release or 'none'}"]
        found = self.service_problems(live, at_work)
        found += self.external_changes(live.release)
        if at_work:
            return found
        return found + self.incomplete_steps(live)

    def service_problems(self, live: Slot, at_work: bool) -> list[str]:
        """Return what is wrong with the units and the processes of the live slot, in words."""
        found = []
        shown = live.show("ActiveState", "NeedDaemonReload", "MainPID", "FragmentPath", "DropInPaths")
        found += [f"{unit} is {state}, not enabled" for unit, state in live.at_boot().items() if state != "enabled"]
        runtime = self.releases.runtime(self.releases.folder(live.release))
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
        return found + self.releases.integrity.process_problems(live, shown)

    def external_changes(self, live: str) -> list[str]:
        """Return what somebody changed in releases and what they need, in words."""
        folder, integrity = self.releases.folder(live), self.releases.integrity
        found = integrity.account_problems(folder)
        if changes := integrity.changes(folder):
            found.append(f"release {live}: {in_words(changes)}")
        runtime = self.releases.runtime(folder)
        if changes := runtime.changes(folder):
            found.append(f"the {runtime.title} of {live}: {in_words(changes)}")
        for path in self.releases.unusable(live):
            why = f": {in_words(changes)}" if (changes := integrity.changes(path)) else ""
            found.append(f"{path} is no release that could be gone back to{why}")
        return found

    def incomplete_steps(self, live: Slot) -> list[str]:
        """Return what a run leaves that was torn after its switch, in words."""
        found = []
        idle, good = self.releases.idle, self.releases.good()
        if switch := self.releases.unconfirmed.read():
            name = self.releases.config.name
            found.append(
                f"the switch to {switch.release} was not confirmed, and could not be undone: "
                f"journalctl -u {name}-release -u {name}-revert"
            )
        if idle.show("ActiveState").get("ActiveState") == "active" or "enabled" in idle.at_boot().values():
            found.append(f"{idle.service} still runs or is enabled, though it is not live")
        if not self.releases.was_good(live.release):
            found.append(f"the live release {live.release} is not recorded as a good one")
        if good and good[0] != live.release:
            found.append(f"the release {good[0]} was made live last, and {live.release} is live")
        return found

    def status(self) -> Status:
        """Return the live release, what is wrong with it, and the other releases."""
        live, running = self.releases.live, self.activation.holder()
        release = live.release if live else ""
        facts: ReleaseFacts = self.releases.facts(release) if live else {}
        known: Mapping[str, KnownRelease] = self.releases.states()
        status: Status = {
            "live": release,
            "slot": live.name if live else "",
            "problems": self.problems(at_work=bool(running)),
            "damaged": bool(release and self.releases.integrity.changes(self.releases.folder(release))),
            "running": running,
            "workers": workers(self.releases.config.workers_max),
            # Keyed hashes: what a plan compares with those of the release that is to come.
            "settings": facts.get("settings", {}),
            "releases": [{"id": name, **state} for name, state in known.items()],
        }
        # Where the world finds it; an older release does not state it.
        if stated := facts.get("application"):
            status["application"] = stated
        return status

    def listing(self) -> list[str]:
        """Return a line for each release: id, state, when (UTC), schema, seconds, who, commit and its subject."""
        live = self.releases.live_release
        lines = []
        for name, known in self.releases.states().items():
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
