"""No request is lost while a release is switched, refused or taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.probe import Probe
from tests.hosts.world import UNPROVEN, World, await_true

pytestmark = pytest.mark.lab
HOST = "prod1"


@pytest.fixture
def probe(here: World, converged: Converged) -> Iterator[Probe]:
    """Return a probe that already gets answers."""
    with Probe(here.address(HOST)) as running:
        await_true(lambda: len(running.samples) > 20, 30, "the probe is answered")
        yield running


def end(probe: Probe, what: str) -> None:
    """Stop the probe, report, and fail where something was lost."""
    probe.__exit__(None, None, None)
    print(f"{what}: {probe.summary()}")
    probe.assert_nothing_lost()


def test_a_deploy_and_a_rollback_lose_nothing(here: World, probe: Probe) -> None:
    with here.edited("app/nba/__init__.py", lambda text: text + "# another version\n", commit=True):
        here.ansible("playbooks/app.yml", "-l", "prod", *UNPROVEN).succeeded()
        here.ansible("playbooks/rollback.yml", "-l", "prod").succeeded()
    end(probe, "deploy and rollback")


def test_a_changed_setting_loses_nothing(here: World, probe: Probe) -> None:
    edit = ("memory_max: 1G", "memory_max: 900M")
    with here.edited("group_vars/prod/vars.yml", lambda text: text.replace(*edit)):
        here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
    here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
    end(probe, "changed setting, there and back")


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        pytest.param("app/nba/main.py", "raise RuntimeError('broken on purpose')\n", id="crashes at import"),
        pytest.param(
            "app/nba/health.py",
            "import os, threading\nthreading.Timer(2, os._exit, [1]).start()\n",
            id="crashes after 2 s",
        ),
        pytest.param(
            "app/migrations/versions/20260101_0001_create_users.py",
            "raise RuntimeError('broken')\n",
            id="migration fails",
        ),
    ],
)
def test_a_refused_release_loses_nothing(here: World, probe: Probe, path: str, edit: str) -> None:
    before = here.get(HOST, "/api/version").json()["release"]
    with here.edited(path, lambda text: text + edit, commit=True):
        refused = here.ansible("playbooks/app.yml", "-l", "prod", *UNPROVEN)
        assert refused.code != 0
        assert here.get(HOST, "/api/version").json()["release"] == before
    here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
    assert here.status(HOST)["problems"] == []
    end(probe, "refused release")
