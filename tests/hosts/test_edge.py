"""What nginx does with requests for an application, its own page, and what hosts ask themselves.

Three sites: `page.test` with a page and the application below /api, `root.test` without a page, `v1.test` without a
page and with an application whose own paths begin with /v1. The host itself is a trusted proxy, the machine outside is
none.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts.edge import Edge, edge
from tests.hosts.upstream import COOKIE_BYTES, PING
from tests.support import free_port

HAS_NGINX = bool(shutil.which("nginx"))
pytestmark = [] if HAS_NGINX else [pytest.mark.lab]
HOST = "dev1"
OPEN_PORT = 443  # the firewall lets it through, and nothing listens there
TIMEOUT = 2
WHOLE = {
    "nginx_trusted_proxies": ["127.0.0.0/8"],
    "nginx_proxy_read_timeout_seconds": TIMEOUT,
    "nginx_client_max_body_size": "20m",
    "nginx_health_path": "/api/ready",
    "nginx_public_scheme": "https",
}
SITES: dict[str, dict[str, Any]] = {
    "page.test": {"nginx_server_names": ["page.test"]},
    "root.test": {
        "nginx_default": False, "nginx_server_names": ["root.test"], "nginx_document_root": "", "nginx_path": "/"
    },
    "v1.test": {
        "nginx_default": False, "nginx_server_names": ["v1.test"], "nginx_document_root": "", "nginx_path": "/v1",
        "nginx_strip_path": False,
    },
}  # fmt: skip


def own_address() -> str:
    """Return an address of this machine that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
    return address


@pytest.fixture(scope="module")
def web(request: pytest.FixtureRequest) -> Iterator[Edge]:
    """Return the running nginx."""
    if HAS_NGINX:

        def shell(script: str, text: str) -> str:
            done = subprocess.run(["sh", "-c", script], input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{script}:\n{done.stdout}{done.stderr}"
            return done.stdout

        with edge(shell, own_address(), free_port(), WHOLE, SITES) as running:
            yield running
    else:
        here = request.getfixturevalue("here")
        request.getfixturevalue("converged")
        with edge(
            lambda script, text: here.lab("exec", HOST, "--", "sh", "-c", script, stdin=text),
            here.address(HOST), OPEN_PORT, WHOLE, SITES,
        ) as running:  # fmt: skip
            yield running


# --- where the application is ---


@pytest.mark.parametrize(
    ("host", "path", "asked"),
    [
        ("page.test", "/api/users?page=2", "/users?page=2"),
        ("page.test", "/api/.well-known/keys.json", "/.well-known/keys.json"),
        ("page.test", "/api/assets/index-DiwrgTda.js", "/assets/index-DiwrgTda.js"),
        ("page.test", "/api/docs", "/docs"),
        ("root.test", "/", "/"),
        ("root.test", "/users/", "/users/"),
        ("root.test", "/docs/oauth2-redirect", "/docs/oauth2-redirect"),
        ("root.test", "/.well-known/keys.json", "/.well-known/keys.json"),
        ("root.test", "/assets/index-DiwrgTda.js", "/assets/index-DiwrgTda.js"),
        ("v1.test", "/v1", "/v1"),
        ("v1.test", "/v1/users?page=2", "/v1/users?page=2"),
        ("v1.test", "/v1/files/a%2Fb", "/v1/files/a%2Fb"),
    ],
)
def test_the_application_gets_the_path_that_it_knows(web: Edge, host: str, path: str, asked: str) -> None:
    reply = web.ask(host, path)
    assert (reply.status, reply.asked["target"]) == (200, asked)


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("v1.test", "/"), ("v1.test", "/v10/users"), ("v1.test", "/users"), ("page.test", "/gone"),
        ("page.test", "/.secret"), ("page.test", "/.well-known/secret"),
    ],
)  # fmt: skip
def test_elsewhere_is_nothing(web: Edge, host: str, path: str) -> None:
    assert web.ask(host, path).status == 404


