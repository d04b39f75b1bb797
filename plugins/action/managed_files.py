"""Runs the module `managed_files` on a host without what Ansible wraps around a module."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ansible import constants
from ansible_collections.waffle.iron.plugins.module_utils import attributes
from ansible_collections.waffle.iron.plugins.modules import managed_files
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.host import ManagedFiles
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import HostAction, answer_in, known, words_of

# What runs on the host: the module, and the one file that it imports.
MODULE, LIBRARY = Path(managed_files.__file__), Path(attributes.__file__)
# It reads one line of JSON, as not every connection ends its input: the sources of both, what is wanted, and whether
# that is only a preview.
PROGRAM = """
import json, sys, types
library, source, given, check_mode = json.loads(sys.stdin.readline())
attributes = types.ModuleType("attributes")
exec(library, attributes.__dict__)
sys.modules["ansible_collections.waffle.iron.plugins.module_utils.attributes"] = attributes
names = {"__name__": "managed_files"}
exec(source, names)
print(json.dumps(names["bring"](given, check_mode)))
"""


class ActionModule(HostAction):
    """Takes the module's arguments, checks them on the control node, and returns the module's result.

    A module comes with a copy of Ansible's own library, packed on the control node, and unpacked and compiled on the
    host: 0.3 s here and 0.3 s there, for each call. This one needs none of that.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if isinstance(entries := self._task.args.get("entries"), list):
            self._task.args["entries"] = [self._read(entry) for entry in entries]
        _, given = self.validate_argument_spec(managed_files.ARGUMENTS)
        sources = [LIBRARY.read_text(), MODULE.read_text()]
        data = json.dumps([*sources, given, bool(self._task.check_mode)]).encode() + b"\n"
        done = self._low_level_execute_command(shlex.join([self._python(task_vars), "-I", "-c", PROGRAM]), in_data=data)
        if done["rc"] != 0:
            return {**result, "failed": True, "rc": done["rc"], "msg": words_of(done)}
        return {**result, **known(answer_in(done["stdout"], ManagedFiles, "managed_files"))}

    def _read(self, entry: Any) -> Any:
        """Return an entry with the content of its ``source``, which the host knows nothing of.

        One that has content of its own stays as it is, and is refused for its ``source``.
        """
        if not isinstance(entry, dict) or "source" not in entry or "content" in entry:
            return entry
        given = dict(entry)
        place = Path(self._find_needle("files", given.pop("source")))
        return {**given, "content": place.read_text(encoding="utf-8")}

    def _python(self, task_vars: dict[str, Any] | None) -> str:
        """Return the interpreter that modules have on this host; none is looked for (`auto`)."""
        known = constants.config.get_config_value("INTERPRETER_PYTHON", variables=task_vars or {})
        path = str(self._templar.template(known))
        return path if path.startswith("/") else "/usr/bin/python3"
