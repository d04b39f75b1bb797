"""The workflows: what they may do and what they call; and the scripts that they call, run as a job runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tests.contract.conftest import Project
from tests.support import ENVIRONMENTS, ROOT, yaml_at

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
Job = tuple[str, str, dict[str, Any]]
JOBS: list[Job] = [
    (path.name, name, job) for path in WORKFLOWS for name, job in yaml_at(path.relative_to(ROOT))["jobs"].items()
]
STEPS = [(f"{file}:{name}", job, step) for file, name, job in JOBS for step in job["steps"]]
# What a job may do with GitHub beyond reading the code, and the only jobs that may.
RIGHTS = {
    "id-token: write": {"dev", "plan", "prod", "rollback", "look", "preview", "remove"},
    "actions: read": {"look"},
    "issues: write": {"issue"},
    "pull-requests: write": {"comment"},
}
SECRETS = ("VAULT_PASSWORD", "SSH_KEY", "PROMOTE_FROM_SSH_KEY", "KNOWN_HOSTS")
MEMORY = Path("/dev/shm")  # noqa: S108
DIGEST, COMMIT = "0123abcd" * 8, "89ab" * 10

# --- the workflows ---


def test_there_are_these() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "deploy", "drift", "preview"]


def test_every_action_is_pinned_by_its_commit_and_says_its_version() -> None:
    seen: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for use in re.findall(r"uses: (.*)", path.read_text()):
            found = re.fullmatch(r"([\w-]+/[\w-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", use)
            assert found, f"{path.name}: {use}"
            seen.setdefault(found[1], set()).add(found[2] + found[3])
    # GitHub's own, and AWS's: whoever is added here sees what the jobs see.
    assert set(seen) == {
        "actions/checkout",
        "actions/download-artifact",
        "actions/upload-artifact",
        "aws-actions/configure-aws-credentials",
    }
    assert {action: len(pins) for action, pins in seen.items() if len(pins) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_grants_nothing_to_all_of_its_jobs(path: Path) -> None:
    assert yaml_at(path.relative_to(ROOT))["permissions"] == {}


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_has_the_rights_that_it_needs_and_an_end(file: str, name: str, job: dict[str, Any]) -> None:
    granted = {f"{scope}: {level}" for scope, level in job["permissions"].items()}
    assert granted == {"contents: read", *(right for right, jobs in RIGHTS.items() if name in jobs)}
    assert job["timeout-minutes"] <= 180


@pytest.mark.parametrize(("where", "job", "step"), STEPS, ids=[f"{where}-{step['name']}" for where, _, step in STEPS])
def test_a_step_keeps_what_it_was_given(where: str, job: dict[str, Any], step: dict[str, Any]) -> None:
    """Git keeps no token, secrets go to scripts/with-access alone, and nothing is pasted into a shell's text."""
    if str(step.get("uses", "")).startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False
    assert "${{" not in step.get("run", "")
    if "secrets." in json.dumps(step):
        assert "environment" in job, "a secret of the repository is every branch's"
        assert step["run"].startswith("exec scripts/with-access ")
        assert {name for name, value in step["env"].items() if "secrets." in value} <= set(SECRETS)
    assert "secrets." not in json.dumps({key: value for key, value in job.items() if key != "steps"})


def test_no_secret_is_within_reach_of_a_fork() -> None:
    for path in WORKFLOWS:
        workflow = yaml_at(path.relative_to(ROOT))
        events = set(workflow["on"])
        assert events <= {"push", "pull_request", "workflow_dispatch", "schedule"}, path.name
        for name, job in workflow["jobs"].items() if "pull_request" in events else ():
            if "secrets." in json.dumps(job) or "environment" in job:
                assert (path.stem, job["environment"]["name"]) == ("preview", "preview"), name
                assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"], name


def test_a_preview_takes_the_application_alone_from_the_pull_request() -> None:
    for name, job in yaml_at(".github/workflows/preview.yml")["jobs"].items():
        for step in job["steps"]:
            if str(step.get("uses", "")).startswith("actions/checkout@"):
                assert step["with"]["ref"] == "${{ github.event.pull_request.base.sha }}", name


