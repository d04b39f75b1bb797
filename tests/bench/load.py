"""Requests against a lab host: as many as it answers, or so many each second. Both are bounded in time."""

from __future__ import annotations

import http.client
import re
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

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


class SteadyLoad:
    """Sends so many requests each second, each on a new connection, while the block runs, and counts the failures."""

    def __init__(self, address: str, path: str, rate: float = 60, limit_seconds: float = 120) -> None:
        self.address, self.path, self.rate = address, path, rate
        self.total = self.failed = 0
        self._limit = int(rate * limit_seconds)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> SteadyLoad:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End, and wait for the last answers."""
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        begin = time.monotonic()
        with ThreadPoolExecutor(max_workers=64) as pool:
            answers = []
            for number in range(self._limit):
                if self._stop.wait(max(0.0, begin + number / self.rate - time.monotonic())):
                    break
                answers.append(pool.submit(self._succeeds))
        self.total = len(answers)
        self.failed = sum(not answer.result() for answer in answers)

    def _succeeds(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("GET", self.path, headers={"Connection": "close"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return answer.status == 200
