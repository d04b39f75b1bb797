"""One lab for all host tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts.world import Run, World, world


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a lab with bare hosts dev1, prod1 and bare1 (Debian 12, in dev), and a database."""
    root: Path = tmp_path_factory.mktemp("checkout")
    with world(root, "test", "--host", "bare1:bookworm:dev") as made:
        yield made


@dataclass(frozen=True)
class Converged:
    """What the first runs on bare hosts said, and what was seen beside them."""

    preview: Run
    dev: Run
    prod_after_dev: str
    prod: Run
    command_lines: str


@pytest.fixture(scope="session")
def converged(here: World) -> Converged:
    """Preview a bare host, converge dev, look at prod, converge prod."""
    preview = here.ansible("site.yml", "-l", "dev", "--check", "--diff")
    with command_lines_of(here, "dev1") as seen:
        dev = here.ansible("site.yml", "-l", "dev", "--diff", "-vvv")
    untouched = here.shell(
        "prod1", "ls /srv /usr/local/sbin /usr/local/lib; dpkg-query -W -f '${Package}\\n' nginx || :"
    )
    prod = here.ansible("site.yml", "-l", "prod", "--diff")
    return Converged(preview, dev, untouched, prod, seen())


@contextmanager
def command_lines_of(here: World, host: str) -> Iterator[Callable[[], str]]:
    """Collect every command line and environment that is seen on a host meanwhile."""
    stop, found = threading.Event(), set[str]()

    def look() -> None:
        while not stop.wait(0.3):
            found.update(
                here.shell(host, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'", check=False).splitlines()
            )

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: "\n".join(sorted(found))
    finally:
        stop.set()
        thread.join()
