"""What a run leaves behind, who may run beside it, and what people add to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import AWKWARD, World, await_true

pytestmark = pytest.mark.lab
PROGRAM = "/usr/local/sbin/nba-release"
FIELD = "    log_level: "
WIRE = "  LOG_LEVEL: "
IDENTITY = {f"GIT_{role}_{key}": "test@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


@pytest.fixture(scope="module", autouse=True)
def _settled(here: World, converged: Converged) -> Iterator[None]:
    """Leave dev1 on the release of the clean checkout, with nothing pending."""
    yield
    here.ansible("playbooks/deploy.yml", "-l", "dev1").succeeded()
    assert here.status("dev1")["problems"] == []


def deploy(here: World, *arguments: str) -> Any:
    return here.ansible("playbooks/deploy.yml", "-l", "dev1", *arguments)


def log(here: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in here.execute("dev1", PROGRAM, "log").splitlines()]


def receipts(here: World) -> list[Path]:
    return sorted((here.root / ".receipts/dev1").glob("*.json"), key=lambda path: path.stat().st_mtime)


def test_a_deploy_leaves_a_receipt_and_a_line_in_the_log(here: World) -> None:
    before = here.status("dev1")["live"]
    with (
        here.edited("app/nba/__init__.py", lambda text: text + "# receipt\n", commit=True),
        here.edited("group_vars/dev/vars.yml", lambda text: text.replace("log_level: INFO", "log_level: WARNING")),
    ):
        deploy(here).succeeded()
        commit = here.git("rev-parse", "HEAD").strip()
    receipt = json.loads(receipts(here)[-1].read_text())
    version = here.get("dev1", "/api/version").json()
    assert (receipt["kind"], receipt["outcome"], receipt["before"]) == ("deploy", "good", before)
    assert (receipt["release"], receipt["artefact"]) == (version["release"], version["artefact"])
    assert (receipt["lock"], receipt["commit"]) == (version["lock"], commit)
    assert receipt["schema_before"] == receipt["schema"] == version["schema"]
    assert receipt["settings_changed"] == ["LOG_LEVEL"]
    assert "@" in receipt["by"]
    steps = {step["step"]: step["seconds"] for step in receipt["steps"]}
    assert next(iter(steps)) == "prepare" and steps["prepare"] > 0
    assert list(steps)[-4:-1] == ["switch", "watch the public address", "confirm"]
    assert steps["see whether it lasts"] >= 2
    assert steps["watch the public address"] >= 1
    assert {sample["status"] for sample in receipt["health"]} == {200}
    assert sum(steps.values()) <= receipt["seconds"]
    entry = log(here)[-1]
    assert {key: receipt.get(key) for key in entry if key != "error"} == {
        k: v for k, v in entry.items() if k != "error"
    }
    listed = here.ansible("playbooks/releases.yml", "-l", "dev1").succeeded().output
    assert receipt["by"] in listed and f"{receipt['seconds']:.1f} s" in listed and commit[:8] in listed


def test_a_refused_release_is_recorded_and_its_secrets_are_masked(here: World) -> None:
    # A secret of its own: this release writes it to the journal, where those of the vaults must never be.
    secret = AWKWARD.replace("rd", "canary")
    with (
        here.edited("app/nba/settings.py", lambda text: text.replace(FIELD, f"    leaked_key: str\n{FIELD}")),
        here.edited("app/nba/main.py", lambda text: text + "raise RuntimeError(settings.leaked_key)\n"),
        here.edited(
            "app/settings.schema.json",
            lambda text: text.replace('"additionalProperties": false', '"additionalProperties": true'),
        ),
        here.edited(
            "group_vars/all/sample.yml",
            lambda text: text.replace(WIRE, f"  LEAKED_KEY: !unsafe {json.dumps(secret)}\n{WIRE}"),
        ),
    ):
        refused = deploy(here)
    assert refused.code != 0
    assert "RuntimeError: ********" in refused.output
    receipt = json.loads(receipts(here)[-1].read_text())
    assert receipt["outcome"] == log(here)[-1]["outcome"] == "failed"
    # Made of edits that nobody committed, and called so.
    assert receipt["dirty"] is True and "-dirty-" in receipt["release"]
    assert "LEAKED_KEY" in receipt["settings_changed"]
    kept = here.execute(
        "dev1", "sh", "-c", "cat /var/log/nba/releases.log /srv/nba/state/receipts/* /run/nba-release/*"
    )
    for text in (refused.output, json.dumps(receipt), kept):
        assert "canary" not in text


def test_who_comes_second_is_told_who_came_first(here: World) -> None:
    with here.edited("app/nba/__init__.py", lambda text: text + "# first\n", commit=True):
        first = here.start_ansible("playbooks/deploy.yml", "-l", "dev1", GITHUB_ACTOR="alice")
        try:
            await_true(lambda: here.status("dev1")["running"], 60, "the first run holds the lock")
            held = here.status("dev1")["running"]
            assert held.startswith("deploy of ") and " by alice@" in held
            release = here.status("dev1")["live"]
            refused = here.execute("dev1", "sh", "-c", f"{PROGRAM} repair --by bob@desk 2>&1 || echo refused")
            assert "another run holds the lock on this host: deploy of" in refused and "by alice@" in refused
            assert refused.rstrip().endswith("refused") and release in {
                entry["id"] for entry in here.status("dev1")["releases"]
            }
            here.execute("dev1", PROGRAM, "repair", "--by", "bob@desk", "--wait", "60")
        finally:
            first.communicate(timeout=120)
    assert first.returncode == 0
    assert [entry["kind"] for entry in log(here)[-2:]] == ["deploy", "repair"]


def test_a_run_ends_well_without_its_control_node(here: World) -> None:
    """The unit on the host needs nobody, and nobody has to run the command again; a rollback is logged as well."""
    before = here.status("dev1")["live"]
    with (
        here.edited("app/nba/__init__.py", lambda text: text + "# alone\n", commit=True),
        here.start_ansible("playbooks/deploy.yml", "-l", "dev1") as run,
    ):
        try:
            await_true(lambda: here.status("dev1")["running"], 60, "the run holds the lock")
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate(timeout=60)
    await_true(lambda: not here.status("dev1")["running"], 60, "the run ends")
    after = here.status("dev1")
    assert after["live"] != before and after["problems"] == []
    last = log(here)[-1]
    assert (last["kind"], last["release"], last["outcome"]) == ("deploy", after["live"], "good")
    here.ansible("playbooks/rollback.yml", "-l", "dev1").succeeded()
    last = log(here)[-1]
    assert (last["kind"], last["release"], last["outcome"]) == ("rollback", before, "good")


HOLD = "flock /srv/nba/state/.prepare.lock sleep 300 >/dev/null 2>&1 & echo $!"


def test_what_is_interrupted_while_it_is_prepared_goes_no_further(here: World) -> None:
    """One call prepares and switches; yet nothing is migrated and switched for somebody who has left."""
    before, known = here.status("dev1")["live"], len(log(here))
    waits = f"pgrep -f '^/usr/bin/python3 {PROGRAM} activate .* --prepare'"
    holder = here.shell("dev1", HOLD).strip()
    try:
        with (
            here.edited("app/nba/__init__.py", lambda text: text + "# interrupted\n", commit=True),
            here.start_ansible("playbooks/deploy.yml", "-l", "dev1") as run,
        ):
            try:
                await_true(lambda: here.shell("dev1", waits, check=False), 60, "it waits for the lock")
            finally:
                os.killpg(run.pid, signal.SIGINT)
                run.communicate(timeout=60)
    finally:
        here.execute("dev1", "pkill", "-P", holder)
    await_true(lambda: not here.shell("dev1", waits, check=False), 60, "the program ends")
    assert (here.status("dev1")["live"], len(log(here))) == (before, known)


def test_a_release_that_cannot_reach_its_database_is_refused(here: World) -> None:
    before = here.status("dev1")["live"]

    def refused(words: str, *arguments: str) -> None:
        run = deploy(here, *arguments)
        assert run.code != 0 and re.search(words, run.output), run.output[-3000:]
        status, last = here.status("dev1"), log(here)[-1]
        assert status["live"] == here.get("dev1", "/api/version").json()["release"] == before
        assert (last["outcome"], last["before"]) == ("failed", before)
        assert {entry["id"]: entry["state"] for entry in status["releases"]}[last["release"]] == "failed"

    refused(r"cannot sign in to its database by its own settings .*Can't connect", "-e", "database_port=3999")
    assert here.status("dev1")["problems"] == []
    # Where it is the code that goes to the wrong port, the release finds out itself, once it runs.
    with here.edited("app/nba/database.py", lambda text: text.replace("settings.database_port", "3999"), commit=True):
        refused("503: .*database unreachable", "-e", "app_start_timeout_seconds=5")


def test_the_same_order_again_joins_the_run(here: World) -> None:
    with here.edited("app/nba/__init__.py", lambda text: text + "# joined\n", commit=True):
        runs = [here.start_ansible("playbooks/deploy.yml", "-l", "dev1") for _ in range(2)]
        ends = [run.communicate(timeout=180)[0] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], "\n".join(ends)
        entries = [entry for entry in log(here) if entry["release"] == here.status("dev1")["live"]]
        assert [entry["kind"] for entry in entries] == ["deploy"]


def test_another_repository_brings_the_application(here: World, tmp_path: Path) -> None:
    """And its front end: fetched by the control node, the host gets an archive, and neither Git nor its credentials."""
    theirs = tmp_path / "theirs"
    shutil.copytree(
        here.root / "app", theirs / "service", ignore=shutil.ignore_patterns(".*_cache", "__pycache__", ".env")
    )
    with (theirs / "service/nba/__init__.py").open("a") as stream:
        stream.write("# another repository\n")
    (theirs / "dist").mkdir()
    (theirs / "dist/index.html").write_text("their page\n")
    git = partial(subprocess.run, cwd=theirs, check=True, env={**os.environ, **IDENTITY})
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "-m", "Theirs"],
    ):
        git(["git", *command])
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=theirs, text=True).strip()
    where: dict[str, object] = {
        "app_repository": f"file://{theirs}",
        "app_repository_folder": "service",
        "app_version": "main",
    }
    # What is in the other repository is still the sample, with its settings.
    where |= {"app_frontend_repository": str(theirs), "app_frontend_folder": "dist", "sample_is_deployed": True}
    deploy(here, "-e", json.dumps({**where, "app_repository_cache": str(tmp_path / "mirrors")})).succeeded()
    version = here.get("dev1", "/api/version").json()
    assert (version["commit"], version["frontend"]) == (commit, commit)
    assert json.loads(receipts(here)[-1].read_text())["frontend"] == commit
    assert here.get("dev1", "/").text == "their page\n"
    assert here.get("dev1", "/api/users").status == 200


def test_hooks_run_at_their_moments(here: World) -> None:
    hooks = here.root / "hooks"
    hooks.mkdir()
    mark = "- name: Mark\n  ansible.builtin.shell: readlink /srv/nba/live/release >/root/{}\n  changed_when: true\n"
    names = ("before_migrate", "before_switch", "after_switch", "after_failure")
    before = here.status("dev1")["live"]
    try:
        for name in names:
            (hooks / f"{name}.yml").write_text(mark.format(name))
        with here.edited("app/nba/__init__.py", lambda text: text + "# hooks\n", commit=True):
            deploy(here).succeeded()
            after = here.status("dev1")["live"]
            seen = {name: marked(here, name) for name in names}
            assert seen == {
                "before_migrate": before,
                "before_switch": before,
                "after_switch": after,
                "after_failure": "",
            }
            (hooks / "before_switch.yml").write_text("- name: Object\n  ansible.builtin.fail: {msg: not today}\n")
            here.execute("dev1", "sh", "-c", "rm /root/after_switch")
        refused = deploy(here)
        assert refused.code != 0 and "the task `Object` failed: not today" in refused.output
        assert here.status("dev1")["live"] == after
        assert here.status("dev1")["problems"] == []
        assert (marked(here, "after_switch"), marked(here, "after_failure")) == ("", after)
        # A host by itself prepares the release in the same call as the rest.
        for name in names[:-1]:
            (hooks / f"{name}.yml").unlink()
        here.execute("dev1", "rm", "/root/after_failure")
        with here.edited("app/nba/settings.py", lambda text: text + "raise SystemExit('not here')\n", commit=True):
            refused = deploy(here)
        assert refused.code != 0 and "not here" in refused.output
        assert marked(here, "after_failure") == after
    finally:
        for file in hooks.iterdir():
            file.unlink()
        hooks.rmdir()
        here.execute("dev1", "sh", "-c", "rm -f /root/before_* /root/after_*")


def marked(here: World, name: str) -> str:
    return here.shell("dev1", f"cat /root/{name} 2>/dev/null || :").strip().rpartition("/")[2]


@pytest.mark.long
def test_a_deploy_goes_on_while_systemd_starts_anew(here: World) -> None:
    """An update of systemd does that once; here it does it all the time."""
    again = "while :; do systemctl daemon-reexec; sleep 1; done"
    here.execute("dev1", "systemd-run", "--unit=reexec", "--collect", "sh", "-c", again)
    try:
        with here.edited("app/nba/__init__.py", lambda text: text + "# reexec\n", commit=True):
            deploy(here).succeeded()
    finally:
        here.shell("dev1", "until systemctl stop reexec.service; do sleep 1; done")


@pytest.mark.long
def test_a_clock_that_goes_a_day_back_keeps_no_repair_and_no_deploy_from_its_end(here: World) -> None:
    """The release that is live was recorded tomorrow: what came last is told by a count, and not by the clock."""
    preload = "$(dpkg -L libfaketime | grep '/libfaketimeMT.so.1$')"
    here.shell("dev1", "apt-get update -qq && apt-get install -qq libfaketime >/dev/null")
    here.shell("dev1", f"echo +1d >/etc/faketimerc; echo {preload} >/etc/ld.so.preload")
    try:
        assert int(here.shell("dev1", "date +%s")) > time.time() + 86000
        with here.edited("app/nba/__init__.py", lambda text: text + "# tomorrow\n", commit=True):
            deploy(here).succeeded()
    finally:
        here.shell("dev1", "rm /etc/ld.so.preload /etc/faketimerc; apt-get purge -qq libfaketime >/dev/null")
    live = here.status("dev1")["releases"][0]
    assert live["at"] > time.time() + 80000
    here.shell("dev1", "slot=$(readlink /srv/nba/live); rm $slot/release; systemctl kill -s KILL nba@$(basename $slot)")
    here.ansible("site.yml", "-l", "dev1").succeeded()
    assert here.status("dev1")["problems"] == []
    with here.edited("app/nba/__init__.py", lambda text: text + "# today\n", commit=True):
        deploy(here).succeeded()
    assert here.status("dev1")["problems"] == []
    here.ansible("playbooks/rollback.yml", "-l", "dev1").succeeded()
    assert here.status("dev1")["problems"] == []
