"""The doctor where Ansible itself cannot work: the control node, the vaults, and the way to a host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.contract.conftest import Project
from tests.support import ROOT

DOCTOR = ("ansible-playbook", "playbooks/doctor.yml", "-i", "inventory/test", "-l", "dev")
HOSTS = """
all:
  vars: {{database_host: db.example.com}}
  children:
    dev: {{hosts: {{dev1: {{ansible_user: admin, {way}}}}}}}
    prod: {{hosts: {{prod1: {{ansible_host: 127.0.0.1, ansible_port: 2}}}}}}
"""


def first(project: Project, code: int = 2) -> str:
    """Run the doctor and return the first thing that it names."""
    done = project.run(*DOCTOR)
    assert done.returncode == code, done.stdout
    found = re.search(r"^\s*1\. (.+)$|^\[ERROR\]: (?!Task failed)(.+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return found[1] or found[2]


def set_way(project: Project, way: str) -> None:
    (project.root / "inventory/test/hosts.yml").write_text(HOSTS.format(way=way))


# --- the control node ---


def another_lock(project: Project) -> None:
    (project.root / "poetry.lock").write_text('[[package]]\nname = "ansible-core"\nversion = "2.99.0"\n')


def another_python(project: Project) -> None:
    (project.root / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.99,<4.0"\n')


def a_foreign_collection(project: Project) -> None:
    tasks = project.root / "roles/extra/tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text("- name: Try\n  acme.tools.hammer:\n")


def no_password(project: Project) -> None:
    (project.root / ".vault/dev").unlink()


def a_wrong_password(project: Project) -> None:
    (project.root / ".vault/dev").write_text("wrong\n")


def no_hosts(project: Project) -> None:
    (project.root / "inventory/test/hosts.yml").write_text("all: {children: {dev: {}, prod: {}}}\n")


CONTROL_NODE = [
    (another_lock, 2, r"control node: ansible-core \S+ runs \(.+\), and poetry.lock has 2.99.0. Next: make setup"),
    (another_python, 2, r"control node: Ansible runs on Python 3\.\d+ .* needs >=3.99,<4.0. Next: make setup"),
    (
        a_foreign_collection,
        2,
        r"control node: the collection acme.tools is not installed, which roles/extra/tasks/main",
    ),
    (no_password, 1, r"group_vars/dev/vault.yml: cannot be opened. Put its vault password into .vault/dev"),
    (a_wrong_password, 1, r"group_vars/dev/vault.yml: .vault/dev does not hold its vault password. Put the right one"),
    (no_hosts, 1, r"no host took part"),
]


@pytest.mark.parametrize(("damage", "code", "words"), CONTROL_NODE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_wrong_with_the_control_node_comes_first(
    project: Project, damage: object, code: int, words: str
) -> None:
    assert callable(damage)
    damage(project)
    assert re.match(words, first(project, code))
    assert not project.called


# --- the way to a host ---


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("ansible_host: nowhere.invalid", "ssh: the name nowhere.invalid does not resolve on this machine"),
        ("ansible_host: 127.0.0.1, ansible_port: 1", "ssh: 127.0.0.1, port 1: the machine is there, and no ssh server"),
    ],
    ids=["name", "port"],
)
def test_a_host_that_cannot_be_found(project: Project, way: str, words: str) -> None:
    set_way(project, way)
    assert first(project).startswith(words)


def test_the_next_command_reaches_the_same_inventory(project: Project) -> None:
    """A person copies it."""
    set_way(project, "ansible_host: 127.0.0.1, ansible_connection: local, ansible_python_interpreter: /usr/bin/python3")
    done = project.run(*DOCTOR, "-e", "ansible_become=false")
    assert "next: ansible-playbook site.yml -i inventory/test -l dev" in done.stdout
    assert "not converged yet" in done.stdout


def test_status_shows_a_host_that_cannot_be_reached(project: Project) -> None:
    set_way(project, "ansible_host: 127.0.0.1, ansible_port: 1")
    done = project.run("ansible-playbook", "playbooks/status.yml", "-i", "inventory/test")
    assert done.returncode == 2, done.stdout
    assert re.search(r"^\s*dev1\s+dev\s+unreachable$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^\s*prod1\s+prod\s+unreachable$", done.stdout, re.MULTILINE), done.stdout


def test_what_is_not_reached_in_time_is_said(project: Project, tmp_path: Path) -> None:
    """A doctor that hangs is useless."""
    plugin = (ROOT / "plugins/action/diagnosis.py").read_text()
    assert "timeout=SECONDS_IN_ALL" in plugin
    (project.root / "plugins/action/diagnosis.py").write_text(
        plugin.replace("SECONDS_IN_ALL = 20", "SECONDS_IN_ALL = 1")
    )
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    set_way(project, f"ansible_host: 192.0.2.1, ansible_ssh_executable: {program}")
    assert "ssh: 192.0.2.1, port 22: nothing answers (timed out after 1 s)" in first(project)


# --- the inventory ---


@pytest.mark.parametrize(
    ("region", "variables", "words"),
    [
        (
            "eu-central-1",
            [],
            "inventory/aws_ec2.yml: this machine has no AWS credentials. Next: aws configure, or export AWS_PROFILE",
        ),
        (
            "eu-nowhere-9",
            ["AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b"],
            "inventory/aws_ec2.yml: AWS has no region eu-nowhere-9. Next: set `regions` in it to one of eu-central-1,",
        ),
    ],
    ids=["credentials", "region"],
)
def test_an_inventory_of_aws_that_cannot_be_read(
    project: Project, region: str, variables: list[str], words: str
) -> None:
    (project.root / "inventory/aws_ec2.yml").write_text(f"plugin: amazon.aws.aws_ec2\nregions: [{region}]\n")
    command = [part.replace("inventory/test", "inventory/aws_ec2.yml") for part in DOCTOR]
    nothing = ["-u", "AWS_PROFILE", "-u", "AWS_ACCESS_KEY_ID", "AWS_EC2_METADATA_DISABLED=true"]
    closed = ["AWS_MAX_ATTEMPTS=1", "AWS_ENDPOINT_URL=http://127.0.0.1:9"]
    done = project.run("env", *nothing, *closed, *variables, *command)
    assert done.returncode == 1, done.stdout
    first_warning = done.stdout.partition("Failed to parse inventory with ")[2].splitlines()[0]
    assert first_warning.startswith(f"'ec2_hosts' plugin: {words}"), done.stdout


def test_a_work_tree_that_could_not_be_deployed_keeps_nobody_from_looking(project: Project) -> None:
    (project.root / "app/poetry.lock").write_text("# not committed\n")
    set_way(project, "ansible_host: 127.0.0.1")
    for playbook in ("doctor", "status"):
        done = project.run("ansible-playbook", f"playbooks/{playbook}.yml", "-i", "inventory/test", "-l", "prod")
        assert "ssh: 127.0.0.1, port 2: " in done.stdout, done.stdout
