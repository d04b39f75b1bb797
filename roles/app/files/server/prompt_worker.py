"""The worker that the units run: gunicorn's own for ASGI, but one that starts and ends sooner.

gunicorn's imports every library in each worker, and looks once a second whether it shall end. A deploy and a rollback
wait for the workers of both releases, and a restarted service is away for as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
from collections.abc import Iterator
from typing import Any

from gunicorn.workers.gasgi import ASGIWorker  # type: ignore[import-untyped]

# In `--env`: the modules that the main process imports, separated by commas (`app_preload_modules` of the role).
PRELOADED = "APP_PRELOAD_MODULES"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import without Python's collector: nothing is garbage yet, and looking for some costs a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class PromptWorker(ASGIWorker):  # type: ignore[misc]
    """Begins with the libraries that the main process has imported for all workers, which share some of their memory.

    Told to end, it wakes the loop that sleeps between two heartbeats; what follows, the end of running requests, is
    gunicorn's.
    """

    _sleeper: asyncio.Task[Any] | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Import the libraries; gunicorn calls this in the main process, before it starts the first worker.

        Nothing of the application is among them. It may open connections while it is imported, and those of several
        workers would be one (`preload_app` has this trap).
        """
        super().check_config(cfg, log)
        with uncollected():
            for name in filter(None, cfg.env.get(PRELOADED, "").split(",")):
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError as error:
                    log.warning("app_preload_modules names %s, which this release does not have: %s", name, error)
            # A collector that looked through it in a worker would give that one a copy of its own.
            gc.freeze()

    def load_wsgi(self) -> None:
        """Import the application."""
        with uncollected():
            super().load_wsgi()

    def run(self) -> None:
        """Serve until told to end; what is left then goes with the process.

        Python would first look through all of it for cycles, which takes the processor for a quarter of a second.
        """
        super().run()
        gc.freeze()

    async def _serve(self) -> None:
        self._sleeper = asyncio.current_task()
        await super()._serve()

    async def _shutdown(self) -> None:
        self._sleeper = None
        await super()._shutdown()

    def handle_exit_signal(self) -> None:
        """Handle SIGTERM. While it still starts there is nothing to wake: it ends before its first heartbeat."""
        super().handle_exit_signal()
        if self._sleeper and len(self.servers) == len(self.sockets):
            # From a timer, as gunicorn's own end comes: the same turn of the loop may accept connections, and timers
            # run after that. Those of a server that was closed meanwhile would be dropped without an answer.
            self.loop.call_later(0, self._wake)

    def _wake(self) -> None:
        if self._sleeper:
            self._sleeper.cancel()
