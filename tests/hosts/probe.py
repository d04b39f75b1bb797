"""Sends a steady stream of reads and writes through nginx, and knows afterwards what was lost."""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import select
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

LIMIT_SECONDS = 900.0  # longer than any case takes: nobody waits for a probe that was forgotten
CLIENT_TIMEOUT_SECONDS = 40.0  # longer than nginx waits for the application: its answer counts, not our patience
VERSIONS_PER_SECOND = 10.0
PAGE = 200
# What removes the rows that probes wrote.
FORGET = "DELETE FROM users WHERE email LIKE 'probe-%'"
SUCCESS = (200, 201)
VERSION = "GET version"
KINDS = {
    "GET kept": ("GET", "/api/users", True),
    "GET new": ("GET", "/api/users", False),
    "POST kept": ("POST", "/api/users", True),
    "POST new": ("POST", "/api/users", False),
    VERSION: ("GET", "/api/version", True),
}


@dataclass(frozen=True)
class Sample:
    """One request: when it was sent (monotonic), how long it took (seconds), what came back (0: no answer)."""

    at: float
    seconds: float
    status: int
    kind: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        """True if the answer was not a success."""
        return self.status not in SUCCESS


@dataclass(frozen=True)
class Report:
    """What a case cost: failures by status (0: no answer), latencies (ms), acknowledged writes that are gone."""

    case: str
    sent: int
    failed: dict[int, int]
    p50: float
    p99: float
    max: float
    written: int
    missing: int
    seconds: float

    def line(self) -> str:
        """Return the report as a line of JSON."""
        return json.dumps(asdict(self))


class Probe:
    """Five clients: reads and writes, each on kept and on new connections, and one that asks for the version.

    Use as a context manager. The clients behave like any common one: a kept connection that the server has closed
    is replaced before the next request, and a request that was sent is never sent again. An answered POST was
    therefore one write, and a POST without an answer counts as lost, whatever became of it.
    """

    def __init__(
        self, address: str, rate: float = 60, kinds: Mapping[str, tuple[str, str, bool]] = KINDS, host: str = ""
    ) -> None:
        """Prepare clients that send ``rate`` requests a second together, for at most `LIMIT_SECONDS`.

        Args:
            address: of the host.
            rate: without that of the client that asks for the version.
            kinds: method, path and whether the connection is kept, by the client's name.
            host: the Host header; empty for the address.
        """
        self.address = address
        self.kinds, self.headers = kinds, {"Host": host} if host else {}
        self.samples: list[Sample] = []
        self.written: dict[int, str] = {}
        self.marks: list[tuple[float, str]] = []
        self.begin = time.monotonic()
        self.gone: list[int] = []
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._stop = threading.Event()
        others = len([kind for kind in kinds if kind != VERSION])
        rates = {kind: VERSIONS_PER_SECOND if kind == VERSION else rate / others for kind in kinds}
        self._threads = [threading.Thread(target=self._send, args=item) for item in rates.items()]

    def __enter__(self) -> Probe:
        """Begin."""
        self.begin = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End."""
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Sample]:
        """Return the requests that were not answered with a success."""
        return [sample for sample in self.samples if sample.failed]

    def mark(self, name: str) -> float:
        """Record what happens now, for the picture; return the moment."""
        moment = time.monotonic()
        self.marks.append((moment, name))
        return moment

    def missing(self) -> list[int]:
        """Return the acknowledged writes that cannot be read back as they were sent."""
        found: dict[int, str] = {}
        connection = http.client.HTTPConnection(self.address, timeout=CLIENT_TIMEOUT_SECONDS)
        for offset in itertools.count(0, PAGE):
            connection.request("GET", f"/api/users?limit={PAGE}&offset={offset}")
            page = json.loads(connection.getresponse().read())
            found |= {user["id"]: user["email"] for user in page}
            if len(page) < PAGE:
                break
        connection.close()
        return [number for number, email in self.written.items() if found.get(number) != email]

    def _send(self, kind: str, rate: float) -> None:
        begin = time.monotonic()
        connection = http.client.HTTPConnection(self.address, timeout=CLIENT_TIMEOUT_SECONDS)
        release = ""
        for number in itertools.count():
            due = begin + number / rate
            if due - begin > LIMIT_SECONDS or self._stop.wait(max(0.0, due - time.monotonic())):
                break
            sample, answer = self._one(connection, kind)
            self.samples.append(sample)
            if sample.status == 201:
                self.written[answer["id"]] = answer["email"]
            if kind == VERSION and not sample.failed and answer["release"] != release:
                if release:
                    self.mark("switch")
                release = answer["release"]
            if not self.kinds[kind][2]:
                connection.close()
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, kind: str) -> tuple[Sample, Any]:
        method, path, _ = self.kinds[kind]
        body, headers = None, dict(self.headers)
        if method == "POST":
            name = f"{self._run}-{next(self._numbers)}"
            body = json.dumps({"name": f"Probe {name}", "email": f"probe-{name}@example.com"})
            headers["Content-Type"] = "application/json"
        if was_closed(connection):
            connection.close()
        at = time.monotonic()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            found = json.loads(text) if answer.status in SUCCESS else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            return Sample(at, time.monotonic() - at, 0, kind, repr(error)), None
        reason = "" if answer.status in SUCCESS else text[:200].decode(errors="replace")
        return Sample(at, time.monotonic() - at, answer.status, kind, reason), found


def was_closed(connection: http.client.HTTPConnection) -> bool:
    """Return True if the server has closed an idle connection: then there is something to read."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


def report(case: str, probes: list[Probe], missing: int) -> Report:
    """Return what a case cost all of its probes together."""
    samples = [sample for probe in probes for sample in probe.samples]
    times = sorted(sample.seconds * 1000 for sample in samples)
    return Report(
        case=case,
        sent=len(samples),
        failed=dict(sorted(Counter(sample.status for sample in samples if sample.failed).items())),
        p50=round(statistics.median(times), 1),
        p99=round(times[int(len(times) * 0.99) - 1], 1),
        max=round(times[-1], 1),
        written=sum(len(probe.written) for probe in probes),
        missing=missing,
        seconds=round(max(s.at + s.seconds for s in samples) - min(s.at for s in samples), 1),
    )


def table(reports: list[Report]) -> list[str]:
    """Return the reports as lines of text."""
    lines = [
        f"{'case':<56} {'sent':>6} {'failed':>16} {'missing':>7} {'p50':>7} {'p99':>8} {'max ms':>8} {'seconds':>7}"
    ]
    for row in reports:
        failed = ", ".join(f"{count} x {status or 'none'}" for status, count in row.failed.items()) or "0"
        lines.append(
            f"{row.case:<56} {row.sent:>6} {failed:>16} {row.missing:>7} {row.p50:>7.1f} {row.p99:>8.1f} "
            f"{row.max:>8.1f} {row.seconds:>7.1f}"
        )
    return lines
