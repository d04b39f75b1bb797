"""`python -m lab`: the lab's command line."""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from lab import access, checks, database, hosts, lifecycle, machines, state
from lab.commands import interrupt, tail
from lab.config import DATABASE_HOST, Lab, parse_host
from lab.errors import InterruptedByUserError, LabError
from lab.progress import say

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = parser().parse_args(arguments)
    # SIGINT, too: a shell starts its background jobs with that ignored, and children would inherit it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, a program that fails returns 0
    command: Callable[[Lab, argparse.Namespace], int] = options.run
    try:
        lab = Lab.from_environment()
        if command not in (ssh, inventory):
            checks.require_root()
        return command(lab, options)
    except (KeyboardInterrupt, InterruptedByUserError):
        interrupt()
        say("lab: interrupted. `make up` goes on from here, `make down` removes what there is")
        return EXIT_INTERRUPTED
    except LabError as error:
        say(f"lab: {error}")
        return EXIT_FAILURE


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="lab",
        description="Real systemd hosts on this machine, in place of EC2 instances and an RDS database.",
        epilog="Environment: LAB_NAME (lab), LAB_SUBNET, LAB_RELEASE (trixie), PROD_HOSTS (1), LAB_DATABASE (mysql).",
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Lab, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("up", up, "boot what is missing; what runs is left alone")
    command.add_argument("--host", action="append", default=[], metavar="NAME[:RELEASE[:GROUP]]")
    command.add_argument("--prod-hosts", type=int, choices=range(10), metavar="N", help="in place of PROD_HOSTS")
    command = add("down", down, "remove the lab and every trace of it")
    command.add_argument("--purge-cache", action="store_true", help="the built images, too")
    command = add("status", status, "list the hosts")
    command.add_argument("--json", action="store_true")
    add("inventory", inventory, "print the Ansible inventory")
    for name, run, text in (
        ("reset", reset, "make a bare host of it again: same address, same host key"),
        ("poweroff", poweroff, "shut a host down; its disk stays"),
        ("boot", boot, "boot a host that was shut down"),
    ):
        add(name, run, text).add_argument("host")
    command = add("logs", logs, "show a host's journal, or its console if it does not run")
    command.add_argument("host")
    command.add_argument("-f", "--follow", action="store_true")
    for name, run, text in (
        ("ssh", ssh, "log in to a host, or run a command there (after --)"),
        ("exec", execute, "run a command (after --) as root inside a host, without ssh"),
    ):
        command = add(name, run, text)
        command.add_argument("host")
        command.add_argument("argv", nargs="*", metavar="-- COMMAND")
    command = add("database", control_database, "control the database server")
    command.add_argument("verb", choices=("start", "stop", "status"))
    command = add("database-account", database_account, "make a master account, the password from standard input")
    command.add_argument("--user", required=True)
    command.add_argument("--environment", default="database's", help="whose account it is, for messages")
    return result


def up(lab: Lab, options: argparse.Namespace) -> int:
    """Boot what is missing."""
    if options.prod_hosts is not None:
        lab = dataclasses.replace(lab, prod_hosts=options.prod_hosts)
    with state.locked(lab):
        specs = lifecycle.up(lab, [parse_host(text, lab.release) for text in options.host])
    lifecycle.summarize(lab, specs)
    return 0


def down(lab: Lab, options: argparse.Namespace) -> int:
    """Remove the lab."""
    with state.locked(lab):
        removed = lifecycle.down(lab)
    if options.purge_cache:
        removed += [f"image {name}" for name in lifecycle.purge_cache()]
    for item in removed or [f"nothing: there is no lab {lab.name!r}"]:
        say(f"removed {item}")
    return 0


def status(lab: Lab, options: argparse.Namespace) -> int:
    """List the hosts."""
    rows = lifecycle.status(lab)
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        say(f"there is no lab {lab.name!r}: `make up`")
    for row in rows:
        print("{host:8} {address:15} {group:10} {image:18} {state}".format(**row))
    return 0


def inventory(lab: Lab, _options: argparse.Namespace) -> int:
    """Print the inventory."""
    script = lab.checkout / "inventory/lab/hosts.py"
    os.execv(sys.executable, [sys.executable, str(script), "--list"])  # noqa: S606 - an argument list, no shell


def reset(lab: Lab, options: argparse.Namespace) -> int:
    """Make a bare host."""
    with state.locked(lab):
        lifecycle.reset(lab, options.host)
    return 0


def poweroff(lab: Lab, options: argparse.Namespace) -> int:
    """Shut a host down."""
    with state.locked(lab):
        lifecycle.known_host(lab, options.host)
        machines.stop(lab.machine(options.host), grace=30)
    return 0


def boot(lab: Lab, options: argparse.Namespace) -> int:
    """Boot a host unless it runs."""
    with state.locked(lab):
        spec = lifecycle.known_host(lab, options.host)
        name = lab.machine(spec.name)
        if not machines.find([name])[name].is_intact:
            recipe = lifecycle.build_images([spec])[lifecycle.image_name(spec)]
            lifecycle.boot_known(lab, spec, recipe)
        else:
            hosts.finish(lab, spec)
    return 0


def logs(lab: Lab, options: argparse.Namespace) -> int:
    """Show a host's journal."""
    lifecycle.known_host(lab, options.host)
    name = lab.machine(options.host)
    leader = machines.find([name])[name].leader
    if leader is not None:
        follow = ["--follow"] if options.follow else []
        _replace(machines.enter(leader, ["journalctl", "--no-pager", "--lines=200", *follow]))
    console = lab.host_dir(options.host) / "console.log"
    say(f"{options.host} does not run; its console log {console} ends:")
    print(tail(console, 200))
    return 0


def ssh(lab: Lab, options: argparse.Namespace) -> int:
    """Log in to a host; needs the key, but not root."""
    if options.host == DATABASE_HOST:
        raise LabError("nobody logs in to the database machine, as with RDS: `lab exec db1 -- mysql` is root's way in")
    _replace(access.ssh_command(lab, options.host, options.argv))


def execute(lab: Lab, options: argparse.Namespace) -> int:
    """Run a command as root inside a host."""
    lifecycle.known_host(lab, options.host)
    name = lab.machine(options.host)
    leader = machines.find([name])[name].leader
    if leader is None:
        raise LabError(f"{options.host} does not run: `make up`")
    _replace(machines.enter(leader, options.argv or ["bash", "--login"]))


def control_database(lab: Lab, options: argparse.Namespace) -> int:
    """Start or stop the database server, or say what it does; `status` returns 3 if it does not run."""
    condition = database.control(lab, options.verb)
    print(condition)
    return 3 if options.verb == "status" and condition != "active" else 0


def database_account(lab: Lab, options: argparse.Namespace) -> int:
    """Make a master account."""
    lifecycle.known_host(lab, DATABASE_HOST)
    password = sys.stdin.read().removesuffix("\n")
    database.ensure_master(options.environment, options.user, password, lab)
    return 0


def _replace(argv: list[str]) -> NoReturn:
    """Become another program, which then has the terminal and its signals for itself."""
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - an argument list, no shell
    except FileNotFoundError:
        raise LabError(f"the program {argv[0]!r} is not installed") from None


if __name__ == "__main__":
    sys.exit(main())
