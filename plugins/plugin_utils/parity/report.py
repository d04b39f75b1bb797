"""Shows a comparison: as JSON, as a table for the terminal, and as one page of HTML that needs no network."""

from __future__ import annotations

import html
import json
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import printable
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.compare import DIGEST, Member, Row

KINDS = ("undeclared", "accepted", "declared", "equal")
TITLES = {
    "system": "Operating system, time zone, locale",
    "packages": "Packages",
    "python": "Python and Poetry",
    "environment": "The live virtual environment",
    "application": "The live release and its settings",
    "schema": "Schema of the database",
    "database": "Database server",
    "accounts": "Database accounts and grants",
    "nginx": "nginx configuration",
    "tls": "TLS",
    "units": "systemd units with drop-ins",
    "enabled": "Enabled units and timers",
    "listening": "Sockets and ports",
    "sysctl": "Kernel settings",
    "limits": "Limits",
    "firewall": "Firewall",
    "users": "Users, groups and keys",
    "sudoers": "sudoers",
    "sshd": "sshd configuration",
    "files": "Files: mode, owner, content",
}
PAGE = Path(__file__).with_name("page.html")
SHOWN_IN_TERMINAL = 5
LONG = 60
DAY = 86400


@dataclass(frozen=True)
class Report:
    """A comparison and everything that is said with it."""

    members: list[Member]
    rows: list[Row]
    about: Mapping[str, Mapping[str, Any]]
    """For people, by host."""
    gaps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Why a section could not be read, by host and section."""
    missing: list[str] = field(default_factory=list)
    """Hosts that could not be read at all."""
    unused: list[str] = field(default_factory=list)
    """Accepted patterns that match no difference."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """What is not compared, and why."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Secret values and what is shown in their place."""
    made_at: str = ""

    # --- what there is ---

    def of_kind(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row.kind == kind]

    def sections(self) -> dict[str, Counter[str]]:
        """Return how many facts of each kind a section has."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows:
            found.setdefault(row.section, Counter())[row.kind] += 1
        return found

    def environments(self) -> dict[str, list[str]]:
        """Return the hosts of each environment."""
        found: dict[str, list[str]] = {}
        for member in self.members:
            found.setdefault(member.environment, []).append(member.name)
        return found

    def variables(self) -> Counter[str]:
        """Return how many differences each variable declares."""
        return Counter(name for row in self.of_kind("declared") for name in row.variables)

    def problems(self) -> list[str]:
        """Return why the hosts are not in parity, in words; nothing if they are."""
        found = [f"{host} could not be read" for host in self.missing]
        found += [
            f"{host}: {section} could not be read: {reason}"
            for host, sections in self.gaps.items()
            for section, reason in sections.items()
        ]
        undeclared = self.of_kind("undeclared")
        if undeclared:
            first = ", ".join(row.fact for row in undeclared[:SHOWN_IN_TERMINAL])
            more = f" and {len(undeclared) - SHOWN_IN_TERMINAL} more" if len(undeclared) > SHOWN_IN_TERMINAL else ""
            found.append(f"{len(undeclared)} undeclared difference{'s'[: len(undeclared) > 1]}: {first}{more}")
        return found

    # --- values ---

    def shown(self, row: Row) -> dict[str, str | None]:
        """Return the values of a row for people: of texts the lines that differ, of secrets only which are equal."""
        values = {host: None if text is None else self.redacted(text) for host, text in row.values.items()}
        texts = [text.split("\n") for text in values.values() if text is not None]
        if row.kind != "equal" and any(len(lines) > 1 for lines in texts):
            shared = set.intersection(*(set(lines) for lines in texts)) if len(texts) == len(values) else set()
            values = {host: without(text, shared) for host, text in values.items()}
        letters: dict[str, str] = {}
        for text in values.values():
            for _, digest in DIGEST.findall(text or ""):
                letters.setdefault(digest, letter(len(letters)))
        return {
            host: text if text is None else DIGEST.sub(lambda found: f"{found[1]} {letters[found[2]]}", text)
            for host, text in values.items()
        }

    def redacted(self, text: str) -> str:
        """Return a printable text in which no known secret stands."""
        for secret, name in self.secrets.items():
            text = text.replace(secret, name)
        return printable(text)

    # --- forms ---

    def as_json(self) -> str:
        """Return the whole comparison as JSON text."""
        return json.dumps(
            {
                "made_at": self.made_at,
                "in_parity": not self.problems(),
                "problems": [self.redacted(problem) for problem in self.problems()],
                "environments": self.environments(),
                "hosts": self.about,
                "unreachable": self.missing,
                "not_read": self.gaps,
                "summary": {
                    section: {kind: counts[kind] for kind in KINDS} for section, counts in self.sections().items()
                },
                "declared_by": dict(self.variables().most_common()),
                "accepted_without_a_difference": self.unused,
                "not_compared": [{"what": what, "reason": reason} for what, reason in self.left_out],
                "facts": [
                    {
                        "section": row.section,
                        "fact": self.redacted(row.key),
                        "kind": row.kind,
                        **({"variables": row.variables} if row.variables else {}),
                        **({"reason": row.reason} if row.reason else {}),
                        "values": self.shown(row),
                    }
                    for row in self.rows
                ],
            },
            indent=1,
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines for the terminal."""
        hosts = "; ".join(f"{name}: {', '.join(names)}" for name, names in self.environments().items())
        yield f"{len(self.rows)} facts of {len(self.members)} hosts ({hosts})"
        yield ""
        yield f"{'':<12}{'facts':>7}{'equal':>7}{'declared':>10}{'accepted':>10}{'undeclared':>12}"
        for section, counts in self.sections().items():
            yield (
                f"{section:<12}{counts.total():>7}{counts['equal']:>7}{counts['declared'] or '-':>10}"
                f"{counts['accepted'] or '-':>10}{counts['undeclared'] or '-':>12}"
            )
        yield ""
        if variables := self.variables():
            yield "declared by: " + ", ".join(f"{name} ({count})" for name, count in variables.most_common())
        for entry in self.unused:
            yield f"accepted, but there is no such difference: {entry} (parity_accepted in group_vars/all/parity.yml)"
        by_section: dict[str, list[Row]] = {}
        for row in self.of_kind("undeclared"):
            by_section.setdefault(row.section, []).append(row)
        for rows in by_section.values():
            # All of a few; of many enough to see what it is about.
            shown = rows if len(rows) <= SHOWN_IN_TERMINAL else rows[:2]
            for row in shown:
                yield f"undeclared: {self.redacted(row.fact)}: {self.in_a_line(row)}"
            if rows[len(shown) :]:
                yield f"undeclared: and {len(rows) - len(shown)} more of {rows[0].section}"

    def in_a_line(self, row: Row) -> str:
        """Return the values of a row as ``dev1, prod1: 1; prod2: 2``."""
        return "; ".join(
            f"{', '.join(hosts)}: {'not there' if text is None else shortened(text)}"
            for text, hosts in grouped(self.shown(row)).items()
        )

    def as_html(self) -> str:
        """Return the page."""
        page = string.Template(PAGE.read_text())
        return page.substitute(
            state="ok" if not self.problems() else "bad",
            verdict=self.verdict(),
            made_at=html.escape(self.made_at),
            counts="".join(self.count_cards()),
            problems="".join(f"<li>{html.escape(self.redacted(problem))}</li>" for problem in self.problems()),
            hosts="".join(self.host_card(member) for member in self.members),
            variables="".join(
                f"<tr><td><code>{html.escape(name)}</code></td><td>{count}</td></tr>"
                for name, count in self.variables().most_common()
            ),
            unused="".join(f"<li><code>{html.escape(entry)}</code></li>" for entry in self.unused),
            left_out="".join(
                f"<tr><td><code>{html.escape(what)}</code></td><td>{html.escape(reason)}</td></tr>"
                for what, reason in self.left_out
            ),
            sections="".join(self.section(name, counts) for name, counts in self.sections().items()),
        )

    def verdict(self) -> str:
        """Return the page's headline."""
        names = " and ".join(self.environments())
        if not self.problems():
            return html.escape(f"{names}: in parity")
        count = len(self.of_kind("undeclared"))
        if not count:
            return html.escape(f"{names}: not everything could be read")
        return html.escape(f"{names}: {count} undeclared difference{'s'[: count > 1]}")

    def count_cards(self) -> Iterator[str]:
        """Yield the four totals."""
        total = Counter(row.kind for row in self.rows)
        for kind in reversed(KINDS):
            yield f'<div class="count {kind}"><b>{total[kind]}</b><span>{kind}</span></div>'

    def host_card(self, member: Member) -> str:
        """Return what a host is, for people."""
        about = self.about[member.name]
        days = about.get("certificate_days")
        uptime = int(about.get("uptime_seconds") or 0)
        answers = about.get("release") and about.get("answers") == about.get("release")
        rows = {
            "Release": f"{about.get('release') or 'none'} ({'answers' if answers else 'does not answer'})",
            "Commit": f"{str(about.get('commit') or '-')[:12]} {about.get('subject') or ''}",
            "Schema": about.get("schema") or "not read",
            "System": f"{about.get('system')}, kernel {about.get('kernel')}",
            "Database": about.get("database") or "not read",
            "Machine": f"{about.get('processors')} processors, {about.get('memory_mib')} MiB, "
            f"disk {about.get('disk_used_percent')} % full",
            "Up": f"{uptime // DAY} d {uptime % DAY // 3600} h {uptime % 3600 // 60} min",
            "Certificate": "none" if days is None else f"{days} days left",
        }
        listed = "".join(
            f"<dt>{name}</dt><dd>{html.escape(self.redacted(str(text)))}</dd>" for name, text in rows.items()
        )
        return (
            f'<article class="host"><h3>{html.escape(member.name)} '
            f"<small>{html.escape(member.environment)}</small></h3>"
            f"<dl>{listed}</dl></article>"
        )

    def section(self, name: str, counts: Counter[str]) -> str:
        """Return a section's table, its differences first; it is open where there is an undeclared one."""
        rows = sorted((row for row in self.rows if row.section == name), key=lambda row: KINDS.index(row.kind))
        environments = self.environments()
        heads = "".join(f'<th scope="col">{html.escape(env)}</th>' for env in environments)
        told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        body = "".join(self.table_row(row, environments) for row in rows)
        mark = next(kind for kind in KINDS if counts[kind])
        return (
            f'<details class="section {mark}" id="{name}"{" open" if counts["undeclared"] else ""}><summary>'
            f"<h3>{html.escape(TITLES.get(name, name))}</h3><span>{counts.total()} facts: {told}</span></summary>"
            f'<table><thead><tr><th scope="col">Fact</th>{heads}<th scope="col">Kind</th></tr></thead>'
            f"<tbody>{body}</tbody></table></details>"
        )

    def table_row(self, row: Row, environments: Mapping[str, list[str]]) -> str:
        """Return the row of one fact: a cell for each environment, or one for all where they are equal."""
        shown = self.shown(row)
        if row.kind == "equal" and len(shown) == len(self.members):
            cells = f'<td colspan="{len(environments)}">{cell(next(iter(shown.values())))}</td>'
        else:
            cells = ""
            for hosts in environments.values():
                groups = grouped({host: shown[host] for host in hosts if host in shown})
                parts = [
                    (f"<b>{html.escape(', '.join(names))}</b> " if len(groups) > 1 else "") + cell(text)
                    for text, names in groups.items()
                ]
                cells += f"<td>{'<br>'.join(parts) or '<i>not read here</i>'}</td>"
        why = row.reason or (f"by {', '.join(row.variables)}" if row.variables else "")
        return (
            f'<tr class="{row.kind}"><th scope="row">{html.escape(self.redacted(row.key))}</th>{cells}'
            f'<td><span class="kind">{row.kind}</span> {html.escape(why)}</td></tr>'
        )


def cell(text: str | None) -> str:
    """Return a value as HTML; a long one is folded."""
    if text is None:
        return "<i>not there</i>"
    if "\n" in text:
        return f"<pre>{html.escape(text)}</pre>"
    return f"<code>{html.escape(text)}</code>" if text else "<i>empty</i>"


def grouped(values: Mapping[str, str | None]) -> dict[str | None, list[str]]:
    """Return the hosts that have each value."""
    found: dict[str | None, list[str]] = {}
    for host, text in values.items():
        found.setdefault(text, []).append(host)
    return found


def without(text: str | None, shared: set[str]) -> str | None:
    """Return the lines of a text that not all have."""
    return text if text is None else "\n".join(line for line in text.split("\n") if line not in shared)


def letter(number: int) -> str:
    """Return A for 0, B for 1, and so on; numbers after Z."""
    return string.ascii_uppercase[number] if number < len(string.ascii_uppercase) else str(number)


def shortened(text: str) -> str:
    """Return a text on one line, cut to a length that a terminal has room for."""
    line = " | ".join(" ".join(part.split()) for part in text.split("\n"))
    return line if len(line) <= LONG else line[: LONG - 1] + "…"
