"""Prod takes what was live and healthy on dev, and asks dev itself."""

from __future__ import annotations

import hashlib
import json
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.hosts.conftest import PROD, Converged
from tests.hosts.world import UNPROVEN, World
from tests.support import module_at

pytestmark = pytest.mark.lab
DEPLOY = "playbooks/deploy.yml"


@pytest.fixture(scope="module")
def both(here: World, converged: Converged) -> Iterator[World]:
    """Return the lab, and bring both environments back to one artefact."""
    converged.prod.succeeded()
    yield here
    for environment in ("dev", "prod"):
        here.ansible(DEPLOY, "-l", environment).succeeded()


def live(here: World, host: str) -> str:
    """Return the release that a host's public address names."""
    return str(here.get(host, "/api/version").json()["release"])


def artefact(here: World, host: str) -> str:
    """Return the digest of the artefact that is live on a host."""
    status = here.status(host)
    return next(str(known["artefact"]) for known in status["releases"] if known["id"] == status["live"])


def another_version(here: World, word: str) -> AbstractContextManager[None]:
    """Commit another version of the application for a while."""
    return here.edited("app/nba/__init__.py", lambda text: f"{text}# {word}\n", commit=True)


def test_what_dev_never_had_is_refused(both: World) -> None:
    before, on_dev = both.status("prod1"), live(both, "dev1")
    with another_version(both, "never on dev"):
        commit = both.git("rev-parse", "HEAD").strip()
        refused = both.ansible(DEPLOY, "-l", "prod")
        preview = both.ansible(DEPLOY, "-l", "prod", "--check").succeeded()
        before_migration = both.status("prod1")
        # Nor does its schema come before it.
        migration = both.ansible("playbooks/migrate.yml", "-l", "prod")
    assert (refused.code, migration.code) == (2, 2)
    assert "was never live and healthy on dev" in migration.output
    for words in (
        f"of commit {commit[:12]} (Change app/nba/__init__.py)",
        f"was never live and healthy on dev; dev1 runs {on_dev}",
        f"ansible-playbook playbooks/deploy.yml -l dev -e app_version={commit}",
        """-e 'promotion_override="the reason"'""",
    ):
        assert words in refused.output
    assert "a run without --check would end here" in preview.output
    assert before_migration == before
    assert both.status("prod1")["live"] == before["live"]
    assert live(both, "dev1") == on_dev


# Python runs it at each start of the virtual environment that the wheel is installed in.
PTH = "import os; open(f'/var/tmp/wheel-{os.geteuid()}', 'w')\n"
WHEEL = "own-1.0-py3-none-any.whl"
LOCKED = """[[package]]
name = "own"
version = "1.0"
description = ""
optional = false
python-versions = "*"
groups = ["main"]
files = [{{file = "{wheel}", hash = "sha256:{digest}"}}]

[package.source]
type = "file"
url = "{wheel}"

[metadata]
"""


