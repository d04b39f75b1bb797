"""The probe of the host tests tells the truth: what is lost on purpose is what it reports."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.hosts.probe import Probe, report, table
from tests.hosts.world import await_true

ENOUGH = 120


class Liar:
    """A service that loses some requests and forgets some writes, and knows which."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = 0
        self.written = 0
        self.users: dict[int, str] = {}
        self.forgotten: list[int] = []
        self.refused = {0: 0, 503: 0}
        self.release = "r1"
        self.honest = False

    def fate(self) -> int:
        """Return the status of the next request; 0 for no answer."""
        self.asked += 1
        status = 200
        if not self.honest:
            status = 0 if self.asked % 7 == 0 else 503 if self.asked % 11 == 0 else 200
        if status in self.refused:
            self.refused[status] += 1
        return status

    def write(self, email: str) -> int:
        """Acknowledge a user; every fifth is forgotten."""
        self.written += 1
        if self.written % 5 == 0:
            self.forgotten.append(self.written)
        else:
            self.users[self.written] = email
        return self.written


@pytest.fixture
def liar() -> Iterator[tuple[Liar, str]]:
    """Run the service; return it and its address."""
    service = Liar()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def handled(self, wanted: Any) -> None:
            with service.lock:
                status = service.fate()
                body = wanted() if status == 200 else {"reason": "on purpose"}
            if status == 0:
                self.close_connection = True
                self.connection.close()
            else:
                self.answer(201 if status == 200 and self.command == "POST" else status, body)

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/api/version":
                self.handled(lambda: {"release": service.release})
                return
            query = {name: int(values[0]) for name, values in parse_qs(address.query).items()}
            begin = query.get("offset", 0)
            users = [{"id": number, "email": email} for number, email in sorted(service.users.items())]
            self.handled(lambda: users[begin : begin + query.get("limit", 3)])

        def do_POST(self) -> None:
            user = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.handled(lambda: {"id": service.write(user["email"]), "email": user["email"]})

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield service, f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_probe_finds_exactly_what_was_lost(liar: tuple[Liar, str]) -> None:
    service, address = liar
    with Probe(address, rate=400) as probe:
        await_true(lambda: len(probe.samples) > ENOUGH, 30, "the service is asked")
        service.release = "r2"
        await_true(lambda: [name for _, name in probe.marks] == ["switch"], 30, "the other release is seen")
    service.honest = True
    missing = probe.missing()
    found = report("lies", [probe], len(missing))
    assert sorted(missing) == service.forgotten and len(missing) > 2
    assert {status: found.failed.get(status, 0) for status in (0, 503)} == service.refused
    assert sum(found.failed.values()) == len(probe.failed) and min(service.refused.values()) > 2
    assert (found.sent, found.written, found.missing) == (len(probe.samples), service.written, len(missing))
    assert f"{found.failed[0]} x none, {found.failed[503]} x 503" in table([found])[1]


def test_the_probe_finds_nothing_where_nothing_was_lost(liar: tuple[Liar, str]) -> None:
    service, address = liar
    service.honest = True
    with Probe(address, rate=400) as probe:
        await_true(lambda: len(probe.samples) > ENOUGH, 30, "the service is asked")
    service.users.update({number: probe.written[number] for number in service.forgotten})
    assert (probe.failed, probe.missing(), probe.marks) == ([], [], [])
