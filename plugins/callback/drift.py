"""Prints, at the end of playbooks/drift.yml, the differences of the hosts."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.callback import CallbackBase
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.files import write_inside

DOCUMENTATION = r"""
name: drift
type: aggregate
short_description: Prints the differences of the hosts, and exits with status 3 if there is one
description:
  - Active if a play has the variable C(tells_drift=true), as in playbooks/drift.yml. It reads what the callback
    C(changes) recorded, leaves out what C(drift_accepted) names, and shows the rest after the recap.
  - Exit codes are 0 for no drift, 3 for drift, and Ansible's own if it failed, 2 for a failed task and 4 for
    a host that cannot be reached.
"""

MARK = "tells_drift"
DRIFT = 3
FILE = "changes.jsonl"  # as in changes.py
LINES = 20
# A release that this checkout has and the host has not yet is no drift: these files of the role make it live.
DEPLOYS = ("prepare.yml", "before_schema_change.yml", "deploy.yml", "switch.yml", "confirm.yml", "revert.yml")
# What this file finds, playbooks/remove.yml removes; each of its records names the command.
LEFTOVERS = "leftovers.yml"

Record = dict[str, Any]


class Report:
    """What was found: drift, what only waits to be deployed, and what is accepted, each with its records."""

    def __init__(self, records: Iterable[Record], accepted: Mapping[str, list[dict[str, str]]]) -> None:
        self.drift: list[Record] = []
        self.waiting: set[str] = set()
        self.accepted: list[Record] = []
        self.used: set[str] = set()
        for record in records:
            if record["handler"]:
                continue  # it follows from what is told already
            if record["role"] == "app" and record["file"] in DEPLOYS and record["kind"] == "change":
                self.waiting.add(record["host"])
                continue
            entry = next((item for item in accepted.get(record["host"], []) if matches(item, record)), None)
            if entry:
                self.used.add(entry["resource"])
                self.accepted.append({**record, "reason": entry["reason"]})
            elif record["kind"] != "unreachable":
                self.drift.append(record)
        known = {item["resource"] for items in accepted.values() for item in items}
        self.unused = sorted(known - self.used)

    def lines(self, hosts: list[str], unreachable: Iterable[str] = ()) -> list[str]:
        """Return the report for people."""
        found = []
        for host in hosts:
            records = [record for record in self.drift if record["host"] == host]
            differs = count(len(records), "difference") if records else "no drift"
            found.append(f"{host}: {'could not be reached' if host in unreachable else differs}")
            for record in records:
                found += told(record)
            found += [
                f"  accepted: {item['resource']} ({item['reason']})" for item in self.accepted if item["host"] == host
            ]
            if host in self.waiting:
                found.append("  not drift: the release of this checkout is not live yet; site.yml would deploy it")
        if self.unused:
            found.append(f"drift_accepted: matches nothing here: {', '.join(self.unused)}")
        if self.site_repairs:
            rest = "the rest of this" if any(is_leftover(record) for record in self.drift) else "this"
            found.append(
                f"ansible-playbook site.yml with the same -l repairs {rest}; what is in the way goes to "
                "/var/backups/waffle-iron on the host"
            )
        return found

    @property
    def site_repairs(self) -> bool:
        """Return True if site.yml repairs some of it."""
        return any(not is_leftover(record) for record in self.drift)


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def matches(entry: Mapping[str, str], record: Record) -> bool:
    """Return True if an accepted entry, which may hold shell wildcards, names a record."""
    return bool(record["resource"]) and fnmatch.fnmatchcase(record["resource"], entry["resource"])


def is_leftover(record: Mapping[str, Any]) -> bool:
    """Return True if a record names an application that only playbooks/remove.yml removes."""
    return bool(record["file"] == LEFTOVERS and record["kind"] == "change")


def told(record: Record) -> list[str]:
    """Return a record for people: what, by which task, and the lines that differ."""
    what = record["resource"] or "(hidden)"
    if record["kind"] == "failed":
        what = "could not be looked at"
    text = record["text"].splitlines()
    more = [f"... {count(len(text) - LINES, 'more line')}"] if len(text) > LINES else []
    return [f"  {what}  [{record['role']}: {record['task']}]", *(f"      {line}" for line in text[:LINES] + more)]


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Notes the hosts while the plays run, and speaks at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "drift"
    CALLBACK_NEEDS_ENABLED = False

    _manager: Any = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Store the play's variable manager."""
        if play.vars.get(MARK):
            self._manager = play.get_variable_manager()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the findings."""
        if self._manager is None or not stats.processed:
            return
        hosts = sorted(stats.processed)
        path = Path(constants.DEFAULT_LOCAL_TMP) / FILE
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        report = Report(records, {host: self._accepted(host) for host in hosts})
        self._display.display("\n".join(["", "DRIFT", *report.lines(hosts, stats.dark)]))
        if target := self._manager.extra_vars.get("drift_json"):
            facts = {
                "hosts": hosts,
                "drift": report.drift,
                "site_repairs": report.site_repairs,
                "accepted": report.accepted,
                "waiting": sorted(report.waiting),
                "unreachable": sorted(stats.dark),
            }
            path = Path(str(target))
            write_inside(path.parent, path.name, text=json.dumps(facts, indent=1) + "\n")
        if report.drift and not stats.dark and not stats.failures:
            raise SystemExit(DRIFT)

    def _accepted(self, host: str) -> list[dict[str, str]]:
        try:
            known = self._manager.get_vars(host=self._manager._inventory.get_host(host), include_hostvars=False)
        except AnsibleError:
            return []  # its vault cannot be opened, and the run has ended for that
        return list(known.get("drift_accepted", []))
