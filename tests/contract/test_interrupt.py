"""A Ctrl-C where Python drops the exception that a signal raises: nothing begins after it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.contract.conftest import Project
from tests.support import ROOT

# The throttle of a task is worked out in Ansible's own process, host by host, right before each one's begins.
PLAY = """
- name: Work
  hosts: all
  gather_facts: false
  tasks:
    - name: Work on one host after the other
      ansible.builtin.copy: {dest: "{{ playbook_dir }}/{{ inventory_hostname }}", content: done, mode: "0644"}
      throttle: "{{ 1 | interrupted }}"
"""
FILTER = """
import os
import signal


class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


class FilterModule:
    def filters(self):
        return {"interrupted": self.interrupted}

    def interrupted(self, value):
        if os.environ["INTERRUPTED"] == "yes":
            Deleted()
        return value
"""


@pytest.mark.parametrize("interrupted", [True, False])
def test_no_task_begins_after_a_dropped_interrupt(tmp_path: Path, interrupted: bool) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "filter_plugins").mkdir()
    (tmp_path / "filter_plugins/interrupted.py").write_text(FILTER)
    run = Project(tmp_path).run(
        "ansible-playbook", "-i", "one,two,", "-c", "local", "play.yml",
        "-e", f"ansible_python_interpreter={sys.executable}",
        ANSIBLE_CALLBACK_PLUGINS=str(ROOT / "plugins/callback"), ANSIBLE_COLLECTIONS_PATH=str(ROOT / "collections"),
        INTERRUPTED="yes" if interrupted else "",
    )  # fmt: skip
    done = {"one", "two"} & {path.name for path in tmp_path.iterdir()}
    assert done == (set() if interrupted else {"one", "two"}), run.stdout
    assert run.returncode == (99 if interrupted else 0)
    # The exception was dropped, and it was not what ended the run.
    assert ("Exception ignored" in run.stdout) == interrupted
    assert ("User interrupted execution" in run.stdout) == interrupted
