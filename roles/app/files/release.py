#!/usr/bin/python3
"""Installs, starts, switches and lists the releases of one application on this host.

The configuration is the file `release.json` beside this program. One folder holds everything:

    <root>/releases/<id>/   a release: code, `.env` and a link to its virtual environment; never changed afterwards
    <root>/venvs/<key>/     a virtual environment, named by what determines its content, shared by releases
    <root>/servers/<key>/   packages of the server, named and shared in the same way
    <root>/slots/<slot>/    blue or green: `release` -> a release, `socket` -> the slot's socket
    <root>/live             -> the slot that gets the public requests; replaced by rename
    <root>/state/<id>.json  what became of a release: prepared, good, failed

nginx goes by `<root>/live/socket` and `<root>/live/release/frontend`, and the kernel resolves both on each request.
So one rename switches back end and front end together, without a reload.

`activate` and `repair` run in a transient systemd unit (activation.py), whose name is the lock on this host. What they
did is kept in an audit log and a receipt (records.py).

Runs on Python 3.10 or newer, with nothing but its standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

# An isolated Python (-I) does not look for modules beside the program.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from activation import PHASES, Abandoned, DeployRequest, Progress
from basics import ReleaseError
from bundle import Bundle
from command_line import parser
from host import Host
from records import settings_redactor
from releases import Busy
from schema import NOTHING_PLANNED, Schema, plan_lines
from schema_changes import SchemaChange
from slots import Config

if TYPE_CHECKING:
    from messages import Command, Outcome, Preview, RunProgress

# What ends in one message instead of a traceback: a full disk or a damaged archive are no faults of this program.
UNUSABLE = (ReleaseError, OSError, tarfile.TarError)
# sudo and sshd, which are between this and Ansible, need less to find out that it is gone.
HANDED_ON_MILLISECONDS = 100


def begin(host: Host, options: argparse.Namespace, command: str) -> Outcome:
    """Start the unit, or join the one at work, and follow it as far as was asked for; return how far it came."""
    request = DeployRequest(options.kind, options.release, options.by)
    arguments = ["--in-unit", command, request.release, f"--kind={request.kind}", f"--by={request.by}"]
    arguments += [f"--confirm-within={options.confirm_within}"]
    arguments += [f"--{name}" for name in ("migrate", "no-backup", "renew") if getattr(options, name.replace("-", "_"))]
    arguments += [
        f"--{name}={value}"
        for name in ("workers", "downgrade", "override", "before")
        if (value := getattr(options, name))
    ]
    token = host.activation.begin(request, arguments, options.until, options.wait)
    progress = host.activation.follow(token, options.until)
    # A rollback that is requested once more goes on to an earlier release; not so after one that nobody saw the end of.
    if progress.get("ended") and (request.kind != "rollback" or awaited()):
        host.activation.acknowledge()
    return finished(progress)


class RunFailed(ReleaseError):
    """A run ended badly; ``answer`` holds its receipt."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress["error"])
        self.answer = outcome(progress)


def outcome(progress: RunProgress) -> Outcome:
    """Return how far a run came, what was live before it and, where it has ended, its receipt."""
    told = ("release", "phase", "before", "receipt")
    return cast("Outcome", {"changed": True, **{key: value for key, value in progress.items() if key in told}})


def finished(progress: RunProgress) -> Outcome:
    """Return what a run left; raise `RunFailed` with its words where it failed."""
    if progress.get("error"):
        raise RunFailed(progress)
    return outcome(progress)


def prepare(host: Host, options: argparse.Namespace) -> None:
    """Make a release from what Ansible brought; a failure is recorded like that of a run."""
    bundle = Bundle.of(sys.stdin.buffer, host.config.root)
    request = DeployRequest("deploy", options.release, options.by)
    receipt = host.receipts.begin(request)
    try:
        host.preparation.prepare(options.release, bundle, str(request), options.wait)
    except Busy:
        raise
    except UNUSABLE as error:
        words = settings_redactor(bundle.files).redact(str(error))
        receipt["outcome"], receipt["error"] = "failed", words
        host.receipts.keep(receipt, bundle.facts)
        raise RunFailed({"release": options.release, "receipt": receipt, "error": receipt["error"]}) from None


def preview(host: Host, options: argparse.Namespace) -> Preview:
    """Return what a release would do, without its secrets."""
    bundle = Bundle.of(sys.stdin.buffer, host.config.root)
    redactor = settings_redactor(bundle.files)
    try:
        found: Preview = redactor.redact_all(host.preparation.preview(options.release, bundle, options.workers))
    except UNUSABLE as error:
        raise ReleaseError(redactor.redact(str(error))) from None
    return found


