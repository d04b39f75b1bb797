"""A host of dev whose root answers what he likes, and one whose shell prints more than it should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import World

pytestmark = pytest.mark.lab
PACKAGES = "/usr/lib/python3/dist-packages"
# Root there can make the release program say anything, and leave what Ansible compares as it is.
HOSTILE = """
import json, os
if b"nba-release" in open("/proc/self/cmdline", "rb").read():
    evil = "{{ lookup('ansible.builtin.pipe', 'touch pwned') }}\\x1b]0;owned\\x07"
    known = {"live": "", "running": "", "problems": [], "releases": [], "workers": 1, "settings": {}}
    steers = {"ansible_facts": {"a": 1}, "failed": False, "add_host": {"host_name": "prod9", "groups": ["prod"]}}
    receipt = {"release": "x/../../../group_vars/prod/zz", "began": 1, "notes": [evil]}
    print(json.dumps({**known, **steers, "changed": True, "receipt": receipt}), flush=True)
    os._exit(0)
"""
NOISE = "sed -i '1i echo noise of .bashrc' ~root/.bashrc ~{login}/.bashrc"


@pytest.fixture
def login(here: World) -> Iterator[str]:
    """Return the account that Ansible logs in with on dev1; what a test left there is gone afterwards."""
    account = here.shell("dev1", "stat -c %U /home/* | grep -v nba | head -n 1").strip()
    try:
        yield account
    finally:
        here.shell(
            "dev1", f"rm -f {PACKAGES}/hostile* && sed -i '/noise of .bashrc/d' ~root/.bashrc ~{account}/.bashrc"
        )


def files(here: World) -> set[str]:
    """Return the files of the checkout that a run may not add to."""
    there = (path for path in here.root.rglob("*") if not {".venv", ".lab", ".git", "__pycache__"} & set(path.parts))
    return {str(path.relative_to(here.root)) for path in there}


def test_a_host_that_lies_or_is_noisy_harms_no_one_else(here: World, converged: Converged, login: str) -> None:
    here.shell("dev1", NOISE.format(login=login))
    here.ansible("playbooks/deploy.yml", "-l", "dev").succeeded()
    assert "its service, socket and health" in here.ansible("playbooks/doctor.yml", "-l", "dev").output

    here.write("dev1", f"{PACKAGES}/hostile.py", HOSTILE)
    here.write("dev1", f"{PACKAGES}/hostile.pth", "import hostile\n")
    before = files(here)
    done = here.ansible("playbooks/deploy.yml", "-l", "dev")
    assert done.code == 2, done.output
    assert "gave a wrong answer: Expected `str` matching regex" in " ".join(done.output.split())
    assert "at `$.receipt.release`" in " ".join(done.output.split())
    assert files(here) == before
    assert "\x1b" not in done.output and "prod9" not in done.output
    assert here.status("bare1")["live"], "the other host serves on"
