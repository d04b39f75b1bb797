"""The jobs of deploy.yml and drift.yml on lab hosts, step by step as GitHub runs them: from a push to prod and back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.hosts.runner import ACTOR, Machine, Runner
from tests.hosts.world import World

pytestmark = pytest.mark.lab
SUBJECT = "Greet in another way"


@pytest.fixture
def pushed(here: World, runner: Runner) -> Iterator[Runner]:
    """Return a repository with a push that greets in another way; the hosts have their own code afterwards."""
    runner.edit("app/nba/application.py", '"MySQL"', '"Pipeline"', SUBJECT)
    try:
        yield runner
    finally:
        for environment in ("dev", "prod"):
            here.ansible("playbooks/deploy.yml", "-l", environment).succeeded()


def greetings(here: World) -> dict[str, str]:
    """Return what each host says to `GET /`."""
    return {host: here.get(host, "/api/").json()["Hello"] for host in ("dev1", "bare1", "prod1", "prod2")}


def drift(runner: Runner, environment: str, secrets: str) -> list[object]:
    """Return what the nightly look at an environment finds."""
    machine = runner.run("drift", "look", matrix={"environment": environment, "secrets": secrets})
    found: list[object] = json.loads((machine.root / f"drift-{environment}.json").read_text())["drift"]
    return found


def told(machine: Machine, host: str) -> set[tuple[str, str]]:
    """Return the release of each of a host's receipts that are kept, and how it ended."""
    receipts = machine.receipts(host)
    assert all(receipt["by"].startswith(f"{ACTOR}@") for receipt in receipts)
    return {(receipt["release"], receipt["outcome"]) for receipt in receipts}


def test_a_push_goes_to_dev_and_approved_to_prod_and_back(here: World, pushed: Runner) -> None:
    before = here.status("prod1")["live"]
    dev = pushed.run("deploy", "dev")
    assert greetings(here) == {"dev1": "Pipeline", "bare1": "Pipeline", "prod1": "MySQL", "prod2": "MySQL"}
    artefact = pushed.outputs["dev"]["outputs"]["artefact"]
    assert here.get("dev1", "/api/version").json()["artefact"] == artefact
    assert told(dev, "dev1") == {(here.status("dev1")["live"], "good")}

    assert SUBJECT in pushed.run("deploy", "plan").summary
    assert greetings(here)["prod1"] == "MySQL"
    # What was built for dev comes, not what could be built by now.
    pushed.edit("app/nba/application.py", '"Pipeline"', '"Too late"', "Come too late")
    prod = pushed.run("deploy", "prod")
    assert set(greetings(here).values()) == {"Pipeline"}
    assert here.get("prod1", "/api/version").json()["artefact"] == artefact
    assert told(prod, "prod1") == {(here.status("prod1")["live"], "good")}

    pushed.git("reset", "--quiet", "--hard", "HEAD~1")
    assert drift(pushed, "prod", "prod-plan") == []
    back = {"environment": "prod", "release": "", "schema": "stop"}
    machine = pushed.run("deploy", "rollback", inputs=back)
    assert greetings(here) == {"dev1": "Pipeline", "bare1": "Pipeline", "prod1": "MySQL", "prod2": "MySQL"}
    assert here.status("prod1")["live"] == before
    assert drift(pushed, "dev", "dev") == []
    assert not [name for name in (".vault", ".access") if (machine.root / name).is_symlink()]
