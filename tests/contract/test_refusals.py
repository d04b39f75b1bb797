"""What a host refuses, or what it does not answer, by the role's own tasks and with a stand-in for its program."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.contract.conftest import Project, collection_with
from tests.support import ROOT

# What hosts answer, by host, and by the first word or the phase that they are asked for.
Answers = Mapping[str, Mapping[str, Mapping[str, object]]]
HOSTS = ["one", "two"]
PLAY = """
- name: Deploy
  hosts: all
  gather_facts: false
  any_errors_fatal: true
  vars_files: ["{{ role }}/defaults/main.yml", "{{ role }}/vars/main.yml"]
  tasks:
    - name: Deploy
      ansible.builtin.include_tasks: "{{ role }}/tasks/deploy.yml"
      vars: {__app_kind: deploy, __app_target: r2}
"""
# Keeps what each host was asked, and answers as `answers` has it, for the first word or the phase.
PROGRAM = """
import json
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    _VALID_ARGS = frozenset(("program", "command", "upload", "input", "receipts", "defer_failure"))

    def run(self, tmp=None, task_vars=None):
        words, host = [str(word) for word in self._task.args["command"]], task_vars["inventory_hostname"]
        key = words[words.index("--until") + 1] if "--until" in words else words[0]
        key = "check" if "--check" in words else key
        with Path("asked").open("a") as file:
            file.write(f"{host} {key}{' to ' + words[1] if key == 'go-back' else ''}\\n")
        answer = task_vars["answers"].get(host, {}).get(key, {})
        if "lost" in answer:
            raise AnsibleConnectionFailure(answer["lost"])
        failed = "refused" in answer and not self._task.args.get("defer_failure")
        return {"changed": True, **answer, "failed": failed, "msg": answer.get("refused", "")}
"""
# Stands in for a load balancer that one of the hosts cannot come back to.
BALANCER = """
- name: Send it requests
  ansible.builtin.fail: {msg: it does not come up}
  when: inventory_hostname == 'two' and tasks_from != 'leave'
