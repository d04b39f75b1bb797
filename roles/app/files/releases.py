"""The releases on this host: their folders, what is known of each, and which one gets the public requests."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from application import Application
from basics import ReleaseError, locked, quarantine, read_json, write_whole
from integrity import Integrity, unknown
from runtimes import KINDS, Runtime, runtime_of
from slots import SLOTS, Config, Slot
from unconfirmed import Unconfirmed

if TYPE_CHECKING:
    from typing import Unpack

    from messages import ReleaseFacts, ReleaseState

RECENT_SECONDS = 3600
# The live one, and the good one before it.
WAY_BACK = 2
# Longer than a release takes whose dependencies are there, and shorter than a person waits without a word.
SOON_SECONDS = 10.0
# What is assumed of a release from before releases stated their application.
BEFORE_IT_WAS_STATED = Application("", alembic="alembic.ini")


class Busy(ReleaseError):
    """Another run is at work on this host; neither of the two releases is to blame."""


@dataclass(frozen=True)
class Releases:
    """The releases of one application on this host; each is named by its id."""

    config: Config

    # --- what releases share ---

    @property
    def integrity(self) -> Integrity:
        """Return what compares this host with what it was made to be."""
        return Integrity(self.config.root, self.config.user, self.config.migration_user)

    @property
    def unconfirmed(self) -> Unconfirmed:
        """Return the record of a switch that is not confirmed."""
        return Unconfirmed(self.config.root)

    @property
    def runtimes(self) -> dict[str, Runtime]:
        """Return what releases can run in, by the names that releases state."""
        return {name: kind(self.config, self.integrity) for name, kind in KINDS.items()}

    def runtime(self, folder: Path) -> Runtime:
        """Return what the release in a folder runs in."""
        return self.runtimes[runtime_of(folder)]

    # --- the slots ---

    @property
    def link(self) -> Path:
        """Return the link to the slot that gets the public requests."""
        return self.config.root / "live"

    @property
    def live(self) -> Slot | None:
        """Return the slot that gets the public requests."""
        try:
            target = self.link.readlink()
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

    # --- one release ---

    def folder(self, release: str) -> Path:
        """Return the folder of a release."""
        return self.config.root / "releases" / release

    def facts(self, release: str) -> ReleaseFacts:
        """Return what the control node wrote about a release that is on this host."""
        found: ReleaseFacts = read_json(self.folder(release) / "release.json")
        return found

    def application(self, release: str) -> Application:
        """Return what a release states about its application."""
        return Application.of(self.folder(release)) or BEFORE_IT_WAS_STATED

    def execute(self, release: str, command: list[str]) -> str:
        """Run a command of a release as its service account; return the end of its output.

        Raises:
            ReleaseError: it failed.
        """
        folder = self.folder(release)
        done = self.runtime(folder).run(folder, self.config.user, command)
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-40:])
        if done.returncode != 0:
            raise ReleaseError(
                f"`{' '.join(command)}` in release {release} exited with status {done.returncode}:\n{output}"
            )
        return output

    # --- what is known ---

    def state_file(self, release: str) -> Path:
        """Return the file that keeps what is known of a release."""
        return self.config.root / "state" / f"{release}.json"

    def state(self, release: str) -> ReleaseState:
        """Return what is known of a release."""
        found: ReleaseState = read_json(self.state_file(release))
        return found

    def update_state(self, release: str, **facts: Unpack[ReleaseState]) -> None:
        """Add facts to what is known of a release."""
        write_whole(self.state_file(release), json.dumps({**self.state(release), **facts}, indent=1) + "\n")

    def set_state(self, release: str, state: str, /, **facts: Unpack[ReleaseState]) -> None:
        """Set the state of a release: prepared, good or failed.

        What came last is told by ``turn``, a count, and not by the clock, which may have been wrong.
        """
        turns = [int(known.get("turn", 0)) for known in (self.state(release), *self.states().values())]
        facts.update({"state": state, "at": time.time(), "turn": max(turns) + 1})
        self.update_state(release, **facts)

    def was_good(self, release: str) -> bool:
        """Return True if a release was live and well, so that others may be to blame for what becomes of it now."""
        return bool(self.state(release).get("state") == "good")

    def states(self) -> dict[str, ReleaseState]:
        """Return what is known of each finished release by its id, the one used last first."""
        folder = self.config.root / "releases"
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        known = {name: self.state(name) for name in found}
        order = sorted(found, key=lambda name: (known[name].get("turn", 0), known[name].get("at", 0)), reverse=True)
        return {name: known[name] for name in order}

    def ids(self) -> list[str]:
        """Return the ids of all finished releases, the one used last first."""
        return list(self.states())

    def good(self) -> list[str]:
        """Return the ids of the releases that were live and well, the last one first."""
        return [name for name, known in self.states().items() if known.get("state") == "good"]

    # --- making and removing ---

    @contextlib.contextmanager
    def lock(self, request: str = "", wait_seconds: float = math.inf) -> Iterator[None]:
        """Hold the lock of the making and removing of releases; it ends with this process.

        Args:
            request: what a release is prepared for, which the file of the lock then tells, and since when.
            wait_seconds: how long to wait for another request; a holder without one is waited for.

        Raises:
            Busy: another request held it for all of that time, and for what is over soon.
        """
        deadline = time.monotonic() + wait_seconds + SOON_SECONDS
        with (self.config.root / "state" / ".prepare.lock").open("a+") as stream:
            while not locked(stream):
                stream.seek(0)
                holder = stream.read()
                if time.monotonic() > deadline and holder.partition(", since ")[0] not in ("", request):
                    raise Busy(
                        f"another run prepares a release on this host: {holder}.\n"
                        "Wait for it (-e app_lock_wait_seconds=120 does), and run the same command again"
                    )
                time.sleep(0.1)
            # On a full disk there is room for nothing, and those without a request are to make some.
            stream.truncate(0)
            if request:
                stream.write(f"{request}, since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}")
                stream.flush()
            yield

    def unusable(self, live: str) -> list[Path]:
        """Return what is no release, and those that somebody changed and nobody may go back to; never the live one."""
        made = {name for name, known in self.states().items() if known}
        changed = {name for name in made - {live} if self.integrity.changes(self.folder(name))}
        return unknown(self.config.root / "releases", made - changed | {live})

    def quarantine_unusable(self, live: str) -> None:
        """Move away what nobody may go back to; a release that only has attributes loses them and stays."""
        for path in self.unusable(live):
            self.integrity.clear(path)
        for path in self.unusable(live):
            quarantine(path)
            self.forget(path.name)

    def forget(self, release: str) -> None:
        """Keep nothing of a release that is gone."""
        self.state_file(release).unlink(missing_ok=True)
        self.integrity.forget(self.folder(release))

    def clean_up(self) -> None:
        """Remove old releases and what they ran in; what a slot points to and the newest good ones stay."""
        # What another run is making is then either whole, and kept, or not begun.
        with self.lock():
            if live := self.live:
                self.quarantine_unusable(live.release)
            pointed = {self.slot(name).release for name in SLOTS}
            states = self.states()
            # Another run may have prepared one that it is about to start.
            recent = [name for name, known in states.items() if time.time() - known.get("at", 0) < RECENT_SECONDS]
            prepared = {name for name in recent if states[name].get("state") == "prepared"}
            kept = pointed | prepared | set(self.good()[: max(self.config.keep_releases, WAY_BACK)])
            for name in states:
                if name not in kept:
                    self.integrity.clear(self.folder(name))
                    shutil.rmtree(self.folder(name))
                    self.forget(name)
            folders = [self.folder(name) for name in kept if name]
            for name, runtime in self.runtimes.items():
                runtime.clean([folder for folder in folders if runtime_of(folder) == name])
            for leftover in (self.config.root / "releases").glob(".*.partial"):
                shutil.rmtree(leftover)