def test_a_path_without_its_slash_is_sent_on(web: Edge) -> None:
    """Without scheme and host: a proxy in front may have other ones."""
    reply = web.ask("page.test", "/api?a=b")
    assert (reply.status, reply.all("location")) == (308, ["/api/?a=b"])
    assert web.ask("page.test", "/assets").all("location") == ["/assets/"]


def test_our_page_has_our_headers_and_the_application_its_own(web: Edge) -> None:
    page = web.ask("page.test", "/")
    assert page.text == "the page" and "default-src 'self'" in page.all("content-security-policy")[0]
    assert page.all("x-frame-options") == ["DENY"]
    for host, path in (("page.test", "/api/own-page"), ("root.test", "/own-page")):
        own = web.ask(host, path)
        assert own.all("content-security-policy") == ["img-src *"] and own.all("x-frame-options") == ["SAMEORIGIN"]
        assert own.all("content-type") == ["text/html"]
        for name in ("referrer-policy", "permissions-policy", "cross-origin-opener-policy"):
            assert own.all(name) == [], name
    for path in ("/own-sniffing", "/own-page"):
        assert web.ask("root.test", path).all("x-content-type-options") == ["nosniff"]


# --- what the host alone may ask ---

INSIDE = ("/.waffle/version", "/.waffle/live")


@pytest.mark.parametrize("path", INSIDE)
@pytest.mark.parametrize("host", ["page.test", "root.test", "v1.test"])
def test_the_host_itself_asks_for_the_release(web: Edge, host: str, path: str) -> None:
    reply = web.ask_there(host, path)
    assert (reply.status, reply.asked["target"]) == (200, path)
    assert web.ask(host, path).status == 404
    # Somebody's own proxy on the host, such as one for a tunnel, is not the host itself.
    assert web.ask_there(host, path, X_Forwarded_For="203.0.113.7").status == 404


def asked_for_releases(web: Edge) -> dict[str, int]:
    """Return what the application was asked about its release."""
    return {request: count for request, count in web.counts().items() if "waffle" in request}


@pytest.mark.parametrize(
    "path",
    [
        "/.waffle/", "/.waffle", "/.waffle/other", "/api/.waffle/version", "/v1/.waffle/live", "//.waffle/version",
        "/%2ewaffle/version", "/.waffle%2fversion", "/api/x/../.waffle/version", "/x/.waffle/version",
    ],
)  # fmt: skip
def test_nobody_asks_in_another_way(web: Edge, path: str) -> None:
    before = asked_for_releases(web)
    for host in ("page.test", "root.test", "v1.test"):
        assert web.ask(host, path).status == 404, host
    assert asked_for_releases(web) == before


# --- headers about the way ---


def test_the_application_sees_its_public_address(web: Edge) -> None:
    reply = web.ask("Root.test:8443", "/")
    assert reply.got("host") == ["root.test:8443"] and reply.got("x-forwarded-host") == ["root.test:8443"]
    assert reply.got("x-forwarded-port") == ["8443"] and reply.got("x-forwarded-proto") == ["http"]
    plain = web.ask("root.test", "/")
    assert plain.got("host") == ["root.test"] and plain.got("x-forwarded-port") == ["80"]