"""
MARK = "- name: Mark\n  ansible.builtin.debug: {{msg: '{0} on {{{{ inventory_hostname }}}}'}}\n"
OBJECT = "- name: Object\n  ansible.builtin.fail: {msg: not today}\n  when: inventory_hostname == 'two'\n"
LOOK = "- name: Ask\n  waffle.iron.release:\n    command: [look]\n"
LOST = {"lost": "no route to host"}
REFUSED = {"refused": "not so"}
GONE = {"refused": "could not be reached", "host_unreachable": True}


def text_of(said: str) -> str:
    """Return what a run says with the words of its results as they are."""
    return said.replace("\\n", "\n")


def refused(folder: Path, answers: Answers, **what: str) -> tuple[str, set[str]]:
    """Return what a run says that must fail, and what the hosts were asked."""
    code, said, asked = deploy(folder, {host: {} for host in HOSTS} | dict(answers), **what)
    assert code != 0, said
    return said, asked


def deploy(folder: Path, answers: Answers, balancer: str = "", **hooks: str) -> tuple[int, str, set[str]]:
    """Return how a run ends, what it says, and what the hosts were asked."""
    (folder / "hooks").mkdir()
    for name, text in {"after_switch": MARK, "after_failure": MARK, **hooks}.items():
        (folder / "hooks" / f"{name}.yml").write_text(text.format(name) if text is MARK else text)
    hosts = {host: {"ansible_connection": "local"} for host in answers}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (folder / "play.yml").write_text(PLAY)
    for name in ("main", "leave"):
        tasks = folder / f"roles/balancer/tasks/{name}.yml"
        tasks.parent.mkdir(parents=True, exist_ok=True)
        tasks.write_text(balancer.replace("tasks_from", f"'{name}'"))
    given = {
        "role": str(ROOT / "roles/app"), "answers": answers, "app_hooks": str(folder / "hooks"),
        "app_peer_group": "all", "ansible_python_interpreter": sys.executable, "app_name": "nba",
        "__app_status": {"live": "r1", "workers": 2}, "__app_release": "r2",
        "__app_artefact": {"path": "", "subject": ""}, "__app_sent_files": {}, "app_leader": False,
        "app_receipts": "", "app_balancer": "balancer" if balancer else "",
    }  # fmt: skip
    # One host after the other, so that what the first one says is known when the next one is asked.
    done = Project(folder).run(
        "ansible-playbook", "-i", "hosts.json", "play.yml", "-e", json.dumps(given),
        ANSIBLE_COLLECTIONS_PATH=collection_with(folder, {"release": PROGRAM, "promotion": PROGRAM}), ANSIBLE_FORKS="1",
    )  # fmt: skip
    return done.returncode, done.stdout, set((folder / "asked").read_text().splitlines())


@pytest.mark.parametrize("hosts", [HOSTS, HOSTS[:1]])
def test_hosts_that_refuse_nothing_end_well(tmp_path: Path, hosts: list[str]) -> None:
    """By itself a host does all in one call; a hook before the migration has it prepare the release first."""
    code, said, asked = deploy(tmp_path, {host: {} for host in hosts}, before_migrate=MARK)
    assert code == 0, said
    steps = ("prepare", "ready", "switched", "check", "confirm", "done") if hosts == HOSTS else ("prepare", "activate")
    assert asked == {f"{name} {step}" for name in hosts for step in steps}
    for name in hosts:
        assert f"before_migrate on {name}" in said and f"after_switch on {name}" in said
    assert "after_failure on" not in said


@pytest.mark.parametrize("hosts", [HOSTS, HOSTS[:1]])
def test_what_is_not_at_its_end_is_live_all_the_same(tmp_path: Path, hosts: list[str]) -> None:
    """As where a host went down after its switch, and does not come up well."""
    last = {"done" if hosts == HOSTS else "activate": {"unfinished": "it is not ready"}}
    code, said, asked = deploy(tmp_path, {host: {} for host in hosts} | {"one": last}, before_migrate=MARK)
    assert code != 0 and "one go-back to r1" not in asked
    assert "r2 is live on every host" in said and "one: it is not ready" in said
    assert "after_failure on" not in said


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
    _, asked = refused(tmp_path, {"one": ready, "two": {**ready, "switched": REFUSED}})
    assert {"one go-back to r1b", "two go-back to r1b"} <= asked


def test_a_host_goes_back_to_no_release_that_is_taken_back(tmp_path: Path) -> None:
    """Another run may have brought the very same one while this one waited."""
    _, asked = refused(tmp_path, {"one": {"ready": {"before": "r2"}}, "two": {"switched": REFUSED}})
    assert {"one go-back to r1", "two go-back to r1"} <= asked


@pytest.mark.parametrize("hook", ["before_migrate", "before_switch"])
def test_a_hook_that_fails_on_one_host_is_a_refusal_of_all(tmp_path: Path, hook: str) -> None:
    said, asked = refused(tmp_path, {}, **{hook: OBJECT})
    steps = ("prepare", "go-back to r1") if hook == "before_migrate" else ("prepare", "ready", "go-back to r1")
    assert asked == {f"{name} {step}" for name in HOSTS for step in steps}
    assert "r2 is live on no host; what was live before still is" in said
    assert "two: the task `Object` failed: not today" in said
    assert "after_failure on one" in said and "after_failure on two" in said
    assert "after_switch on" not in said


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("hook", ["before_migrate", "before_switch"])
def test_nobody_goes_on_without_a_host_that_is_lost_in_a_hook(tmp_path: Path, host: str, hook: str) -> None:
    said, asked = refused(tmp_path, {host: {"look": LOST}}, **{hook: LOOK})
    (other,) = set(HOSTS) - {host}
    steps = {"prepare", "look"} if hook == "before_migrate" else {"prepare", "look", "ready"}
    assert asked == {f"{name} {step}" for name in HOSTS for step in steps} | {f"{other} go-back to r1"}
    assert "no route to host" in said and f"{host}: left the run, see above" in said
    assert f"r2 is live on no host but perhaps on {host}, which" in said
    assert f"after_failure on {other}" in said and "after_switch on" not in said


def test_a_host_that_is_lost_after_all_have_switched_refused_nothing(tmp_path: Path) -> None:
    said, asked = refused(tmp_path, {"two": {"look": LOST}}, after_switch=LOOK + MARK.format("after_switch"))
    assert {"one done", "two done"} <= asked and "one go-back to r1" not in asked
    assert "no route to host" in said and "live on" not in said
    assert "after_failure on" not in said
    assert re.search(r"^one .* failed=0 ", said, re.MULTILINE)


@pytest.mark.parametrize("where", HOSTS)
def test_a_hook_that_fails_hides_no_refusal(tmp_path: Path, where: str) -> None:
    objects = OBJECT.replace("two", where)
    said, _ = refused(tmp_path, {}, before_switch=objects, after_failure=objects.replace("today", "tomorrow"))
    assert "r2 is live on no host; what was live before still is" in said
    words = f"{where}: the task `Object` failed: not today\nafter_failure.yml failed: not tomorrow"
    assert words in text_of(said)


def test_a_host_that_is_lost_when_it_has_gone_back_is_heard(tmp_path: Path) -> None:
    answers = {"two": {"ready": {"refused": "it does not start"}, "look": LOST}}
    said, _ = refused(tmp_path, answers, after_failure=LOOK)
    assert "r2 is live on no host; what was live before still is" in said and "two: it does not start" in said


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param("- name: Object\n  ansible.builtin.fail: {msg: not today}\n", id="on every host"),
        pytest.param("- name: Object\n  ansible.builtin.fail: {msg: not today}\n  run_once: true\n", id="once"),
        pytest.param("- name: Object\n  ansible.builtin.include_tasks: not today.yml\n", id="with a file"),
    ],
)
def test_a_hook_that_fails_for_all_says_why(tmp_path: Path, hook: str) -> None:
    said, asked = refused(tmp_path, {}, before_switch=hook)
    assert not {"one switched", "two switched"} & asked
    assert "r2 is live on no host; what was live before still is" in said and "but perhaps on" not in said
    assert "failed: " in said and "not today" in said
    if "include" not in hook:
        assert {"one go-back to r1", "two go-back to r1"} <= asked
        assert "one: the task `Object` failed: not today" in said and "left the run" not in said


def test_what_comes_after_the_switch_takes_nothing_back(tmp_path: Path) -> None:
    said, asked = refused(tmp_path, {"two": {"done": {"refused": "it drains"}}}, after_switch=OBJECT)
    assert "r2 is live on every host" in said and "one go-back to r1" not in asked
    assert "two: after_switch.yml failed: not today" in said
    assert "What is left to do there, site.yml does:\ntwo: it drains" in text_of(said)
    assert "after_failure on" not in said


def test_a_load_balancer_that_fails_on_the_way_back_hides_no_refusal(tmp_path: Path) -> None:
    refusal = {"two": {"switched": {"refused": "it does not answer"}}}
    said, _ = refused(tmp_path, refusal, balancer=BALANCER)
    assert "r2 is live on no host; what was live before still is" in said
    assert "load balancer: it does not come up" in said and "it does not answer" in said
    assert "after_failure on one" in said and "after_failure on two" in said


def test_hosts_may_have_the_release_by_what_they_answer_last(tmp_path: Path) -> None:
    last: dict[str, Mapping[str, object]] = {
        "one": {},
        "two": GONE,
        "three": {**REFUSED, "live": "r2"},
        "four": {"live": "r2"},
        "five": REFUSED,
        "six": {**REFUSED, "live": "r1"},
    }
    said, asked = refused(tmp_path, {host: {"switched": GONE, "go-back": answer} for host, answer in last.items()})
    assert {f"{host} go-back to r1" for host in last} <= asked
    assert "r2 is live on no host but perhaps on two, three, four, five, which could not be asked or did" in said
    assert "run the same command again" in said and "after_failure on one" in said


def test_a_host_that_is_lost_before_it_has_the_release_has_it_not(tmp_path: Path) -> None:
    said, _ = refused(tmp_path, {"two": {"prepare": GONE, "go-back": GONE}})
    assert "r2 is live on no host; what was live before still is" in said
