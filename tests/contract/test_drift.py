"""That drift.yml is site.yml looked at, and that whatever the roles manage is damaged by the host tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.test_structure import tasks_in
from tests.hosts.mutations import (
    ANSWERING_KINDS,
    DAMAGE,
    DIRECTORY_KINDS,
    FILE_KINDS,
    LINK_KINDS,
    ROUNDS,
    Mutation,
    answers,
    managed,
    of_files,
)
from tests.support import ROOT, host_roles, yaml_at

# They change nothing on a host, or only send others on.
LOOKING = {
    "ansible.builtin.assert", "ansible.builtin.debug", "ansible.builtin.fail", "ansible.builtin.set_fact",
    "ansible.builtin.include_tasks", "ansible.builtin.import_tasks", "ansible.builtin.meta",
    "waffle.iron.application", "waffle.iron.artefact", "waffle.iron.promotion",
}  # fmt: skip
# managed_files: every file of it is damaged, whichever task has it. release: it has the problems that it finds.
BY_THE_FILE = {"waffle.iron.managed_files", "waffle.iron.release"}
NOT_DAMAGED = {
    "Refresh the package lists for a dry run": "it fetches lists and decides nothing",
    "Fail with the error of apt": "it only fails; tests/hosts/test_converge.py",
    "Create the database": "without it there is nothing to converge to but a restore",
    "Find changed passwords": "it looks",
    "Find grants with unescaped wildcards": "it looks",
    "Retain the former passwords": "a part of a release; tests/hosts/test_zero_loss.py",
    "Discard former passwords": "only where it is asked for; tests/hosts/test_zero_loss.py",
    "Copy the certificates of the database's authority": "the lab's authority comes with its hosts' images",
    "Add the certificates to the trust store": "follows from the task above",
    "Create the swap file": "a container has no swap of its own",
    "Restrict the swap file to root": "a container has no swap of its own",
    "Use the swap file": "a container has no swap of its own",
    "Read the application's accounts": "it looks, and the task after it acts",
    "Compare the installation of Poetry": "it looks, and the task after it acts",
    "Read the version of the system's Python": "it looks",
    "Check the Python of the application": "it looks, and the task after it acts",
    "Install the Python of the application": "only where app_python_version is set; tests/hosts/test_environments.py",
    "List the backups of the host": "it looks",
    "Reload systemd": "follows from the task before it",
    "Install podman": "only where releases are containers; tests/hosts/test_container.py",
    "Install the packages of the application": "only where app_packages names some; tests/hosts/test_beside.py",
    "Take the host out of the load balancer": "a part of the switch; tests/hosts/test_balancer.py",
    "Enable the host in the load balancer": "a part of the switch; tests/hosts/test_balancer.py",
    "Set the membership in the target group": "a preview cannot ask; tests/aws/test_provision.py",
    "Wait for the ALB to drain the host": "it waits",
    "Wait for the ALB's health check": "it waits",
    "Set the state of the server in HAProxy": "a preview cannot ask; tests/hosts/test_balancer.py",
}
MUTATIONS = [mutation for mutations in DAMAGE.values() for mutation in mutations]


def module_of(task: dict[str, Any]) -> str:
    return next(key for key in task if "." in key)


def tasks() -> list[tuple[str, dict[str, Any]]]:
    paths = [path for role in host_roles() for path in sorted((ROOT / "roles" / role / "tasks").glob("*.yml"))]
    # What takes a preview away is no part of site.yml.
    kept = [path for path in paths if path.name != "remove.yml"]
    return [(path.parent.parent.name, task) for path in kept for task in tasks_in(yaml_at(path))]


def notices(task: dict[str, Any], mutation: Mutation) -> bool:
    """Return True if a task must notice the mutation."""
    name = task["name"].partition(" {{")[0]
    return (bool(mutation.task) and mutation.task in name) or (mutation.what.startswith(name) and bool(mutation.sql))


@pytest.mark.parametrize(("role", "task"), tasks(), ids=lambda item: item if isinstance(item, str) else item["name"])
def test_what_a_task_manages_is_damaged_by_the_host_tests(role: str, task: dict[str, Any]) -> None:
    if module_of(task) in LOOKING | BY_THE_FILE or task["name"] in NOT_DAMAGED:
        return
    found = {mutation.kind for mutation in MUTATIONS if notices(task, mutation)}
    assert found, f"{role}: nothing in tests/hosts/mutations.py damages what {task['name']!r} manages"
    wanted = {
        "ansible.builtin.apt": {"removed"},
        "ansible.builtin.user": {"shell", "groups"},
        "ansible.builtin.systemd_service": {"disabled", "masked"},
    }
    assert wanted.get(module_of(task), set()) <= found, task["name"]


def test_no_exception_is_left_over() -> None:
    assert set(NOT_DAMAGED) <= {task["name"] for _, task in tasks()}


def test_every_managed_file_is_damaged_in_every_way() -> None:
    """The two hosts and the rounds together."""
    done: dict[str, set[str]] = {}
    for host in (0, 1):
        for number in range(ROUNDS):
            for mutation in of_files("/opt/poetry", host, number):
                done.setdefault(mutation.what, set()).add(mutation.kind)
    paths = dict(managed("/opt/poetry"))
    assert len(paths) > 40
    assert set(paths) - set(done) == set()
    for path, state in paths.items():
        kinds = {"link": LINK_KINDS, "directory": DIRECTORY_KINDS}.get(state, FILE_KINDS)
        if path.endswith("/nba-release"):
            kinds = ("file",)
        elif answers(path) and state == "file":
            kinds = ANSWERING_KINDS
        assert len(done[path]) >= min(len(kinds), 2 * ROUNDS) - 1, (path, done[path])


def test_it_looks_at_what_site_yml_makes() -> None:
    look, site = yaml_at("playbooks/drift.yml")
    marks = {"looks_only": True, "all_environments": True, "preflight_changes": False}
    assert (look["ansible.builtin.import_playbook"], look["vars"]) == ("preflight.yml", marks)
    assert site["ansible.builtin.import_playbook"] == "../site.yml"
    assert site["vars"] == {**marks, "tells_drift": True}
