"""The application: its release, its unit, its socket, and what it says of its health."""

from __future__ import annotations

import http.client
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.database_settings import application_of
from ansible_collections.waffle.iron.plugins.module_utils.doctor.findings import Area, call, properties
from ansible_collections.waffle.iron.plugins.module_utils.sandbox import opened
from ansible_collections.waffle.iron.plugins.module_utils.unix_http import UnixConnection

SECONDS = 6.0
# What the server of each release answers, whatever the application is.
VERSION = "/.waffle/version"
SLOTS = ("blue", "green")
# What makes a process end or not start, wherever it comes from.
RESOURCES = ("host.disk", "host.inodes", "host.memory")


def get(
    connection: http.client.HTTPConnection, path: str, host: str = "localhost", headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Send one GET; return status and body, or 0 and why there was no answer."""
    try:
        connection.request("GET", path, headers={"Host": host, "Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 16).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    finally:
        connection.close()


def parsed(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; nothing if there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def live_release(root: Path) -> tuple[str, Path | None]:
    """Return the slot that gets the public requests and the folder of its release; nothing if there is none."""
    try:
        slot = (root / "live").readlink().name
        release = root / "releases" / (root / "slots" / slot / "release").readlink().name
    except OSError:
        return "", None
    return (slot, release) if slot in SLOTS and release.is_dir() else ("", None)


def unit(area: Area, shown: Mapping[str, str], name: str, slot: str, target: str) -> bool:
    """Note what is wrong with a unit by its properties; tell whether it runs."""
    service = f"{name}@{slot}.service"
    repair, log = f"ansible-playbook site.yml {target}", f"on the host: journalctl -n 50 -t {name}-{slot}"
    state = shown.get("ActiveState", "unknown")
    reasons = {
        "oom-kill": "it was killed for want of memory: raise memory_max in group_vars/<environment>/vars.yml",
        "timeout": "it did not start in time",
        "exit-code": f"it exited with status {shown.get('ExecMainStatus', 'unknown')}",
        "signal": "it was killed",
        "core-dump": "it crashed",
    }
    reason = reasons.get(shown.get("Result", ""), "")
    if shown.get("UnitFileState", "").startswith("masked"):
        area.add("service", f"{service} is masked, so nothing can start it", repair)
    elif state == "active":
        return True
    elif reason:
        area.add("service", f"{service} is {state}: {reason}", f"{log}; then: {repair}", follows=RESOURCES)
    else:
        area.add("service", f"{service} is {state}", repair, follows=RESOURCES)
    return False


def sockets(area: Area, name: str, slot: str, target: str) -> bool:
    """Note what is wrong with a slot's socket; tell whether it can be connected to."""
    path, repair = f"/run/{name}/{slot}.sock", f"ansible-playbook site.yml {target}"
    state = properties(f"{name}@{slot}.socket", "ActiveState").get("ActiveState", "unknown")
    try:
        there = stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        there = False
    if there and state == "active":
        return True
    what = f"{name}@{slot}.socket is {state}" if state != "active" else f"its socket {path} is gone"
    area.add("socket", f"the service runs, and {what}", repair)
    return False


def answers(area: Area, config: Mapping[str, Any], slot: str, release: Path, target: str) -> None:
    """Note what the release on the socket says of itself: its version and its health."""
    path, application = f"{config['root']}/slots/{slot}/socket", application_of(release)
    repair = f"ansible-playbook site.yml {target}"
    log = f"on the host: journalctl -n 50 -t {config['name']}-{slot}"
    status, body = get(UnixConnection(path, SECONDS), VERSION)
    answering = str(parsed(body).get("release", ""))
    if status == 0:
        command = f"{log}; then: {repair}"
        area.add("silent", f"the service runs, and does not answer on its socket: {body}", command, follows=RESOURCES)
        return
    if not application:
        area.facts["health"] = "not asked: its release is of an older version"
        return
    if answering != release.name:
        words = f"{answering or f'no release (HTTP {status})'} answers where {release.name} is live"
        area.add("release", words, repair)
        return
    ready = str(application.get("ready_path", "/"))
    # As nginx asks it: an application may refuse other names, or send plain HTTP elsewhere.
    name = "localhost" if config["public_host"] == "_" else str(config["public_host"])
    status, body = get(
        UnixConnection(path, SECONDS), ready, name, {"X-Forwarded-Proto": str(application.get("scheme", "http"))}
    )
    is_well = 0 < status < 500 if application.get("ready_answers") == "any" else 200 <= status < 300
    reason = str(parsed(body).get("reason") or body[:200])
    area.facts["health"] = "ready" if is_well else reason or f"HTTP {status or 'nothing'}"
    if not is_well:
        words = f"{ready} answers {status or 'nothing'}: {reason}"
        area.add("health", words, log, follows=("database", *RESOURCES) if "database" in reason else RESOURCES)


def examine(config: Mapping[str, Any], program: str, target: str) -> Area:
    """Return what is wrong with the application, from its release to its answer.

    Args:
        config: what the release program was told (release.json).
        program: path of the release program.
        target: options for the next command, such as ``-l dev``.
    """
    area, name = Area("application"), str(config["name"])
    slot, release = live_release(Path(config["root"]))
    status = parsed(call(program, "status").out)
    known: dict[str, Any] = next(
        (one for one in status.get("releases", []) if release and one.get("id") == release.name), {}
    )
    area.facts = {
        "release": release.name if release else "",
        "slot": slot,
        "commit": str(known.get("commit") or "")[:8],
        "subject": str(known.get("subject") or ""),
        "since": known.get("at"),
        "running": status.get("running") or "",
    }
    if release is None:
        return area.add("live", "no release is live", f"ansible-playbook playbooks/deploy.yml {target}")
    shown = properties(f"{name}@{slot}.service", "ActiveState", "UnitFileState", "Result", "ExecMainStatus")
    if unit(area, shown, name, slot, target) and sockets(area, name, slot, target):
        answers(area, config, slot, release, target)
    if not area.findings:
        for problem in status.get("problems", []):
            area.add("state", problem, f"ansible-playbook site.yml {target}", urgent=False)
    area.checked = [f"release {release.name} in {slot}", "its service, socket and health"]
    return area


def sandbox(library: Path) -> Area:
    """Return what of the unit's sandbox is open: no fault, for somebody decided it (`app_sandbox`).

    Args:
        library: where the role installs what the programs are told.
    """
    try:
        known = parsed((library / "sandbox.json").read_text())
    except FileNotFoundError:
        known = {}
    return Area("sandbox", checked=[f"{assignment} ({words})" for assignment, words in opened(known).items()])
