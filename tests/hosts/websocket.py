"""A WebSocket client (RFC 6455) that shows what libraries hide: the answer to the upgrade, pings, the closing code."""

from __future__ import annotations

import base64
import os
import socket
import struct
from dataclasses import dataclass, field

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


@dataclass
class WebSocket:
    """An open connection to a path of a host."""

    address: str
    path: str
    host: str
    closed: int = 0
    """The code that the server closed it with; 1006 if it only ended; 0 while it is open."""
    pings: int = 0
    _stream: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        """Connect and ask for the upgrade; raise AssertionError with the answer if that is not 101."""
        self._stream = socket.create_connection((self.address, 80), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._stream.sendall(request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := self._stream.recv(1)):
            head += byte
        assert head.startswith(b"HTTP/1.1 101"), head

    def send(self, text: str) -> None:
        """Send a text."""
        self._send(TEXT, text.encode())

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        self._stream.sendall(struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload)) + mask + body)

    def receive(self) -> str:
        """Return the next text; answers pings, and returns an empty text when the connection has ended."""
        while head := self._read(2):
            opcode, size = head[0] & 0x0F, head[1] & 0x7F
            if size == 126:
                size = struct.unpack("!H", self._read(2))[0]
            payload = self._read(size)
            if opcode == TEXT:
                return payload.decode()
            if opcode == PING:
                self.pings += 1
                self._send(PONG, payload)
            if opcode == CLOSE:
                self.closed = struct.unpack("!H", payload[:2])[0] if payload else 1005
                return ""
        self.closed = self.closed or 1006
        return ""

    def close(self) -> None:
        """End the connection."""
        self._stream.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._stream.recv(size - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                return b""
            data += part
        return data
