"""An application for the tests of nginx: it answers what it was asked, on a Unix socket.

Usage: python3 upstream.py SOCKET
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

COOKIE_BYTES = 4500
PING, CLOSED = b"\x89\x00", b"\x88\x00"
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
counts: Counter[str] = Counter()


@dataclass(frozen=True)
class Request:
    """A request; the names of its headers are in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    size: int

    @property
    def path(self) -> str:
        """Return the path alone."""
        return urlsplit(self.target).path

    def argument(self, name: str, otherwise: str = "") -> str:
        """Return a value of the query."""
        return parse_qs(urlsplit(self.target).query).get(name, [otherwise])[0]

    def header(self, name: str) -> str:
        """Return the first value of a header."""
        return next((value for key, value in self.headers if key == name), "")


async def received(reader: asyncio.StreamReader) -> Request:
    """Return the next request; its body is read to the end."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line)]
    length = next((int(value) for name, value in headers if name == "content-length"), 0)
    await reader.readexactly(length)
    return Request(method, target, headers, length)


def answer(status: str, headers: dict[str, str], body: bytes) -> bytes:
    """Return a whole answer."""
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def piece(data: bytes) -> bytes:
    """Return a piece of an answer whose length is not known."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def events(request: Request, writer: asyncio.StreamWriter) -> None:
    """Send an event at once, and further ones with a pause before each."""
    media_type = request.argument("type", "text/event-stream")
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for number in range(int(request.argument("count", "1"))):
        if number:
            await asyncio.sleep(float(request.argument("pause")))
        writer.write(piece(f"data: {number}\n\n".encode()))
        await writer.drain()
    if request.argument("hold"):
        await asyncio.sleep(float(request.argument("hold")))
    writer.write(b"0\r\n\r\n")


async def socket(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept a WebSocket, send pings, and send back what comes, without taking it apart."""
    digest = hashlib.sha1((request.header("sec-websocket-key") + WEBSOCKET).encode()).digest()  # noqa: S324
    accepted = base64.b64encode(digest).decode()
    writer.write(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accepted}\r\n\r\n".encode()
    )

    async def ping(pause: float) -> None:
        while pause:
            await asyncio.sleep(pause)
            writer.write(PING)

    pinging = asyncio.create_task(ping(float(request.argument("ping", "0"))))
    while data := await reader.read(1024):
        writer.write(data)
    pinging.cancel()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, and close the connection as nginx does."""
    try:
        request = await received(reader)
        counts[f"{request.method} {request.target}"] += 1
        known = {"path": request.path, "method": request.method, "target": request.target, "size": request.size}
        whole = {**known, "headers": request.headers}
        if request.path.endswith("/events"):
            await events(request, writer)
        elif request.path.endswith("/socket"):
            await socket(request, reader, writer)
        elif request.path.endswith("/counts"):
            writer.write(answer("200 OK", {"Content-Type": "application/json"}, json.dumps(counts).encode()))
        elif request.path.endswith("/dies"):
            pass
        elif request.path.endswith("/slow"):
            await asyncio.sleep(float(request.argument("seconds")))
            writer.write(answer("200 OK", {}, b""))
        elif request.path.endswith("/cookies"):
            pair = [f"session-{number}={str(number) * COOKIE_BYTES}" for number in range(2)]
            writer.write(answer("204 No Content", {"Set-Cookie": pair[0], "set-cookie": pair[1]}, b""))
        elif request.path.endswith("/moved"):
            where = f"{request.header('x-forwarded-proto')}://{request.header('host')}{request.argument('to')}"
            writer.write(answer("307 Temporary Redirect", {"Location": where}, b""))
        elif request.path.endswith("/own-page"):
            own = {"Content-Type": "text/html", "Content-Security-Policy": "img-src *", "X-Frame-Options": "SAMEORIGIN"}
            writer.write(answer("200 OK", own, b"<p>own</p>"))
        elif request.path.endswith("/own-sniffing"):
            writer.write(answer("200 OK", {"X-Content-Type-Options": "nosniff"}, b"own"))
        else:
            writer.write(answer("200 OK", {"Content-Type": "application/json"}, json.dumps(whole).encode()))
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        print(f"nginx closed a connection: {error!r}", file=sys.stderr)
    finally:
        writer.close()


async def main(path: str) -> None:
    """Serve until somebody ends the process."""
    server = await asyncio.start_unix_server(serve, path, limit=1 << 20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
