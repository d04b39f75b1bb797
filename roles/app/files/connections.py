"""Whether the connections that an environment may open fit its database server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basics import ReleaseError
from database import BackupError, Database
from environment import settings_of

# While a release is switched to, the old one still runs beside it.
SLOTS = 2
# A pooled connection is replaced when it is used next, not at the second it comes of age.
SPARE_SECONDS = 10
LIMITS = "SELECT @@GLOBAL.max_connections, @@GLOBAL.wait_timeout"


@dataclass(frozen=True)
class Pool:
    """The pool of each worker process, as a release's `.env` sets it; ``keys`` are its settings there."""

    keys: Mapping[str, str]
    size: int
    overflow: int
    recycle_seconds: int

    @classmethod
    def of(cls, folder: Path, keys: Mapping[str, str]) -> Pool | None:
        """Return the pool of the release in ``folder``; None where it has no such settings."""
        settings = settings_of(folder)
        try:
            numbers = {name: int(settings[key]) for name, key in keys.items()}
            return cls(keys, numbers["size"], numbers["overflow"], numbers["recycle_seconds"])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Server:
    """What the database server allows; ``reserve`` of its connections stay for others."""

    max_connections: int
    wait_timeout_seconds: int
    reserve: int

    @classmethod
    def ask(cls, option_file: Path, reserve: int) -> Server:
        """Return what the server of an option file says.

        Raises:
            ReleaseError: it does not answer.
        """
        try:
            ((connections, seconds),) = Database(option_file).ask(LIMITS)
        except BackupError as error:
            raise ReleaseError(str(error)) from None
        return cls(int(connections), int(seconds), reserve)


def fit(pool: Pool, server: Server, workers: int) -> dict[str, Any]:
    """Return the sum of the connections and what the server has for them.

    Args:
        pool: of each worker process.
        server: the one that all of them use.
        workers: worker processes of all hosts of the environment, in one slot each.

    Raises:
        ReleaseError: they do not fit, with each number that could be changed, and to what.
    """
    each, free = pool.size + pool.overflow, server.max_connections - server.reserve
    needed = workers * SLOTS * each
    sums = (
        f"{workers} workers on all hosts x {SLOTS} slots during a switch x ({pool.size} + {pool.overflow}) "
        f"= {needed} connections; the server takes {server.max_connections} (max_connections), "
        f"{server.reserve} of them kept for others (app_connection_reserve)"
    )
    findings = []
    if needed > free:
        largest = free // (workers * SLOTS) - pool.overflow
        way = f"set {pool.keys['size']} to {largest} or less" if largest > 0 else "lower app_workers_max"
        findings.append(f"{sums}. Either {way}, or max_connections to {needed + server.reserve} or more")
    if pool.recycle_seconds >= server.wait_timeout_seconds:
        findings.append(
            f"{pool.keys['recycle_seconds']} is {pool.recycle_seconds}, and the server closes a connection that was "
            f"idle for {server.wait_timeout_seconds} s (wait_timeout). Either set "
            f"{pool.keys['recycle_seconds']} to {max(1, server.wait_timeout_seconds - SPARE_SECONDS)} or less, "
            f"or wait_timeout to {pool.recycle_seconds + SPARE_SECONDS} or more"
        )
    if findings:
        raise ReleaseError(
            "the connections do not fit the database server, so nothing was started:\n"
            + "\n".join(f"  - {finding}" for finding in findings)
        )
    return {"checked": True, "needed": needed, "free": free, "sums": sums}
