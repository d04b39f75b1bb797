"""What one run did and measured, for its receipt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from messages import Migration, Sample, Step


@dataclass
class RunLog:
    """What one run did and measured: its parts add to one log, and the receipt takes it from there."""

    steps: list[Step] = field(default_factory=list)
    """The name and the seconds of each step."""
    samples: list[Sample] = field(default_factory=list)
    """What the application answered to the health gate, and how fast."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, though the run went well."""
    migration: Migration = field(init=False)
    """What was planned for the database, and done to it; empty if nothing was."""

    def __post_init__(self) -> None:
        """Begin without a migration."""
        self.migration = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name of a step, and keep its seconds."""
        begin = time.monotonic()
        print(name, flush=True)
        try:
            yield
        finally:
            self.steps.append({"step": name, "seconds": round(time.monotonic() - begin, 2)})

    def sample(self, path: str, status: int, milliseconds: float) -> None:
        """Keep an answer of the application: its path, its status and how long it took."""
        self.samples.append({"path": path, "status": status, "milliseconds": milliseconds})