def test_a_host_beside_a_whole_address_is_not_believed(web: Edge) -> None:
    """The site is chosen by the one, so the application must not get the other."""
    with web.connect() as client:
        client.sendall(b"GET http://root.test/ HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    assert '["host", "root.test"]' in text and "other.test" not in text


def test_a_client_from_outside_cannot_claim_anything(web: Edge) -> None:
    reply = web.ask(
        "root.test", "/", X_Forwarded_Proto="https", X_Forwarded_For="203.0.113.7", X_Real_IP="203.0.113.7",
        X_Forwarded_Host="evil.test", X_Forwarded_Port="1",
    )  # fmt: skip
    assert reply.got("x-forwarded-proto") == ["http"] and reply.got("x-forwarded-port") == ["80"]
    assert reply.got("x-forwarded-host") == ["root.test"]
    assert "203.0.113.7" not in reply.text


def test_a_trusted_proxy_is_believed(web: Edge) -> None:
    reply = web.ask_there("root.test", "/", X_Forwarded_Proto="https", X_Forwarded_For="198.51.100.1, 203.0.113.7")
    assert reply.got("x-forwarded-proto") == ["https"] and reply.got("x-forwarded-port") == ["443"]
    # The last one that is no trusted proxy: what is left of it, the client may have written itself.
    assert reply.got("x-forwarded-for") == ["203.0.113.7"] and reply.got("x-real-ip") == ["203.0.113.7"]
    assert web.ask_there("root.test", "/", X_Forwarded_Proto="http").got("x-forwarded-proto") == ["http"]
    assert web.ask_there("root.test", "/", X_Forwarded_Proto="gopher").got("x-forwarded-proto") == ["http"]


def test_the_health_check_of_a_trusted_proxy_is_like_a_public_request(web: Edge) -> None:
    """It asks by the host's address and claims no scheme: allowed hosts or a redirect to https would answer it."""
    reply = web.ask_there("10.1.2.3", "/api/ready")
    assert reply.asked["target"] == "/ready" and reply.got("host") == ["page.test"]
    assert reply.got("x-forwarded-proto") == ["https"] and reply.got("x-forwarded-host") == ["page.test"]
    assert web.ask("10.1.2.3", "/api/ready").got("x-forwarded-proto") == ["http"]
    for path in ("/", "/api/", "/api/ready/", "/.waffle/version"):
        assert web.ask_there("10.1.2.3", path).status == 421, path


@pytest.mark.parametrize("to", ["/api/users/", "/users/"])
@pytest.mark.parametrize(
    ("host", "path"), [("page.test:8080", "/api/moved"), ("page.test", "/api/moved"), ("root.test", "/moved")]
)
def test_a_redirect_of_the_application_stays_as_it_is(web: Edge, host: str, path: str, to: str) -> None:
    """The upstream has its site's name here: nginx would take these addresses for its own way to the application."""
    reply = web.ask(host, f"{path}?to={to}")
    assert (reply.status, reply.all("location")) == (307, [f"http://{host}{to}"])


# --- how long, how large, how often ---


def test_a_request_that_takes_too_long_is_executed_once(web: Edge) -> None:
    for method in ("GET", "POST"):
        target = f"/slow?seconds={TIMEOUT + 1}&id={secrets.token_hex(4)}"
        begin = time.monotonic()
        assert web.ask("root.test", target, method).status == 504
        assert time.monotonic() - begin < TIMEOUT + 1
        assert web.counts()[f"{method} {target}"] == 1


def test_a_request_whose_worker_dies_is_repeated_unless_it_writes(web: Edge) -> None:
    for method, times in (("GET", 2), ("POST", 1)):
        target = f"/dies?id={secrets.token_hex(4)}"
        assert web.ask("root.test", target, method).status == 502
        assert web.counts()[f"{method} {target}"] == times


def test_two_large_cookies_go_both_ways(web: Edge) -> None:
    reply = web.ask("root.test", "/cookies")
    cookies = reply.all("set-cookie")
    assert reply.status == 204 and [len(cookie) for cookie in cookies] == [COOKIE_BYTES + len("session-0=")] * 2
    back = web.ask("root.test", "/", Cookie="; ".join(cookies))
    assert back.status == 200 and back.got("cookie") == ["; ".join(cookies)]


def test_headers_and_queries_up_to_16_kilobytes(web: Edge) -> None:
    assert web.ask("root.test", "/", X_Long="x" * 16000).status == 200
    assert web.ask("root.test", f"/?q={'x' * 16000}").status == 200
    assert web.ask("root.test", "/", X_Long="x" * 17000).status == 400
    assert web.ask("root.test", f"/?q={'x' * 17000}").status == 414


def test_an_upload_up_to_the_limit(web: Edge) -> None:
    body = b"x" * (15 << 20)
    assert web.ask("page.test", "/api/files", "POST", body).asked["size"] == len(body)
    with web.connect() as client:
        client.sendall(b"POST /files HTTP/1.1\r\nHost: root.test\r\nContent-Length: 22000000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"


# --- what stays open ---


STREAM_HEADERS = "Accept-Encoding: gzip\r\nConnection: close"


def events(web: Edge, host: str, path: str) -> Iterator[bytes]:
    """Yield the events of a stream as they come."""
    with web.connect() as client, client.makefile("rb") as stream:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{STREAM_HEADERS}\r\n\r\n".encode())
        for line in stream:
            if line.startswith(b"data: "):
                yield line.strip()


@pytest.mark.parametrize(("host", "prefix"), [("page.test", "/api"), ("root.test", ""), ("v1.test", "/v1")])
def test_an_event_is_sent_at_once(web: Edge, host: str, prefix: str) -> None:
    """The stream then stays silent for less than the timeout: an event that is held back comes with its end alone."""
    for media_type in ("text/event-stream", "text/plain"):
        path = f"{prefix}/events?hold={0.9 * TIMEOUT}&type={media_type}"
        stream, begin = events(web, host, path), time.monotonic()
        assert next(stream) == b"data: 0"
        assert time.monotonic() - begin < 0.5 * TIMEOUT
        assert list(stream) == []


def test_a_stream_that_says_something_stays_open(web: Edge) -> None:
    """And each event of it comes when it is sent."""
    pause, moments = 0.6 * TIMEOUT, [time.monotonic()]
    for _ in events(web, "root.test", f"/events?count=5&pause={pause}"):
        moments.append(time.monotonic())
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert len(gaps) == 5 and gaps[0] < 0.5 * pause and all(0.5 * pause < gap < 1.5 * pause for gap in gaps[1:]), gaps
    assert sum(gaps) > 2 * TIMEOUT


HANDSHAKE = (
    "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: {}\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{}\r\n\r\n"
)
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


def handshake(client: socket.socket, host: str, path: str) -> str:
    """Request a WebSocket, and return the head of the answer."""
    client.sendall(HANDSHAKE.format(path, host, "websocket", KEY).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    return head.decode()


@pytest.mark.parametrize(("host", "prefix"), [("page.test", "/api"), ("root.test", ""), ("v1.test", "/v1")])
def test_a_websocket_in_use_outlives_the_timeout(web: Edge, host: str, prefix: str) -> None:
    """Pings of the server are use enough."""
    with web.connect() as client:
        head = handshake(client, host, f"{prefix}/socket?ping={0.5 * TIMEOUT}")
        assert head.startswith("HTTP/1.1 101 ") and "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        begin, received = time.monotonic(), b""
        while len(received) < 5 * len(PING):
            received += client.recv(2)
        assert received == 5 * PING and time.monotonic() - begin > 2 * TIMEOUT
        client.sendall(b"\x81\x85mask\x05\x04\x1f\x07\x0b")
        while not received.endswith(b"\x07\x0b"):
            received += client.recv(64)
        assert b"\x81\x85mask" in received


def test_a_websocket_that_nobody_uses_is_closed(web: Edge) -> None:
    with web.connect() as client:
        assert handshake(client, "root.test", "/socket").startswith("HTTP/1.1 101 ")
        assert client.recv(1) == b""


def test_no_other_protocol_is_offered_to_the_application(web: Edge) -> None:
    with web.connect() as client:
        client.sendall(HANDSHAKE.format("/", "root.test", "h2c", "Connection: close").encode())
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    names = {name for name, _ in json.loads(text.partition("\r\n\r\n")[2])["headers"]}
    assert re.match(r"HTTP/1\.1 200 ", text) and not names & {"upgrade", "connection"}
