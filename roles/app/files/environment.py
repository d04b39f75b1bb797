"""The settings of a release, read from the `.env` that the filter `dotenv` wrote.

As a program it becomes a command that has them as environment variables: how containers get theirs, so that podman is
told of none and keeps none. Python 3.10 or newer, with nothing but its standard library.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SETTINGS, MIGRATION_SETTINGS = ".env", ".env.migrate"
# The folder of a release's secret files.
FILES = ".files"
# By these systemd hands over the socket, and hears that the server is ready. No setting takes their place.
KEPT = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "PATH")
STAND_INS = {"${:-$}": "$", r"${:-\}": "\\", r"\'": "'"}
STAND_IN = re.compile("|".join(re.escape(text) for text in STAND_INS))


def dotenv_values(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of a `.env` that the filter `dotenv` wrote: the reverse of plugins/filter/waffle.py."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if value[:1] == "'":
            value = STAND_IN.sub(lambda found: STAND_INS[found[0]], value[1:-1])
        yield key, value


def settings_of(folder: Path, migration: bool = False) -> dict[str, str]:
    """Return the settings of the release in ``folder``, by name; with ``migration`` those of its migration account.

    Raises:
        OSError: they cannot be read.
    """
    values = dict(dotenv_values((folder / SETTINGS).read_text()))
    if migration and (folder / MIGRATION_SETTINGS).exists():
        values.update(dotenv_values((folder / MIGRATION_SETTINGS).read_text()))
    return values


def variable_of(name: str) -> str:
    """Return the variable that names a secret file to the application: `OCI_PEM_FILE` for `oci.pem`."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_FILE"


def files_of(folder: Path) -> dict[str, str]:
    """Return the paths of the secret files of the release in ``folder``, by their variables.

    Raises:
        OSError: they cannot be listed.
    """
    paths = sorted((folder / FILES).iterdir()) if (folder / FILES).is_dir() else []
    return {variable_of(path.name): str(path) for path in paths}


def environment_of(folder: Path, base: Mapping[str, str], migration: bool = False) -> dict[str, str]:
    """Return the variables of a process of the release in ``folder``: its settings and the paths of its secret files.

    Those of ``base`` stay beside them.

    Raises:
        OSError: the settings or the files cannot be read.
    """
    kept = {name: base[name] for name in KEPT if name in base}
    return {**base, "PYTHONUNBUFFERED": "1", **files_of(folder), **settings_of(folder, migration), **kept}


def main() -> str:
    """Become the command; return why it cannot be."""
    command = sys.argv[1:]
    try:
        # A container of the service account has no file of the migration account.
        os.execvpe(command[0], command, environment_of(Path.cwd(), os.environ, migration=True))  # noqa: S606
    except OSError as error:
        return f"cannot start {command[0]}: {error}"


if __name__ == "__main__":
    sys.exit(main())
