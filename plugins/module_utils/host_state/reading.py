"""Programs, files and names on a host, read without an error where they are not there."""

from __future__ import annotations

import grp
import json
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

SECONDS = 20


class Unreadable(Exception):
    """Something cannot be read; the message says why."""


def run(*command: str, descriptors: tuple[int, ...] = ()) -> str:
    """Run a program and return its output; raise `Unreadable` with its own words."""
    environment = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=SECONDS,
            pass_fds=descriptors,
        )
    except FileNotFoundError:
        raise Unreadable(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unreadable(f"{command[0]} did not end within {SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).decode(errors="replace").strip().splitlines()[-3:]
        raise Unreadable(f"{command[0]} exited with status {error.returncode}: {' '.join(words)}") from None
    return done.stdout.decode(errors="replace")


def text_of(path: str) -> str:
    """Return a file's text, nothing if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def names_in(folder: str) -> list[str]:
    """Return the names in a folder, sorted; nothing if there is none."""
    try:
        return sorted(path.name for path in Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def installed(program: str) -> bool:
    """Return True if a program is installed, also one for the administrator."""
    return shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") is not None


def json_at(path: str) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one if there is no file."""
    text = text_of(path)
    found = json.loads(text) if text else {}
    if not isinstance(found, dict):
        raise Unreadable(f"{path} holds no JSON object")
    return found


def owner(number: int) -> str:
    """Return an account's name, or its number if it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group(number: int) -> str:
    """Return a group's name, or its number if it has none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