def commands(step: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the words of each command of a step."""
    text = step["run"].replace("\\\n", " ")
    for line in re.split(r"\n|&&|\$\(|\)", text):
        words = [word for word in shlex.split(line) if word != "exec" and not re.fullmatch(r"\w+=.*", word)]
        while words[:1] in (["scripts/with-access"], ["scripts/with-artefact"]):
            yield words[:2]
            words = words[2:]
        if words:
            yield words


@pytest.mark.parametrize(
    ("where", "step"), [(where, step) for where, _, step in STEPS if "run" in step], ids=lambda value: str(value)[:60]
)
def test_a_step_calls_what_anybody_can_call(where: str, step: dict[str, Any]) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    own = 0
    for words in commands(step):
        if words[0] == "make":
            assert set(words[1:]) <= targets, where
        elif words[0] == "ansible-playbook":
            assert (ROOT / words[1]).is_file(), where
        elif words[0].startswith("scripts/"):
            assert os.access(ROOT / words[0], os.X_OK), where
        else:
            # What is too small for a script.
            assert words[0] in ("cat", "gh", "git", "mkdir"), f"{where}: {words}"
            own -= 1
        own += 1
    assert own >= 0 or step["run"].count("\n") == 0


def test_one_run_at_a_time_changes_an_environment_and_nothing_tears_or_replaces_it() -> None:
    """A preview is made on dev's host; a queue of one would have a removal replaced by whatever comes after it."""
    groups = {f"{file}:{name}": job["concurrency"] for file, name, job in JOBS if "concurrency" in job}
    wanted = {
        "deploy.yml:dev": "dev",
        "deploy.yml:prod": "prod",
        "deploy.yml:rollback": "${{ inputs.environment }}",
        "preview.yml:preview": "dev",
        "preview.yml:remove": "dev",
    }
    assert groups == {
        job: {"group": f"environment-{place}", "cancel-in-progress": False, "queue": "max"}
        for job, place in wanted.items()
    }
    # A group of the whole workflow is joined by runs whose jobs are all left out.
    assert [path.stem for path in WORKFLOWS if "concurrency" in yaml_at(path.relative_to(ROOT))] == ["ci", "drift"]


def test_prod_gets_what_was_built_for_dev_after_its_plan_was_approved() -> None:
    jobs = yaml_at(".github/workflows/deploy.yml")["jobs"]
    assert (jobs["dev"]["needs"], jobs["plan"]["needs"], jobs["prod"]["needs"]) == ("test", "dev", ["dev", "plan"])
    assert (jobs["dev"]["environment"], jobs["prod"]["environment"]) == ("dev", "prod")
    runs = {name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    assert "scripts/job-summary .results/plan-prod.md" in runs["plan"]
    assert "site.yml -l prod -e confirm=prod -e plan=.results/plan-prod.json" in runs["prod"]
    # The artefact is all that comes from that job, as it was built before any host was asked.
    first = [step.get("id") or step.get("run", "") for step in jobs["dev"]["steps"] if "run" in step]
    assert first.index("built") < first.index(next(words for words in first if "site.yml" in words))
    assert jobs["dev"]["outputs"] == {"artefact": "${{ steps.built.outputs.artefact }}"}
    for name, playbooks in {"plan": ["playbooks/plan.yml"], "prod": ["site.yml", "playbooks/smoke.yml"]}.items():
        steps = [step for step in jobs[name]["steps"] if "ansible-playbook" in step.get("run", "")]
        for step, playbook in zip(steps, playbooks, strict=True):
            wanted = (
                f'exec scripts/with-access prod scripts/with-artefact "$ARTEFACT" ansible-playbook {playbook} -l prod'
            )
            assert step["run"].startswith(wanted)
            assert step["env"]["ARTEFACT"] == "${{ needs.dev.outputs.artefact }}"
    assert yaml_at("group_vars/prod/vars.yml")["promote_from"] == "dev"
    for name in ("dev", "prod", "rollback"):
        receipts = [step for step in jobs[name]["steps"] if step.get("with", {}).get("path") == ".receipts"]
        assert [(step["if"], step["with"]["include-hidden-files"]) for step in receipts] == [("always()", True)]


def test_nothing_is_deployed_before_somebody_says_so() -> None:
    for file in ("deploy", "drift", "preview"):
        for name, job in yaml_at(f".github/workflows/{file}.yml")["jobs"].items():
            assert "vars.PIPELINE == 'on'" in job.get("if", "") or "needs" in job, name


# --- secrets in memory ---


@pytest.fixture
def bare(project: Project) -> Project:
    """Return a checkout as a job has it: the vaults, and nothing that opens them."""
    if not MEMORY.is_dir():
        pytest.skip("Linux alone has a file system in memory at hand")
    for environment in ENVIRONMENTS:
        (project.root / ".vault" / environment).rename(project.root / f"password-{environment}")
    (project.root / ".vault").rmdir()
    (project.root / ".venv/bin").mkdir(parents=True)
    return project


def given(project: Project, environment: str = "dev", **changed: str) -> dict[str, str]:
    """Return a job's environment."""
    password = (project.root / f"password-{environment}").read_text().strip()
    values = {"VAULT_PASSWORD": password, "SSH_KEY": "dev's key", "PROMOTE_FROM_SSH_KEY": "other key"}
    kept = {**project.environment(), "GITHUB_ACTIONS": ""}
    return {**kept, **values, "KNOWN_HOSTS": "i-1 ssh-ed25519 AAAA", **changed}


def access(project: Project, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/with-access."""
    return subprocess.run(
        [str(project.root / "scripts/with-access"), *words],
        cwd=project.root,
        env=given(project, words[0], **changed),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def left(project: Project) -> list[str]:
    """Return what is left of secrets, in memory and in the checkout."""
    links = [str(project.root / name) for name in (".vault", ".access") if os.path.lexists(project.root / name)]
    return [
        *links,
        *(str(path) for path in MEMORY.glob(f"waffle-access-{zlib.crc32(str(project.root).encode()):08x}-*")),
    ]


LOOK = """
find -L .vault .access -type f | sort
stat -Lc %a .vault .access .access/dev .access/dev/id_ed25519 .vault/* | sort -u
stat -Lfc %T .vault .access | sort -u
"""


def test_a_command_finds_the_secrets_in_memory_and_nobody_else_can_read_them(bare: Project) -> None:
    done = access(bare, "dev", "sh", "-c", LOOK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        ".access/dev/id_ed25519", ".access/dev/known_hosts", ".vault/dev", "600", "700", "tmpfs",
    ]  # fmt: skip
    assert left(bare) == []


def test_prod_has_the_key_to_dev_s_hosts_and_not_its_vault(bare: Project) -> None:
    done = access(bare, "prod", "sh", "-c", "ls .vault; cat .access/prod/id_ed25519 .access/dev/id_ed25519")
    assert done.stdout.splitlines() == ["prod", "dev's key", "other key"]


def test_the_command_opens_the_vault_and_gets_no_secret_otherwise(bare: Project) -> None:
    view = access(bare, "dev", "ansible-vault", "view", "group_vars/dev/vault.yml")
    assert "vault_database_password" in view.stdout, view.stderr
    password = given(bare)["VAULT_PASSWORD"]
    told = access(bare, "dev", "sh", "-c", "env; tr '\\0' ' ' </proc/$PPID/cmdline; tr '\\0' ' ' </proc/$$/cmdline")
    assert told.returncode == 0
    assert not any(secret in told.stdout + told.stderr for secret in (password, "dev's key"))


def test_ssh_takes_the_keys_and_the_pins_alone(bare: Project) -> None:
    shown = 'set -- $ANSIBLE_SSH_COMMON_ARGS; ssh -G "$@" host | grep -E "^(identi|batch|strict|userknown)"'
    done = access(bare, "prod", "bash", "-c", shown)
    found = re.sub(rf"{MEMORY}/waffle-access-\w+-\w+/", "", done.stdout).splitlines()
    assert sorted(found) == [
        "batchmode yes",
        "identitiesonly yes",
        "identityfile access/dev/id_ed25519",
        "identityfile access/prod/id_ed25519",
        "stricthostkeychecking true",
        "userknownhostsfile access/prod/known_hosts",
    ]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("", "StrictHostKeyChecking=yes -o UserKnownHostsFile=/dev/shm/"),
        ("ansible_ssh_common_args: -o HostKeyAlias=i-1", "HostKeyAlias=i-1"),
    ],
)
def test_ansible_hands_them_to_ssh_unless_the_inventory_has_its_own(bare: Project, own: str, wanted: str) -> None:
    (bare.root / "ssh").write_text(f'#!/bin/sh\necho "$@" >>{bare.root}/called\nexit 255\n')
    inventory = bare.root / "inventory/test/hosts.yml"
    inventory.write_text(inventory.read_text().replace("  children:", f"    {own}\n  children:"))
    done = access(bare, "dev", "ansible", "dev", "-i", "inventory/test", "-m", "ansible.builtin.ping")
    assert done.returncode == 4, done.stdout + done.stderr
    assert wanted in (bare.root / "called").read_text()
    assert ("UserKnownHostsFile" in (bare.root / "called").read_text()) is not bool(own)


def test_what_a_host_prints_is_no_command_to_github(bare: Project) -> None:
    host = "printf '::set-output name=artefact::%064d\\n' 0; exit 3"
    done = access(bare, "dev", "sh", "-c", host, GITHUB_ACTIONS="true")
    first, printed, last = done.stdout.splitlines()
    stopped = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", first)
    assert stopped and (last, done.returncode) == (f"::{stopped[1]}::", 3)
    assert printed.startswith("::set-output")
    assert access(bare, "dev", "true").stdout == ""


@pytest.mark.parametrize("code", [0, 3, 99])
def test_the_exit_code_is_the_command_s_and_nothing_is_left(bare: Project, code: int) -> None:
    assert (access(bare, "dev", "sh", "-c", f"exit {code}").returncode, left(bare)) == (code, [])


def test_a_command_that_is_not_there_leaves_nothing(bare: Project) -> None:
    done = access(bare, "dev", "no-such-command")
    assert (done.returncode, left(bare)) == (2, [])
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("name", ["VAULT_PASSWORD", "SSH_KEY", "PROMOTE_FROM_SSH_KEY", "KNOWN_HOSTS"])
def test_a_secret_that_is_missing_is_named_and_the_others_stay_unsaid(bare: Project, name: str) -> None:
    done = access(bare, "prod", "true", **{name: " "})
    assert (done.returncode, left(bare)) == (2, [])
    assert f"{name}: not set for prod" in done.stderr
    assert given(bare, "prod")["VAULT_PASSWORD"] not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_cancelled_leaves_nothing(bare: Project, number: signal.Signals) -> None:
    """As GitHub cancels: a signal to this one process. Of what is killed outright, the next run takes care."""
    mark = bare.root / "at-work"
    process = subprocess.Popen(
        [str(bare.root / "scripts/with-access"), "dev", "sh", "-c", f"touch {mark}; exec sleep 300"],
        cwd=bare.root,
        env=given(bare),
        stdin=subprocess.DEVNULL,
    )
    wait_for(mark.exists)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.send_signal(number)
    code = process.wait(timeout=20)
    if number == signal.SIGKILL:
        os.kill(child, number)
        assert len(left(bare)) == 3
        assert access(bare, "dev", "true").returncode == 0
    else:
        assert code == 128 + number
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    assert left(bare) == []


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_runs_in_one_checkout_do_not_take_each_other_s_secrets(bare: Project) -> None:
    inner = f"{bare.root}/scripts/with-access dev true; echo $?; cat .vault/dev"
    names = " ".join(f"{name}=x" for name in SECRETS)
    done = access(bare, "dev", "sh", "-c", f"export {names}; {inner}")
    assert done.stdout.split() == ["2", given(bare)["VAULT_PASSWORD"]]
    assert "at work in this checkout" in done.stderr


def test_a_machine_with_secrets_of_its_own_keeps_them(bare: Project) -> None:
    (bare.root / ".vault").mkdir()
    (bare.root / ".vault/dev").write_text("mine")
    done = access(bare, "dev", "true")
    assert (done.returncode, (bare.root / ".vault/dev").read_text()) == (2, "mine")
    assert "its own secrets" in done.stderr
    assert left(bare) == [str(bare.root / ".vault")]


# --- the way back ---


def called(project: Project, program: str, answer: str = "") -> Path:
    """Put a program into the path that tells what it was called with; return the file that it tells it in."""
    file = project.root / f"{program}-called"
    path = project.root / "bin" / program
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'#!{sys.executable}\nimport json, sys\nopen({str(file)!r}, "a").write(json.dumps(sys.argv[1:]))\n{answer}'
    )
    path.chmod(0o755)
    return file


def script(project: Project, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run a script, with the test's own programs first in the path."""
    environment = project.environment()
    path = f"{project.root}/bin:{environment['PATH']}"
    return subprocess.run(
        words,
        cwd=project.root,
        env={**environment, "PATH": path, **changed},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["prod"], ["release=", "schema="]), (["prod", "aa-bb", "stop"], ["release=aa-bb", "schema="]),
     (["prod", "aa-dirty-bb", "keep"], ["release=aa-dirty-bb", "schema=keep"])],
)  # fmt: skip
def test_a_rollback_is_the_playbook_s(project: Project, words: list[str], extra: list[str]) -> None:
    file = called(project, "ansible-playbook")
    assert script(project, "scripts/rollback", *words).returncode == 0
    told = json.loads(file.read_text())
    assert told[:3] == ["playbooks/rollback.yml", "-l", "prod"]
    assert told[3:] == ["-e", "confirm=prod", *(word for value in extra for word in ("-e", value))]


@pytest.mark.parametrize("release", ["aa confirm=dev", "--help", "@file", "{a: b}", "$(id)"])
def test_what_is_no_release_s_id_is_refused(project: Project, release: str) -> None:
    file = called(project, "ansible-playbook")
    done = script(project, "scripts/rollback", "prod", release)
    assert (done.returncode, file.exists()) == (2, False)
    assert "playbooks/releases.yml -l prod" in done.stderr


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "0123abcd",
        f"{DIGEST}\n",
        f"{DIGEST[1:]}\n",
        DIGEST.upper(),
        "{{ 64 * '1' }}",
        f"{DIGEST[:50]} confirm=prod",
        "@file",
    ],
)
def test_what_is_no_digest_is_no_option_of_a_run(project: Project, digest: str) -> None:
    file = called(project, "ansible-playbook")
    done = script(project, "scripts/with-artefact", digest, "ansible-playbook", "site.yml")
    assert (done.returncode, file.exists()) == (2, False)
    assert "a digest of 64 characters" in done.stderr


def test_an_artefact_is_an_option_of_a_run(project: Project) -> None:
    file = called(project, "ansible-playbook")
    assert script(project, "scripts/with-artefact", DIGEST, "ansible-playbook", "site.yml", "-l", "a b").returncode == 0
    assert json.loads(file.read_text()) == ["site.yml", "-l", "a b", "-e", f"artefact={DIGEST}"]


# --- the plan as a summary ---


def test_a_summary_is_added_and_cut_to_what_github_takes(project: Project, tmp_path: Path) -> None:
    plan, summary = tmp_path / "plan.md", tmp_path / "summary"
    plan.write_text("# Plan\n")
    assert script(project, "scripts/job-summary", str(plan)).stdout == "# Plan\n"
    plan.write_text("x" * 2_000_000)
    summary.write_text("before\n")
    done = script(project, "scripts/job-summary", str(plan), GITHUB_STEP_SUMMARY=str(summary))
    assert (done.returncode, done.stdout) == (0, "")
    assert summary.read_text().startswith("before\nxxx")
    assert summary.stat().st_size < 1 << 20
    assert script(project, "scripts/job-summary", "no-such-file").returncode == 1


# --- drift ---

RECORD = {
    "host": "prod1", "kind": "change", "role": "nginx", "task": "Configure nginx", "resource": "/etc/nginx/a.conf",
    "text": "-````\n+two\n",
}  # fmt: skip
NOTHING: dict[str, Any] = {"drift": [], "site_repairs": False, "unreachable": []}
GH = """
if sys.argv[1:3] == ["issue", "list"]: print({number!r})
if "-" in sys.argv: open({body!r}, "w").write(sys.stdin.read())
"""


def found(project: Project, **reports: dict[str, Any]) -> str:
    """Write what drift.yml found in each environment; return the folder."""
    folder = project.root / "found"
    folder.mkdir()
    for environment, report in reports.items():
        (folder / f"drift-{environment}.json").write_text(json.dumps(report))
    return "found"


@pytest.mark.parametrize("number", ["", "7"])
def test_drift_is_told_in_one_issue(project: Project, number: str) -> None:
    body = project.root / "body"
    file = called(project, "gh", GH.format(number=number, body=str(body)))
    reports = {"dev": NOTHING, "prod": {"drift": [RECORD], "site_repairs": True, "unreachable": ["prod2"]}}
    done = script(project, "scripts/drift-issue", found(project, **reports), RUN_URL="https://example.com/7")
    assert done.returncode == 0, done.stderr
    text = body.read_text()
    for words in (
        "## dev\n\nNo drift.",
        "- **prod1** `/etc/nginx/a.conf` (nginx: Configure nginx)",
        "`````\n-````\n+two\n`````",  # its own fence does not end the block
        "- **prod2** could not be reached",
        "`ansible-playbook site.yml -l prod`",
        "https://example.com/7",
    ):
        assert words in text
    assert ('"edit", "7"' if number else '"create", "--title"') in file.read_text()
    assert ("edit" in file.read_text()) is bool(number)


def test_an_issue_names_site_yml_only_for_what_it_repairs(project: Project) -> None:
    """An application of another project names its own command, and site.yml does not remove it."""
    file = found(project, dev=NOTHING, prod={"drift": [RECORD], "site_repairs": False, "unreachable": []})
    text = script(project, "scripts/drift-issue", "--print", file).stdout
    assert "**prod1**" in text and "site.yml" not in text


def test_an_issue_is_closed_when_nothing_is_left(project: Project) -> None:
    file = called(project, "gh", GH.format(number="7", body="/dev/null"))
    assert script(project, "scripts/drift-issue", found(project, dev=NOTHING, prod=NOTHING)).returncode == 0
    assert '"close", "7"' in file.read_text()


def test_an_environment_that_was_not_looked_at_closes_nothing(project: Project) -> None:
    file = called(project, "gh", GH.format(number="7", body=str(project.root / "body")))
    assert script(project, "scripts/drift-issue", found(project, dev=NOTHING)).returncode == 0
    assert "close" not in file.read_text()
    assert "## prod\n\n- could not be looked at at all" in (project.root / "body").read_text()


def test_a_host_that_cannot_be_reached_is_in_the_report_of_drift(project: Project) -> None:
    (project.root / "found").mkdir()
    words = ("-i", "inventory/test", "-l", "dev", "-e", "drift_json=found/drift-dev.json")
    done = project.run("ansible-playbook", "playbooks/drift.yml", *words)
    assert done.returncode == 4, done.stdout
    assert json.loads((project.root / "found/drift-dev.json").read_text())["unreachable"] == ["dev1"]
    assert "**dev1** could not be reached" in script(project, "scripts/drift-issue", "--print", "found").stdout


def test_what_is_deployed_is_the_commit_of_a_run_that_came_to_its_end(project: Project) -> None:
    file = called(project, "gh", "print('0123abc')")
    assert script(project, "scripts/deployed-commit").stdout == "0123abc\n"
    assert {"deploy.yml", "success", "push"} <= set(json.loads(file.read_text()))
    called(project, "gh")
    assert script(project, "scripts/deployed-commit").returncode == 1


# --- dev does not go back ---


@pytest.mark.parametrize(
    ("main", "attempt", "code"), [(COMMIT, "1", 0), ("f00d" * 10, "1", 1), ("f00d" * 10, "2", 0), ("", "1", 1)]
)
def test_an_older_push_stops_where_main_has_moved_on(project: Project, main: str, attempt: str, code: int) -> None:
    called(project, "gh", f"print({main!r})")
    done = script(project, "scripts/is-newest", COMMIT, attempt)
    assert (done.returncode, "main has moved from" in done.stderr) == (code, code == 1), done.stderr


def test_github_that_does_not_answer_stops_a_push(project: Project) -> None:
    called(project, "gh", "sys.exit('HTTP 500')")
    assert script(project, "scripts/is-newest", COMMIT).returncode == 1


def test_dev_is_asked_before_anything_is_done_there() -> None:
    steps = [step for step in yaml_at(".github/workflows/deploy.yml")["jobs"]["dev"]["steps"] if "run" in step]
    assert steps[0]["run"] == 'scripts/is-newest "$COMMIT" "$ATTEMPT"'
    assert (steps[0]["env"]["COMMIT"], steps[0]["env"]["ATTEMPT"]) == ("${{ github.sha }}", "${{ github.run_attempt }}")


# --- the comment of a preview ---

COMMENTS = """
import subprocess
comments = {comments!r}
if "--jq" in sys.argv:
    jq = ["jq", "-r", sys.argv[sys.argv.index("--jq") + 1]]
    print(subprocess.run(jq, input=json.dumps(comments), capture_output=True, text=True, check=True).stdout, end="")
"""
MARK = "<!-- waffle-iron preview -->"


def comment(number: int, body: str, kind: str = "Bot") -> dict[str, Any]:
    """Return a comment as GitHub's API has it."""
    return {"id": number, "user": {"type": kind}, "body": body}


@pytest.mark.skipif(not shutil.which("jq"), reason="gh has a jq of its own, its stand-in here takes the machine's")
@pytest.mark.parametrize(
    ("comments", "method", "place"),
    [
        ([], "POST", "issues/12/comments"),
        # Of another workflow, newer than ours or alone; of somebody who quotes ours.
        ([comment(1, "Coverage 97 %"), comment(2, f"{MARK}\nPerson", "User")], "POST", "issues/12/comments"),
        ([comment(3, f"{MARK}\nold"), comment(4, "Coverage")], "PATCH", "issues/comments/3"),
    ],
)
def test_a_preview_has_one_comment_and_writes_into_no_other(
    project: Project, comments: list[dict[str, Any]], method: str, place: str
) -> None:
    file = called(project, "gh", COMMENTS.format(comments=comments))
    done = script(project, "scripts/preview-comment", "12", COMMIT, "http://pr-12.dev.test/")
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text().partition("][")[2].join(["[", ""]))
    assert written == [
        "api", "--silent", "-X", method, f"repos/{{owner}}/{{repo}}/{place}",
        "-f", f"body={MARK}\nPreview of {COMMIT} on dev - http://pr-12.dev.test/",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [[], ["12", COMMIT], ["12", COMMIT, ""]])
def test_a_preview_without_an_address_has_no_comment(project: Project, words: list[str]) -> None:
    file = called(project, "gh")
    assert (script(project, "scripts/preview-comment", *words).returncode, file.exists()) == (2, False)


# --- whose database a preview has ---

PLAY = """
- hosts: all
  gather_facts: false
  vars_files: [vars/preview.yml]
  tasks:
    - ansible.builtin.copy:
        dest: "{{ checkout }}/told.json"
        content: "{{ {'settings': app_database, 'migration': app_migration_database, 'backup': app_backup_connection,
                      'migrates': app_migrations, 'accounts': mysql_client_accounts, 'seed': app_seed} | to_json }}"
      delegate_to: localhost
"""


@pytest.mark.parametrize(
    ("database", "state", "own"), [("own", "present", True), ("live", "present", False), ("live", "absent", True)]
)
def test_a_preview_has_a_database_of_its_own_or_reads_the_live_one(
    project: Project, database: str, state: str, own: bool
) -> None:
    """What is removed is its own, whatever the setting says by then."""
    (project.root / "playbooks/look.yml").write_text(PLAY)
    values = {"preview": "pr-12", "preview_database": database, "preview_state": state, "preview_domain": "dev.test"}
    words = ("-i", "inventory/test", "-l", "dev", "-e", json.dumps(values))
    done = project.run("ansible-playbook", "playbooks/look.yml", *words)
    assert done.returncode == 0, done.stdout
    told = json.loads((project.root / "told.json").read_text())
    secrets = yaml.safe_load(project.view("dev"))
    assert told["settings"]["name"] == ("nba_dev_pr_12" if own else "nba_dev")
    assert told["settings"]["user"] == ("nba_dev_pr_12" if own else "nba_dev_read")
    migration = "nba_dev_migrate_pr_12" if own else "nba_dev_read"
    assert {told["migration"]["user"], told["backup"]["user"]} == {migration}
    assert (told["migrates"], told["seed"]) == (own, own)
    assert all(account["name"].endswith("_pr_12") for account in told["accounts"]) is own
    # Of its environment's passwords, what a host gets of it has none but the reader's, to read with.
    given = {told["settings"]["password"], told["migration"]["password"], told["backup"]["password"]}
    known = {secret for name, secret in secrets.items() if name.startswith("vault_database")}
    assert given & known == (set() if own else {secrets["vault_database_reader_password"]})
    assert len(given) == (2 if own else 1) and all(len(each) >= 16 for each in given)


# --- which previews are refused ---

CHECKED = {"preflight_passed": True, "preflight_built": True, "preflight_confirmed": True, "preview_domain": "x.test"}


def refused(project: Project, environment: str, **values: object) -> str:
    """Return why a preview is refused; nothing if it would be made."""
    words = ("-i", "inventory/test", "-l", environment, "-e", json.dumps({"preview": "pr-12", **CHECKED, **values}))
    done = project.run("ansible-playbook", "playbooks/preview.yml", *words)
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout
    return "" if project.called else " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("preview", "word"),
    [
        ("migrate", "migrate"),  # the live application's account for migrations
        ("read", "read"),  # its reader, in the database
        ("release", "release"),  # the folder of its run
        ("pr-1-green", "green"),  # a slot of the preview pr-1
        ("migrate-pr-1", "migrate"),  # the migration account of the preview pr-1, in the database
    ],
)
def test_a_preview_has_no_name_of_the_live_application(project: Project, preview: str, word: str) -> None:
    """Least of all one that is to be removed."""
    state = "absent" if preview == word else "present"
    told = refused(project, "dev", preview=preview, preview_state=state)
    assert f"preview={preview} is refused: nba's own accounts, units, folders or databases have {word} in" in told


def test_every_name_that_the_roles_make_is_reserved(project: Project) -> None:
    """What follows the project's name, or stands in a database account's: no preview may be called so."""
    reserved = set(yaml_at("playbooks/tasks/check_preview.yml")[0]["vars"]["reserved"])
    values = yaml_at("roles/app/vars/main.yml")
    made = {account["name"] for account in values["__app_accounts"]} | set(values["__app_traces"])
    made |= set(yaml_at("group_vars/all/vars.yml")["mysql_client_accounts"][1]["scratch_databases"])
    text = " ".join(made) + (ROOT / "roles/app/files/builder.py").read_text()
    words = re.findall(r"(?:app_name|database_name|config\.name) ?\}+[-@]([a-z-]+)", text)
    assert len(words) > 10
    assert {part for word in words for part in word.rstrip("-").split("-")} <= reserved
    accounts = [yaml_at(f"group_vars/{name}/vars.yml") for name in ("dev", "prod")]
    for known in accounts:
        for key in ("database_migration_user", "database_reader_user"):
            assert known[key].removeprefix(f"{known['database_user']}_") in reserved


def test_a_preview_is_made_where_code_needs_no_proof(project: Project) -> None:
    told = refused(project, "prod")
    assert "no preview is made in prod: its promote_from is" in told and "-l dev -e preview=pr-12" in told
    assert refused(project, "prod", preview_state="absent") == "", "it can be removed"


def test_no_containerfile_of_a_pull_request_is_built(project: Project) -> None:
    told = refused(project, "dev", app_runtime="container")
    assert "no preview is made with app_runtime" in told and "-e app_runtime=venv" in told
    assert refused(project, "dev", app_runtime="container", preview_state="absent") == ""


def test_any_other_preview_is_made(project: Project) -> None:
    assert refused(project, "dev", preview="greener") == ""


# --- what is missing on GitHub ---

API = """
answers = json.load(open({file!r}))
path = sys.argv[2].removeprefix("repos/{{owner}}/{{repo}}").partition("?")[0]
if path in answers: print(json.dumps(answers[path]))
else: sys.exit("gh: Not Found (HTTP 404)")
"""
KEY = "i-1 ssh-ed25519 " + "A" * 68


def complete() -> dict[str, Any]:
    """Return what GitHub answers where nothing is missing."""
    variables = {
        "KNOWN_HOSTS": KEY,
        "AWS_ROLE": "arn:aws:iam::123456789012:role/nba",
        "AWS_REGION": "x",
        "PIPELINE": "on",
    }
    answers: dict[str, Any] = {
        "": {"default_branch": "main"},
        "/branches/main": {"protected": True},
        "/actions/permissions/workflow": {"default_workflow_permissions": "read"},
        "/actions/variables": {"variables": [{"name": name, "value": value} for name, value in variables.items()]},
    }
    for place in ("dev", "prod-plan", "prod"):
        rules = [{"type": "required_reviewers"}] if place == "prod" else []
        names = SECRETS[:2] if place == "dev" else SECRETS[:3]
        answers[f"/environments/{place}"] = {"deployment_branch_policy": {"x": 1}, "protection_rules": rules}
        answers[f"/environments/{place}/secrets"] = {"secrets": [{"name": name} for name in names]}
    return answers


def checked(project: Project, answers: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run scripts/pipeline-check against these answers of GitHub, with vaults in Git."""
    (project.root / "inventory/aws").mkdir(exist_ok=True)
    (project.root / "inventory/aws/aws_ec2.yml").write_text("---\n")
    assert project.run("git", "add", "--force", "group_vars").returncode == 0
    file = project.root / "answers.json"
    file.write_text(json.dumps(answers))
    called(project, "gh", API.format(file=str(file)))
    return script(project, sys.executable, "scripts/pipeline-check")


def test_a_pipeline_that_has_all_is_told_so(project: Project) -> None:
    done = checked(project, complete())
    assert (done.returncode, done.stdout) == (0, "the pipeline has what it needs\n"), done.stdout + done.stderr


def test_each_thing_that_is_missing_is_told_with_its_command(project: Project) -> None:
    answers = complete()
    del answers["/environments/prod-plan"]
    answers["/environments/prod"] = {"deployment_branch_policy": None, "protection_rules": []}
    answers["/environments/prod/secrets"] = {"secrets": []}
    answers["/branches/main"] = {"protected": False}
    answers["/actions/permissions/workflow"] = {"default_workflow_permissions": "write"}
    answers["/actions/variables"] = {"variables": [{"name": "KNOWN_HOSTS", "value": f"{KEY}\nnonsense"}]}
    done = checked(project, answers)
    assert done.returncode == 1
    for words in (
        "environment prod-plan: gh api -X PUT",
        "environment prod is open to every branch",
        "environment prod asks nobody",
        "secret VAULT_PASSWORD: gh secret set VAULT_PASSWORD --env prod <.vault/prod",
        "secret PROMOTE_FROM_SSH_KEY: gh secret set PROMOTE_FROM_SSH_KEY --env prod <.access/dev/id_ed25519",
        "main is not protected",
        "variable KNOWN_HOSTS: line 2 is not",
        "variable AWS_ROLE",
        "workflows may write by default",
        "variable PIPELINE is not `on`",
    ):
        assert words in done.stdout, words
    assert "--env dev" not in done.stdout


def test_previews_take_an_environment_of_their_own_where_there_is_a_domain_for_them(project: Project) -> None:
    values = project.vars_file("dev")
    values.write_text(values.read_text().replace('preview_domain: ""', "preview_domain: dev.test"))
    done = checked(project, complete())
    assert (done.returncode, "environment preview: gh api -X PUT" in done.stdout) == (1, True), done.stdout
    answers = complete()
    answers["/environments/preview"] = {"deployment_branch_policy": None, "protection_rules": []}
    answers["/environments/preview/secrets"] = {"secrets": [{"name": "VAULT_PASSWORD"}]}
    done = checked(project, answers)
    assert done.stdout.splitlines()[:-1] == [
        "  1. secret SSH_KEY: gh secret set SSH_KEY --env preview <.access/dev/id_ed25519"
    ]


def test_a_vault_that_is_not_in_git_is_told(project: Project) -> None:
    file = project.root / "answers.json"
    file.write_text(json.dumps(complete()))
    called(project, "gh", API.format(file=str(file)))
    done = script(project, sys.executable, "scripts/pipeline-check")
    assert "group_vars/dev/vault.yml is not in Git" in done.stdout, done.stdout + done.stderr


def test_github_that_does_not_answer_is_no_finding(project: Project) -> None:
    called(project, "gh", "sys.exit('gh: To get started with GitHub CLI, please run:  gh auth login')")
    done = script(project, sys.executable, "scripts/pipeline-check")
    assert (done.returncode, done.stdout) == (2, "")
    assert "gh auth status" in done.stderr


# --- the smoke test ---


class Site(BaseHTTPRequestHandler):
    """A host as the world sees it."""

    pages: dict[str, str]
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.pages.get(self.path)
        elsewhere = (body or "").removeprefix("-> ") if (body or "").startswith("-> ") else ""
        self.send_response(302 if elsewhere else 200 if body is not None else 404)
        if elsewhere:
            self.send_header("Location", elsewhere)
        self.send_header("Content-Type", "application/json" if "/api/" in self.path else "text/html")
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Stay silent."""


@pytest.fixture
def site(project: Project) -> Iterator[type[Site]]:
    pages = {
        "/": '<link href="style.css"><script src="app.js"></script><a href="#users"><script src="//cdn.test/a.js">',
        "/style.css": "", "/app.js": "", "/api/health/ready": "{}",
    }  # fmt: skip
    tell(project, LIVE)
    handler = type("Mine", (Site,), {"pages": pages})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hosts = f"127.0.0.1:{server.server_port}"
    inventory = project.root / "inventory/test/hosts.yml"
    local = "ansible_connection: local, ansible_become: false"
    inventory.write_text(inventory.read_text().replace("192.0.2.1", f'"{hosts}", {local}'))
    yield handler
    server.shutdown()
    server.server_close()


LIVE: dict[str, Any] = {
    "live": "r-1",
    "releases": [{"id": "r-1", "artefact": DIGEST}],
    "application": {"page": True, "health_path": "/api/health/ready", "ready_answers": "success", "module": "a:b"},
}


def tell(project: Project, status: dict[str, Any]) -> None:
    """Make the release program of the hosts, which are this machine, answer so."""
    program = project.root / "release"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(status)}\nEND\n")
    program.chmod(0o755)


def smoke(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run playbooks/smoke.yml on dev."""
    words = ("-i", "inventory/test", "-l", "dev", "-e", f"smoke_program={project.root / 'release'}")
    return project.run("ansible-playbook", "playbooks/smoke.yml", *words, *arguments)


def test_a_site_that_works_is_told_apart_by_what_answers(project: Project, site: type[Site]) -> None:
    done = smoke(project, "-e", f"artefact={DIGEST}")
    assert done.returncode == 0, done.stdout
    assert not (project.root / ".results").exists(), "nothing that a host says becomes an output of a job"
    assert re.search(r"changed=0 .* failed=0", done.stdout), done.stdout
    other = smoke(project, "-e", f"artefact={'1' * 64}")
    assert other.returncode == 2
    assert f"Expected: dev with {'1' * 64}" in " ".join(other.stdout.split())


def test_an_api_without_a_page_is_asked_for_its_health_alone(project: Project, site: type[Site]) -> None:
    site.asked.clear()
    site.pages.clear()
    told = {**LIVE, "application": {"page": False, "health_path": "/", "ready_answers": "any"}}
    tell(project, told)
    done = smoke(project)
    assert (done.returncode, site.asked) == (0, ["/"]), done.stdout
    told["application"]["ready_answers"] = "success"
    tell(project, told)
    assert "answered 404, expected 2xx" in smoke(project).stdout


def test_an_application_may_send_plain_http_to_https(project: Project, site: type[Site]) -> None:
    site.pages["/api/health/ready"] = "-> https://shop.example/api/health/ready"
    assert "answered 302, expected 2xx" in smoke(project).stdout
    done = smoke(project, "-e", "public_scheme=https")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("digest", ["", f"{DIGEST}\n"])
def test_what_is_meant_is_a_digest(project: Project, site: type[Site], digest: str) -> None:
    """Empty is what a job's output is where the step before did not write it."""
    done = smoke(project, "-e", json.dumps({"artefact": digest}))
    assert (done.returncode, "artefact: should be a digest of 64 characters" in done.stdout) == (2, True), done.stdout


def test_a_host_sends_nobody_elsewhere(project: Project, site: type[Site]) -> None:
    """One redirects to an address that no host may choose, one never comes to an end."""
    inventory = project.root / "inventory/test/hosts.yml"
    known = yaml.safe_load(inventory.read_text())
    (host,) = known["all"]["children"]["dev"]["hosts"].values()
    known["all"]["children"]["dev"]["hosts"] = {
        lie: {**host, "ansible_host": f"{host['ansible_host']}/{lie}"} for lie in ("away", "huge")
    }
    inventory.write_text(yaml.safe_dump(known))
    for path, page in list(site.pages.items()):
        site.pages |= {f"/{lie}{path}": page for lie in ("away", "huge")}
    site.pages["/away/"] = "-> /secret"
    site.pages["/huge/app.js"] = "x" * (5 << 20)
    done = smoke(project)
    assert done.returncode == 2, done.stdout
    said = " ".join(done.stdout.split())
    assert "/away/ answered 302, expected 200" in said
    assert "/huge/app.js answered with more than" in said
    assert "/secret" not in site.asked


@pytest.mark.parametrize("path", ["//evil.example/", "/a b", "/{{ 7 * 7 }}", "x"])
def test_a_host_names_no_other_address(project: Project, site: type[Site], path: str) -> None:
    tell(project, {**LIVE, "application": {"page": False, "health_path": path, "ready_answers": "any"}})
    done = smoke(project)
    assert done.returncode == 2, done.stdout
    assert "at `$.application.health_path`" in done.stdout


@pytest.mark.parametrize(
    ("path", "body"),
    [("/app.js", None), ("/no-such-file.js", "<html>"), ("/api/health/ready", None), ("/", None)],
)
def test_a_site_that_does_not_work_ends_the_run(
    project: Project, site: type[Site], path: str, body: str | None
) -> None:
    if body is None:
        del site.pages[path]
    else:
        site.pages[path] = body
    done = smoke(project)
    assert done.returncode == 2, done.stdout
