"""Compares the states of the run's hosts on the control node, and writes the report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.inventory.helpers import get_group_vars
from ansible.plugins.action import ActionBase
from ansible.utils.vars import combine_vars
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.files import write_inside
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.host import HostState
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import converted, known
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.compare import (
    Member,
    compare,
    labels,
    rules_for,
    secret_digest,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.report import Report
from ansible_collections.waffle.iron.plugins.plugin_utils.setting_values import as_text, exported, plain, wiring

# What the inventory says of a host that is no value of its environment.
OF_THE_HOST = re.compile(r"(ansible|inventory)_\w+|group_names|confirmed_inventory|host_image")
# The variables that hold the way to the database, and what migrations have in its place.
WAY = ("app_database", "app_migration_database")
SECRET = re.compile(r"\bvault_\w+")


def expected_digests(
    key: str, settings: Mapping[str, Mapping[str, Any]], wiring: Mapping[str, Any], label: Mapping[str, str]
) -> dict[str, str]:
    """Return the digests that a host's settings must have where environments differ, each with its variables' names.

    Args:
        key: of this run's digests.
        settings: name and value of each setting, by the variable that holds them (``app_settings``).
        wiring: the same variables as group_vars/all has them, not yet templated: they name where a value comes from.
        label: the variables in which the environments differ, and what each is called in a fact.
    """
    found = {}
    for holder, values in settings.items():
        for name, value in values.items():
            source = str(wiring.get(holder, {}).get(name, ""))
            names = sorted({label[word] for word in re.findall(r"\w+", source) if word in label})
            if names:
                found[secret_digest(key, f"{name}={as_text(value)}")] = f"{{{{ {' or '.join(names)} }}}}"
    return found


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Arguments:
        key: of this run's digests.
        registered: the variable in which each host's result of `host_state` is.
        settings: variables whose values hosts hold as secrets (``app_settings``).
        places, switches, accepted: see group_vars/all/parity.yml.
        results: folder for parity.json and parity.html.

    Fails if hosts are not in parity, or could not be read.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("key", "registered", "settings", "places", "switches", "accepted", "results"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Compare, write, show; return the counts as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._variables = task_vars or {}
        self._hostvars = self._variables["hostvars"]
        hosts = list(self._variables["ansible_play_hosts_all"])
        states = {host: state for host in hosts if (state := self._state_of(host)) is not None}
        if len(hosts) < 2:
            raise AnsibleActionFail(f"{hosts[0]} is alone: leave -l out, or name two hosts")
        report = self._report(hosts, states)
        folder = Path(str(self._task.args["results"]))
        write_inside(folder, "parity.json", text=report.as_json() + "\n")
        write_inside(folder, "parity.html", text=report.as_html())
        for line in report.lines():
            self._display.display(line, color=color_of(line))
        if problems := report.problems():
            lines = "\n".join(f"  - {report.redacted(problem)}" for problem in problems)
            raise AnsibleActionFail(
                f"not in parity:\n{lines}\n"
                f"Look at {folder / 'parity.html'}. What `ansible-playbook site.yml -l ENV` does not repair belongs "
                "into group_vars, or with its reason into parity_accepted in group_vars/all/parity.yml"
            )
        result.update(changed=False, facts=len(report.rows), declared=len(report.of_kind("declared")))
        return result

    def _state_of(self, host: str) -> HostState | None:
        result = self._hostvars[host].get(self._task.args["registered"]) or {}
        return converted(str(result["state"]), HostState, host) if "state" in result else None

    def _report(self, hosts: Iterable[str], states: Mapping[str, HostState]) -> Report:
        arguments = self._task.args
        environments = {host: str(self._hostvars[host]["environment_name"]) for host in states}
        values, secrets = self._values(environments)
        members = []
        for host, state in states.items():
            environment = environments[host]
            rules = rules_for(environment, values, arguments["places"], arguments["switches"])
            digests = self._digests(host, values[environment], labels(values), secrets)
            digests |= self._way_to_database(host, state, labels(values))
            rules = replace(rules, own=dict(state.identity), digests=digests)
            members.append(Member(host, environment, state.facts, rules))
        rows, unused = compare(members, arguments["accepted"])
        return Report(
            members,
            rows,
            about={host: known(state.about) for host, state in states.items()},
            gaps={host: state.gaps for host, state in states.items() if state.gaps},
            missing=[host for host in hosts if host not in states],
            unused=unused,
            left_out=next((state.left_out for state in states.values()), []),
            secrets={
                str(known[name]): f"<{name} of {environment}>"
                for environment, known in values.items()
                for name in secrets
                if known.get(name)
            },
            made_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )

    def _values(self, environments: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
        """Return the values that each environment sets, in group_vars and in the inventory, and which are secret."""
        root = Path(self._variables["playbook_dir"])
        root = root.parent if root.name == "playbooks" else root
        values: dict[str, dict[str, Any]] = {}
        secrets: set[str] = set()
        for host, environment in environments.items():
            if environment in values:
                continue
            set_there = self._loader.load_from_file(str(root / "group_vars" / environment / "vars.yml")) or {}
            known = self._hostvars._inventory.get_host(host)
            of_inventory = combine_vars(get_group_vars(known.get_groups()), known.get_vars())
            names = [*set_there, *(name for name in of_inventory if not OF_THE_HOST.fullmatch(name))]
            values[environment] = {name: self._hostvars[host][name] for name in names}
            secrets |= {name for name, value in set_there.items() if SECRET.search(str(value))}
        return values, secrets

    def _digests(
        self, host: str, own: Mapping[str, Any], label: Mapping[str, str], secrets: Iterable[str]
    ) -> dict[str, str]:
        key, holders = str(self._task.args["key"]), list(self._task.args["settings"])
        settings = {holder: self._settings(host, holder) for holder in holders}
        raw = {holder: wiring(self._hostvars.raw_get(host), holder) for holder in holders}
        found = {secret_digest(key, str(own[name])): f"{{{{ {label[name]} }}}}" for name in secrets if name in label}
        return {**found, **expected_digests(key, settings, raw, label)}

    def _settings(self, host: str, holder: str) -> dict[str, Any]:
        """Return what a variable holds; nothing if it is not set, or refers to a database that an inventory has not."""
        variables = self._hostvars[host]
        if holder not in variables:
            return {}
        try:
            found: dict[str, Any] = plain(variables[holder])
        except AnsibleError:
            return {}
        return found

    def _way_to_database(self, host: str, state: HostState, label: Mapping[str, str]) -> dict[str, str]:
        """Return the digests of the settings with the way to the database, by the names that the release states."""
        stated = state.facts.get("application", {})
        try:
            names = {str(part): str(name) for part, name in json.loads(stated.get("stated: database", "{}")).items()}
        except (ValueError, AttributeError):
            return {}
        scheme, known = stated.get("stated: database_scheme", ""), self._hostvars.raw_get(host)
        settings, raw = {}, {}
        own = [self._settings(host, name) for name in WAY]
        sources = [wiring(known, name) for name in WAY]
        for holder, values, source in (
            ("service", own[0], sources[0]),
            ("migration", {**own[0], **own[1]}, {**sources[0], **sources[1]}),
        ):
            settings[holder] = exported(names, scheme, values)
            # An address has all of them.
            raw[holder] = {name: source.get(part, " ".join(map(str, source.values()))) for part, name in names.items()}
        return expected_digests(str(self._task.args["key"]), settings, raw, label)


def color_of(line: str) -> str | None:
    """Return the colour of a line on the terminal."""
    return {"undeclared": "red", "accepted, but": "yellow"}.get(line.partition(":")[0].partition(" there")[0])
