"""What an application has beside its code: docs/beside.md, on a host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import World

pytestmark = pytest.mark.lab
DEPLOY = ("playbooks/deploy.yml", "-l", "dev")
VALUES: dict[str, Any] = {
    "app_sandbox": {"ProcSubset": "all", "RestrictAddressFamilies": ["AF_NETLINK"], "SystemCallFilter": "@resources"},
    # Small, and on no host.
    "app_packages": ["hello"],
}
GIVEN = ("-e", json.dumps(VALUES))


@pytest.fixture(scope="module")
def deployed(here: World, converged: Converged) -> Iterator[World]:
    """Return the lab with an application on dev1 that has all of it; afterwards it has nothing of it."""
    converged.dev.succeeded()
    here.ansible(*DEPLOY, *GIVEN, "--diff", "-vvv").succeeded()
    yield here
    here.ansible(*DEPLOY).succeeded()


def slot(here: World) -> str:
    """Return the live slot of dev1."""
    return here.execute("dev1", "readlink", "/srv/nba/live").strip().rpartition("/")[2]


def in_slot(here: World, script: str) -> str:
    """Return what a shell prints that sees the files of the live slot's main process."""
    pid = here.execute("dev1", "systemctl", "show", "--value", "--property=MainPID", f"nba@{slot(here)}").strip()
    return here.execute("dev1", "nsenter", f"--target={pid}", "--mount", "sh", "-c", script, check=False)


def test_the_sandbox_is_open_where_the_application_needs_it(deployed: World) -> None:
    names = "ProcSubset,RestrictAddressFamilies,SystemCallFilter,MemoryDenyWriteExecute"
    shown = deployed.execute("dev1", "systemctl", "show", f"nba@{slot(deployed)}", f"--property={names}")
    unit = dict(line.split("=", 1) for line in shown.splitlines())
    assert set(unit["RestrictAddressFamilies"].split()) == {"AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"}
    assert (unit["ProcSubset"], unit["MemoryDenyWriteExecute"]) == ("all", "yes")
    calls = unit["SystemCallFilter"].split()
    assert "sched_setaffinity" in calls and "chroot" not in calls
    assert "MemTotal" in in_slot(deployed, "cat /proc/meminfo")
    doctor = deployed.ansible("playbooks/doctor.yml", "-l", "dev1").succeeded().output
    assert "ProcSubset=all (the application reads all of /proc" in " ".join(doctor.split())


def test_its_packages_are_installed_once(deployed: World) -> None:
    assert "ok installed" in deployed.execute("dev1", "dpkg-query", "--show", "--showformat=${Status}", "hello")
    assert deployed.ansible(*DEPLOY, *GIVEN).succeeded().changed() == {"dev1": 0}
