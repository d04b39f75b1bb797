"""Filters: what several hosts answered, as one screen of text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import one_line

HEAD = ("HOST", "ENV", "RELEASE", "SINCE (UTC)", "COMMIT", "SCHEMA", "HEALTH", "REQUESTS", "5XX", "DISK", "CERT")
SUBJECT_LENGTH = 40


def row(host: Mapping[str, Any]) -> list[str]:
    """Return the cells of one host, as `HEAD` has them."""
    facts, findings = host["examined"]["facts"], host["examined"]["findings"]
    name, environment = str(host["inventory_hostname"]), str(host["environment_name"])
    if not host["examined"]["reached"]:
        return [name, environment, "unreachable", *[""] * (len(HEAD) - 3)]
    since = facts.get("since")
    commit = " ".join(part for part in (facts.get("commit"), str(facts.get("subject", ""))[:SUBJECT_LENGTH]) if part)
    requests, days = facts.get("requests", {}), facts.get("certificate_days")
    share = 100 * requests["failed"] / requests["count"] if requests.get("count") else 0.0
    causes = [one for one in findings if not one["follows_from"]]
    return [
        name,
        environment,
        str(facts.get("release") or "none"),
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(float(since))) if since else "-",
        commit or "-",
        str(facts.get("schema") or "-"),
        str(facts.get("health") or ("not well" if causes else "-")),
        f"{requests['count']} in {requests['minutes']} min" if requests else "-",
        f"{share:.1f}%",
        f"{facts['disk']['used_percent']}%" if "disk" in facts else "-",
        f"{days} d" if days is not None else "none",
    ]


def status_screen(hosts: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of the hosts, and under it what is wrong with each; ``hosts`` are their variables."""
    listed = list(hosts)
    rows = [list(HEAD), *(list(map(one_line, row(host))) for host in listed)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]
    for host in listed:
        for one in host["examined"]["findings"]:
            if not one["follows_from"]:
                words = one_line(f"{one['key'].partition('.')[0]}: {one['words']}")
                lines.append(f"{host['inventory_hostname']}: {words}")
    ill = sorted({str(host["environment_name"]) for host in listed if host["examined"]["findings"]})
    lines += [f"next: ansible-playbook playbooks/doctor.yml -l {name}" for name in ill]
    return "\n".join(lines)


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Any]:
        """Return name and function of each filter."""
        return {"status_screen": status_screen}