def in_unit(host: Host, options: argparse.Namespace) -> int:
    """Do the work inside the transient unit; leave its result for those who wait, and its records for later."""
    request = DeployRequest(options.kind, options.release, options.by, options.before)
    # The result of an earlier run, which could not undo its switch.
    if options.command in ("activate", "repair"):
        revert(host, at_boot=False)
    progress = Progress(host.activation.folder, options.token, request, options.until, options.confirm_within)
    receipt = host.receipts.begin(request, options.override)
    progress.say(before=receipt["before"])
    change = SchemaChange(options.migrate, options.downgrade, not options.no_backup, options.workers)
    actions: dict[str, Callable[[], None]] = {
        "activate": lambda: host.deployment.activate(request, progress, change),
        "repair": lambda: host.repair.live_slot(progress, options.renew),
        "migrate": lambda: host.schema.migrate(options.release, change.backup),
        "restore": lambda: host.schema.restore(options.release),
    }
    try:
        actions[options.command]()
        receipt["outcome"] = "good"
    except UNUSABLE as error:
        receipt["outcome"] = "taken back" if isinstance(error, Abandoned) else "failed"
        receipt["error"] = host.redactor().redact(str(error))
        print(receipt["error"], file=sys.stderr)
    host.receipts.keep(receipt)
    progress.end(receipt=receipt, phase=PHASES[-1], error=receipt.get("error", ""))
    return int("error" in receipt)


def revert(host: Host, at_boot: bool) -> None:
    """Undo a switch that was not confirmed, and keep the records of that; do nothing if there is none."""
    switch = host.releases.unconfirmed.read()
    if switch is None:
        return
    receipt = host.receipts.begin(DeployRequest("revert", switch.release, "the host"))
    receipt["error"] = f"the switch to {switch.release} was not confirmed: " + (
        "the host went down" if at_boot else "its run was killed"
    )
    try:
        host.deployment.revert(switch, at_boot)
        receipt["outcome"] = "taken back"
    except UNUSABLE as error:
        receipt["outcome"] = "failed"
        receipt["error"] += "\n" + host.redactor().redact(str(error))
        raise
    finally:
        host.receipts.keep(receipt)


def confirm(host: Host, options: argparse.Namespace) -> Outcome:
    """Confirm the switch to a release, so that this host no longer reverts it; with ``--check``, see that it could be.

    Raises:
        ReleaseError: the release is not live here any more.
    """
    known, active = host.activation.progress(), host.activation.active()
    own = (known.get("release"), known.get("by")) == (options.release, options.by)
    if active and own and known.get("phase") in PHASES[PHASES.index("switched") :]:
        if options.check:
            return outcome(known)
        host.activation.go_on("confirmed")
        return finished(host.activation.follow(known["token"], "confirmed"))
    if not active and host.releases.live_release == options.release and not host.releases.unconfirmed.read():
        return {"changed": False, "release": options.release, "phase": PHASES[-1]}
    reason = str(known.get("error") or "") if own else ""
    raise ReleaseError(f"{options.release} is no longer live here: {reason or 'the host went down after the switch'}")


def go_back(host: Host, options: argparse.Namespace) -> Outcome:
    """Undo one's own run on this host, if it is at work, and make an earlier release live if it is not.

    Returns, as `RunFailed` does: with ``live``, the release that is live afterwards.
    """
    known = host.activation.progress()
    ended: RunProgress = {}
    if host.activation.active():
        if (known.get("release"), known.get("by")) != (options.refused, options.by):
            return {"changed": False, "running": host.activation.holder(), "live": host.releases.live_release}
        host.activation.abandon("a host of this environment refused the release")
        ended = host.activation.follow(known["token"])
    try:
        answer = outcome(ended)
        if options.release and host.releases.live_release == options.refused:
            answer = begin(host, options, "activate")
        # What it could not undo is not said anywhere else; what had failed before was told by then.
        if ended.get("receipt", {}).get("outcome") == "failed" and not known.get("ended"):
            raise RunFailed(ended)
    except RunFailed as error:
        error.answer["live"] = host.releases.live_release
        raise
    return {**answer, "live": host.releases.live_release}


