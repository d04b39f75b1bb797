"""Puts together what the next run of site.yml would do to an environment: for a person who approves it, and as JSON."""

from __future__ import annotations

import ast
import datetime
import getpass
import hashlib
import json
import shlex
import socket
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.files import write_inside
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import fence_for, in_markdown, one_line

# What a module acts on; of the others the task's name says it.
KINDS = {
    **dict.fromkeys(("apt", "package", "dpkg_selections"), "packages"),
    **dict.fromkeys(("managed_files", "copy", "template", "file", "get_url", "lineinfile", "blockinfile"), "files"),
    **dict.fromkeys(("systemd_service", "systemd", "service"), "services"),
    **dict.fromkeys(("user", "group", "authorized_key"), "accounts"),
    **dict.fromkeys(("mysql_db", "mysql_user"), "database"),
    "release": "application",
}
LINES_OF_DIFF = 80
LINES_IN_SHORT = 10
Change = dict[str, Any]


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def grouped(values: Iterable[tuple[str, Any]]) -> list[tuple[list[str], Any]]:
    """Return each value once, with the hosts that have it, in the order of their first appearance."""
    found: dict[str, tuple[list[str], Any]] = {}
    for host, value in values:
        hosts, _ = found.setdefault(json.dumps(value, sort_keys=True), ([], value))
        if host not in hosts:
            hosts.append(host)
    return list(found.values())


def settings_between(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the keys of the settings that come, go and change, by their keyed hashes."""
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(key for key in set(old) & set(new) if old[key] != new[key]),
    }


def changes_in(records: Iterable[Mapping[str, Any]]) -> list[Change]:
    """Return what would be changed, each once with all of its hosts."""
    told = (
        (
            str(record["host"]),
            {
                "kind": "handlers"
                if record["handler"]
                else KINDS.get(str(record["module"]).rpartition(".")[2], "other"),
                "role": record["role"],
                "task": record["task"],
                "resource": record["resource"],
                "text": record["text"],
            },
        )
        for record in records
        if record["kind"] == "change"
    )
    return [{"hosts": hosts, **change} for hosts, change in grouped(told)]


def revisions_in(artefact: Path) -> list[dict[str, Any]]:
    """Return the revisions in an application's archive, without their SQL: for a host that cannot run Alembic yet."""
    found: list[dict[str, Any]] = []
    with tarfile.open(artefact) as tar:
        for member in tar.getmembers():
            place = PurePosixPath(member.name)
            if place.suffix != ".py" or place.parent.name != "versions":
                continue
            stream = tar.extractfile(member)
            tree = ast.parse(stream.read() if stream else b"")
            named = {
                target.id: node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Name)
            }
            if "revision" in named:
                message = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
                found.append({"revision": named["revision"], "message": message, "statements": [], "warnings": []})
    return sorted(found, key=lambda revision: str(revision["revision"]))


