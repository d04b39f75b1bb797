"""The command line of the release program."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from activation import PHASES
from slots import SLOTS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = "Installs, starts, switches and lists the releases of one application on this host."
# Commands that change the live release, or the database, in a unit of their own.
RUNS = {
    "activate": "make a release live, phase by phase",
    "rollback": "go back to the good release that was live before, or to another one",
    "go-back": "undo the run at work, and see to it that a release is live",
    "repair": "bring the live slot back to what it should be",
    "migrate": "bring the database to a release's schema, after a backup",
    "restore": "put a backup in place of what is in the database, after a backup of that",
}


def parser(confirm_seconds: float = 0) -> argparse.ArgumentParser:
    """Return the command line; ``confirm_seconds`` are what a run waits for the control node, unless told otherwise."""
    top = argparse.ArgumentParser(prog="release", description=DESCRIPTION)
    top.add_argument("--in-unit", action="store_true", help=argparse.SUPPRESS)
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in RUNS.items():
        add_run(commands, name, text, confirm_seconds)
    confirm = commands.add_parser("confirm", help="keep the release that was switched to")
    confirm.add_argument("release")
    confirm.add_argument("--check", action="store_true", help="only see that it could be confirmed")
    prepare = commands.add_parser("prepare", help="make a release from what Ansible sends: files as JSON, the archive")
    prepare.add_argument("release")
    prepare.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="wait for another run to end")
    for command in (confirm, prepare):
        add_requester(command)
    add_questions(commands)
    stamp = commands.add_parser("stamp", help="note that the database is at a revision, and run nothing")
    stamp.add_argument("release")
    stamp.add_argument("revision")
    execute = commands.add_parser("exec", help="run a command of a release as the service account")
    execute.add_argument("release")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    add_units(commands)
    return top


def add_run(commands: Commands, name: str, text: str, confirm_seconds: float) -> None:
    """Add a command that runs in a unit; it takes what the unit takes."""
    run = commands.add_parser(name, help=text)
    metavar = "backup" if name == "restore" else "release"
    run.add_argument("release", metavar=metavar, nargs="?" if name in ("repair", "rollback") else None, default="")
    run.add_argument("--kind", default={"activate": "deploy", "go-back": "rollback"}.get(name, name))
    add_requester(run)
    run.add_argument("--until", choices=PHASES, default=PHASES[-1], help="go as far as this; the same again goes on")
    run.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="wait for another run to end")
    run.add_argument("--workers", type=int, default=0, help="those of all hosts: see that their connections fit")
    run.add_argument("--downgrade", default="", metavar="REVISION", help="take the schema back before the switch")
    run.add_argument(
        "--confirm-within",
        type=float,
        default=confirm_seconds,
        metavar="SECONDS",
        help="go back if nobody says more for so long, until it is confirmed",
    )
    if name == "activate":
        run.add_argument("--prepare", action="store_true", help="make it first, of what Ansible sends")
    if name == "rollback":
        add_schema(run)
    for flag, words in (
        ("migrate", "bring the database to the release's schema first"),
        ("no-backup", "make none before the schema is changed"),
        ("renew", "(repair) start the live release anew, without a loss"),
    ):
        run.add_argument(f"--{flag}", action="store_true", help=words)
    for option, placeholder, words in (
        ("override", "REASON", "why it comes without proof; for the receipt"),
        ("before", "RELEASE", "end where another one than this is live"),
        ("refused", "RELEASE", "(go-back) the release that is taken back"),
    ):
        run.add_argument(f"--{option}", default="", metavar=placeholder, help=words)
    run.add_argument("--token", default="", help=argparse.SUPPRESS)


def add_questions(commands: Commands) -> None:
    """Add the commands that change nothing."""
    commands.add_parser("status", help="print the live release, as JSON")
    commands.add_parser("list", help="print the releases on this host")
    commands.add_parser("log", help="print the audit log: a line of JSON for each deploy, rollback, repair and failure")
    proven = commands.add_parser("proven", help="tell whether an artefact was ever live and well here")
    proven.add_argument("digest")
    preview = commands.add_parser("preview", help="print what a release would do; like prepare, and leaves nothing")
    preview.add_argument("release")
    preview.add_argument("--workers", type=int, default=0, help="worker processes of all hosts together")
    plan = commands.add_parser("plan", help="print the migrations that a release would run, with their SQL, as JSON")
    plan.add_argument("release")
    plan.add_argument("--text", action="store_true", help="for people")
    target = commands.add_parser("rollback-target", help="print the live release, and what a rollback goes to, as JSON")
    target.add_argument("release", nargs="?", default="")
    add_schema(target)


def add_units(commands: Commands) -> None:
    """Add the commands that systemd gives."""
    revert = commands.add_parser("revert", help="(systemd) undo a switch that was not confirmed")
    revert.add_argument("--at-boot", action="store_true", help="the host has just come up")
    serve = commands.add_parser("serve", help="(systemd) start the container of a slot")
    serve.add_argument("slot", choices=SLOTS)
    probe = commands.add_parser("probe", help="(systemd) wait until a starting slot answers")
    probe.add_argument("slot", choices=SLOTS)
    probe.add_argument("pid", type=int)


def add_requester(command: argparse.ArgumentParser) -> None:
    """Add who gives a command."""
    command.add_argument("--by", default=os.environ.get("SUDO_USER", "root"), help="who wants it, and from where")


def add_schema(command: argparse.ArgumentParser) -> None:
    """Add what a rollback does about a schema that has moved on."""
    ways = ["", "keep", "downgrade"]
    command.add_argument("--schema", choices=ways, default="", help="where the database has another")
