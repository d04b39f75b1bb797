"""What a host refuses, or what it does not answer, by the role's own tasks and with a stand-in for its program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import Project
from tests.support import ROOT

HOSTS = ["one", "two"]
PLAY = """
- name: Deploy
  hosts: all
  gather_facts: false
  any_errors_fatal: true
  vars_files: ["{{ role }}/defaults/main.yml", "{{ role }}/vars/main.yml"]
  tasks:
    - name: Prepare the release
      ansible.builtin.include_tasks: "{{ role }}/tasks/ahead.yml"
    - name: Make it live
      ansible.builtin.import_tasks: "{{ role }}/tasks/activate.yml"
      vars: {__app_kind: deploy, __app_target: r2}
"""
# Keeps what each host was asked, and answers as `answers` has it, for the first word or the phase.
PROGRAM = """
import json
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    _VALID_ARGS = frozenset(("program", "command", "upload", "input", "receipts", "together"))

    def run(self, tmp=None, task_vars=None):
        words, host = [str(word) for word in self._task.args["command"]], task_vars["inventory_hostname"]
        key = words[words.index("--until") + 1] if "--until" in words else words[0]
        with Path("asked").open("a") as file:
            file.write(f"{host} {key}\\n")
        answer = task_vars["answers"].get(host, {}).get(key, {})
        if "lost" in answer:
            raise AnsibleConnectionFailure(answer["lost"])
        return {"changed": True, **answer, "failed": "refused" in answer and not self._task.args.get("together")}
"""
MARK = "- name: Mark\n  ansible.builtin.debug: {{msg: '{0} on {{{{ inventory_hostname }}}}'}}\n"
OBJECT = "- name: Object\n  ansible.builtin.fail: {msg: not today}\n  when: inventory_hostname == 'two'\n"


def refused(folder: Path, answers: dict[str, dict[str, dict[str, object]]], **hooks: str) -> tuple[str, set[str]]:
    """Return what a run says that must fail, and what the hosts were asked."""
    (folder / "hooks").mkdir()
    for name, text in {"after_switch": MARK, "after_failure": MARK, **hooks}.items():
        (folder / "hooks" / f"{name}.yml").write_text(text.format(name) if text is MARK else text)
    (folder / "hosts.json").write_text(
        json.dumps({"all": {"hosts": {host: {} for host in HOSTS}, "vars": {"ansible_connection": "local"}}})
    )
    (folder / "play.yml").write_text(PLAY)
    (folder / "action_plugins").mkdir()
    (folder / "action_plugins/release.py").write_text(PROGRAM)
    given = {
        "role": str(ROOT / "roles/app"), "answers": answers, "app_hooks": str(folder / "hooks"),
        "app_peer_group": "all", "ansible_python_interpreter": sys.executable, "app_name": "nba",
        "__app_status": {"live": "r1", "workers": 2}, "__app_release": "r2", "__app_artefact": {"path": ""},
        "__app_files": {}, "app_leader": False, "app_receipts": "",
    }  # fmt: skip
    done = Project(folder).run(
        "ansible-playbook", "-i", "hosts.json", "play.yml", "-e", json.dumps(given),
        ANSIBLE_FILTER_PLUGINS=str(ROOT / "plugins/filter"),
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    return done.stdout, set((folder / "asked").read_text().splitlines())


def test_a_release_that_one_host_cannot_prepare_is_refused_by_all(tmp_path: Path) -> None:
    said, asked = refused(tmp_path, {"two": {"prepare": {"refused": "no space left"}}})
    # One that a torn run had left on the release goes back with the others.
    assert asked == {f"{name} {step}" for name in HOSTS for step in ("prepare", "go-back")}
    assert "r2 is live on no host; what was live before still is" in said and "two: no space left" in said
    assert "after_failure on one" in said and "after_failure on two" in said
    assert "after_switch on" not in said


def test_what_fails_before_the_migration_ends_the_run(tmp_path: Path) -> None:
    said, asked = refused(tmp_path, {}, before_migrate=OBJECT)
    assert asked == {"one prepare", "two prepare"}
    assert "not today" in said and "after_switch on" not in said


@pytest.mark.parametrize("host", HOSTS)
def test_nobody_goes_on_without_a_host_that_is_lost_before_the_migration(tmp_path: Path, host: str) -> None:
    hook = "- name: Ask\n  release:\n    command: [look]\n"
    said, asked = refused(tmp_path, {host: {"look": {"lost": "no route to host"}}}, before_migrate=hook)
    assert asked == {f"{name} {step}" for name in HOSTS for step in ("prepare", "look")}
    assert "no route to host" in said and "after_switch on" not in said


@pytest.mark.parametrize("phase", ["ready", "switched"])
def test_a_host_that_does_not_answer_may_have_the_release(tmp_path: Path, phase: str) -> None:
    said, asked = refused(tmp_path, {"two": {phase: {"refused": "could not be reached", "gone": True}}})
    assert {"one go-back", "two go-back"} <= asked
    assert "is live on no host that could be asked" in said and "may have come to" in said and "two, which" in said
    assert "run the same command again when that answers" in said
    assert "after_failure on one" in said
