"""The program that installs, starts and switches releases on a host, with systemd and the application played."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support import ROOT, module_at

release = module_at("roles/app/files/release.py")
# The modules that it has imported.
activation, basics, bundles, changes, connections, gate, records, runtimes, schema, serve, slots, store = (
    sys.modules[name]
    for name in (
        "activation", "basics", "bundle", "schema_changes", "connections", "gate", "records", "runtimes", "schema",
        "serve", "slots", "releases",
    )
)  # fmt: skip
Abandoned, DeployRequest, Run = activation.Abandoned, activation.DeployRequest, activation.Run
Account, Server = connections.Account, connections.Server
Bundle = bundles.Bundle
Busy, Releases = store.Busy, store.Releases
Config, Slot, alive = slots.Config, slots.Slot, slots.alive
Host = sys.modules["host"].Host
Preparation = sys.modules["preparation"].Preparation
Receipts, Records = sys.modules["receipts"].Receipts, records.Records
ReleaseError, replace_link = basics.ReleaseError, basics.replace_link
Schema, SchemaChange, SchemaChanges = schema.Schema, changes.SchemaChange, changes.SchemaChanges
NOTHING_PLANNED = schema.NOTHING_PLANNED
Tables = sys.modules["tables"].Tables


def stand_in(monkeypatch: pytest.MonkeyPatch, original: Any, other: Any) -> None:
    """Put something in the place of a function or a class, in every program that has imported it."""
    for module in list(sys.modules.values()):
        if Path(getattr(module, "__file__", None) or "").parent == ROOT / "roles/app/files":
            for name in [name for name, value in vars(module).items() if value is original]:
                monkeypatch.setattr(module, name, other)


class Systemd:
    """Answers the few commands that the program gives to systemd, and stands in for the application."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.active: set[str] = set()
        self.enabled: set[str] = set()
        self.changed: set[str] = set()
        self.broken: set[str] = set()
        self.answers: dict[str, str] = {}
        self.log = "ModuleNotFoundError: No module named 'nba.typo'\n"
        # That of the database.
        self.revision: str | None = "0001"

    def run(self, *command: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        assert words[0] in ("systemctl", "journalctl"), words
        units = [word for word in words[2:] if "@" in word and not word.startswith("-")]
        out = ""
        if "--no-reload" in words:
            # systemd then says so of every unit.
            self.changed.update(f"nba@{slot}.{kind}" for slot in ("blue", "green") for kind in ("service", "socket"))
        match words[0] if words[0] == "journalctl" else words[1]:
            case "show":
                out = self.show(units[0])
            case "is-enabled":
                out = "".join("enabled\n" if unit in self.enabled else "disabled\n" for unit in units)
            case "enable":
                self.enabled.update(units)
            case "disable":
                self.enabled.difference_update(units)
            case "start" | "restart":
                for unit in units:
                    self.start(unit)
            case "stop":
                self.active.difference_update(units)
            case "daemon-reload":
                self.changed.clear()
            case "journalctl":
                out = self.log
            case "unmask" | "reset-failed":
                pass
            case other:
                raise AssertionError(other)
        return subprocess.CompletedProcess(words, 0, out, "")

    def start(self, unit: str) -> None:
        slot = unit.partition("@")[2].partition(".")[0]
        release = (self.root / "slots" / slot / "release").readlink().name
        if unit.endswith(".socket") or release not in self.broken:
            self.active.add(unit)
            self.answers[slot] = release

    def show(self, unit: str) -> str:
        state = {
            "ActiveState": "active" if unit in self.active else "inactive",
            "NeedDaemonReload": "yes" if unit in self.changed else "no",
            "InvocationID": "",
            "MainPID": "0",
        }
        return "".join(f"{key}={value}\n" for key, value in state.items())

    def ask(self, slot: Any) -> tuple[int, str]:
        if slot.service not in self.active:
            return 0, "ConnectionRefusedError"
        return 200, json.dumps({"release": self.answers[slot.name]})


CONFIG: dict[str, Any] = {
    "name": "nba",
    "user": "nba",
    "migration_user": "nba-migrate",
    "build_user": "nba-build",
    "poetry": "/usr/local/bin/poetry",
    "uv": "/usr/local/bin/uv",
    "python": "/usr/bin/python3",
    "pythons": "/usr/local/lib/waffle-iron/python",
    "index_url": "",
    "packages_from_source": [],
    "public_url": "",
    "public_host": "localhost",
    "request_timeout_seconds": 30,
    "graceful_timeout_seconds": 30,
    "start_timeout_seconds": 1,
    "settle_seconds": 0,
    "watch_seconds": 0,
    "drain_seconds": 0,
    "confirm_seconds": 0,
    "workers_max": 4,
    "pool_settings": {"size": "POOL_SIZE", "overflow": "POOL_OVERFLOW", "recycle_seconds": "POOL_RECYCLE"},
    "connection_reserve": 10,
    "keep_releases": 2,
    "certificate_files": [],
}


APPLICATION: dict[str, Any] = {
    "module": "nba.main:app",
    "ready_path": "/health/ready",
    "settings_command": ["python", "-m", "nba.settings"],
    "alembic": "alembic.ini",
}


class Clock:
    """Is moved by nothing but sleep, and lets nobody sleep for ever."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "nothing ends this"


def put(host: Any, name: str, venv: str = "venv", **state: Any) -> Path:
    """Make a finished release."""
    folder: Path = host.releases.folder(name)
    folder.mkdir()
    applies(folder)
    (folder / ".env").write_text("A=1\n")
    for link, place in ((".venv", f"venvs/{venv}"), (".server", "servers/server")):
        shared: Path = host.config.root / place
        shared.mkdir(exist_ok=True)
        (shared / ".complete").touch()
        host.releases.integrity.record(shared)
        (folder / link).symlink_to(shared)
    host.releases.update_state(name, **{"state": "prepared", "at": 0, **state})
    return folder


def applies(folder: Path, **stated: Any) -> None:
    """State the application of a release; without more, one with Alembic."""
    facts = {"release": folder.name, "application": {**APPLICATION, **stated}}
    (folder / "release.json").write_text(json.dumps(facts))


class Progress:
    """A run that goes on, phase by phase, or is stopped at one of them."""

    def __init__(self, stop: str = "") -> None:
        self.stop, self.phases = stop, list[str]()

    def checkpoint(self, phase: str, patient: bool = False) -> None:
        self.phases.append(phase)
        if phase == self.stop:
            raise Abandoned("another host refused it")


def activate(host: Any, request: Any, progress: Progress, change: Any = None) -> None:
    host.deployment.activate(request, progress, change or SchemaChange())


def deploy(host: Any, name: str, stop: str = "") -> None:
    activate(host, DeployRequest("deploy", name, "me"), Progress(stop))


def configure(host: Any, **changed: Any) -> None:
    """Change values of a host's configuration for all of its parts."""
    vars(host).update(vars(Host(dataclasses.replace(host.config, **changed))))


def live_and_problems(host: Any) -> tuple[str, list[str]]:
    """Return the live release, and what is wrong with it."""
    return host.releases.live_release, host.inspection.problems()


def member(name: str, content: bytes = b"", link: str = "", kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> Any:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = len(content), mode, kind
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    return info, content


def sent(release: str, *members: Any, digest: str = "", **changed: str) -> io.BytesIO:
    """Return what Ansible sends for a release; ``changed`` files are named without their dot."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for info, content in members or [member("poetry.lock", b"# lock\n")]:
            tar.addfile(info, io.BytesIO(content))
    digest = digest or hashlib.sha256(archive.getvalue()).hexdigest()
    facts = json.dumps({"release": release, "artefact": digest, "commit": "c0ffee", "application": APPLICATION})
    files = {".env": "A=1\n", ".env.migrate": "B=2\n", ".mysql.cnf": "[client]\n", "release.json": facts}
    files.update({f".{name}": text for name, text in changed.items()})
    words = json.dumps({"files": files, "bytes": len(archive.getvalue())}).encode()
    return io.BytesIO(words + b"\n" + archive.getvalue())


def brought(host: Any, release: str, *members: Any, digest: str = "") -> Any:
    """Return what Ansible brings for a release."""
    return Bundle.of(sent(release, *members, digest=digest), host.config.root)


CHECK_SETTINGS = Preparation.check_settings


def said(release: str, **more: Any) -> tuple[int, str]:
    return 200, json.dumps({"release": release, **more})


class Marks:
    """Stands in for the schema of the live release, which knows the revisions between."""

    def __init__(self, releases: Any, release: str) -> None:
        self.release = release

    def refuse_interrupted(self) -> None:
        if self.interrupted:
            raise ReleaseError("revision 0002 was interrupted")

    def revision(self) -> str:
        return str(schema.recorded(None))

    def head(self) -> str:
        return {"old": "0001", "new": "0002"}[self.release]

    def run(self, *arguments: str) -> dict[str, Any]:
        assert (self.release, arguments) == ("new", ("compatible", "0001", "0002"))
        return {"compatible": not self.unmarked, "unmarked": self.unmarked}

    unmarked: ClassVar[list[str]] = []
    interrupted = False


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a short path: that of a Unix socket has at most 107 bytes."""
    return tempfile.TemporaryDirectory(prefix="wi-", dir="/tmp")


class Lead:
    """Stands in for the run that holds the lock, and for the unit that would be started."""

    def __init__(self, host: Any, monkeypatch: pytest.MonkeyPatch, **progress: Any) -> None:
        self.said: list[str] = []
        self.followed: dict[str, Any] = {"phase": "done", "receipt": {"outcome": "?"}}
        self.at_work = bool(progress)
        run = Run
        monkeypatch.setattr(run, "active", lambda _: self.at_work)
        monkeypatch.setattr(run, "progress", lambda _: progress)
        monkeypatch.setattr(run, "abandon", lambda _, reason: self.say("abandon", None))
        monkeypatch.setattr(run, "follow", lambda *_: self.say("follow", self.followed))
        monkeypatch.setattr(run, "begin", lambda _, request, *rest: self.say(str(request), "t2"))
        self.host = host

    def say(self, words: str, answer: Any) -> Any:
        self.said.append(words)
        return answer

    def run(self, *command: str) -> Any:
        options = release.parser().parse_args(command)
        return release.dispatch(self.host, options)
