"""A host whose root answers what it likes: nothing of that runs here, is written outside, or steers this terminal."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.contract.conftest import Project

INVENTORY = "all: {children: {dev: {hosts: {dev1: {ansible_connection: local}}}}}\n"
PLAY = """
- name: Ask
  hosts: dev
  gather_facts: false
  tasks:
    - name: Ask
      waffle.iron.release:
        program: "{{ playbook_dir }}/../release"
        command: "{{ words }}"
        receipts: "{{ playbook_dir }}/../.receipts"
        defer_failure: "{{ defer_failure | default(false) }}"
      register: __asked
    - name: Keep the answer
      ansible.builtin.set_fact:
        __told: "{{ __asked.unfinished | default(__asked.problems | default(__asked.refused)) }}"
    - name: Show
      ansible.builtin.debug:
        msg: "{{ __told }} {{ __asked.receipt | default('') }}"
    - name: Read such a text as Ansible does
      ansible.builtin.raw: cat {{ playbook_dir }}/../raw
      register: __raw
    - name: Fail with it
      ansible.builtin.fail:
        msg: "{{ __told }} {{ __raw.stdout }}"
"""
EVIL = "{{ lookup('ansible.builtin.pipe', 'touch pwned') }}\x1b]0;title\x07\x1b[2J"


def ask(
    project: Project, command: list[str], answer: str, code: int = 0, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run the action `release` against a program that prints this."""
    (project.root / "inventory/test/hosts.yml").write_text(INVENTORY)
    (project.root / "playbooks/ask.yml").write_text(PLAY)
    (project.root / "raw").write_text(EVIL)
    (project.root / "answer").write_text(f"{answer}\n")
    program = project.root / "release"
    program.write_text(f"#!/bin/sh\necho noise from .bashrc\ncat {project.root}/answer\necho bye\nexit {code}\n")
    program.chmod(0o755)
    extra = json.dumps({"words": command, **more})
    return project.run("ansible-playbook", "playbooks/ask.yml", "-i", "inventory/test", "-e", extra)


def files(project: Project) -> set[str]:
    """Return the files of the checkout."""
    return {str(path.relative_to(project.root)) for path in project.root.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["status"], {"live": "", "problems": [EVIL]}),
        (["activate", "r1"], {"unfinished": EVIL, "receipt": {"release": "r1", "notes": [EVIL], "error": EVIL}}),
    ],
)
def test_its_text_is_shown_and_nothing_else(project: Project, command: list[str], answer: dict[str, Any]) -> None:
    done = ask(project, command, json.dumps(answer))
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("touch pwned") >= 3, done.stdout
    assert "\x1b" not in done.stdout, repr(done.stdout)
    assert not (project.root / "pwned").exists() and not (project.root / "playbooks/pwned").exists()


def test_a_receipt_is_named_by_what_was_requested(project: Project) -> None:
    ask(project, ["repair"], "")  # makes the files of the test itself
    before = files(project)
    wrong = {"receipt": {"release": "x/../../../group_vars/prod/zz", "began": 1}}
    done = ask(project, ["activate", "r1"], json.dumps(wrong), defer_failure=True)
    assert "gave a wrong answer" in done.stdout and "at `$.receipt.release`" in done.stdout, done.stdout
    assert files(project) == before
    lying = {"receipt": {"release": "other", "host": "prod1", "began": 1}}
    done = ask(project, ["activate", "r1"], json.dumps(lying))
    (kept,) = files(project) - before - {".receipts", ".receipts/dev1"}
    assert kept.startswith(".receipts/dev1/") and kept.endswith("-r1.json") and kept != ".receipts/dev1/1-r1.json"
    assert (project.root / kept).stat().st_mode & 0o777 == 0o600


def test_a_huge_answer_is_one_error(project: Project) -> None:
    done = ask(project, ["status"], json.dumps({"live": "r1", "problems": ["x" * (20 << 20)]}))
    assert done.returncode == 2
    assert "the host's answer was not read" in done.stdout
    assert len(done.stdout) < 5000, len(done.stdout)
