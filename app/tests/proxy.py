"""A TCP proxy that can misbehave as networks and failovers do."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Proxy:
    """Forwards connections on a local port to a server, as long as nothing else is asked for."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.silent = False  # accept, then never answer
        self.break_after_next_send = False  # hand the next bytes to the server, then cut everything
        self.sockets: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Refuse new connections and cut the open ones."""
        # Closing alone does not wake a thread that is in accept().
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def reopen(self) -> None:
        """Accept connections again, on the same port."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        """Cut the open connections."""
        while self.sockets:
            connection = self.sockets.pop()
            with contextlib.suppress(OSError):  # the other side was quicker
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = listener.accept()
                self.sockets.append(client)
                if self.silent:
                    continue
                server = socket.create_connection(self.target)
                self.sockets.append(server)
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):  # cut
            while data := source.recv(65536):
                sink.sendall(data)
                if from_client and self.break_after_next_send:
                    self.break_after_next_send = False
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):  # already closed
                end.shutdown(socket.SHUT_RDWR)
