"""Becomes the server of a release that has a virtual environment; systemd starts this in the release's folder.

A program of its own: whoever deploys waits for it, and what release.py imports takes a seventh of a second.
Runs on Python 3.10 or newer, with nothing but its standard library.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().with_name("release.json")


def workers(ceiling: int) -> int:
    """Return how many worker processes a slot of this host has: they follow the CPUs, up to a ceiling."""
    return min(len(os.sched_getaffinity(0)) + 1, ceiling)


def server_command(wanted: list[str], ceiling: int) -> list[str]:
    """Return the command line of the server, as the role has it, with the number of workers of this host."""
    return [part.replace("{workers}", str(workers(ceiling))) for part in wanted]


def as_root(unit: str) -> str:
    """Return why a release that has a virtual environment does not start, where it would be root's."""
    return f"{unit} would run as root: ansible-playbook playbooks/app.yml -l ENV mends it"


def serve(config: dict[str, Any], slot: str) -> str:
    """Become the server, in the release's folder as it is now: the slot may point to another one later.

    Returns:
        Why it cannot be; otherwise it does not return.
    """
    unit = f"{config['name']}@{slot}.service"
    if os.geteuid() == 0:
        return as_root(unit)
    command = server_command(config["serve_command"], config["workers_max"])
    program = str(Path.cwd() / ".venv" / "bin" / command[0])
    try:
        os.execv(program, [program, *command[1:]])  # noqa: S606
    except OSError as error:
        return f"{unit} cannot start {program}: {error.strerror}"


def main() -> str:
    """Read the configuration beside this program, and serve the slot that is named."""
    os.umask(0o027)
    return serve(json.loads(CONFIG.read_text()), sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
