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
            file.write(f"{host} {key}{' to ' + words[1] if key == 'go-back' else ''}\\n")
        answer = task_vars["answers"].get(host, {}).get(key, {})
        if "lost" in answer:
            raise AnsibleConnectionFailure(answer["lost"])
        return {"changed": True, **answer, "failed": "refused" in answer and not self._task.args.get("together")}
"""
MARK = "- name: Mark\n  ansible.builtin.debug: {{msg: '{0} on {{{{ inventory_hostname }}}}'}}\n"
OBJECT = "- name: Object\n  ansible.builtin.fail: {msg: not today}\n  when: inventory_hostname == 'two'\n"
LOOK = "- name: Ask\n  release:\n    command: [look]\n"
LOST: dict[str, object] = {"lost": "no route to host"}
GONE: dict[str, object] = {"refused": "could not be reached", "gone": True}


def text_of(said: str) -> str:
    """Return what a run says with the words of its results as they are."""
    return said.replace("\\n", "\n")


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
    assert asked == {f"{name} {step}" for name in HOSTS for step in ("prepare", "go-back to r1")}
    assert "r2 is live on no host; what was live before still is" in said and "two: no space left" in said
    assert "after_failure on one" in said and "after_failure on two" in said
    assert "after_switch on" not in said


def test_a_host_goes_back_to_what_was_live_when_its_run_began(tmp_path: Path) -> None:
    """It may have waited for another one's end, and `before` is what the program says of it then."""
    ready = {"ready": {"before": "r1b"}}
    _, asked = refused(tmp_path, {"one": ready, "two": {**ready, "switched": {"refused": "it does not answer"}}})
    assert {"one go-back to r1b", "two go-back to r1b"} <= asked


@pytest.mark.parametrize("hook", ["before_migrate", "before_switch"])
def test_a_hook_that_fails_on_one_host_is_a_refusal_of_all(tmp_path: Path, hook: str) -> None:
    said, asked = refused(tmp_path, {}, **{hook: OBJECT})
    steps = ("prepare", "go-back to r1") if hook == "before_migrate" else ("prepare", "ready", "go-back to r1")
    assert asked == {f"{name} {step}" for name in HOSTS for step in steps}
    assert "r2 is live on no host; what was live before still is" in said
    assert f"two: {hook}.yml failed: not today" in said
    assert "after_failure on one" in said and "after_failure on two" in said
    assert "after_switch on" not in said


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("hook", ["before_migrate", "before_switch"])
def test_nobody_goes_on_without_a_host_that_is_lost_in_a_hook(tmp_path: Path, host: str, hook: str) -> None:
    said, asked = refused(tmp_path, {host: {"look": LOST}}, **{hook: LOOK})
    (other,) = set(HOSTS) - {host}
    steps = {"prepare", "look"} if hook == "before_migrate" else {"prepare", "look", "ready"}
    assert asked == {f"{name} {step}" for name in HOSTS for step in steps} | {f"{other} go-back to r1"}
    assert "no route to host" in said and f"{host}: left the run on the way, see above" in said
    assert f"It may have come to\n{host}, which could not" in text_of(said)
    assert f"after_failure on {other}" in said and "after_switch on" not in said


def test_a_host_that_is_lost_after_all_have_switched_refused_nothing(tmp_path: Path) -> None:
    said, asked = refused(tmp_path, {"two": {"look": LOST}}, after_switch=LOOK + MARK.format("after_switch"))
    assert {"one done", "two done"} <= asked and "one go-back to r1" not in asked
    assert "no route to host" in said and "live on no host" not in said
    assert "after_failure on" not in said


@pytest.mark.parametrize("where", HOSTS)
def test_a_hook_that_fails_hides_no_refusal(tmp_path: Path, where: str) -> None:
    objects = OBJECT.replace("two", where)
    said, _ = refused(tmp_path, {}, before_switch=objects, after_failure=objects.replace("today", "tomorrow"))
    assert "r2 is live on no host; what was live before still is" in said
    words = f"{where}: before_switch.yml failed: not today\nafter_failure.yml failed: not tomorrow"
    assert words in text_of(said)


@pytest.mark.parametrize(
    ("answers", "unknown"),
    [
        pytest.param({"ready": GONE, "go-back": GONE}, True, id="not when it starts"),
        pytest.param({"switched": GONE, "go-back": GONE}, True, id="not when it switches"),
        pytest.param({"ready": {"refused": "no"}, "go-back": GONE}, True, id="not when it is to go back"),
        pytest.param({"switched": GONE}, False, id="again when it is to go back"),
        pytest.param({"prepare": GONE, "go-back": GONE}, False, id="not before it began"),
    ],
)
def test_a_host_that_does_not_answer_may_have_the_release(
    tmp_path: Path, answers: dict[str, dict[str, object]], unknown: bool
) -> None:
    said, asked = refused(tmp_path, {"two": answers})
    assert {"one go-back to r1", "two go-back to r1"} <= asked
    assert ("is live on no host that could be asked" in said) == unknown
    assert ("It may have come to\ntwo, which could not" in text_of(said)) == unknown
    assert ("run the same command again when that answers" in said) == unknown
    assert "r2 is live on no host" in said and "after_failure on one" in said
