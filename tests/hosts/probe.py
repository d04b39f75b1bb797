"""Sends a steady stream of reads and writes through nginx, and knows afterwards what was lost."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

LIMIT_SECONDS = 180.0


@dataclass(frozen=True)
class Sample:
    """One request: when it was sent, how long it took (seconds), what came back (0: no answer)."""

    at: float
    seconds: float
    status: int
    kind: str
    reason: str = ""


@dataclass
class Probe:
    """Four clients: reads and writes, each on kept and on new connections. Use as a context manager.

    ``rate`` is requests per second, all clients together. It stops by itself after `LIMIT_SECONDS`.
    """

    address: str
    rate: float = 60
    samples: list[Sample] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._names = itertools.count()
        kinds = [(method, kept) for method in ("GET", "POST") for kept in (True, False)]
        self._threads = [threading.Thread(target=self._send, args=kind) for kind in kinds]

    def __enter__(self) -> Probe:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Sample]:
        """Return the requests that were not answered with a success."""
        return [sample for sample in self.samples if sample.status not in (200, 201)]

    def missing(self) -> list[int]:
        """Return the acknowledged writes that cannot be read back; removes those that can."""
        connection, gone = http.client.HTTPConnection(self.address, timeout=10), []
        for number in self.written:
            connection.request("DELETE", f"/api/users/{number}")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 204:
                gone.append(number)
        connection.close()
        return gone

    def summary(self) -> str:
        """Return requests sent, failed, and latencies in milliseconds."""
        times = sorted(sample.seconds * 1000 for sample in self.samples)
        p99 = times[int(len(times) * 0.99) - 1]
        return (
            f"{len(times)} sent, {len(self.failed)} failed, {len(self.written)} written; "
            f"p50 {statistics.median(times):.0f} ms, p99 {p99:.0f} ms, max {times[-1]:.0f} ms"
        )

    def assert_nothing_lost(self) -> None:
        """Fail where a request failed or an acknowledged write is gone."""
        assert len(self.samples) > 100, "too few requests to tell anything"
        assert not self.failed, f"{self.summary()}: {self.failed[:5]}"
        assert not self.missing(), self.summary()

    def _send(self, method: str, kept: bool) -> None:
        begin, pause = time.monotonic(), len(self._threads) / self.rate
        connection = http.client.HTTPConnection(self.address, timeout=15)
        for number in itertools.count():
            due = begin + number * pause
            if due - begin > LIMIT_SECONDS or self._stop.wait(max(0.0, due - time.monotonic())):
                break
            self.samples.append(self._one(connection, method, kept))
            if not kept:
                connection.close()
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, method: str, kept: bool) -> Sample:
        body = None
        if method == "POST":
            name = next(self._names)
            body = json.dumps({"name": f"Probe {name}", "email": f"probe-{id(self)}-{name}@example.com"})
        kind, at = f"{method} {'kept' if kept else 'new'}", time.monotonic()
        try:
            connection.request(method, "/api/users", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Sample(at, time.monotonic() - at, 0, kind, repr(error))
        if answer.status == 201:
            self.written.append(int(json.loads(text)["id"]))
        reason = "" if answer.status < 300 else text[:200].decode(errors="replace")
        return Sample(at, time.monotonic() - at, answer.status, kind, reason)
