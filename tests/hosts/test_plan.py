"""A plan of real hosts: what it says, that it leaves nothing, and that a run is held to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.test_migrations import ADD_NICK, revision, words
from tests.hosts.world import World

pytestmark = pytest.mark.lab

VALUES = "group_vars/dev/vars.yml"
NGINX = "/etc/nginx/nginx.conf"
SUDOERS = "/etc/sudoers.d/50-waffle-iron"
# Everything that a plan could leave behind, or change.
TRACES = (
    "ls -A /srv/nba /srv/nba/releases /srv/nba/venvs /srv/nba/state /srv/nba/state/receipts /var/backups/nba; "
    "readlink /srv/nba/live /srv/nba/slots/*/release; wc -l /var/log/nba/releases.log; "
    "sha256sum /etc/nginx/nginx.conf /etc/sudoers.d/50-waffle-iron /usr/local/lib/nba/*.py"
)


@contextmanager
def drifted(here: World, host: str, path: str) -> Iterator[None]:
    """Add a comment to a file, until a run repairs it or the block ends."""
    here.shell(host, f"cp -a {path} /root/before && echo '# edited manually' >>{path}")
    try:
        yield
    finally:
        here.shell(host, f"cp -a /root/before {path} && rm /root/before")


def plan(here: World) -> tuple[str, str]:
    """Plan dev1, and return what the terminal and the file for people say."""
    run = here.ansible("playbooks/plan.yml", "-l", "dev1").succeeded()
    text = (here.root / ".results/plan-dev.md").read_text()
    for secret in here.secrets("dev").values():
        for form in (secret, json.dumps(secret)[1:-1]):
            assert form not in text and form not in (here.root / ".results/plan-dev.json").read_text()
    return words(run.output), text


def test_a_bare_host_has_a_plan_too(converged: Converged) -> None:
    run = converged.plan.succeeded()
    shown = words(run.output)
    assert "plan for dev (dev1, bare1): .results/plan-dev.md" in shown
    assert "release nothing -> " in shown
    assert "migrations 0001: Create users" in shown
    assert "nginx-common" in shown
    assert "the application starts for the first time" in shown
    assert "more, see the file" in shown
    assert converged.before_dev == ""


def test_a_plan_names_everything_and_leaves_nothing(here: World, converged: Converged) -> None:
    before = here.shell("dev1", TRACES)
    with (
        drifted(here, "dev1", NGINX),
        here.edited(VALUES, lambda text: text.replace("log_level: INFO", "log_level: DEBUG")),
        revision(here, "0002", [ADD_NICK], compatible=True),
    ):
        shown, text = plan(here)
    assert "settings changed: LOG_LEVEL" in shown
    assert "migrations 0002: Revision 0002" in shown
    assert f"files {NGINX}" in shown
    assert "without a restart or a lost request" in shown and "Reload nginx" in shown
    assert "Add revision 0002" in shown
    assert "ALTER TABLE users ADD COLUMN nick VARCHAR(20);" in text
    assert "-# edited manually" in text
    assert "4 workers on all hosts x 2 slots during a switch x (3 + 2) = 40 connections" in text
    assert here.shell("dev1", TRACES) == before
    assert here.sql("nba_dev", "SELECT version_num FROM alembic_version").strip() == "0001"


@pytest.mark.long
def test_a_run_is_held_to_its_plan(here: World, converged: Converged) -> None:
    held = ("site.yml", "-l", "dev1", "-e", "plan=.results/plan-dev.json")
    with drifted(here, "dev1", NGINX):
        plan(here)
        here.shell("dev1", f"chmod 400 {SUDOERS}")
        refused = here.ansible(*held)
        assert refused.code != 0
        assert f"dev1: {SUDOERS}: new" in words(refused.output)
        assert "edited manually" in here.execute("dev1", "tail", "-1", NGINX)
        here.shell("dev1", f"chmod 440 {SUDOERS}")
        done = here.ansible(*held).succeeded()
        assert done.changed()["dev1"] == 2  # the file, and the reload
        assert "edited manually" not in here.execute("dev1", "tail", "-1", NGINX)


def test_connections_that_do_not_fit_stop_a_release(here: World, converged: Converged) -> None:
    before = here.status("dev1")["live"]
    here.sql("mysql", "SET GLOBAL wait_timeout = 200")
    try:
        with here.edited(VALUES, lambda text: text.replace("database_pool_size: 3", "database_pool_size: 90")):
            refused = here.ansible("playbooks/deploy.yml", "-l", "dev1")
    finally:
        here.sql("mysql", "SET GLOBAL wait_timeout = DEFAULT")
    assert refused.code != 0
    shown = words(refused.output)
    # bare1 is not in the run, and counts with the most that it may have.
    assert "4 workers on all hosts x 2 slots during a switch x (90 + 2) = 736 connections" in shown
    assert "set DATABASE_POOL_SIZE to 46 or less, or max_connections to 746 or more" in shown
    assert "DATABASE_POOL_RECYCLE_SECONDS is 280" in shown
    assert here.status("dev1")["live"] == before
    last = here.execute("dev1", "nba-release", "log").splitlines()[-1]
    assert json.loads(last)["outcome"] == "failed"
