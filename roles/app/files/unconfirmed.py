"""The record of a switch that is not confirmed yet: while it is there, the host goes back by itself.

It is on disk before another release gets the public requests, and the confirmation removes it. If the run is killed,
its unit reverts the switch (`ExecStopPost`, activation.py); if the host goes down, `<name>-revert.service` at boot.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from basics import read_json, write_whole


@dataclass(frozen=True)
class Switch:
    """What is reverted: from one slot to another one, and the schema with it."""

    release: str
    slot: str
    previous: str
    """The slot that had the requests before; empty if none had."""
    schema_of: str = ""
    """The release that brings the schema forward again; empty if the schema was not taken back."""


@dataclass(frozen=True)
class Unconfirmed:
    """The record of one application on this host."""

    root: Path

    @property
    def path(self) -> Path:
        """Return the file of the record."""
        return self.root / "state" / "unconfirmed.json"

    def read(self) -> Switch | None:
        """Return the switch that is not confirmed; None if there is none."""
        found = read_json(self.path)
        return Switch(**found) if found else None

    def record(self, switch: Switch) -> None:
        """Write the record, so that it outlives a loss of power."""
        write_whole(self.path, json.dumps(dataclasses.asdict(switch)) + "\n")
        sync(self.path.parent)

    def clear(self) -> None:
        """Remove the record, after the link that it is about is on disk."""
        sync(self.root)
        self.path.unlink(missing_ok=True)
        sync(self.path.parent)


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
