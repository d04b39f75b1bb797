"""What the programs share: to run a command, and to read and write files so that nothing is ever half there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO, Any

# In a release: how MySQL's own programs reach the database as the migration account.
OPTION_FILE = ".mysql.cnf"

BACKUP_ROOT = Path("/var/backups/waffle-iron")


# What systemctl and systemd-run say while systemd starts anew (`systemctl daemon-reexec`, an update of the package).
BUS_LOST = re.compile(
    r"Connection reset|Transport endpoint|Failed to connect to bus|Connection refused|Broken pipe|peer disconnected"
    r"|recipient disconnected|connection terminated"
)
BUS_PROGRAMS = ("systemctl", "systemd-run")
BUS_SECONDS = 10.0


class ReleaseError(Exception):
    """A release cannot be used; the message says why and what to do."""


def run(*command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program; raise `ReleaseError` with the end of its output where it fails and ``check`` is set.

    What asks systemd is repeated for some seconds if the connection to it was lost.
    """
    words = [str(part) for part in command]
    deadline = time.monotonic() + BUS_SECONDS
    while True:
        # What an application writes to its log need not be text.
        done = subprocess.run(words, check=False, text=True, errors="replace", capture_output=True, **options)
        lost = done.returncode != 0 and words[0] in BUS_PROGRAMS and BUS_LOST.search(done.stderr)
        if not lost or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if check and done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise ReleaseError(f"`{' '.join(words)}` exited with status {done.returncode}:\n{output}")
    return done


def locked(stream: IO[str]) -> bool:
    """Take the lock of a file, unless another process has it; tell whether it was taken. It ends with this process."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` atomically, for root's eyes; on a full disk the old content stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return the JSON object in a file; nothing where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def replace_link(link: Path, target: str | Path) -> None:
    """Point ``link`` to ``target`` atomically; a folder that somebody put in its place is moved away."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    if link.is_dir() and not link.is_symlink():
        quarantine(link)
    temporary.rename(link)


def quarantine(path: Path) -> Path:
    """Move away what a person may have made; nothing is deleted. Return its new place."""
    folder = BACKUP_ROOT / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = folder / str(path).strip("/").replace("/", "__")
    number = 0
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = aside.with_name(f"{aside.name.rsplit('~', 1)[0]}~{number}")
    shutil.move(str(path), str(aside))
    return aside


def digest_of(file: Path | IO[bytes]) -> str:
    """Return the SHA-256 of a file, from its beginning."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return digest_of(stream)
    file.seek(0)
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def option_files(root: Path) -> list[Path]:
    """Return the option files of all releases, that of the release prepared last first: it has the newest password."""
    found = (root / "releases").glob(f"*/{OPTION_FILE}")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def parsed(body: str) -> Any:
    """Return the JSON object in a text; an empty one where the text is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
