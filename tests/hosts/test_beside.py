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
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"
VALUES: dict[str, Any] = {
    "app_sandbox": {"ProcSubset": "all", "RestrictAddressFamilies": ["AF_NETLINK"], "SystemCallFilter": "@resources"},
    # Small, and on no host.
    "app_packages": ["hello"],
    "app_files": {"oci.pem": KEY},
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


def main_process(here: World) -> str:
    """Return the id of the live slot's main process on dev1."""
    return here.execute("dev1", "systemctl", "show", "--value", "--property=MainPID", f"nba@{slot(here)}").strip()


def in_slot(here: World, script: str) -> str:
    """Return what a shell prints that sees the files of that process."""
    return here.execute("dev1", "nsenter", f"--target={main_process(here)}", "--mount", "sh", "-c", script, check=False)


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
    assert deployed.ansible(*DEPLOY, *GIVEN).succeeded().changed()["dev1"] == 0


def test_its_secret_files_are_its_own_alone(deployed: World) -> None:
    live = deployed.status("dev1")["live"]
    path = f"/srv/nba/releases/{live}/.files/oci.pem"
    modes = deployed.execute("dev1", "stat", "--format=%U %G %a", path, path.rpartition("/")[0])
    assert modes.splitlines() == ["root nba 640", "root nba 750"]
    variables = deployed.shell("dev1", f"tr '\\0' '\\n' </proc/{main_process(deployed)}/environ")
    assert f"OCI_PEM_FILE={path}" in variables.splitlines()
    reads = "setpriv --reuid={} --regid={} --clear-groups cat " + path
    assert in_slot(deployed, reads.format(f"nba-{slot(deployed)}", "nba")) == KEY
    assert deployed.shell("dev1", reads.format("www-data", "www-data"), check=False) == ""
    program = "import os; print(open(os.environ['OCI_PEM_FILE']).read() == 'x')"
    command = ("/usr/local/sbin/nba-release", "exec", live, "python", "-c", program)
    assert "False" in deployed.execute("dev1", *command)


def test_no_log_diff_or_receipt_shows_them(deployed: World) -> None:
    kept = "/srv/nba/state /var/log/nba /usr/local/lib/nba"
    secret = KEY.splitlines()[1]
    assert deployed.shell("dev1", f"grep -rl {secret} {kept} || :") == ""
    assert deployed.shell("dev1", f"journalctl --no-pager | grep -c {secret} || :").strip() == "0"
    assert secret not in "".join(deployed.runs)
    receipts = deployed.root / ".receipts/dev1"
    texts = [path.read_text() for path in receipts.iterdir()]
    assert not any(secret in text for text in texts) and any('"OCI_PEM_FILE"' in text for text in texts)
