"""What a load balancer cannot be told, by the role's own tasks."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.contract.conftest import Project
from tests.support import ROOT

PLAY = """
- name: Balance
  hosts: all
  gather_facts: false
  tasks:
    - name: Send it requests
      block:
        - name: Ask
          ansible.builtin.include_role: {{name: {role}}}
      rescue:
        - name: Mark
          ansible.builtin.debug: {{msg: "still there: {{{{ ansible_failed_result.msg }}}}"}}
"""
INVENTORY = f"one ansible_connection=local ansible_python_interpreter={sys.executable}\n"
NOWHERE = "balancer1 ansible_connection=ssh ansible_ssh_executable=/bin/false ansible_ssh_retries=0\n"


def test_a_load_balancer_that_is_out_of_reach_costs_no_host(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY.format(role=ROOT / "roles/balancer"))
    (tmp_path / "hosts").write_text(INVENTORY + NOWHERE)
    done = Project(tmp_path).run(
        "ansible-playbook", "-i", "hosts", "-l", "one", "play.yml",
        "-e", '{"balancer_kind": "haproxy", "balancer_haproxy_host": "balancer1"}',
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "still there: balancer1 (balancer_haproxy_host) could not be reached: " in done.stdout
