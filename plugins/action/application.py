"""Infers the application from its artefact and from variables, and finds packages that hosts could not install."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.module_utils.environment import variable_of
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import Host, is_known, possible
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.inference import Application, infer
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.packages import (
    lock_findings,
    package_findings,
    python_findings,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.report import Report
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.resolved import Stated, findings, resolve
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from ansible_collections.waffle.iron.plugins.plugin_utils.setting_values import plain, wiring

DEFAULTS = Path(__file__).resolve().parents[2] / "roles/app/defaults/main.yml"
# The variables of the role app that say what an application is. What no environment sets has the role's default.
TEXTS = (
    "app_module", "app_lock_file", "app_python_version", "app_alembic", "app_path", "app_ready_path",
    "app_ready_answers", "app_public_scheme",
)  # fmt: skip
LISTS = ("app_settings_command", "app_schema_command", "app_seed_command", "app_preload_modules")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted, and nothing of the application is imported or run.

    Arguments:
        artefact: path of the application's archive.
        runtime: what the release runs in; the Python and the packages of a container are its own.
        image: what the hosts are, as `machine_image` names it; empty if the inventory does not say it.
        machine: their processor; empty if the inventory does not say it.
        from_source: packages that hosts may build.
        report: whether to print one block, and to fail for what hosts could not install as well.

    Returns ``application`` (plugins/plugin_utils/discovery/resolved.py), with the digest of the artefact that it is of.
    Fails with every finding at once.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("artefact", "runtime", "image", "machine", "from_source", "report"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the application as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments, self._variables = self._task.args, task_vars or {}
        artefact = Path(str(arguments["artefact"]))
        source = Source.read(artefact)
        stated = self._stated()
        python = f"python{stated.python_version}" if stated.python_version else str(self._value("app_python"))
        hosts = possible(str(arguments.get("image", "")), str(arguments.get("machine", "")), python)
        found = infer(source, hosts[0], stated.module, stated.lock_file)
        resolved = resolve(found, source, stated)
        is_told = boolean(arguments.get("report", True))
        wrong = list(lock_findings(found.locks, stated.lock_file))
        wrong += findings(found, stated, {"host": self._database_host()}, resolved.database)
        if is_told:
            self._display.display(Report(found, source, hosts, stated, resolved).text())
            # What a Python of the user's own can install, nobody knows here.
            if str(arguments.get("runtime", "venv")) == "venv" and is_known(python):
                wrong += self._uninstallable(found, source, hosts, arguments.get("from_source") or ())
        if wrong:
            lines = "\n".join(f"  - {finding}" for finding in wrong)
            raise AnsibleActionFail(f"nothing was changed on any host; {len(wrong)} finding(s):\n{lines}")
        result.update(changed=False, application={**resolved.as_json(), "artefact": artefact.stem})
        return result

    def _uninstallable(
        self, found: Application, source: Source, hosts: list[Host], from_source: Iterable[object]
    ) -> list[str]:
        wrong = list(python_findings(found.python, hosts))
        if found.lock:
            wrong += package_findings(source, found.lock.path, hosts, [str(name) for name in from_source])
        return wrong

    def _stated(self) -> Stated:
        """Return what variables say, as the role app will have them."""
        values: dict[str, Any] = {name.removeprefix("app_"): str(self._value(name) or "") for name in TEXTS}
        values |= {name.removeprefix("app_"): [str(part) for part in self._value(name) or ()] for name in LISTS}
        database = self._value("app_database_settings") or {}
        return Stated(
            **values,
            strip_path=boolean(self._value("app_strip_path")),
            database_settings={str(part): str(name) for part, name in database.items()},
            settings=[*self._names("app_settings"), *map(variable_of, self._names("app_files"))],
            migration_settings=self._names("app_migration_settings"),
            system_packages=self._system_packages(),
        )

    def _names(self, holder: str) -> list[str]:
        """Return the names of the settings in a variable, also if a value of theirs refers to nothing."""
        try:
            return [str(name) for name in self._templar.template(self._variables.get(holder, {})) or ()]
        except AnsibleError:
            return list(wiring(self._variables, holder))

    def _system_packages(self) -> list[str] | None:
        """Return the Debian packages that hosts get, also by the role base; None for a container."""
        if str(self._task.args.get("runtime", "venv")) != "venv":
            return None
        return [str(name) for holder in ("app_packages", "base_extra_packages") for name in self._value(holder) or ()]

    def _value(self, name: str) -> Any:
        default = self._defaults.get(name, "")
        return plain(self._templar.template(self._variables.get(name, default)))

    @property
    def _defaults(self) -> Mapping[str, Any]:
        known: Mapping[str, Any] = yaml.safe_load(DEFAULTS.read_text())
        return known

    def _database_host(self) -> str:
        try:
            return str(self._templar.template(self._variables.get("database_host", "")) or "")
        except AnsibleError:
            return ""
