"""One run that changes the live release: its lock, how far it has come, and how far it may go.

A run is a transient systemd unit. Its name is the lock: a second one cannot start while the first runs, nothing is left
behind when it ends, and neither Ctrl-C nor a lost connection tears it. Where several hosts have to agree, a run stops
at the end of a phase until it is told to go on. If nobody does, because whoever began it is gone, it undoes what it
did, and once it was confirmed, it goes on to its end.

Files in /run/<name>-release: `progress.json` (written by the unit alone), `target` (how far it may go) and
`acknowledged` (the run whose end was told to whoever requested it).
"""

from __future__ import annotations

import json
import shlex
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from basics import ReleaseError, read_json, run, write_whole

if TYPE_CHECKING:
    from typing import Unpack

    from messages import Phase, RunProgress

# Each name tells what is true at its end: the database has the schema; the release runs beside the old one and lasts;
# in a rollback that takes the schema back, it is; the release gets the public requests, and the host reverts that by
# itself; it does so no longer, and the old one still runs; the old one is stopped.
PHASES: tuple[Phase, ...] = ("migrated", "ready", "downgraded", "switched", "confirmed", "done")
ABANDON = "abandon"
POLL_SECONDS = 0.05
# systemd is asked less often than a file is read: the cores are needed for what is being started.
ASK_SECONDS = 0.5
SPEAKS_WITHIN_SECONDS = 10.0
# Who requests the repair after renewed certificates (certificates.service.j2), and how long anybody waits for it.
CERTIFICATES, CERTIFICATES_SECONDS = "certificates", 600.0


class Abandoned(ReleaseError):
    """The run was told to end, or nobody told it to go on; the release itself is not to blame."""


@dataclass(frozen=True)
class DeployRequest:
    """What a run is for. ``by`` tells who began it and from where, ``kind`` is deploy, rollback or repair.

    A release that was chosen by what was live ``before`` is no longer the right one when something else is.
    """

    kind: str
    release: str
    by: str
    before: str = ""

    def __str__(self) -> str:
        """Return the words that name the request in the unit's description, and to whoever waits."""
        return f"{self.kind} of {self.release or 'the live release'} by {self.by}"


