"""The workflows: what they may do, what they call, and in which order they change an environment."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.jobs import SECRETS
from tests.support import ROOT, yaml_at

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


def test_there_are_these() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "deploy", "drift", "preview"]


def test_every_action_is_pinned_by_its_commit_and_says_its_version() -> None:
    seen: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for use in re.findall(r"uses: (.*)", path.read_text()):
            found = re.fullmatch(r"([\w-]+/[\w-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", use)
            assert found, f"{path.name}: {use}"
            seen.setdefault(found[1], set()).add(found[2] + found[3])
    # GitHub's own, and AWS's: the code of each owner here sees what the jobs see.
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
