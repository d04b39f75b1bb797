"""gunicorn with uvicorn's own worker, whose start and end are quick and lose no request.

What is overridden is `_serve` of uvicorn-worker, whose version is pinned, and public in gunicorn and in uvicorn's
`Server`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from uvicorn.server import HANDLED_SIGNALS, Server  # type: ignore[import-not-found]
from uvicorn_worker import UvicornWorker  # type: ignore[import-not-found]
from waffle_asgi import Wrapper, load

# How long a connection that was accepted may take to send the first byte of its request when the worker ends.
FIRST_BYTE_SECONDS = 0.2
# gunicorn kills a worker that is left after the graceful timeout; before, uvicorn ends what still runs.
LAST_SECONDS = 3
# What uvicorn can do each job with, the best first. An old version in the application's lock may not fit.
CHOICES = {
    "loop": {"uvloop": "uvicorn.loops.uvloop", "asyncio": "uvicorn.loops.asyncio"},
    "http": {"httptools": "uvicorn.protocols.http.httptools_impl", "h11": "uvicorn.protocols.http.h11_impl"},
    "ws": {
        "websockets-sansio": "uvicorn.protocols.websockets.websockets_sansio_impl",
        "wsproto": "uvicorn.protocols.websockets.wsproto_impl",
        "websockets": "uvicorn.protocols.websockets.websockets_impl",
    },
}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import without Python's collector: nothing is garbage yet, and looking for some costs a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def chosen() -> dict[str, str]:
    """Return what uvicorn does each of its jobs with: the first that can be imported here."""
    found = {}
    for job, choices in CHOICES.items():
        found[job] = "none"
        for name, module in choices.items():
            with contextlib.suppress(ImportError, AttributeError):
                importlib.import_module(module)
                found[job] = name
                break
    return found


class PatientServer(Server):  # type: ignore[misc]
    """Ends without cutting off what was accepted, and leaves the end of the process to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals. uvicorn would raise them again at its end, and no `atexit` of the application would run."""
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let each accepted connection send its request, then end as uvicorn does.

        It closes a connection that has not sent anything yet, and a proxy cannot repeat a POST.
        """
        for server in self.servers:
            server.close()
        deadline = asyncio.get_running_loop().time() + FIRST_BYTE_SECONDS
        await asyncio.sleep(0.01)  # what was accepted a moment ago becomes a connection
        while any(getattr(each, "cycle", each) is None for each in self.server_state.connections):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        await super().shutdown([])


class Worker(UvicornWorker):  # type: ignore[misc]
    """Begins with the libraries that the main process has imported for all workers; they share some of its memory."""

    def load_wsgi(self) -> None:
        """Import the application. One that exits meanwhile would be started again and again; so gunicorn ends."""
        with uncollected():
            try:
                super().load_wsgi()
            except SystemExit as error:
                self.log.error("the application exited with status %s while it was imported", error.code)
                sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = PatientServer(self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def run(self) -> Any:
        """Serve until told to end; what is left then goes with the process.

        Python would first look through all of it for cycles, which takes the processor for a quarter of a second.
        """
        super().run()
        gc.freeze()


class Served(BaseApplication):  # type: ignore[misc]
    """The application as gunicorn takes it, configured by ``options`` alone: no file and no variable changes it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        """Set what the options say."""
        options = self.options
        known: dict[str, Any] = {
            "workers": options.workers,
            "timeout": options.timeout,
            "graceful_timeout": options.graceful_timeout + LAST_SECONDS,
            "keepalive": 75,
            "worker_tmp_dir": "/dev/shm",  # noqa: S108 - in memory, so that a heartbeat never waits for a disk
            "control_socket_disable": True,
            "proc_name": options.module,
            "when_ready": self.preload,
            "worker_class": Worker,
        }
        for name, value in known.items():
            self.cfg.set(name, value)
        if options.bind:
            self.cfg.set("bind", options.bind)

    def load(self) -> Wrapper:
        """Import the application; called in each worker."""
        return Wrapper(load(self.options.module), self.options.release)

    def preload(self, arbiter: Any) -> None:
        """Import libraries in the main process, before it starts the first worker.

        Nothing of the application is among them. It may open connections while it is imported, and those of several
        workers would be one (`preload_app` has this trap).
        """
        with uncollected():
            for name in filter(None, self.options.preload.split(",")):
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError as error:
                    arbiter.log.warning("app_preload_modules: %s is not in this release: %s", name, error)
            Worker.CONFIG_KWARGS = {
                **chosen(),
                "interface": "asgi3",
                "root_path": self.options.root_path,
                # The socket is nginx's alone, and it sets these headers itself.
                "forwarded_allow_ips": "*",
                "server_header": False,
                "access_log": False,
                "timeout_graceful_shutdown": self.options.graceful_timeout,
                # nginx closes a WebSocket that is silent for the timeout; a ping breaks the silence.
                "ws_ping_interval": min(20.0, self.options.timeout / 2),
            }
        # A collector that looked through it in a worker would give that one a copy of its own.
        gc.freeze()


def serve(options: argparse.Namespace) -> None:
    """Become gunicorn."""
    Served(options).run()
