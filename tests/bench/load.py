"""Requests against a lab host, as many as it answers, for a bounded time."""

from __future__ import annotations

import re
import statistics
import subprocess
from dataclasses import dataclass, field

CONNECTIONS = 16
SECONDS = 10
ROUNDS = 3


@dataclass
class Rates:
    """What the rounds of one contender gave: requests per second, and answers that were no success."""

    rounds: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def median(self) -> float:
        """Return the requests per second of the middle round."""
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Target:
    """What is asked for, and the name of the server as a browser would send it."""

    url: str
    host: str


def wrk(target: Target, seconds: int = SECONDS) -> tuple[float, int]:
    """Request one address on kept connections; return requests per second and the number of failures."""
    options = ["--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", f"--header=Host: {target.host}"]
    command = ["wrk", *options, target.url]
    output = subprocess.check_output(command, text=True, timeout=seconds + 30)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failures = [*(refused.groups() if refused else ()), *(broken.groups() if broken else ())]
    return float(rate[1]), sum(int(count) for count in failures)


def alternate(targets: dict[str, Target]) -> dict[str, Rates]:
    """Give each contender its turn in each round, so that a busy moment of the machine meets all of them."""
    found = {name: Rates() for name in targets}
    for target in targets.values():
        wrk(target, seconds=2)  # imports, connections and caches are warm then
    for _ in range(ROUNDS):
        for name, target in targets.items():
            rate, failed = wrk(target)
            found[name].rounds.append(rate)
            found[name].failed += failed
    return found
