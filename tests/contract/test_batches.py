"""The order in which hosts switch, by the role's own tasks and with a stand-in for the program on the hosts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import Project, collection_with
from tests.support import ROOT

HOSTS = ["one", "two", "three", "four"]
PLAY = """
- name: Agree
  hosts: all
  gather_facts: false
  tasks:
    - name: Deploy on all hosts
      ansible.builtin.include_tasks: "{{ tasks }}/deploy.yml"
"""
PROGRAM = """
from pathlib import Path

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    _VALID_ARGS = frozenset(("program", "command", "receipts", "upload", "input", "defer_failure"))

    def run(self, tmp=None, task_vars=None):
        if "switched" in self._task.args["command"]:
            with Path("switched").open("a") as file:
                file.write(task_vars["inventory_hostname"] + "\\n")
        return {"changed": True}
"""


@pytest.mark.parametrize("size", [1, 2])
def test_batches_switch_in_the_order_of_the_inventory(tmp_path: Path, size: int) -> None:
    variables = {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "app_rolling_batch": size,
        "tasks": str(ROOT / "roles/app/tasks"), "app_leader": False, "app_hooks": "", "app_balancer": "",
        "app_receipts": "", "app_before_schema_change": "", "__app_command": "", "__app_activate": [],
        "__app_schema_change": [], "__app_hooks": [], "__app_alone": False, "__app_sends": False,
        "__app_takes_back": False, "__app_before": "", "__app_target": "r2", "__app_kind": "rollback",
        "__app_status": {"live": "r1"}, "__app_unfinished": "", "__app_peers": HOSTS,
    }  # fmt: skip
    # The first host is the last to know its batch.
    slow = {"__app_peers": f"{{{{ {HOSTS} if lookup('pipe', 'sleep 1') == '' }}}}"}
    hosts = {name: slow if name == HOSTS[0] else {} for name in HOSTS}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
    (tmp_path / "play.yml").write_text(PLAY)
    ours = collection_with(tmp_path, {"release": PROGRAM, "promotion": PROGRAM})
    done = Project(tmp_path).run("ansible-playbook", "-i", "hosts.json", "play.yml", ANSIBLE_COLLECTIONS_PATH=ours)
    assert done.returncode == 0, done.stdout
    switched = (tmp_path / "switched").read_text().split()
    for place in range(0, len(HOSTS), size):
        assert set(switched[place : place + size]) == set(HOSTS[place : place + size])
    assert len(switched) == len(HOSTS)
