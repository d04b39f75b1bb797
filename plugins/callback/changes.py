"""Makes plays only look, whatever the command line says, and records what they would change."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.playbook.handler import Handler
from ansible.plugins.callback import CallbackBase
from ansible_collections.waffle.iron.plugins.module_utils.redactor import Redactor, secrets_in
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import one_line, printable

DOCUMENTATION = r"""
name: changes
type: aggregate
short_description: Makes plays only look, and records what they would change
description:
  - A play with the variable C(looks_only=true), as a rule from C(import_playbook), runs in check mode, as if C(--check)
    had been given. C(ansible_check_mode) is true in it. No list of roles is written a second time.
  - Each change that it would make, and each failure, is kept as a line of JSON in a folder that belongs to the run and
    goes away with it. The action C(recorded) returns them to a later task.
  - preflight.yml stops such a run where this plugin is not loaded.
"""

MARK = "looks_only"
FILE = "changes.jsonl"
# Arguments that name what a module acts on, the first that is set.
NAMING = ("path", "dest", "name", "table", "user", "argv", "command")


def record_file() -> Path:
    """Return the file with this run's records; its folder is readable by this account alone."""
    return Path(constants.DEFAULT_LOCAL_TMP) / FILE


def redactor_for(variables: Mapping[str, Any]) -> Redactor:
    """Return a redactor of every text that came from a vault, and of each line or JSON value of it."""
    redactor = Redactor()
    for name, value in variables.items():
        if name.startswith("vault_"):
            for text in secrets_in(str(value)):
                redactor.add(text)
    return redactor


def unified(diff: Mapping[str, Any]) -> str:
    """Return one of a module's diffs as the lines that go (-) and come (+), with a little around them."""
    before, after = (
        side if isinstance(side, str) else json.dumps(side, indent=1, sort_keys=True, default=str)
        for side in (diff.get("before") or "", diff.get("after") or "")
    )
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    return "\n".join(list(lines)[2:])


def resources(result: Mapping[str, Any], arguments: Mapping[str, Any], label: str) -> Iterator[tuple[str, str]]:
    """Yield name and diff of each thing that a task would change; for packages, what apt says it would do."""
    found = result.get("diff") or []
    diffs = [diff for diff in ([found] if isinstance(found, Mapping) else found) if diff]
    if problems := result.get("problems"):
        yield from ((str(problem), "") for problem in problems)
        return
    if paths := result.get("changed_paths"):
        by_path = {str(diff.get("before_header")): unified(diff) for diff in diffs}
        yield from ((str(path), by_path.get(str(path), "")) for path in paths)
        return
    name = next((arguments[key] for key in NAMING if arguments.get(key)), label)
    text = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    actions = [line for line in str(result.get("stdout", "")).splitlines() if line.startswith(("Inst ", "Remv "))]
    yield text, "\n".join(filter(None, (*map(unified, diffs), *actions)))


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Marks plays before they run, and listens to what their tasks would have done."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "changes"
    CALLBACK_NEEDS_ENABLED = False

    _looks = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Set check mode where a play asks for it; its tasks inherit it from there."""
        for play in playbook.get_plays():
            if play.vars.get(MARK):
                play.check_mode = True
                # Neither shown by Ansible, which masks nothing, nor forbidden, as by a task's own `diff: false`.
                play.diff = play.diff or None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Set check mode for the tasks of the play; Ansible derives this variable from the command line alone."""
        self._looks = bool(play.vars.get(MARK))
        self._manager = play.get_variable_manager()
        self._redactors: dict[str, Redactor] = {}
        self._manager._options_vars["ansible_check_mode"] = self._looks or bool(context.CLIARGS.get("check"))

    def v2_runner_on_ok(self, result: Any) -> None:
        """Record what a task would change; a loop has told its items."""
        if "results" not in result.result:
            self._changed(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Record what a task would change for one item."""
        self._changed(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Record that a task could not look."""
        if self._looks and not ignore_errors:
            self._keep(result, "failed", "", str(result.result.get("msg", "")))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Record that a host is away."""
        if self._looks:
            self._keep(result, "unreachable", "", str(result.result.get("msg", "")))

    def _changed(self, result: Any) -> None:
        if not self._looks or not result.is_changed():
            return
        if result.result.get("censored"):
            self._keep(result, "change", "", "")
            return
        label = str(self._get_item_label(result.result) or "")
        for name, diff in resources(result.result, result.task.args, label):
            self._keep(result, "change", name, "" if result.task.diff is False else diff)

    def _keep(self, result: Any, kind: str, resource: str, text: str) -> None:
        host, task = result.host, result.task
        if host.name not in self._redactors:
            try:
                known = self._manager.get_vars(host=host, include_hostvars=False)
            except AnsibleError:
                known = {}  # a vault that cannot be opened: the guard has said so, and no task saw a secret
            self._redactors[host.name] = redactor_for(known)
        redact = self._redactors[host.name].redact
        record = {
            "kind": kind,
            "host": host.name,
            "role": task._role.get_name() if task._role else "",
            "file": Path(str(task.get_path()).rpartition(":")[0]).name,
            "task": task.name,
            "handler": isinstance(task, Handler),
            "module": task.action,
            "resource": one_line(redact(resource)),
            "text": printable(redact(text)),
        }
        with record_file().open("a") as stream:
            stream.write(json.dumps(record) + "\n")
