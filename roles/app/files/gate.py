"""The health gate: what a started release has to show before it gets public requests, and while it has its first."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from application import Application
from basics import ReleaseError, parsed
from reasons import asked, final_reason, first_line, healthy, lasting_reason
from serve import older
from slots import LIVE_PATH, VERSION_PATH, Config, Slot, alive, ask, server, workers_of

if TYPE_CHECKING:
    from messages import Version

WORKER_DIED = "a worker died soon after it had started"
# A log is read by a program of its own.
LOG_SECONDS = 1.0
# How long the public address may fail after a switch: one answer may be the fault of the database.
PATIENCE_SECONDS = 1.0

Sample = Callable[[str, int, float], None]


def public_name(config: Config) -> str:
    """Return the host name that public requests come with."""
    return config.public_host if config.public_host != "_" else "localhost"


def stated(slot: Slot) -> Application:
    """Return the application of a slot's release.

    Raises:
        ReleaseError: an older version of Waffle Iron made the release.
    """
    application = slot.application
    if application is None:
        raise ReleaseError(older(slot.release))
    return application


@dataclass(frozen=True)
class Gate:
    """Requests to the release of a slot; ``sample`` gets path, status and milliseconds of each answer."""

    config: Config
    slot: Slot
    sample: Sample = lambda *_: None

    def health(self, application: Application) -> tuple[int, str]:
        """Request the application's health path as a proxy does."""
        begin = time.monotonic()
        name = public_name(self.config)
        status, body = self.slot.ask(application.ready_path, host=name, scheme=application.scheme)
        self.sample(application.ready_path, status, round((time.monotonic() - begin) * 1000, 1))
        return status, body

    def healthy(self) -> bool:
        """Return True if the release answers as a healthy one does."""
        application = self.slot.application
        return application is not None and healthy(self.health(application)[0], application)

    def answered_live(self, pid: int) -> None:
        """Wait until a starting slot answers at all; end at once when its main process ``pid`` is gone.

        gunicorn tells systemd that it is ready before it has imported the application, so `Type=notify` proves nothing.

        Raises:
            ReleaseError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + self.config.start_timeout_seconds
        known = running = set[str]()
        answer = "no answer"
        while time.monotonic() < deadline:
            if not alive(str(pid)):
                raise ReleaseError("the main process ended while it started")
            running = workers_of(server(str(pid)))
            known = known | running
            status, body = self.slot.ask(LIVE_PATH, timeout=2)
            if status == 200:
                return
            answer = f"{status}: {first_line(body)}" if status else body
            time.sleep(0.05)
        died = f"; {len(known - running)} worker(s) died meanwhile" if known - running else ""
        raise ReleaseError(
            f"the server did not answer within {self.config.start_timeout_seconds:.0f} s ({answer}){died}. "
            "Fix: if the application takes longer to start, raise app_start_timeout_seconds"
        )

    def await_ready(self, release: str) -> None:
        """Wait until the health path is right and every worker has named the release.

        Raises:
            ReleaseError: it died, it was not ready in time, or waiting cannot repair its answer.
        """
        application = stated(self.slot)
        main, deadline = self.slot.main(), time.monotonic() + self.config.start_timeout_seconds
        last, seen, known, next_look = "no answer yet", set[str](), set[str](), time.monotonic()
        while time.monotonic() < deadline:
            if not alive(main):
                raise ReleaseError("its main process ended")
            status, body = self.health(application)
            running = workers_of(main)
            known |= running
            # A server starts another where one died, so only that one's absence tells.
            if known - running:
                raise ReleaseError(WORKER_DIED)
            if reason := final_reason(status, body, application, public_name(self.config)):
                raise ReleaseError(reason)
            if not healthy(status, application):
                last = self.unready(application, status, body)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOG_SECONDS
                    if reason := lasting_reason(self.slot.journal()):
                        raise ReleaseError(f"{last}\n{reason}")
                time.sleep(0.05)
                continue
            version = self.slot.version()
            if version.get("release") != release:
                last = f"{VERSION_PATH} names the release {version.get('release') or 'none'}"
                time.sleep(0.05)
                continue
            seen.add(str(version.get("worker", "")))
            silent = running - seen
            if not silent:
                return
            last = f"{len(silent)} worker(s) never answered"
            # The kernel chooses who answers: the next one may be another.
            time.sleep(0.005)
        raise ReleaseError(f"not ready after {self.config.start_timeout_seconds:.0f} s: {last}")

    def unready(self, application: Application, status: int, body: str) -> str:
        """Return the words for an answer that is not that of a healthy application."""
        request = asked(application, public_name(self.config))
        return f"{request} answered {status}: {first_line(body)}" if status else f"{request} was not answered: {body}"

    def settle(self) -> None:
        """Watch a ready slot for a while: a release that crashes soon after its start must never get a request.

        Raises:
            ReleaseError: a worker died, or the health path turned bad.
        """
        main, deadline = self.slot.main(), time.monotonic() + self.config.settle_seconds
        workers = workers_of(main)
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
            if not alive(main) or workers_of(main) != workers:
                raise ReleaseError(WORKER_DIED)
        application = stated(self.slot)
        status, body = self.health(application)
        if not healthy(status, application):
            raise ReleaseError(f"after a while {self.unready(application, status, body)}")

    def watch(self, release: str, seconds: float) -> None:
        """Request the public address until the release answers, until every worker has, and for some seconds.

        Raises:
            ReleaseError: another one answers, none does, it died, or its health path fails through nginx.
        """
        if not self.config.public_url:
            return
        host, _, path = self.config.public_url.removeprefix("http://").partition("/")
        name = self.config.public_host if self.config.public_host != "_" else host
        where = f"/{path}{VERSION_PATH}".replace("//", "/")
        application = stated(self.slot)
        ready = f"{application.root_path}{application.ready_path}"
        main, begin, seen = self.slot.main(), time.monotonic(), set[str]()
        last_good = begin
        while True:
            # Through nginx, which may be what fails. Redirects are for clients that come by https.
            ready_status, body = ask(http.client.HTTPConnection(host, timeout=10), ready, name)
            if 0 < ready_status < 500:
                last_good = time.monotonic()
            elif time.monotonic() - last_good >= PATIENCE_SECONDS:
                answer = f"answered {ready_status}: {first_line(body)}" if ready_status else body
                raise ReleaseError(f"GET http://{host}{ready}: {answer}")
            status, body = ask(http.client.HTTPConnection(host, timeout=10), where, name)
            version: Version = parsed(body)
            seen.add(str(version.get("worker", "")))
            if status != 200 or version.get("release") != release:
                answer = f"answered {status} ({version.get('release') or first_line(body)})" if status else body
                raise ReleaseError(f"{self.config.public_url}{VERSION_PATH}: {answer}, not release {release}")
            if not alive(main):
                raise ReleaseError(f"{self.slot.service} died after the switch")
            silent = workers_of(main) - seen
            if time.monotonic() - begin > seconds and not silent and 0 < ready_status < 500:
                return
            if time.monotonic() - begin > seconds + self.config.start_timeout_seconds:
                raise ReleaseError(
                    f"{len(silent)} worker(s) of {self.slot.service} never answered on {self.config.public_url}"
                )
            time.sleep(0.1)
