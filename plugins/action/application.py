"""Says what the application is, from the files of its artefact, and what hosts could not install."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible loads an action by its file, so this folder is no package that could be imported from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discovery.hosts import is_known, possible
from discovery.inference import infer
from discovery.packages import lock_findings, package_findings, python_findings
from discovery.report import Report
from discovery.source import Source

DEFAULTS = Path(__file__).resolve().parents[2] / "roles/app/defaults/main.yml"
# What the report holds against the files; what no environment sets has the role's default.
VARIABLES = (
    "app_module", "app_settings_command", "app_migrations", "app_ready_path", "app_live_path", "app_version_path",
)  # fmt: skip


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted, and nothing of the application is imported or run.

    Arguments:
        artefact: path of the application's archive.
        runtime: what the release runs in; the Python and the packages of a container are its own.
        image: what the hosts are, as `machine_image` names it; empty if the inventory does not say it.
        machine: their processor; empty if the inventory does not say it.
        lock_file: the lock file that counts; empty if there is one alone.
        from_source: packages that hosts may build.

    Prints one block, and fails with every finding at once.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("artefact", "runtime", "image", "machine", "lock_file", "from_source"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a task result without facts: what is inferred is said, and set by nobody but the user."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments, variables = self._task.args, task_vars or {}
        source = Source.read(Path(str(arguments["artefact"])))
        stated = self._variables(variables)
        lock_file = str(arguments.get("lock_file", ""))
        python = str(self._templar.template(variables.get("app_python", "")))
        hosts = possible(str(arguments.get("image", "")), str(arguments.get("machine", "")), python)
        found = infer(source, hosts[0], str(stated["app_module"]), lock_file)
        settings = [
            str(name) for part in ("app_settings", "app_migration_settings") for name in variables.get(part) or ()
        ]
        self._display.display(Report(found, source, hosts, stated, settings).text())
        findings = list(lock_findings(found.locks, lock_file))
        # What a Python of the user's own can install, nobody knows here.
        if str(arguments.get("runtime", "venv")) == "venv" and is_known(python):
            findings += python_findings(found.python, hosts)
            if found.lock:
                allowed = [str(name) for name in arguments.get("from_source") or ()]
                findings += package_findings(source, found.lock.path, hosts, allowed)
        if findings:
            lines = "\n".join(f"  - {finding}" for finding in findings)
            raise AnsibleActionFail(f"nothing was changed on any host; {len(findings)} finding(s):\n{lines}")
        result.update(changed=False)
        return result

    def _variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables that say what the application is, as the role app will have them."""
        defaults = yaml.safe_load(DEFAULTS.read_text())
        return {name: self._templar.template(variables.get(name, defaults[name])) for name in VARIABLES}
