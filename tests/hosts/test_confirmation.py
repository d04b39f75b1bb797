"""Four hosts whose control node is lost: without a further command, all are on one release."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from tests.hosts.test_zero_loss import CONFIRM_SECONDS, MAIN, deploying, new_code
from tests.hosts.world import UNPROVEN, World, await_true, world

pytestmark = [pytest.mark.lab, pytest.mark.long]
HOSTS = ("prod1", "prod2", "prod3", "prod4")
DEPLOY = ("playbooks/deploy.yml", "-l", "prod", *UNPROVEN, "-e", "app_lock_wait_seconds=90")
# So that the connections of four hosts fit the database server of the lab.
SMALL = {"workers_max": 2, "database_pool_size": 2, "database_pool_overflow": 0}
# Tasks at whose beginning the control node is lost, and whether the hosts are on the new release then.
STEPS = {
    "Migrate the database": False,
    "Start the release": False,
    "Switch to the release": False,
    "Check the switch on all hosts": False,
    "Stop the old release": True,
}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a lab whose prod has four hosts, all converged."""
    with world(tmp_path_factory.mktemp("four"), "scale", "--prod-hosts", str(len(HOSTS))) as here:
        values = here.root / "group_vars/prod/vars.yml"
        lines = [line for line in values.read_text().splitlines() if line.partition(":")[0] not in SMALL]
        values.write_text("\n".join([*lines, *(f"{name}: {value}" for name, value in SMALL.items())]) + "\n")
        here.git("commit", "--quiet", "--all", "--message", "Small pools")
        here.ansible("site.yml", "-l", "prod", *UNPROVEN).succeeded()
        yield here


def releases(here: World) -> set[str]:
    """Return the live releases of all hosts, which have nothing to repair."""
    status = {host: here.status(host) for host in HOSTS}
    assert not [host for host in HOSTS if status[host]["problems"]], status
    return {status[host]["live"] for host in HOSTS}


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("step", STEPS)
def test_all_hosts_are_on_one_release_without_a_further_command(four: World, step: str, batch: int) -> None:
    (before,) = releases(four)
    options = {"app_rolling_batch": batch, "app_confirm_seconds": CONFIRM_SECONDS}
    with four.edited(MAIN, new_code(f"lost at {step}, batches of {batch}"), commit=True):
        with deploying(four, "-e", json.dumps(options), command=DEPLOY) as running:
            running.await_task(step)
            running.kill(signal.SIGKILL)
            for host in HOSTS:
                ended = partial(lambda host: not four.status(host)["running"], host)
                await_true(ended, 2 * CONFIRM_SECONDS + 30, f"{host} has come to an end")
        (after,) = releases(four)
        assert (after != before) == STEPS[step]
        four.ansible(*DEPLOY).succeeded()
        assert releases(four) != {before}


def test_a_host_that_reboots_after_its_switch_takes_the_others_back(four: World) -> None:
    (before,) = releases(four)
    with four.edited(MAIN, new_code("rebooted after its switch"), commit=True):
        with deploying(four, "-e", json.dumps({"app_rolling_batch": 1}), command=DEPLOY) as running:
            running.await_task("Check the switch on all hosts")
            four.shell("prod1", "systemctl reboot --force --force", check=False)
            ended = running.end()
        await_true(lambda: four.shell("prod1", "systemctl is-system-running --wait", check=False), 90, "prod1 is up")
        # It may have been asked before it went down: then it is confirmed, and so are the others.
        assert (releases(four) == {before}) == ("is live on no host" in ended.output), ended.output[-6000:]
        four.ansible(*DEPLOY).succeeded()
        assert releases(four) != {before}


def test_the_next_run_closes_what_a_loss_inside_the_confirmation_leaves(four: World) -> None:
    (before,) = releases(four)
    with four.edited(MAIN, new_code("lost inside the confirmation"), commit=True):
        with deploying(four, "-e", json.dumps({"app_confirm_seconds": CONFIRM_SECONDS}), command=DEPLOY) as running:
            running.await_task("Confirm the switch on all hosts")
            running.kill(signal.SIGKILL)
        four.ansible(*DEPLOY).succeeded()
        assert len(releases(four)) == 1 and releases(four) != {before}
