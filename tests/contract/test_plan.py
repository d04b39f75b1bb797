"""A plan as somebody gives it to a run: what cannot be one is refused before any host is called."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Project

PLAN = {"environment": "dev", "digest": "", "basis": {"live": {"dev1": ""}}}
RUN = ("ansible-playbook", "-i", "inventory/test", "-l", "dev")


def said(project: Project, *arguments: str) -> str:
    """Run a playbook that must end before any host is called, and return its words."""
    done = project.run(*RUN, *arguments)
    assert done.returncode == 2, done.stdout
    assert not project.called
    return " ".join(done.stdout.split())


def test_a_plan_that_cannot_be_read(project: Project) -> None:
    words = said(project, "site.yml", "-e", "plan=.results/none.json")
    assert "plan: .results/none.json cannot be read (No such file or directory)" in words
    assert "ansible-playbook playbooks/plan.yml -l ENV" in words
    # Whoever means the switch of migrate.yml must not deploy by it.
    assert "plan: true cannot be read" in said(project, "site.yml", "-e", "plan=true")


def test_a_file_that_is_no_plan(project: Project) -> None:
    (project.root / "plan.json").write_text("[]")
    assert "plan.json is not a plan in JSON" in said(project, "site.yml", "-e", "plan=plan.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ["playbooks/migrate.yml", "-e", "plan=plan.json"],
        ["site.yml", "--tags", "nginx", "-e", "plan=plan.json"],
    ],
)
def test_a_plan_is_for_the_whole_site_and_nothing_else(project: Project, arguments: list[str]) -> None:
    (project.root / "plan.json").write_text(json.dumps(PLAN))
    words = said(project, *arguments)
    assert "holds site.yml to a plan" in words or "a plan is for the whole site.yml" in words


def test_a_plan_is_for_all_hosts_of_the_run(project: Project) -> None:
    (project.root / "plan.json").write_text(json.dumps(PLAN))
    both = ("site.yml", "-l", "dev,prod", "-e", "all_environments=true", "-e", "confirm=prod")
    assert "plan.json says nothing of prod1" in said(project, *both, "-e", "plan=plan.json")


def test_a_plan_that_cannot_be_made_again_stops_the_run(project: Project) -> None:
    (project.root / "plan.json").write_text(json.dumps(PLAN))
    done = project.run(*RUN, "site.yml", "-e", "plan=plan.json")
    assert done.returncode == 2
    words = " ".join(done.stdout.split())
    assert "nothing was changed: the plan could not be made again:" in words
    assert "UNREACHABLE" in words or "unreachable=1" in words


def test_the_switch_of_the_migrations_is_another_one(project: Project) -> None:
    done = project.run(*RUN, "playbooks/migrate.yml", "-e", "plan=true")
    assert project.called and done.returncode == 4, done.stdout
