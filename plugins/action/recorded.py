"""Returns what the plays of this run would have changed, as the callback `changes` recorded it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

FILE = "changes.jsonl"  # in plugins/callback/changes.py, too: plugins of two kinds cannot import each other


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Returns ``records``, a list in the order of the run, over all hosts. Each has

    - ``kind``: ``change``, ``failed`` or ``unreachable``;
    - ``host``, ``role`` (empty outside of one), ``file`` (the task file's name), ``task``, ``module``;
    - ``handler``: whether it is one, and only follows from another;
    - ``resource``: the path, package, unit, account or item, or a problem in words; empty if the task hides it
      (``no_log``);
    - ``text``: the diff, or the words of a failure; secrets are masked, and hidden or ``diff: false`` tasks have none.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS: frozenset[str] = frozenset()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the records as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        path = Path(constants.DEFAULT_LOCAL_TMP) / FILE
        lines = path.read_text().splitlines() if path.exists() else []
        return {**result, "changed": False, "records": [json.loads(line) for line in lines]}