@dataclass(frozen=True)
class Run:
    """The run of one application on this host, seen from outside the unit."""

    name: str
    unconfirmed: Path
    """The record of a switch that is not confirmed."""

    @property
    def folder(self) -> Path:
        """Return the folder that a run and those who watch it meet in."""
        return Path("/run") / f"{self.name}-release"

    @property
    def unit(self) -> str:
        """Return the unit's name, which is the lock."""
        return f"{self.name}-release.service"

    def progress(self) -> RunProgress:
        """Return what the last run wrote."""
        found: RunProgress = read_json(self.folder / "progress.json")
        return found

    def unacknowledged(self, kind: str) -> str:
        """Return the release of a run of a kind that is at work, or whose good end was not acknowledged."""
        known = self.progress()
        if known.get("kind") != kind or known.get("error"):
            return ""
        heard = self.folder / "acknowledged"
        told = heard.is_file() and heard.read_text() == known["token"]
        at_work = not known.get("ended")
        return "" if told or (at_work and not self.active()) else str(known["release"])

    def acknowledge(self) -> None:
        """Record that the requester saw the end of the last run."""
        if known := self.progress():
            write_whole(self.folder / "acknowledged", str(known["token"]))

    def active(self) -> bool:
        """Return True if a run holds the lock."""
        state = run("systemctl", "show", self.unit, "--property=ActiveState").stdout.strip()
        return state in {"ActiveState=active", "ActiveState=activating", "ActiveState=deactivating"}

    def holder(self) -> str:
        """Return who holds the lock, what for, since when and how far it has come; empty where nobody does."""
        if not self.active():
            return ""
        known = self.progress()
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(known.get("began", time.time()))))
        return f"{known.get('request', self.unit)}, since {since}, {known.get('phase') or 'at its beginning'}"

    def begin(self, request: DeployRequest, arguments: list[str], until: str, wait_seconds: float) -> str:
        """Start a run of this program with ``arguments``, or join the one that does the same for the same person.

        Returns:
            The token of the run to follow.

        Raises:
            ReleaseError: another run held the lock for all of ``wait_seconds``, or systemd refused.
        """
        token, deadline = uuid.uuid4().hex, time.monotonic() + wait_seconds
        program = [sys.executable, "-I", str(Path(sys.argv[0]).resolve()), *arguments, f"--token={token}"]
        command = ["systemd-run", f"--unit={self.unit}", "--collect", "--quiet", f"--description={request}"]
        # Also if the run is killed. Without a start of Python in each run that ends by itself.
        revert = f"[ ! -e {self.unconfirmed} ] || exec {shlex.join([*program[:3], 'revert'])}"
        command += [f"--property=ExecStopPost=/bin/sh -c {shlex.quote(revert)}", "--property=TimeoutStopSec=5min"]
        while True:
            started = run(*command, *program, f"--until={until}", check=False)
            if started.returncode == 0:
                return token
            if "already loaded" not in started.stderr and "already exists" not in started.stderr:
                raise ReleaseError(f"systemd did not start {self.unit}: {started.stderr.strip()}")
            known = self.progress()
            if known.get("request") == str(request) and not known.get("ended") and self.active():
                self.go_on(until)
                return str(known["token"])
            # What only drains, ends by itself soon; nobody needs to ask for that patience.
            # One that has just begun has not said yet what it is for.
            silent = not known or bool(known.get("ended"))
            patience = SPEAKS_WITHIN_SECONDS if silent else 0.0
            # Nor for that of a run that no person began.
            if known.get("by") == CERTIFICATES:
                patience = CERTIFICATES_SECONDS
            if time.monotonic() > deadline + patience and known.get("phase") != "switched":
                raise ReleaseError(
                    f"another run holds the lock on this host: {self.holder() or known.get('request', self.unit)}.\n"
                    f"Wait for it (-e app_lock_wait_seconds=120 does), or look: journalctl -fu {self.unit}"
                )
            time.sleep(0.2)

    def go_on(self, until: str) -> None:
        """Allow the run to go as far as ``until``; one that may go further already is not held back."""
        if PHASES.index(until) > allowed(self.folder):
            write_whole(self.folder / "target", until)

    def abandon(self, reason: str) -> None:
        """Abandon the run: it undoes what it did and ends; the release of before is live afterwards."""
        write_whole(self.folder / "target", f"{ABANDON} {reason}")

    def follow(self, token: str, until: str = "done") -> RunProgress:
        """Wait until a run has come as far as ``until`` or has ended; return its progress.

        Raises:
            ReleaseError: it was killed before it could write a result.
        """
        active, next_question = True, 0.0
        while True:
            # Asked first: a run that ends between the two questions has then written its result.
            if time.monotonic() > next_question:
                active, next_question = self.active(), time.monotonic() + ASK_SECONDS
            known = self.progress()
            if known.get("token") == token:
                reached = known.get("phase") in PHASES and PHASES.index(known["phase"]) >= PHASES.index(until)
                if known.get("ended") or (reached and until != "done"):
                    return known
            if not active:
                raise ReleaseError(
                    f"{self.unit} ended without a result; run the same command again. See: journalctl -u {self.unit}"
                )
            time.sleep(POLL_SECONDS)


def allowed(folder: Path) -> int:
    """Return the index of the phase that a run may go to.

    Raises:
        Abandoned: it was told to end.
    """
    target, _, reason = (folder / "target").read_text().partition(" ")
    if target == ABANDON:
        raise Abandoned(reason)
    return PHASES.index(target)


@dataclass
class Progress:
    """The run, seen from inside the unit: it says how far it is, and waits where it may not go on yet."""

    folder: Path
    token: str
    request: DeployRequest
    until: str
    confirm_seconds: float
    known: RunProgress = field(init=False)

    def __post_init__(self) -> None:
        """Begin: from now on the folder speaks of this run."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(self.folder / "target", self.until)
        self.known = {
            "token": self.token,
            "request": str(self.request),
            "kind": self.request.kind,
            "release": self.request.release,
            "by": self.request.by,
            "began": time.time(),
        }
        self.say()

    def say(self, **facts: Unpack[RunProgress]) -> None:
        """Add facts to the progress."""
        self.known.update(facts)
        write_whole(self.folder / "progress.json", json.dumps(self.known))

    def checkpoint(self, phase: Phase, patient: bool = False) -> None:
        """Record that a phase is over, and wait until the run may go on.

        Where nobody lets it within ``confirm_seconds``, whoever began it is gone: a ``patient`` run goes on by itself.

        Raises:
            Abandoned: it was told to end, or was not patient.
        """
        self.say(phase=phase)
        deadline = time.monotonic() + self.confirm_seconds
        while allowed(self.folder) <= PHASES.index(phase):
            if time.monotonic() > deadline:
                if patient:
                    return
                raise Abandoned(
                    f"nobody told it to go on within {self.confirm_seconds:.0f} s after it was {phase}: "
                    "the run that began it is gone"
                )
            time.sleep(POLL_SECONDS)

    def end(self, **facts: Unpack[RunProgress]) -> None:
        """Leave the result for whoever waits."""
        facts["ended"] = time.time()
        self.say(**facts)
