"""A pull request beside the live release of dev: made, renewed, and gone without a trace; dev never notices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.probe import FORGET, Probe
from tests.hosts.runner import REPOSITORY, Runner
from tests.hosts.world import World, await_true

pytestmark = pytest.mark.lab
PREVIEW = ("playbooks/preview.yml", "-l", "dev", "-e", "preview=pr-12")
HOST = {"Host": "pr-12.dev.test"}
TRACES = """
ls -d /srv/nba-pr-12 /var/backups/nba-pr-12 /usr/local/lib/nba-pr-12 /usr/local/sbin/nba-pr-12* \
  /etc/systemd/system/nba-pr-12* /etc/systemd/system/*.wants/nba-pr-12* /etc/nginx/*/nba-pr-12* \
  /run/nba-pr-12 /run/nba-pr-12-release /var/log/nba-pr-12 2>/dev/null
getent passwd nba-pr-12 nba-pr-12-migrate nba-pr-12-build nba-pr-12-blue nba-pr-12-green
systemctl list-units --all --plain --no-legend 'nba-pr-12*'
nft list tables | grep pr-12
true
"""


@pytest.fixture
def commit(here: World, converged: Converged) -> Iterator[str]:
    """Return a commit whose application greets in another way; it is taken back in the commit after it."""
    with here.edited("app/nba/application.py", lambda text: text.replace('"MySQL"', '"Preview"'), commit=True):
        made = here.git("rev-parse", "HEAD").strip()
    with here.edited("group_vars/dev/vars.yml", lambda text: text.replace('domain: ""', "domain: dev.test")):
        try:
            yield made
        finally:
            here.ansible(*PREVIEW, "-e", "preview_state=absent").succeeded()


def event(runner: Runner, action: str, commit: str) -> dict[str, Any]:
    """Return what GitHub tells of a pull request."""
    labels = [{"name": "preview"}] if action == "labeled" else []
    request = {"state": "open", "labels": labels, "base": {"sha": runner.git("rev-parse", "HEAD")},
               "head": {"sha": commit, "repo": {"full_name": REPOSITORY}}}  # fmt: skip
    return {"action": action, "number": 12, "label": {"name": "preview"}, "pull_request": request}


def test_a_pull_request_is_previewed_beside_the_live_release(here: World, commit: str, runner: Runner) -> None:
    live = here.get("dev1", "/api/version").json()["release"]
    with Probe(here.address("dev1"), 30) as probe:
        await_true(lambda: len(probe.samples) > 20, 30, "the probe is answered")
        labelled = event(runner, "labeled", commit)
        runner.run("preview", "preview", labelled)
        assert runner.outputs["preview"]["outputs"] == {"address": "http://pr-12.dev.test/"}
        runner.run("preview", "comment", labelled)
        assert f"Preview of {commit} on dev - http://pr-12.dev.test/" in (runner.folder / "gh").read_text()
        assert here.get("dev1", "/api/", **HOST).json() == {"Hello": "Preview"}
        assert here.get("dev1", "/api/").json() == {"Hello": "MySQL"}
        assert here.get("dev1", "/", **HOST).status == 200
        assert here.get("dev1", "/api/version", **HOST).json()["commit"] == commit

        # Its database is its own.
        user = {"name": "Ada", "email": "pr-12@example.com"}
        assert here.get("dev1", "/api/users", "POST", user, **HOST).status == 201
        assert user["email"] in here.sql("nba_dev_pr_12", "SELECT email FROM users")
        assert user["email"] not in here.sql("nba_dev", "SELECT email FROM users")

        for again in (PREVIEW, ("-l", "dev", "site.yml")):
            version = ("-e", f"app_version={commit}") if again is PREVIEW else ()
            assert set(here.ansible(*again, *version).succeeded().changed().values()) == {0}
        assert here.shell("bare1", TRACES) == ""

        runner.run("preview", "remove", event(runner, "unlabeled", commit))
        assert here.shell("dev1", TRACES) == ""
        assert here.sql("mysql", "SELECT user FROM user WHERE user LIKE '%pr_12'; SHOW DATABASES LIKE '%pr_12'") == ""
        # One that never ran has its rules loaded, and no unit takes them away.
        here.shell("dev1", "nft add table inet nba-pr-12")
        assert here.ansible(*PREVIEW, "-e", "preview_state=absent").succeeded().changed()["dev1"] == 1
        assert here.shell("dev1", TRACES) == ""
        assert set(here.ansible(*PREVIEW, "-e", "preview_state=absent").succeeded().changed().values()) == {0}
        probe.stop()
    assert (probe.failed, probe.missing()) == ([], [])
    here.sql("nba_dev", FORGET)
    assert here.get("dev1", "/api/version").json()["release"] == live


@pytest.mark.long
def test_a_preview_can_read_the_live_database_and_write_nothing(here: World, commit: str) -> None:
    live = here.get("dev1", "/api/version").json()["release"]
    shown = here.get("dev1", "/api/users").json()
    setting = "preview_database: {}".format
    with here.edited("group_vars/dev/vars.yml", lambda text: text.replace(setting("own"), setting("live"))):
        here.ansible(*PREVIEW, "-e", f"app_version={commit}").succeeded()
        assert set(here.ansible(*PREVIEW, "-e", f"app_version={commit}").succeeded().changed().values()) == {0}
    assert here.get("dev1", "/api/", **HOST).json() == {"Hello": "Preview"}
    assert here.get("dev1", "/api/users", **HOST).json() == shown
    user = {"name": "Ada", "email": "pr-12@example.com"}
    assert here.get("dev1", "/api/users", "POST", user, **HOST).status == 503
    assert user["email"] not in here.sql("nba_dev", "SELECT email FROM users")
    assert here.sql("mysql", "SELECT user FROM user WHERE user LIKE '%pr_12'; SHOW DATABASES LIKE '%pr_12'") == ""
    files = here.shell("dev1", "cat /srv/nba-pr-12/releases/*/.env* /srv/nba-pr-12/releases/*/.mysql.cnf")
    assert "nba_dev_read" in files and "nba_dev_migrate" not in files

    # Removed by the setting that it was not made with: what is dev's stays.
    here.ansible(*PREVIEW, "-e", "preview_state=absent").succeeded()
    assert here.shell("dev1", TRACES) == ""
    assert here.get("dev1", "/api/users").json() == shown
    assert here.get("dev1", "/api/version").json()["release"] == live


@pytest.mark.parametrize("name", ["", "PR-12", "pr_12", "a-name-that-is-long"])
def test_a_name_that_cannot_be_is_refused(here: World, converged: Converged, name: str) -> None:
    run = here.ansible("playbooks/preview.yml", "-l", "dev", "-e", f"preview={name}", "-e", "preview_domain=dev.test")
    assert run.code != 0 and "a preview takes a preview_domain" in run.output


def test_an_account_of_the_database_reaches_no_other(here: World, converged: Converged) -> None:
    """In a grant `_` is any character: nba_dev would be nbaXdev, too. A host of before loses such grants."""
    grants = "SELECT user, db FROM db WHERE user LIKE 'nba\\_dev%' ORDER BY user, db"
    known = here.sql("mysql", grants)
    assert known.count("nba\\\\_dev") == 5 and known.count("\\\\") == 5
    accounts = ("nba_dev", "nba_dev_read", "nba_dev_migrate")
    for account in accounts:
        here.sql("mysql", f"GRANT SELECT ON nba_dev.* TO {account}")
    assert here.sql("mysql", grants) != known
    run = here.ansible("playbooks/database.yml", "-l", "dev").succeeded()
    assert sum("Create the account" in change for change in run.changes()) == len(accounts)
    assert here.sql("mysql", grants) == known
    assert set(here.ansible("playbooks/database.yml", "-l", "dev").succeeded().changed().values()) == {0}
