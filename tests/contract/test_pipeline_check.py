"""scripts/pipeline-check: what the workflows still need on GitHub."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.contract.conftest import Project
from tests.contract.jobs import SECRETS, called, script

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
