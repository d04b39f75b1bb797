"""A headless browser for tests, and what its pages complained about.

``python -m tests.browser`` installs Debian's chromium where no browser is found; scripts/test does so. The library that
drives it is pinned as the group `browser` of poetry.lock and brings no browser of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lab import checks
from lab.errors import LabError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Response

PROGRAMS = ("chromium", "google-chrome", "chromium-browser")
PACKAGE = "chromium"
SECONDS = 15


def program() -> str | None:
    """Return the path of a browser of this machine."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser without a window, which goes to hosts of the lab without a proxy."""
    from playwright.sync_api import sync_playwright

    path = program()
    assert path, f"none of {', '.join(PROGRAMS)} is installed: apt-get install {PACKAGE}"
    with sync_playwright() as library:
        # Chromium refuses its sandbox to root, and what it shows here is ours.
        started = library.chromium.launch(
            executable_path=path, args=["--no-proxy-server"], chromium_sandbox=os.geteuid() != 0
        )
        try:
            yield started
        finally:
            started.close()


@dataclass
class Visit:
    """A page, and what went wrong on it since it was opened."""

    page: Page
    console: list[str] = field(default_factory=list)
    """Errors on the console, among them exceptions that nobody caught."""
    requests: list[str] = field(default_factory=list)
    """Requests that failed, or were answered with an error."""
    asking: set[Request] = field(default_factory=set)
    """Requests that have no answer yet."""
    kept: set[str] = field(default_factory=set)
    """Addresses that the browser may keep for a year."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.on("console", lambda said: self.console.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("requestfinished", self._finished)
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    @property
    def faults(self) -> list[str]:
        """Return everything that went wrong."""
        return [*self.console, *self.requests]

    def forget(self) -> None:
        """Begin again, with nothing wrong."""
        self.console.clear()
        self.requests.clear()

    def at_rest(self) -> bool:
        """Return True if everything that the page asked for was answered."""
        self.page.evaluate("0")  # what happened is told only while the browser is asked something
        return not self.asking

    def _asked(self, request: Request) -> None:
        self.asking.add(request)

    def _finished(self, request: Request) -> None:
        self.asking.discard(request)

    def _failed(self, request: Request) -> None:
        self._finished(request)
        self.requests.append(f"{request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.requests.append(f"{response.request.method} {response.url}: {response.status}")
        if "immutable" in response.headers.get("cache-control", ""):
            self.kept.add(response.url)


def main() -> None:
    """Install a browser where there is none."""
    try:
        if not program():
            checks.install([PACKAGE])
    except LabError as error:
        raise SystemExit(f"tests.browser: no {', no '.join(PROGRAMS)} is here: {error}") from None


if __name__ == "__main__":
    main()
