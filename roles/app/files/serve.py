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

# An isolated Python (-I) does not look for modules beside the program.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from application import Application
from environment import environment_of

CONFIG = Path(__file__).resolve().with_name("release.json")
LAUNCHER = Path(__file__).resolve().with_name("server") / "launch.py"


def workers(ceiling: int) -> int:
    """Return how many worker processes a slot of this host has: they follow the CPUs, up to a ceiling."""
    return min(len(os.sched_getaffinity(0)) + 1, ceiling)


def older(release: str) -> str:
    """Return why a release cannot start that states nothing about its application."""
    return (
        f"release {release} was made by an older version of Waffle Iron, which this one cannot start. "
        "Fix: deploy its commit again: ansible-playbook playbooks/deploy.yml -l ENV -e app_version=COMMIT"
    )


def server_command(release: Path, application: Application, config: dict[str, Any]) -> list[str]:
    """Return the arguments of the release's Python that start its server; ``config`` is the host's."""
    options = {
        "folder": application.folder,
        "release": json.loads((release / "release.json").read_text())["release"],
        "root-path": application.root_path,
        "preload": ",".join(application.preload_modules),
        "workers": workers(config["workers_max"]),
        "timeout": config["request_timeout_seconds"],
        "graceful-timeout": config["graceful_timeout_seconds"],
    }
    words = [f"--{name}={value}" for name, value in options.items() if value != ""]
    # Isolated from variables and the account's own packages; what is printed is in the journal at once.
    return ["-I", "-u", str(LAUNCHER), *words, application.module]


def import_command(application: Application, seconds: int) -> list[str]:
    """Return the command that imports the application, as its server does, and ends within some seconds."""
    words = [f"--folder={application.folder}"] if application.folder else []
    return ["python", "-I", str(LAUNCHER), *words, f"--check={seconds}", application.module]


def as_root(unit: str) -> str:
    """Return why a release that has a virtual environment does not start, where it would be root's."""
    return f"{unit} would run as root: ansible-playbook playbooks/app.yml -l ENV repairs it"


def serve(config: dict[str, Any], slot: str) -> str:
    """Become the server, in the release's folder as it is now: the slot may point to another one later.

    Returns:
        Why it cannot be; otherwise it does not return.
    """
    unit, release = f"{config['name']}@{slot}.service", Path.cwd()
    if os.geteuid() == 0:
        return as_root(unit)
    application = Application.of(release)
    if application is None:
        return f"{unit} cannot start: {older(release.name)}"
    venv = release / ".venv" / "bin"
    base = {**os.environ, "PATH": f"{venv}:/usr/bin:/bin"}
    command = [str(venv / "python"), *server_command(release, application, config)]
    try:
        os.execve(command[0], command, environment_of(release, base))  # noqa: S606
    except OSError as error:
        return f"{unit} cannot start {error.filename or command[0]}: {error.strerror}"


def main() -> str:
    """Read the configuration beside this program, and serve the slot that is named."""
    os.umask(0o027)
    return serve(json.loads(CONFIG.read_text()), sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
