"""The state of a lab between two commands, machine-wide, and the lock that keeps two commands apart."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.config import HostSpec, Lab
from lab.errors import LabError

# Empties itself at boot. The files stay after `down`: to remove a lock is to race for it.
LOCKS = Path("/run/lock")


@dataclass
class State:
    """The checkout that owns the lab, and the hosts it asked for by name."""

    owner: Path
    hosts: dict[str, HostSpec] = field(default_factory=dict)


def load(lab: Lab) -> State | None:
    """Return the lab's state; None if there is none, or none that can be read."""
    try:
        data = json.loads((lab.state / "state.json").read_text())
        hosts = [HostSpec(**host) for host in data["hosts"]]
        return State(Path(data["owner"]), {host.name: host for host in hosts})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{lab.state}/state.json cannot be read ({error}): remove that file") from error


def save(lab: Lab, state: State) -> None:
    """Write the state; a reader sees the old or the new one."""
    data = {"owner": str(state.owner), "hosts": [asdict(host) for host in state.hosts.values()]}
    write_atomically(lab.state / "state.json", json.dumps(data, indent=2) + "\n")


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file by rename, so that it is never half written."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    new.replace(path)


@contextlib.contextmanager
def locked(lab: Lab) -> Iterator[None]:
    """Keep other commands on this lab out; LabError if one runs. The kernel frees the locks of the dead."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    path = LOCKS / f"{lab.bridge}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise LabError(f"another command works on lab {lab.name} (process {holder}): wait for it") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def machine_locked() -> Iterator[None]:
    """Keep other labs from this machine's shared settings for a moment; they wait."""
    with (LOCKS / "waffle-iron.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
