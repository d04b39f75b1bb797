"""The doctor where Ansible itself cannot work: the control node, the vaults, the inventory, the way to a host."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.conftest import Project

DOCTOR = ("ansible-playbook", "playbooks/doctor.yml", "-i", "inventory/test")
# Each host of dev is wrong in another way; nobody listens on these ports.
HOSTS = """
all:
  vars: {{database_host: db.example.com}}
  children:
    dev:
      hosts:
        name: {{ansible_host: nowhere.invalid}}
        port: {{ansible_host: 127.0.0.1, ansible_port: 1}}
        slow: {{ansible_host: 192.0.2.1, ansible_ssh_executable: {slow}}}
        here: {{ansible_connection: local, ansible_become: false, ansible_python_interpreter: /usr/bin/python3}}
    prod:
      hosts:
        prod1: {{ansible_host: 127.0.0.1, ansible_port: 2}}
"""


def first(output: str, host: str = "") -> str:
    """Return the first thing that the doctor names, of a host or at all."""
    text = output.partition(f"ok: [{host}] =>")[2] if host else output
    found = re.search(r"^\s*1\. (.+)$|^\[ERROR\]: (?!Task failed)(.+)$", text, re.MULTILINE)
    assert found, output
    return found[1] or found[2]


# --- the control node ---


def test_another_ansible_than_that_of_the_lock_file(project: Project) -> None:
    (project.root / "poetry.lock").write_text('[[package]]\nname = "ansible-core"\nversion = "2.99.0"\n')
    (project.root / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.99,<4.0"\n')
    tasks = project.root / "roles/extra/tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text("- name: Try\n  acme.tools.hammer:\n")
    done = project.run(*DOCTOR, "-l", "dev")
    assert done.returncode == 2
    assert "no host was looked at; 3 finding(s):" in done.stdout
    for words in (
        r"1. control node: Ansible runs on Python 3\.\d+ .*, and this project needs >=3.99,<4.0. Fix: make setup",
        r"2. control node: ansible-core \S+ runs \(.+\), and poetry.lock has 2.99.0. Fix: make setup",
        r"3. control node: the collection acme.tools is not installed, which roles/extra/tasks/main.yml uses.",
    ):
        assert re.search(words, done.stdout), done.stdout
    assert not project.called


def no_password(project: Project) -> None:
    (project.root / ".vault/dev").unlink()


def a_wrong_password(project: Project) -> None:
    (project.root / ".vault/dev").write_text("wrong\n")


def no_hosts(project: Project) -> None:
    (project.root / "inventory/test/hosts.yml").write_text("all: {children: {dev: {}, prod: {}}}\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_password, "group_vars/dev/vault.yml: cannot be opened. Fix: put its vault password into .vault/dev"),
        (a_wrong_password, "group_vars/dev/vault.yml: .vault/dev does not hold its vault password. Fix: put"),
        (no_hosts, "no host took part"),
    ],
    ids=["no password", "wrong password", "no hosts"],
)
def test_what_ends_ansible_before_its_first_task(
    project: Project, damage: Callable[[Project], None], words: str
) -> None:
    damage(project)
    done = project.run(*DOCTOR, "-l", "dev")
    assert done.returncode == 1
    assert first(done.stdout).startswith(words)
    assert not project.called


# --- the way to a host ---


@pytest.fixture
def looked(project: Project, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Return a run over hosts none of which is well, of a work tree that could not be deployed to prod."""
    program = tmp_path / "slow"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    (project.root / "inventory/test/hosts.yml").write_text(HOSTS.format(slow=program))
    (project.root / "app/poetry.lock").write_text("# not committed\n")
    plugin = project.root / "plugins/action/diagnosis.py"
    plugin.write_text(plugin.read_text().replace("SECONDS_IN_ALL = 20", "SECONDS_IN_ALL = 2"))
    return project.run(*DOCTOR)


def test_hosts_that_cannot_be_reached(looked: subprocess.CompletedProcess[str], project: Project) -> None:
    assert looked.returncode == 2
    for host, words in {
        "name": "ssh: the name nowhere.invalid does not resolve on this machine",
        "port": "ssh: 127.0.0.1, port 1: the machine is there, and no ssh server answers on that port",
        "slow": "ssh: 192.0.2.1, port 22: nothing answers (timed out after 2 s)",
        "prod1": "ssh: 127.0.0.1, port 2: the machine is there, and no ssh server answers on that port",
    }.items():
        assert first(looked.stdout, host) == words
    # A bare machine; whatever else may be wrong with this one. The next command is one to copy.
    assert ". application: not converged yet\n" in looked.stdout
    assert "next: ansible-playbook site.yml -i inventory/test -l dev\n" in looked.stdout

    shown = project.run("ansible-playbook", "playbooks/status.yml", "-i", "inventory/test")
    assert shown.returncode == 2, shown.stdout
    for row in (r"name +dev +unreachable", r"here +dev +none .* not well .*%", r"prod1 +prod +unreachable"):
        assert re.search(rf"^\s*{row}", shown.stdout, re.MULTILINE), shown.stdout


# --- the inventory ---


@pytest.mark.parametrize(
    ("region", "variables", "words"),
    [
        (
            "eu-central-1",
            [],
            "inventory/aws_ec2.yml: this machine has no AWS credentials. Fix: aws configure, or export AWS_PROFILE",
        ),
        (
            "eu-nowhere-9",
            ["AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b"],
            "inventory/aws_ec2.yml: AWS has no region eu-nowhere-9. Fix: set `regions` in it to one of eu-central-1,",
        ),
    ],
    ids=["credentials", "region"],
)
def test_an_inventory_of_aws_that_cannot_be_read(
    project: Project, region: str, variables: list[str], words: str
) -> None:
    (project.root / "inventory/aws_ec2.yml").write_text(f"plugin: amazon.aws.aws_ec2\nregions: [{region}]\n")
    nothing = ["-u", "AWS_PROFILE", "-u", "AWS_ACCESS_KEY_ID", "AWS_EC2_METADATA_DISABLED=true"]
    closed = ["AWS_MAX_ATTEMPTS=1", "AWS_ENDPOINT_URL=http://127.0.0.1:9"]
    done = project.run("env", *nothing, *closed, *variables, *DOCTOR[:-1], "inventory/aws_ec2.yml", "-l", "dev")
    assert done.returncode == 1, done.stdout
    first_warning = done.stdout.partition("Failed to parse inventory with ")[2].splitlines()[0]
    plugin = "ansible_collections.waffle.iron.plugins.inventory.ec2_hosts"
    assert first_warning.startswith(f"'{plugin}' plugin: {words}"), done.stdout
