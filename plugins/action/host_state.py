"""Runs the module of the same name, and takes of its result what a state has."""

from __future__ import annotations

from typing import Any

from ansible_collections.waffle.iron.plugins.plugin_utils.answers.host import HostState, Stated
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import HostAction, converted, of_module
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import printable


class ActionModule(HostAction):
    """Takes the module's arguments; returns ``state``, or why the host could not be read as ``msg``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the state as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        done = self._execute_module("waffle.iron.host_state", self._task.args, task_vars=task_vars)
        if done.get("failed"):
            return {**result, "failed": True, "msg": printable(str(done.get("module_stderr") or done.get("msg", "")))}
        state = of_module(done, Stated, "host_state").state
        converted(state, HostState, "host_state")
        return {**result, "changed": False, "state": state}
