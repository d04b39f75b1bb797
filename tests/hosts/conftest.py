"""One lab for all host tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.hosts.probe import FORGET, Probe, Report, report, table
from tests.hosts.runner import Runner
from tests.hosts.world import CHECKOUT, Run, World, await_true, world

PROD = ("prod1", "prod2")
RESULTS = CHECKOUT / ".results/probe.jsonl"
REPORTS = pytest.StashKey[list[Report]]()
SUMMARIES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a lab with bare hosts dev1, bare1 (Debian 12, in dev), prod1 and prod2, and a database."""
    root: Path = tmp_path_factory.mktemp("checkout")
    with world(root, "test", "--prod-hosts", str(len(PROD)), "--host", "bare1:bookworm:dev") as made:
        yield made


@dataclass(frozen=True)
class Converged:
    """What the first runs on bare hosts said, and what was seen beside them."""

    preview: Run
    deploy: Run
    plan: Run
    before_dev: str
    dev: Run
    prod_after_dev: str
    prod: Run
    command_lines: str


@pytest.fixture(scope="session")
def converged(here: World) -> Converged:
    """Preview, deploy in check mode and plan bare hosts, converge dev, look at prod, converge prod."""
    preview = here.ansible("site.yml", "-l", "dev", "--check", "--diff")
    deploy = here.ansible("playbooks/deploy.yml", "-l", "dev", "--check")
    plan = here.ansible("playbooks/plan.yml", "-l", "dev")
    before_dev = here.shell("dev1", "ls -A /srv; ls -d /usr/local/lib/nba /opt/poetry-* /etc/nginx 2>/dev/null || :")
    with command_lines_of(here, "dev1") as seen:
        dev = here.ansible("site.yml", "-l", "dev", "--diff", "-vvv")
    untouched = here.shell(
        "prod1", "ls /srv /usr/local/sbin /usr/local/lib; dpkg-query -W -f '${Package}\\n' nginx || :"
    )
    prod = here.ansible("site.yml", "-l", "prod", "--diff")
    return Converged(preview, deploy, plan, before_dev, dev, untouched, prod, seen())


@pytest.fixture
def runner(here: World, converged: Converged, tmp_path: Path) -> Iterator[Runner]:
    """Return a repository on GitHub whose jobs reach the lab's hosts."""
    made = Runner(here, tmp_path)
    yield made
    made.tidy()


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


@dataclass(frozen=True)
class Watch:
    """The probes of a case, by host."""

    probes: dict[str, Probe]

    def mark(self, name: str) -> float:
        """Record what happens now, and return the moment."""
        return max(probe.mark(name) for probe in self.probes.values())


Probing = Callable[..., AbstractContextManager[Watch]]


@pytest.fixture
def probing(here: World, converged: Converged, request: pytest.FixtureRequest) -> Probing:
    """Return ``probing(case, lossy=False, rate=30)``: requests to all hosts of prod while the block runs; reported.

    ``rate`` is requests per second for each host. Unless the case is ``lossy`` (then the test says exactly what may be
    lost), a request that failed fails the test. An acknowledged write that is gone always does.
    """
    return partial(probe_hosts, here, PROD, request.config.stash[REPORTS])


@contextmanager
def probe_hosts(
    here: World, hosts: Iterable[str], reports: list[Report], case: str, *, lossy: bool = False, rate: float = 30
) -> Iterator[Watch]:
    """Probe hosts that answer for prod; see `probing`."""
    watch = Watch({host: Probe(here.address(host), rate) for host in hosts})
    probes = list(watch.probes.values())
    try:
        for probe in probes:
            probe.__enter__()
        await_true(lambda: all(len(probe.samples) > 20 for probe in probes), 30, "the probes are answered")
        yield watch
    finally:
        for probe in probes:
            probe.__exit__(None, None, None)
    missing = [number for probe in probes for number in probe.missing()]
    here.sql("nba_prod", FORGET)
    found = report(case, probes, len(missing))
    reports.append(found)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a" if len(reports) > 1 else "w") as stream:
        stream.write(found.line() + "\n")
    failed = [sample for probe in probes for sample in probe.failed]
    assert not missing, found
    assert lossy or not failed, f"{found}: {failed[:5]}"


Summary = Callable[[str, str], None]


@pytest.fixture
def summary(request: pytest.FixtureRequest) -> Summary:
    """Return ``summary(what, result)``: a line that the end of the run shows."""
    return request.config.stash[SUMMARIES].__setitem__


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no reports."""
    config.stash[REPORTS] = []
    config.stash[SUMMARIES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what the probes saw."""
    if reports := config.stash[REPORTS]:
        terminalreporter.section("requests while releases were switched and faults happened")
        for line in table(reports):
            terminalreporter.write_line(line)
    for what, result in config.stash[SUMMARIES].items():
        terminalreporter.section(what)
        terminalreporter.write_line(result)
