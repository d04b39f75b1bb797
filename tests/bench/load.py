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


def wrk(url: str, seconds: int = SECONDS) -> tuple[float, int]:
    """Ask for one address on kept connections; return requests per second and the number of failures."""
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", url]
    output = subprocess.check_output(command, text=True, timeout=seconds + 30)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failures = [*(refused.groups() if refused else ()), *(broken.groups() if broken else ())]
    return float(rate[1]), sum(int(count) for count in failures)


def alternate(urls: dict[str, str]) -> dict[str, Rates]:
    """Give each contender its turn in each round, so that a busy moment of the machine meets all of them."""
    found = {name: Rates() for name in urls}
    for url in urls.values():
        wrk(url, seconds=2)  # imports, connections and caches are warm then
    for _ in range(ROUNDS):
        for name, url in urls.items():
            rate, failed = wrk(url)
            found[name].rounds.append(rate)
            found[name].failed += failed
    return found
