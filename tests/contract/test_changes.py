"""Plays that only look: the mark, what it records, and what stays hidden."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Project
from tests.support import ROOT

SECRET = "p@$$w\"o'rd \\ é"
LOOK = """
- name: Look
  import_playbook: work.yml
  vars: {looks_only: true}
- name: Look back
  hosts: all
  gather_facts: false
  tasks:
    - name: Read the records
      waffle.iron.recorded:
      register: found
    - name: Keep them
      ansible.builtin.copy:
        content: "{{ {'records': found.records, 'check': ansible_check_mode} | to_json }}"
        dest: "{{ folder }}/found.json"
        mode: "0600"
"""
WORK = """
- name: Work
  hosts: all
  gather_facts: false
  tasks:
    - name: Write two
      waffle.iron.managed_files:
        entries:
          - {path: "{{ folder }}/one", content: "it is {{ vault_word }}\\n"}
          - {path: "{{ folder }}/two", content: "{{ {'it is': vault_word} | to_json }}\\n"}
      register: written
    - name: Write one for each
      ansible.builtin.copy: {dest: "{{ folder }}/{{ item }}", content: hello, mode: "0644"}
      loop: [a, b]
      notify: Tell
    - name: Hide all
      waffle.iron.managed_files:
        entries: [{path: "{{ folder }}/hidden", content: "some text\\n"}]
      no_log: true
    - name: Hide the text
      waffle.iron.managed_files:
        entries: [{path: "{{ folder }}/textless", content: "some text\\n"}]
      diff: false
    - name: Be asked
      ansible.builtin.copy: {dest: "{{ folder }}/never", content: hello, mode: "0644"}
      when: not ansible_check_mode
    - name: Break
      ansible.builtin.assert: {that: breaks | default(false) == false, fail_msg: "broken, {{ vault_word }}"}
  handlers:
    - name: Tell
      ansible.builtin.copy: {dest: "{{ folder }}/told", content: hello, mode: "0644"}
"""


class Runs:
    """A folder with two playbooks, one that works and one that looks what it would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "look.yml").write_text(LOOK)
        (folder / "work.yml").write_text(WORK)
        variables = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "folder": str(folder),
            "vault_word": SECRET,
        }  # fmt: skip
        (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"here": variables}}}))

    def run(self, playbook: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the playbooks."""
        plugins = {
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "plugins/callback"),
        }
        return Project(self.folder).run("ansible-playbook", "-i", "hosts.yml", playbook, *arguments, **plugins)

    def records(self) -> list[dict[str, Any]]:
        """Return what the look found; it ran outside of check mode."""
        found = json.loads((self.folder / "found.json").read_text())
        assert found["check"] is False
        return list(found["records"])


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def test_a_look_changes_nothing_and_records_what_would_change(runs: Runs) -> None:
    done = runs.run("look.yml")
    assert done.returncode == 0, done.stdout
    assert {path.name for path in runs.folder.iterdir()} == {"look.yml", "work.yml", "hosts.yml", "found.json"}
    found = [(record["task"], Path(record["resource"]).name, record["handler"]) for record in runs.records()]
    assert found == [
        ("Write two", "one", False),
        ("Write two", "two", False),
        ("Write one for each", "a", False),
        ("Write one for each", "b", False),
        ("Hide all", "", False),
        ("Hide the text", "textless", False),
        ("Tell", "told", True),
    ]
    assert all(record["kind"] == "change" and record["host"] == "here" for record in runs.records())


def test_a_record_and_the_output_hold_no_secret(runs: Runs) -> None:
    done = runs.run("look.yml", "-e", "breaks=true")
    assert done.returncode != 0
    done = runs.run("look.yml", "-vv")
    records = {Path(record["resource"]).name: record["text"] for record in runs.records()}
    assert "it is ********" in records["one"]
    assert '"it is": "********"' in records["two"]
    assert records[""] == records["textless"] == ""
    assert SECRET not in json.dumps(list(records.values()), ensure_ascii=False)
    assert SECRET not in done.stdout


def test_the_same_plays_work_without_the_mark(runs: Runs) -> None:
    assert runs.run("work.yml").returncode == 0
    names = {path.name for path in runs.folder.iterdir()}
    assert {"one", "two", "a", "b", "hidden", "textless", "never", "told"} <= names
    assert runs.run("look.yml").returncode == 0
    assert runs.records() == []


def test_a_look_without_the_plugin_ends_before_it_begins(project: Project) -> None:
    """Its plays would otherwise do what they say."""
    (project.root / "plugins/callback/changes.py").unlink()
    (project.root / "look.yml").write_text("- import_playbook: site.yml\n  vars: {looks_only: true}\n")
    done = project.run("ansible-playbook", "-i", "inventory/test", "look.yml", "-l", "dev")
    assert done.returncode != 0
    assert "changes.py was not loaded" in done.stdout
    assert not project.called
