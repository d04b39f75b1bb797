"""Checks that hooks are lists of tasks, on the control node, before any host is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.playbook.play import Play
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """Loads each hook with Ansible, as a part of a playbook.

    One that it cannot read ends a run at once and without a rescue, with every host waiting beside a started release.

    Arguments:
        folder: where the hooks are; what else is there is the user's.
        names: those that are run.

    Fails with every finding at once.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("folder", "names"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the findings as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        folder = Path(self._task.args["folder"])
        if findings := list(self._findings([folder / f"{name}.yml" for name in self._task.args["names"]])):
            lines = "\n".join(f"  - {finding}" for finding in findings)
            raise AnsibleActionFail(f"nothing was changed on any host; {len(findings)} finding(s):\n{lines}")
        return {**result, "changed": False}

    def _findings(self, files: list[Path]) -> Iterator[str]:
        for path in files:
            if not path.is_file():
                continue
            play = {"name": "Hook", "hosts": "all", "tasks": [{"ansible.builtin.import_tasks": str(path)}]}
            try:
                Play.load(play, variable_manager=self._task.get_variable_manager(), loader=self._loader)
            except AnsibleError as error:
                yield f"{path.parent.name}/{path.name}: {str(error).splitlines()[0]}"