def with_a_wheel(here: World) -> str:
    """Return a commit whose dependencies have a wheel that runs code; it is taken back in the commit after it."""
    app = here.root / "app"
    with zipfile.ZipFile(app / WHEEL, "w") as wheel:
        wheel.writestr("own.pth", PTH)
        wheel.writestr("own-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
        wheel.writestr("own-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ("own.pth", "own-1.0.dist-info/METADATA", "own-1.0.dist-info/WHEEL", "own-1.0.dist-info/RECORD")
        wheel.writestr("own-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in names))
    project, lock = app / "pyproject.toml", app / "poetry.lock"
    project.write_text(project.read_text().replace("dependencies = [", 'dependencies = ["own (>=1)",', 1))
    hashes = module_at("plugins/action/artefact.py").content_hashes(tomllib.loads(project.read_text()))
    before = tomllib.loads(lock.read_text())["metadata"]["content-hash"]
    locked = LOCKED.format(wheel=WHEEL, digest=hashlib.sha256((app / WHEEL).read_bytes()).hexdigest())
    lock.write_text(lock.read_text().replace("[metadata]\n", locked).replace(before, hashes[0]))
    here.git("add", "--all", "app")
    here.git("commit", "--quiet", "--message", "Add a wheel")
    here.git("revert", "--no-edit", "HEAD")
    return here.git("rev-parse", "HEAD~1").strip()


def test_code_of_a_package_never_runs_as_root_and_without_proof_not_at_all(both: World) -> None:
    version = ("-e", f"app_version={with_a_wheel(both)}")
    shown = both.ansible("playbooks/plan.yml", "-l", "prod1", *version).succeeded()
    assert "was not proven where it must have been live before" in shown.output
    assert both.shell("prod1", "ls /var/tmp/wheel-* 2>/dev/null || :") == ""
    both.ansible("playbooks/plan.yml", "-l", "dev1", *version).succeeded()
    who = both.shell("dev1", "stat -c %U /var/tmp/wheel-*; rm /var/tmp/wheel-*").split()
    assert sorted(who) == ["nba", "nba-migrate"]


def test_what_dev_had_is_taken_also_after_dev_went_on(both: World) -> None:
    with another_version(both, "proven"):
        both.ansible(DEPLOY, "-l", "dev").succeeded()
        proven, commit = artefact(both, "dev1"), both.git("rev-parse", "HEAD").strip()
        with another_version(both, "dev goes on"):
            both.ansible(DEPLOY, "-l", "dev").succeeded()
            assert artefact(both, "dev1") != proven
            both.ansible(DEPLOY, "-l", "prod", "-e", f"app_version={commit}").succeeded()
    assert artefact(both, "prod1") == proven


@pytest.mark.long
def test_prod_needs_no_password_of_dev_to_ask_it(both: World) -> None:
    password = both.root / ".vault/dev"
    with another_version(both, "asked without a password"):
        both.ansible(DEPLOY, "-l", "dev").succeeded()
        kept = password.rename(password.with_name("elsewhere"))
        try:
            both.ansible(DEPLOY, "-l", "prod").succeeded()
        finally:
            kept.rename(password)
    assert artefact(both, "prod1") == artefact(both, "dev1")


def test_a_reason_goes_before_the_proof_and_is_recorded(both: World) -> None:
    before = live(both, "prod1")
    with another_version(both, "for a reason"):
        short = both.ansible(DEPLOY, "-l", "prod", "-e", "promotion_override=x")
        assert (short.code, live(both, "prod1")) == (2, before)
        assert "promotion_override: must be one line of at least 8 characters" in short.output
        both.ansible(DEPLOY, "-l", "prod", *UNPROVEN).succeeded()
        with_reason = live(both, "prod1")
        # The reason is no part of what the release is: without it, there is nothing to do.
        assert both.ansible(DEPLOY, "-l", "prod").succeeded().changed() == dict.fromkeys(PROD, 0)
    receipts = (both.root / ".receipts/prod1").glob(f"*-{with_reason}.json")
    newest = max(receipts, key=lambda path: path.stat().st_mtime)
    assert json.loads(newest.read_text())["promotion_override"] == "this test is not about promotion"


@pytest.mark.long
def test_a_dev_that_does_not_answer_stops_new_code_alone(both: World) -> None:
    both.ansible(DEPLOY, "-l", "prod").succeeded()
    before = live(both, "prod1")
    both.execute("dev1", "systemctl", "stop", "ssh.socket", "ssh.service")
    try:
        with another_version(both, "nobody to ask"):
            refused = both.ansible(DEPLOY, "-l", "prod", ANSIBLE_SSH_ARGS="-o ControlMaster=no")
        assert (refused.code, live(both, "prod1")) == (2, before)
        assert "dev1 (dev) could not be asked whether" in refused.output
        assert """-e 'promotion_override="the reason"'""" in refused.output
        with both.edited(
            "group_vars/prod/vars.yml", lambda text: text.replace("log_level: INFO", "log_level: WARNING")
        ):
            both.ansible(DEPLOY, "-l", "prod").succeeded()
        assert live(both, "prod1") != before
    finally:
        both.execute("dev1", "systemctl", "start", "ssh.service")