@dataclass(frozen=True)
class Environment:
    """What is known of an environment after a run that only looked.

    ``status`` is what each host says is live. ``planned`` is the release that is to come: its id and the keyed hashes
    of its settings. ``artefact`` says where its code comes from, ``preview`` (empty for a bare host) what it would do
    to the database, ``proof`` whether it may come here.
    """

    name: str
    status: Mapping[str, Mapping[str, Any]]
    planned: Mapping[str, Any]
    artefact: Mapping[str, Any]
    preview: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> list[dict[str, Any]]:
        """Return the settings that change, by hosts; None if a host's program is too old to tell."""
        new = self.planned["settings"]
        compared = (
            (
                host,
                settings_between(known.get("settings", {}), new) if "settings" in known or not known["live"] else None,
            )
            for host, known in self.status.items()
        )
        return [{"hosts": hosts, "keys": keys} for hosts, keys in grouped(compared)]

    def migrations(self) -> dict[str, Any] | None:
        """Return what is to be done to the schema; None if the application has no migrations."""
        if self.preview:
            found: dict[str, Any] | None = self.preview["migrations"]
            return found
        pending = revisions_in(Path(str(self.artefact["path"])))
        known = {"current": None, "head": None, "bare": True, "unproven": self.unproven}
        return {**known, "pending": pending} if pending else None

    @property
    def unproven(self) -> bool:
        """Return True if code of the artefact may not run here."""
        known = self.proof
        return bool(known) and not (known.get("skipped") or known.get("proven") or "override" in known)

    def stops(self) -> Iterator[str]:
        """Yield each reason for which the run would stop."""
        if self.unproven:
            yield "its artefact was not proven where it must have been live before (promote_from)"
        if problem := (self.preview.get("connections") or {}).get("problem"):
            yield str(problem)
        yield from (self.preview.get("migrations") or {}).get("stops", [])

    def plan(self, records: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the plan, with the basis that it holds for."""
        # Hosts answer in any order, and the plan of the same changes must be the same.
        in_order = [record for host in self.status for record in records if record["host"] == host]
        changes, migrations = changes_in(in_order), self.migrations()
        basis = {
            "live": {host: known["live"] for host, known in self.status.items()},
            "release": self.planned["release"],
            "schema": [migrations["current"], migrations["head"]] if migrations else [],
            "changes": changes,
        }
        return {
            "environment": self.name,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "by": f"{getpass.getuser()}@{socket.gethostname()}",
            "digest": digest(basis),
            "basis": basis,
            "release": {
                key: self.artefact.get(key)
                for key in ("commit", "subject", "frontend", "dirty", "digest", "commits", "undone")
            },
            "settings": self.settings(),
            "migrations": migrations,
            "connections": self.preview.get("connections"),
            "problems": {host: known["problems"] for host, known in self.status.items() if known["live"]},
            "stops": list(self.stops()),
        }


def fenced(text: str, language: str) -> list[str]:
    """Return a text as a block of code, whatever is in it."""
    fence = fence_for(text)
    lines = text.splitlines()
    left = len(lines) - LINES_OF_DIFF
    shown = lines[:LINES_OF_DIFF] + ([f"... and {left} more lines, which the JSON file has"] if left > 0 else [])
    return [f"{fence}{language}", *shown, fence, ""]


def listed(items: Iterable[str], nothing: str = "none") -> list[str]:
    """Return a list's lines."""
    return [f"- {in_markdown(item)}" for item in items] or [nothing]


class Text:
    """A plan in words."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.plan, self.basis = plan, plan["basis"]
        self.hosts = list(self.basis["live"])

    def of(self, hosts: list[str]) -> str:
        """Return which hosts, where it is not all of them."""
        return "" if hosts == self.hosts else f" ({', '.join(hosts)})"

    def changes(self, *kinds: str) -> list[Change]:
        """Return the changes of some kinds."""
        return [change for change in self.basis["changes"] if change["kind"] in kinds]

    def name(self, change: Change) -> str:
        """Return what a change is about, in one line."""
        return f"{change['resource'] or change['task']}{self.of(change['hosts'])}"

    def moves(self) -> list[str]:
        """Return a line for each step from a release to another one."""
        target = self.basis["release"]
        return [
            f"{target} stays{self.of(hosts)}" if live == target else f"{live or 'nothing'} -> {target}{self.of(hosts)}"
            for hosts, live in grouped(self.basis["live"].items())
        ]

    def settings(self) -> list[str]:
        """Return a line for each way in which settings change."""
        lines = []
        for entry in self.plan["settings"]:
            if entry["keys"] is None:
                lines.append(f"cannot be told: the host's program is older than this checkout{self.of(entry['hosts'])}")
                continue
            for word, keys in entry["keys"].items():
                if keys:
                    lines.append(f"{word}: {', '.join(keys)}{self.of(entry['hosts'])}")
        return lines

    def revisions(self) -> list[dict[str, Any]]:
        """Return the revisions that would be applied."""
        found: list[dict[str, Any]] = (self.plan["migrations"] or {}).get("pending", [])
        return found

    def restarts(self) -> list[str]:
        """Return what would be restarted, reloaded, started or switched."""
        target, lines = self.basis["release"], []
        for hosts, live in grouped(self.basis["live"].items()):
            if not live:
                lines.append(f"the application starts for the first time{self.of(hosts)}")
            elif live != target:
                beside = "the release starts beside the live one and takes over without a restart or a lost request"
                lines.append(f"{beside}{self.of(hosts)}")
        for change in self.changes("application"):
            repaired = [host for host in change["hosts"] if self.basis["live"][host] == target]
            if repaired:
                problems = {problem for host in repaired for problem in self.plan["problems"].get(host, [])}
                lines.append(
                    f"{change['task']}{self.of(repaired)}: {'; '.join(sorted(problems)) or 'its units changed'}"
                )
        return lines + [self.name({**change, "resource": change["task"]}) for change in self.changes("handlers")]

    def nothing(self) -> bool:
        """Return True if the run would change nothing."""
        same = set(self.basis["live"].values()) == {self.basis["release"]}
        return same and not self.basis["changes"] and not self.revisions()

    def markdown(self, command: str) -> str:
        """Return the plan for a person who approves it."""
        plan, release = self.plan, self.plan["release"]
        lines = [f"# Plan for {plan['environment']}", ""]
        lines += [f"Hosts: {', '.join(self.hosts)}. Made {plan['at']} by {plan['by']}; nothing was changed.", ""]
        if plan["stops"]:
            lines += ["## The run would stop", "", *listed(plan["stops"]), ""]
        if self.nothing():
            lines += ["**Nothing would change.**", ""]
        lines += ["## Release", "", *listed(self.moves()), ""]
        dirty = ", with changes that are not committed" if release["dirty"] else ""
        lines += [f"Code: commit {str(release['commit'])[:12]}, {in_markdown(release['subject'])}{dirty}", ""]
        if front_end := release["frontend"]:
            lines += [f"Front end: commit {front_end['commit'][:12]}, {in_markdown(front_end['subject'])}", ""]
        for title, key in (("Commits that come", "commits"), ("Commits that are taken back", "undone")):
            if release[key]:
                lines += [f"### {title}", "", *listed(release[key]), ""]
        if any(self.basis["live"].values()) and release["commits"] is None:
            lines += ["The live release's commit is not in this repository: its commits cannot be listed.", ""]
        lines += ["## Settings", "", *listed(self.settings(), "none change"), ""]
        lines += ["## Migrations", "", *self.migrations_in_full()]
        if sums := (plan["connections"] or {}).get("sums"):
            lines += ["## Connections", "", in_markdown(sums), ""]
        for title, kinds in (
            ("Packages", ("packages",)),
            ("Files", ("files",)),
            ("Services, accounts and everything else", ("services", "accounts", "database", "other")),
        ):
            lines += [f"## {title}", "", *self.in_full(self.changes(*kinds))]
        lines += ["## Restarts", "", *listed(self.restarts()), ""]
        lines += ["## Hold a run to this plan", "", *fenced(command, "")]
        return "\n".join(lines)

    def migrations_in_full(self) -> list[str]:
        """Return the section about the schema."""
        migrations = self.plan["migrations"]
        if migrations is None:
            return ["The application has none.", ""]
        if migrations.get("unproven"):
            lines = [
                "None of the artefact's code was run, since it was not proven: its SQL, which revisions are pending",
                "and the connections need the proof, or a reason (`-e 'promotion_override=\"the reason\"'`).",
                "The artefact has:",
                "",
            ]
        elif migrations.get("bare"):
            lacks = "lacks packages that the release needs (app_packages)"
            why = lacks if any(self.basis["live"].values()) else "has no release yet"
            lines = [f"This host {why}, so the database was not asked. The release brings:", ""]
        else:
            at = f"The database is at {migrations['current'] or 'no revision'}; {migrations['head']} is wanted."
            # Without Alembic there are no revisions, and the command runs at each deploy (app_schema_command).
            lines = [in_markdown(at), ""] if migrations["head"] else []
        for revision in self.revisions():
            lines += [f"### {in_markdown(revision['revision'] + ': ' + revision['message'])}", ""]
            if revision.get("compatible"):
                lines += ["Older code works on it.", ""]
            if revision["statements"]:
                lines += fenced("\n".join(f"{statement};" for statement in revision["statements"]), "sql")
            lines += [f"WARNING: {in_markdown(warning)}\n" for warning in revision["warnings"]]
        return lines

    def in_full(self, changes: list[Change]) -> list[str]:
        """Return changes with their diffs."""
        lines = []
        for change in changes:
            lines += [f"### {in_markdown(self.name(change))}", ""]
            language = "diff" if change["kind"] == "files" else ""
            lines += [f"{change['task']}.", "", *(fenced(change["text"], language) if change["text"] else [])]
        return lines or ["none", ""]

    def short(self) -> Iterator[str]:
        """Yield the plan for a terminal, line by line."""
        release = self.plan["release"]
        warnings = sum(len(revision["warnings"]) for revision in self.revisions())
        pending = [f"{revision['revision']}: {revision['message']}" for revision in self.revisions()]
        if pending and (self.plan["migrations"] or {}).get("unproven"):
            pending.append("which of them are pending needs the proof, or promotion_override")
        others = self.changes("services", "accounts", "database", "other")
        sections = {
            "WOULD STOP": self.plan["stops"],
            "release": self.moves(),
            "commits": release["commits"] or [],
            "taken back": release["undone"] or [],
            "settings": self.settings() or ["none"],
            "migrations": pending + ([f"{warnings} WARNING(s), see the file"] if warnings else []) or ["none"],
            "packages": [self.packages(change) for change in self.changes("packages")] or ["none"],
            "files": [self.name(change) for change in self.changes("files")] or ["none"],
            "else": [f"{change['task']}{self.of(change['hosts'])}" for change in others] or ["none"],
            "restarts": self.restarts() or ["none"],
        }
        for title, lines in sections.items():
            left = len(lines) - LINES_IN_SHORT
            shown = lines[:LINES_IN_SHORT] + ([f"and {left} more, see the file"] if left > 0 else [])
            for number, line in enumerate(shown):
                yield f"  {'' if number else title:<12}{one_line(line)}"

    def packages(self, change: Change) -> str:
        """Return the packages that come and go, in one line."""
        words = [line.split() for line in str(change["text"]).splitlines()]
        names = [("-" if line[0] == "Remv" else "") + line[1] for line in words if line[:1] in (["Inst"], ["Remv"])]
        return f"{', '.join(names)}{self.of(change['hosts'])}" if names else self.name(change)


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Arguments:
        hosts: those of the environment; the first one was asked for all of them.
        records: what a run that only looked would have changed (the action `recorded`).
        folder: where plan-<environment>.md and .json are written.

    What the role app found out about the release is taken from the hosts' variables, where its tasks left it.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("hosts", "records", "folder"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the plan and show it; return it as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, hosts = task_vars or {}, [str(host) for host in self._task.args["hosts"]]
        hostvars = {host: variables["hostvars"][host] for host in hosts}
        leader = hostvars[hosts[0]]
        preview = leader.get("__app_prepared") or {}
        found = Environment(
            name=str(variables["environment_name"]),
            status={host: known["__app_status"] for host, known in hostvars.items()},
            planned=leader["__app_planned"],
            artefact=leader["__app_artefact"],
            preview=preview if "migrations" in preview else {},
            proof=leader.get("__app_promotion") or {},
        )
        records = [record for record in self._task.args["records"] if record["host"] in hosts]
        plan = found.plan(records)
        folder = Path(str(self._task.args["folder"]))
        files = {kind: folder / f"plan-{found.name}.{kind}" for kind in ("md", "json")}
        command = self._held_to(files["json"])
        text = Text(plan)
        write_inside(folder, files["json"].name, text=json.dumps(plan, indent=1) + "\n")
        write_inside(folder, files["md"].name, text=text.markdown(command))
        words = [f"plan for {found.name} ({', '.join(hosts)}): {self._shown(files['md'])}", *text.short()]
        self._display.display("\n".join(["", *words, f"  hold to it  {command}", ""]))
        result.update(changed=False, plan=str(files["json"]), digest=plan["digest"])
        return result

    def _held_to(self, path: Path) -> str:
        """Return the command that does what is planned, with this run's own options."""
        playbooks = context.CLIARGS.get("args", ())
        words = ["site.yml" if word in playbooks else word for word in sys.argv[1:]]
        return shlex.join(["ansible-playbook", *words, "-e", f"plan={self._shown(path)}"])

    def _shown(self, path: Path) -> str:
        """Return a path as somebody in this folder types it."""
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