def awaited() -> bool:
    """Return True if anybody is still there to read the answer: the other end of standard output is open.

    What is between finds out when there is something to hand on: a line break, which JSON may begin with.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        return False
    answer = select.poll()
    answer.register(sys.stdout.fileno(), 0)
    return not answer.poll(HANDED_ON_MILLISECONDS)


def activate(host: Host, options: argparse.Namespace) -> Outcome:
    """Make a release live, unless it is and nobody is about to change that.

    Where it is live and its run did not come to its end, the answer says so as ``unfinished``: that refuses nothing.
    """
    live, to_the_end = host.releases.live, options.until == PHASES[-1]
    # A host that went down after its switch, and is asked once more when it is up again, has an end to make.
    if (
        live
        and live.release == options.release
        and not host.activation.active()
        and not host.releases.unconfirmed.read()
        and not (to_the_end and host.inspection.incomplete_steps(live))
    ):
        host.activation.acknowledge()
        return {"changed": False, "release": options.release, "phase": PHASES[-1]}
    try:
        return begin(host, options, "activate")
    except ReleaseError as error:
        if not to_the_end or host.releases.live_release != options.release or host.activation.active():
            raise
        told: Outcome = error.answer if isinstance(error, RunFailed) else {"changed": True}
        return {**told, "unfinished": str(error)}


def prepare_and_activate(host: Host, options: argparse.Namespace) -> Outcome:
    """Make a release of what was sent along, if it was, and make it live."""
    if options.prepare:
        prepare(host, options)
        if not awaited():
            raise ReleaseError(f"{options.release} is prepared and no more, since whoever requested it is gone")
    return activate(host, options)


def roll_back(host: Host, options: argparse.Namespace) -> Outcome:
    """Choose the release to go back to, and make it live, for a host that need not agree with others."""
    options.before = host.releases.live_release
    chosen = host.rollback.target(options.release, options.schema)
    options.release, options.downgrade = chosen["release"], chosen["downgrade"]
    return activate(host, options)


def plan(host: Host, release: str, text: bool) -> Any:
    """Return what a release would do to the schema: for JSON, or in lines for people."""
    found = host.redactor().redact_all(host.schema.plan(release))
    if text and found is None:
        return f"release {release} has no migrations (no alembic.ini) and no app_schema_command: nothing is to be done"
    found = found or NOTHING_PLANNED
    if text:
        return "\n".join(plan_lines(release, found))
    # What comes before another schema, such as a snapshot, is not for one that will not come.
    if found["stops"]:
        raise ReleaseError("\n".join(found["stops"]))
    return found


def dispatch(host: Host, options: argparse.Namespace) -> Any:
    """Run one command; return what it says: text, an object for JSON, or nothing."""
    commands: dict[Command, Callable[[], Any]] = {
        "activate": lambda: prepare_and_activate(host, options),
        "rollback": lambda: roll_back(host, options),
        "go-back": lambda: go_back(host, options),
        "repair": lambda: begin(host, options, "repair"),
        "confirm": lambda: confirm(host, options),
        "revert": lambda: revert(host, options.at_boot),
        "status": host.inspection.status,
        "list": lambda: "\n".join(host.inspection.listing()),
        "log": lambda: "\n".join(json.dumps(entry) for entry in host.records.entries()),
        "proven": lambda: host.records.proof(options.digest, host.releases.states().items()),
        "rollback-target": lambda: {
            "live": host.releases.live_release,
            "unacknowledged": bool(host.activation.unacknowledged("rollback")),
            **host.rollback.target(options.release, options.schema),
        },
        "prepare": lambda: prepare(host, options),
        "migrate": lambda: begin(host, options, "migrate"),
        "restore": lambda: begin(host, options, "restore"),
        "preview": lambda: preview(host, options),
        "plan": lambda: plan(host, options.release, options.text),
        "stamp": lambda: Schema(host.releases, options.release).run("stamp", options.revision),
        "exec": lambda: host.releases.execute(options.release, options.argv),
        "serve": lambda: host.serve(options.slot),
        "probe": lambda: host.probe(options.slot, options.pid),
    }
    command: Command = options.command
    return commands[command]()


def main() -> int:
    """Parse, run, and turn a failure into one message."""
    os.umask(0o022)  # root's own may be 077, and releases are read by other accounts
    host = Host(Config.load())
    options = parser(host.config.confirm_seconds).parse_args()
    try:
        if options.in_unit:
            return in_unit(host, options)
        said = dispatch(host, options)
    except UNUSABLE as error:
        if isinstance(error, RunFailed):
            print(json.dumps(error.answer))
        print(host.redactor().redact(str(error)), file=sys.stderr)
        return 1
    if said is not None:
        print(said if isinstance(said, str) else json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
