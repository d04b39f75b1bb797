"""The program that installs, starts and switches releases on a host, with systemd and the application played."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import itertools
import json
import os
import shutil
import socketserver
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.support import module_at

release = module_at("roles/app/files/release.py")
program, slots, bundles = sys.modules["host"], sys.modules["slots"], sys.modules["bundle"]
runtimes, gate = sys.modules["runtimes"], sys.modules["gate"]


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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "srv"
    for folder in ("releases", "venvs", "servers", "images", "state", "slots/blue", "slots/green"):
        (root / folder).mkdir(parents=True)
    for slot in program.SLOTS:
        (root / "slots" / slot / "socket").symlink_to(tmp_path / f"{slot}.sock")
    return root


@pytest.fixture
def systemd(root: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    systemd = Systemd(root)
    for module in (program, slots):
        monkeypatch.setattr(module, "run", systemd.run)
    monkeypatch.setattr(program.Slot, "ask", lambda slot, path, **_: systemd.ask(slot))
    monkeypatch.setattr(program.Path, "is_socket", lambda path: path.is_symlink())
    monkeypatch.setattr(program.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(program.Run, "active", lambda run: False)
    monkeypatch.setattr(program.Schema, "refuse_interrupted", lambda schema: None)
    for module in (program, sys.modules["schema"]):
        monkeypatch.setattr(module, "recorded", lambda root: systemd.revision)
    # A slot's name stands for the id of its process.
    monkeypatch.setattr(program.Slot, "main", lambda slot: slot.name if slot.service in systemd.active else "0")
    for module in (program, gate):
        monkeypatch.setattr(module, "alive", lambda main: f"nba@{main}.service" in systemd.active)
    monkeypatch.setattr(gate, "workers_of", lambda main: set())
    return systemd


class Clock:
    """Is moved by nothing but sleep, and lets nobody sleep for ever."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "nothing ends this"


@pytest.fixture
def clock(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(program.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(program.time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def host(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "release.json").write_text(json.dumps({**CONFIG, "root": str(root)}))
    monkeypatch.setattr(slots, "CONFIG", tmp_path / "release.json")
    return program.Host(program.Config.load())


def put(host: Any, name: str, venv: str = "venv", **state: Any) -> Path:
    """Make a finished release."""
    folder: Path = host.folder(name)
    folder.mkdir()
    applies(folder)
    (folder / ".env").write_text("A=1\n")
    for link, place in ((".venv", f"venvs/{venv}"), (".server", "servers/server")):
        shared: Path = host.config.root / place
        shared.mkdir(exist_ok=True)
        (shared / ".complete").touch()
        host.integrity.record(shared)
        (folder / link).symlink_to(shared)
    host.update_state(name, **{"state": "prepared", "at": 0, **state})
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
            raise program.Abandoned("another host refused it")


def deploy(host: Any, name: str, stop: str = "") -> None:
    host.activate(program.DeployRequest("deploy", name, "me"), Progress(stop))


# --- looking ---


def test_a_bare_host(host: Any, systemd: Systemd) -> None:
    status = host.status()
    assert status.pop("problems") == ["no release is live"]
    nothing = {"live": "", "slot": "", "damaged": False, "running": "", "releases": []}
    assert status == {**nothing, "settings": {}, "workers": host.workers()}


def test_a_live_and_healthy_release(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    status = host.status()
    assert (status["live"], status["slot"], status["problems"]) == ("r1", "blue", [])
    assert [(release["id"], release["state"]) for release in status["releases"]] == [("r1", "good")]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.active.clear(), "nba@blue.service is inactive"),
        (lambda s: s.enabled.remove("nba@blue.service"), "nba@blue.service is disabled, not enabled"),
        (lambda s: s.enabled.remove("nba@blue.socket"), "nba@blue.socket is disabled, not enabled"),
        (lambda s: s.changed.add("nba@blue.service"), "was changed since systemd read it"),
        (lambda s: s.answers.update(blue="r0"), "r0 answers where r1 is live"),
        (lambda s: s.answers.update(blue=""), "nothing answers where r1 is live"),
        (lambda s: s.active.add("nba@green.service"), "nba@green.service still runs"),
        (lambda s: s.enabled.add("nba@green.service"), "nba@green.service still runs or is enabled"),
        (lambda s: (s.root / "slots/blue/socket").unlink(), "the socket of nba@blue.socket is gone"),
    ],
)
def test_problems_are_found_and_repaired(host: Any, systemd: Systemd, damage: Any, words: str) -> None:
    put(host, "r1")
    deploy(host, "r1")
    damage(systemd)
    (problem,) = host.problems()
    assert words in problem
    if "socket of" in words:  # the socket unit of a real systemd would make it again
        (systemd.root / "slots/blue/socket").symlink_to("anywhere")
    host.repair(Progress())
    assert host.problems() == []


def test_a_live_release_that_is_gone_is_a_problem(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    shutil.rmtree(host.folder("r1"))
    assert host.problems() == ["the live slot blue points to a release that is not there: r1"]


def test_a_repair_that_fails_says_so(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    systemd.active.clear()
    systemd.broken.add("r1")
    with pytest.raises(program.ReleaseError, match="main process ended"):
        host.repair(Progress())


def test_the_releases_are_listed_with_what_is_known_of_them(host: Any) -> None:
    known = {"by": "alice@laptop", "commit": "c0ffee1234567890", "subject": "Add teams", "schema": "0002_teams"}
    put(host, "r1", state="good", at=1767323045, seconds=9.84, **known)
    put(host, "r2", state="failed", at=1767409506, commit="decade0987654321", subject="Add a typo")
    put(host, "r3", state="good", at=1767495967, seconds=104.31, **{**known, "subject": "Repair teams"})
    program.replace_link(host.slot("blue").folder / "release", host.folder("r3"))
    program.replace_link(host.config.root / "live", host.slot("blue").folder)
    assert host.listing() == [
        "r3  live        2026-01-04 03:06:07  0002_teams    104.3 s  alice@laptop          c0ffee12  Repair teams",
        "r2  failed      2026-01-03 03:05:06  -               0.0 s  -                     decade09  Add a typo",
        "r1  good        2026-01-02 03:04:05  0002_teams      9.8 s  alice@laptop          c0ffee12  Add teams",
    ]


# --- preparing ---


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Play the groups of the host; return who was given which secret."""
    given: dict[str, int] = {}
    groups = {"nba": 901, "nba-migrate": 902}
    monkeypatch.setattr(bundles.grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=groups[name]))

    def chown(path: Path, uid: int, gid: int) -> None:
        if gid != -1:  # tarfile leaves the group as it is
            given[Path(path).name] = gid

    monkeypatch.setattr(bundles.os, "chown", chown)
    return given


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Play the installation of dependencies and the check of the settings."""
    calls: list[str] = []
    monkeypatch.setattr(runtimes.Venv, "make", lambda venv, folder: calls.append("venv"))
    monkeypatch.setattr(program.Host, "check_settings", lambda host, folder: calls.append("settings"))
    return calls


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
    return program.Bundle.of(sent(release, *members, digest=digest), host.config.root)


def test_prepares_a_release(host: Any, accounts: dict[str, int], installed: list[str]) -> None:
    umask = os.umask(0o077)
    try:
        bundle = brought(
            host,
            "r1",
            member("poetry.lock", b"# lock\n"),
            member("nba/main.py", b"app = 1\n"),
            member("run", b"#!/bin/sh\n", mode=0o755),
            member("latest", link="nba/main.py"),
        )
        host.prepare("r1", bundle)
    finally:
        os.umask(umask)
    folder = host.folder("r1")
    assert (folder / "latest").read_text() == "app = 1\n"
    modes = {name: oct((folder / name).stat().st_mode & 0o777) for name in ("", "nba", "nba/main.py", "run", ".env")}
    assert modes == {"": "0o755", "nba": "0o755", "nba/main.py": "0o644", "run": "0o755", ".env": "0o640"}
    assert accounts == {".env": 901, ".env.migrate": 902, ".mysql.cnf": 902}
    assert installed == ["venv", "settings"]
    state = host.state("r1")
    assert (state["state"], state["commit"]) == ("prepared", "c0ffee")
    assert host.releases() == ["r1"]
    assert [path.name for path in folder.parent.iterdir()] == ["r1"]


def test_a_prepared_release_is_never_changed(host: Any, accounts: dict[str, int], installed: list[str]) -> None:
    host.prepare("r1", brought(host, "r1"))
    before = (host.folder("r1") / "poetry.lock").read_text()
    host.prepare("r1", brought(host, "r1", member("poetry.lock", b"# another\n")))
    assert (host.folder("r1") / "poetry.lock").read_text() == before


def test_what_another_run_prepared_meanwhile_is_taken(
    host: Any, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def waited(*_: Any) -> Iterator[None]:
        """The other run had the lock, and was done with the same release."""
        put(host, "r1")
        yield

    monkeypatch.setattr(program.Host, "only_one_prepares", waited)
    host.prepare("r1", brought(host, "r1"))
    assert installed == []


def test_who_comes_while_another_prepares_is_told_who(
    host: Any, clock: Clock, accounts: dict[str, int], installed: list[str]
) -> None:
    told = r"prepares a release on this host: deploy of r2 by bob, since 20.* UTC\.\nWait for it"
    with host.only_one_prepares("deploy of r2 by bob"), pytest.raises(program.Busy, match=told):
        host.prepare("r1", brought(host, "r1"), "deploy of r1 by alice", 0)
    assert (host.releases(), installed, clock.now < 12) == ([], [], True)


@pytest.mark.parametrize(
    ("holder", "wait", "ends"),
    [
        pytest.param("deploy of r2 by bob", 30, 25, id="if that is wanted"),
        pytest.param("deploy of r2 by bob", 0, 8, id="what is over soon"),
        pytest.param("", 0, 60, id="a clean-up"),
        pytest.param("deploy of r1 by alice", 0, 60, id="the same request, which has lost its control node"),
    ],
)
def test_another_preparation_is_waited_for(  # noqa: PLR0917
    host: Any,
    clock: Clock,
    accounts: dict[str, int],
    installed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    holder: str,
    wait: float,
    ends: float,
) -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(host.only_one_prepares(holder))

    def wait_for_its_end(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > ends:
            stack.close()

    monkeypatch.setattr(program.time, "sleep", wait_for_its_end)
    host.prepare("r1", brought(host, "r1"), "deploy of r1 by alice", wait)
    assert (host.releases(), clock.now > ends) == (["r1"], True)


@pytest.fixture(params=["with a filter", "as Debian 12"])
def filters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play the Python of each host: 3.11.2 of Debian 12 has no filters for archives."""
    if request.param == "as Debian 12":
        monkeypatch.delattr(tarfile, "data_filter")


@pytest.mark.usefixtures("filters", "installed")
def test_what_is_unpacked_is_root_s_whatever_the_archive_says(host: Any, accounts: dict[str, int]) -> None:
    hostile = member("run", b"#!/bin/sh\n", mode=0o6777)
    hostile[0].uid, hostile[0].gid, hostile[0].uname, hostile[0].gname = 1001, 1001, "ada", "ada"
    bundle = brought(host, "r1", member("poetry.lock", b"# lock\n"), hostile)
    members = list[tarfile.TarInfo]()
    extract = tarfile.TarFile.extractall

    def extracted(tar: tarfile.TarFile, folder: Path, wanted: list[tarfile.TarInfo], **options: Any) -> None:
        members.extend(wanted)
        extract(tar, folder, wanted, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", extracted)
        host.prepare("r1", bundle)
    assert {(each.uid, each.gid, each.uname, each.gname) for each in members} == {(0, 0, "", "")}
    assert [oct(each.mode) for each in members] == ["0o644", "0o755"]
    assert oct((host.folder("r1") / "run").stat().st_mode & 0o7777) == "0o755"


@pytest.mark.usefixtures("filters", "installed")
@pytest.mark.parametrize(
    "hostile",
    [
        [member("../outside", b"x")],
        [member("a/../../outside", b"x")],
        [member("/srv/outside", b"x")],
        [member("fifo", kind=tarfile.FIFOTYPE)],
        [member("device", kind=tarfile.CHRTYPE)],
        [member("hard", kind=tarfile.LNKTYPE)],
        [member("a", link="../../../outside")],
        [member("a", link="/etc")],
        [member("a", link="nba"), member("a/inside", b"x")],
        [member("a/b/up", link="../.."), member("out", link="a/b/up/../outside")],
        [member("a", link="nba"), member("a", b"written through the link")],
    ],
    ids=lambda members: " ".join(f"{info.name}>{info.linkname}" for info, _ in members),
)
def test_refuses_what_has_no_place_in_a_release(
    host: Any, root: Path, accounts: dict[str, int], hostile: list[Any]
) -> None:
    bundle = brought(host, "r1", member("poetry.lock", b"# lock\n"), *hostile)
    with pytest.raises(program.ReleaseError, match="has no place in a release"):
        host.prepare("r1", bundle)
    assert list((root / "releases").iterdir()) == []
    assert list(root.parent.rglob("outside")) == []
    assert host.state("r1") == {}


def test_refuses_another_digest(host: Any, root: Path, accounts: dict[str, int], installed: list[str]) -> None:
    with pytest.raises(program.ReleaseError, match="digest differs"):
        host.prepare("r1", brought(host, "r1", digest="0" * 64))
    assert list((root / "releases").iterdir()) == []


@pytest.mark.parametrize(("kept", "words"), [(-1, r"\(\d+ of \d+ bytes"), (40, r"\(0 of nobody knows"), (0, r"\(0 of")])
def test_what_did_not_arrive_whole_is_no_fault_of_the_release(host: Any, kept: int, words: str) -> None:
    whole = sent("r1").getvalue()
    stream = io.BytesIO(whole[:kept])
    with pytest.raises(program.ReleaseError, match=words):
        program.Bundle.of(stream, host.config.root)


def test_what_is_sent_is_read_to_its_end_also_where_it_is_of_no_use(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    stream = sent("r1")
    monkeypatch.setattr(bundles.shutil, "copyfileobj", refuse)
    with pytest.raises(OSError, match="No space"):
        program.Bundle.of(stream, host.config.root)
    assert stream.read() == b""


def test_refuses_to_fill_the_disk(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = brought(host, "r1")
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 20))
    with pytest.raises(program.ReleaseError, match="only 10 MiB are free"):
        host.prepare("r1", bundle)
    assert list((root / "releases").iterdir()) == []


def test_refused_settings_leave_nothing_behind_and_can_be_corrected(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(program.Host, "check_settings", CHECK_SETTINGS)
        patch.setattr(
            runtimes.Venv,
            "run",
            lambda *_: subprocess.CompletedProcess([], 1, "", "DATABASE_PORT: should be a valid integer\n"),
        )
        with pytest.raises(program.ReleaseError, match="DATABASE_PORT: should be a valid integer") as refusal:
            host.prepare("r1", brought(host, "r1"))
    assert "nothing was switched" in str(refusal.value)
    assert list((root / "releases").iterdir()) == []
    host.prepare("r1", brought(host, "r1"))
    assert host.releases() == ["r1"]


CHECK_SETTINGS = program.Host.check_settings


def test_a_secret_in_a_refusal_is_masked(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = sent("r1", env="DATABASE_PASSWORD=hunter2-hunter2\n")

    def refuse(*_: Any) -> None:
        raise program.ReleaseError("input_value='hunter2-hunter2'")

    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(program.Host, "prepare", refuse)
    monkeypatch.setattr(program.Host, "keep_records", lambda _, receipt, _facts: kept.append(receipt))
    monkeypatch.setattr(release.sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(program.ReleaseError) as refusal:
        release.prepare(host, SimpleNamespace(release="r1", by="me", wait=0))
    assert "hunter2" not in str(refusal.value) + str(kept)
    assert kept[0]["outcome"] == "failed"
    assert stream.read() == b"", "who sends it has sent all of it"


def test_an_interrupted_preparation_is_made_again(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str]
) -> None:
    (root / "releases/.r1.partial").mkdir()
    (root / "releases/.r1.partial/half").write_text("x")
    assert host.releases() == []
    host.prepare("r1", brought(host, "r1"))
    assert not (host.folder("r1") / "half").exists()


def test_a_preview_leaves_nothing(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(schema: Any, *arguments: str) -> dict[str, Any]:
        assert (host.folder(schema.release) / "poetry.lock").is_file()
        (root / "venvs/made").mkdir(exist_ok=True)
        asked.append(schema.release)
        return {"pending": []}

    monkeypatch.setattr(program.Schema, "run", run)
    (root / "venvs/kept").mkdir()
    bundle = brought(host, "r1")
    assert host.preview("r1", bundle, 2)["connections"] == {"checked": False}
    assert host.releases() == []
    assert [path.name for path in (root / "releases").iterdir()] == []
    assert [path.name for path in (root / "venvs").iterdir()] == ["kept"]
    # One that is there is looked at where it is, and stays.
    host.prepare("r1", brought(host, "r1"))
    host.preview("r1", brought(host, "r1"), 2)
    assert host.releases() == ["r1"]
    assert asked == [".r1.partial", "r1"]


def test_a_preview_of_what_is_refused_leaves_nothing_either(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(schema: Any, *arguments: str) -> None:
        raise program.ReleaseError("2 heads")

    monkeypatch.setattr(program.Schema, "run", refuse)
    with pytest.raises(program.ReleaseError, match="2 heads"):
        host.preview("r1", brought(host, "r1"), 2)
    assert list((root / "releases").iterdir()) == []


def test_a_preview_asks_with_the_present_password_where_the_run_brings_a_new_one(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = sys.modules["schema"].AccessDenied
    asked: list[str] = []

    def run(schema: Any, *arguments: str) -> dict[str, Any]:
        asked.append((host.folder(schema.release) / ".env.migrate").read_text())
        if asked[-1] != "B=present\n":
            raise denied("Access denied")
        return {"pending": []}

    monkeypatch.setattr(program.Schema, "run", run)
    with pytest.raises(program.ReleaseError, match="Access denied"):
        host.preview("r1", brought(host, "r1"), 2)
    (put(host, "live") / ".env.migrate").write_text("B=present\n")
    monkeypatch.setattr(program.Host, "live_release", "live")
    assert host.preview("r1", brought(host, "r1"), 2)["migrations"]["pending"] == []
    assert asked == ["B=2\n", "B=2\n", "B=present\n"]
    assert host.releases() == ["live"] and not list((root / "releases").glob(".*"))


def test_a_preview_tells_of_connections_that_do_not_fit(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(host, "r1")
    (folder / ".env").write_text("POOL_SIZE=10\nPOOL_OVERFLOW=2\nPOOL_RECYCLE=280\n")
    (folder / ".mysql.cnf").touch()
    monkeypatch.setattr(program.Schema, "run", lambda schema, *arguments: {"pending": []})
    server = program.Server(50, 28800, 10)
    monkeypatch.setattr(program.Server, "ask", lambda option_file, reserve: server)
    assert "set POOL_SIZE to 8 or less" in host.preview("r1", brought(host, "r1"), 2)["connections"]["problem"]
    assert host.preview("r1", brought(host, "r1"), 1)["connections"]["needed"] == 24


def test_connections_that_do_not_fit_stop_it_before_the_database_is_touched(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(host, "r1")
    (folder / ".env").write_text("POOL_SIZE=10\nPOOL_OVERFLOW=2\nPOOL_RECYCLE=280\n")
    (folder / ".mysql.cnf").touch()
    monkeypatch.setattr(program.Server, "ask", lambda option_file, reserve: program.Server(50, 28800, reserve))
    touched: list[str] = []
    monkeypatch.setattr(program.Host, "bring_schema", lambda host, release, backup: touched.append(release))
    request = program.DeployRequest("deploy", "r1", "me")
    with pytest.raises(program.ReleaseError, match="set POOL_SIZE to 8 or less, or max_connections to 58 or more"):
        host.activate(request, Progress(), program.SchemaChange(migrate=True, workers=2))
    assert touched == [] and not host.live
    assert host.state("r1")["state"] == "failed"
    host.activate(request, Progress(), program.SchemaChange(migrate=True, workers=1))
    assert (touched, host.status()["live"]) == (["r1"], "r1")


def test_a_good_release_is_not_to_blame_for_a_database_that_it_does_not_know(
    moved_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy of an older commit: the next command that its refusal names is a rollback to the same release."""

    def refuse(*_: Any) -> None:
        raise program.ReleaseError("the database is at 0002, which it does not know: playbooks/rollback.yml")

    monkeypatch.setattr(program.Host, "bring_schema", refuse)
    put(moved_on, "newest")
    for name, state in (("old", "good"), ("newest", "failed")):
        with pytest.raises(program.ReleaseError, match="does not know"):
            moved_on.activate(
                program.DeployRequest("deploy", name, "me"), Progress(), program.SchemaChange(migrate=True)
            )
        assert moved_on.state(name)["state"] == state
    assert moved_on.rollback_target("", "keep") == {"release": "old", "downgrade": ""}


def test_one_virtual_environment_for_one_lock(host: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Path]()

    def build(builder: Any, *arguments: Any) -> None:
        venv = arguments[-1]
        shutil.rmtree(venv, ignore_errors=True)
        venv.mkdir()
        made.append(venv)

    monkeypatch.setattr(runtimes.Builder, "build", build)
    monkeypatch.setattr(runtimes, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Python 3.13.5", ""))
    for name, lock in (("r1", "one"), ("r2", "one"), ("r3", "two")):
        folder = host.folder(name)
        folder.mkdir()
        (folder / "poetry.lock").write_text(lock)
        host.runtime(folder).make(folder)
    links = [(host.folder(name) / ".venv").resolve() for name in ("r1", "r2", "r3")]
    assert links == [made[0], made[0], made[1]]
    (made[1] / ".complete").unlink()
    (host.folder("r3") / ".venv").unlink()
    host.runtime(host.folder("r3")).make(host.folder("r3"))
    assert made == [links[0], links[2], links[2]], "a half-made one is made again"


def test_a_virtual_environment_that_cannot_be_made_leaves_nothing(
    host: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(builder: Any, *arguments: Any) -> None:
        venv = arguments[-1]
        venv.mkdir()
        raise program.ReleaseError("No space left on device")

    monkeypatch.setattr(runtimes.Builder, "build", build)
    for module in (runtimes, sys.modules["builder"]):
        monkeypatch.setattr(module, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Python 3.13.5", ""))
    host.folder("r1").mkdir()
    (host.folder("r1") / "poetry.lock").write_text("# lock\n")
    with pytest.raises(program.ReleaseError, match="No space left"):
        host.runtime(host.folder("r1")).make(host.folder("r1"))
    assert list((root / "venvs").iterdir()) == []


# --- switching ---


def test_releases_alternate_between_the_slots(host: Any, systemd: Systemd) -> None:
    for number, slot in enumerate(["blue", "green", "blue"]):
        put(host, f"r{number}")
        deploy(host, f"r{number}")
        assert (host.live.name, host.live.release, host.problems()) == (slot, f"r{number}", [])
        assert host.idle.service not in systemd.active


def test_a_release_that_cannot_start_changes_nothing(host: Any, systemd: Systemd) -> None:
    put(host, "good")
    deploy(host, "good")
    put(host, "bad")
    systemd.broken.add("bad")
    with pytest.raises(program.ReleaseError, match="what was live before still is") as refusal:
        deploy(host, "bad")
    assert "No module named" in str(refusal.value)
    assert (host.live.release, host.problems(), host.state("bad")["state"]) == ("good", [], "failed")


def test_a_release_that_never_gets_ready_is_refused(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    systemd.log = "GET /health/ready 503\n"
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (503, '{"reason": "database"}'))
    clock = iter(range(100))
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock) / 4)
    with pytest.raises(
        program.ReleaseError, match=r"not ready after 1 s: GET /health/ready .*answered 503: .*database"
    ):
        deploy(host, "r1")
    assert systemd.active == systemd.enabled == set()
    assert host.live is None


@pytest.fixture
def links(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """Keep which slots got the public requests, and what would come back at boot when they did."""
    kept: list[tuple[str, set[str]]] = []
    replace_link = program.replace_link

    def replace(link: Path, target: Path) -> None:
        if link == host.config.root / "live":
            kept.append((target.name, set(systemd.enabled)))
        replace_link(link, target)

    monkeypatch.setattr(program, "replace_link", replace)
    return kept


def test_a_release_that_gets_the_public_requests_comes_back_at_boot(host: Any, links: Any) -> None:
    put(host, "r1")
    deploy(host, "r1")
    assert links == [("blue", {"nba@blue.service", "nba@blue.socket"})]


def test_a_release_that_never_gets_ready_never_gets_a_public_request(
    host: Any, systemd: Systemd, links: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.log = ""
    put(host, "good")
    deploy(host, "good")
    links.clear()
    put(host, "bad")
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (503, ""))
    with pytest.raises(program.ReleaseError, match="not ready after 1 s"):
        deploy(host, "bad")
    assert (links, host.live.release) == ([], "good")


def test_another_release_that_answers_is_refused(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (200, '{"release": "r0"}'))
    clock = iter(range(100))
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock) / 4)
    with pytest.raises(program.ReleaseError, match=r"/\.waffle/version names the release r0"):
        deploy(host, "r1")


def test_every_worker_has_to_answer(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    monkeypatch.setattr(gate, "workers_of", lambda _: {"11", "12"})
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (200, '{"release": "r1", "worker": 11}'))
    clock = iter(range(100))
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock) / 4)
    with pytest.raises(program.ReleaseError, match=r"not ready after 1 s: 1 worker\(s\) never answered"):
        deploy(host, "r1")


def test_a_release_that_is_not_here_is_named(host: Any, systemd: Systemd) -> None:
    with pytest.raises(program.ReleaseError, match="r9 is not on this host; `nba-release list`"):
        deploy(host, "r9")


def test_a_bad_public_answer_switches_back(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    seen: list[str] = []

    def watch(_gate: Any, release: str, seconds: float) -> None:
        seen.append(host.live.release)
        raise program.ReleaseError("answered 502")

    monkeypatch.setattr(gate.Gate, "watch", watch)
    with pytest.raises(program.ReleaseError, match="switched back to old: answered 502"):
        deploy(host, "new")
    assert seen == ["new"]
    assert (host.live.release, host.problems(), host.state("new")["state"]) == ("old", [], "failed")


def said(release: str, **more: Any) -> tuple[int, str]:
    return 200, json.dumps({"release": release, **more})


@pytest.fixture
def public(host: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Return what the public address answers, the last of it for ever; `old` is live and `new` can be."""
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    waits = {"watch_seconds": 5, "drain_seconds": 20}
    host.config = dataclasses.replace(host.config, public_url="http://nba.example.com", **waits)
    answers = [said("new")]

    def ask(_: Any, path: str, *rest: Any) -> tuple[int, str]:
        if path == APPLICATION["ready_path"]:
            return 200, "ready"
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(gate, "ask", ask)
    return answers


@pytest.mark.parametrize(("failures", "refused"), [(3, False), (1000, True)])
def test_a_health_path_that_fails_on_the_public_address_switches_back(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, failures: int, refused: bool
) -> None:
    """As if nginx could not reach it; one answer that fails may be the database's."""
    answers = iter([(200, "ready")] * 4 + [(500, "oops")] * failures)

    def ask(_: Any, path: str, *rest: Any) -> tuple[int, str]:
        return next(answers, (200, "ready")) if path == APPLICATION["ready_path"] else said("new")

    monkeypatch.setattr(gate, "ask", ask)
    if refused:
        words = "to old: GET http://nba.example.com/health/ready: answered 500: oops"
        with pytest.raises(program.ReleaseError, match=words):
            deploy(host, "new")
    else:
        deploy(host, "new")
    assert host.live.release == ("old" if refused else "new")


def test_every_worker_has_to_answer_on_the_public_address(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "workers_of", lambda _: {"11", "12"})
    monkeypatch.setattr(gate.Gate, "await_ready", lambda *_: None)
    public[:] = [said("new", worker=11)]
    silent = r"to old: 1 worker\(s\) of nba@green\.service never answered on http://nba\.example\.com"
    with pytest.raises(program.ReleaseError, match=silent):
        deploy(host, "new")
    # Longer than it is watched, and not yet too long.
    public[:] = [said("new", worker=11)] * 55 + [said("new", worker=12)]
    deploy(host, "new")
    assert host.live.release == "new"


def test_a_public_answer_that_turns_bad_while_it_is_watched_switches_back(
    host: Any, public: list[tuple[int, str]]
) -> None:
    public[:] = [said("new")] * 45 + [(502, "Bad Gateway")]
    with pytest.raises(program.ReleaseError, match=r"to old: .* answered 502 \(Bad Gateway\), not release new"):
        deploy(host, "new")
    assert (host.live.release, host.problems(), host.state("new")["state"]) == ("old", [], "failed")


def test_a_fault_of_the_host_while_it_is_watched_switches_back(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(gate.Gate, "watch", refuse)
    for state, left in (("prepared", "failed"), ("good", "good")):
        host.update_state("new", state=state, turn=0)
        with pytest.raises(program.ReleaseError, match="switched back to old: Too many open files"):
            deploy(host, "new")
        assert (host.live.release, host.problems(), host.state("new")["state"]) == ("old", [], left)


def test_a_release_that_dies_while_it_is_watched_switches_back(
    host: Any, systemd: Systemd, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_and_die(*_: Any) -> tuple[int, str]:
        systemd.active.discard("nba@green.service")
        return said("new")

    monkeypatch.setattr(gate, "ask", answer_and_die)
    for state in ("prepared", "good"):
        host.update_state("new", state=state, turn=0)
        with pytest.raises(program.ReleaseError, match=r"to old: nba@green\.service died after the switch"):
            deploy(host, "new")
        assert (host.live.release, host.problems(), host.state("new")["state"]) == ("old", [], "failed")


@pytest.mark.parametrize(
    ("what", "whose", "words"),
    [(program.Slot, "main", "Too many open files"), (program.Host, "state", r"http.* answered 502")],
)
def test_what_cannot_be_asked_who_is_to_blame_is_undone_all_the_same(  # noqa: PLR0917
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, what: Any, whose: str, words: str
) -> None:
    ask, was_switched = getattr(what, whose), False

    def refuse_once_switched(*arguments: Any) -> Any:
        nonlocal was_switched
        was_switched = was_switched or host.live.name == "green"
        if was_switched:
            raise OSError("Too many open files")
        return ask(*arguments)

    public[:] = [(502, "Bad Gateway")]
    monkeypatch.setattr(what, whose, refuse_once_switched)
    host.update_state("new", state="good", turn=0)
    with pytest.raises(program.ReleaseError, match=f"switched back to old: {words}"):
        deploy(host, "new")
    assert (host.live.release, host.problems(), host.state("new")["state"]) == ("old", [], "good")


def test_requests_go_back_before_a_release_is_asked_whether_it_is_to_blame(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[str] = []

    def hang(slot: Any) -> str:
        lives.append(host.live.release)
        return ""

    monkeypatch.setattr(gate.Gate, "await_ready", lambda *_: None)
    monkeypatch.setattr(program.Slot, "answering", hang)
    public[:] = [(502, "Bad Gateway")]
    host.update_state("new", state="good", turn=0)
    with pytest.raises(program.ReleaseError, match="switched back to old"):
        deploy(host, "new")
    assert (lives, host.state("new")["state"]) == (["old"], "failed")


@pytest.mark.parametrize(("answers", "left"), [("new", "blue"), ("old", "green")])
def test_a_slot_that_is_left_has_the_time_to_answer_what_it_was_asked(  # noqa: PLR0917
    host: Any, public: list[tuple[int, str]], clock: Clock, monkeypatch: pytest.MonkeyPatch, answers: str, left: str
) -> None:
    public[:] = [said(answers)]
    stopped: list[tuple[str, float]] = []
    monkeypatch.setattr(program.Slot, "stop", lambda slot: stopped.append((slot.name, round(clock.now, 3))))
    with contextlib.suppress(program.ReleaseError):
        deploy(host, "new")
    # Since the switch: the seconds of the watch are among them.
    assert stopped == [(left, 20)]
    assert host.live.release == answers


def test_a_log_that_cannot_be_read_keeps_nothing_from_being_undone(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")

    def fail(words: str) -> Any:
        def refuse(*_: Any) -> None:
            raise program.ReleaseError(words)

        return refuse

    monkeypatch.setattr(gate.Gate, "watch", fail("answered 502"))
    monkeypatch.setattr(program.Slot, "journal", fail("no journal"))
    with pytest.raises(program.ReleaseError, match=r"to old: answered 502\nits log cannot be read: no journal"):
        deploy(host, "new")
    assert (host.live.release, host.problems()) == ("old", [])


@pytest.mark.parametrize("state", ["prepared", "failed", "good"])
def test_what_a_release_runs_in_is_made_again_where_it_is_gone(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    put(host, "r1", state=state)
    made: list[str] = []
    monkeypatch.setattr(runtimes.Venv, "changes", lambda *_: ["it is gone"] if not made else [])
    monkeypatch.setattr(program.Host, "renew_runtime", lambda _, name: made.append(name))
    deploy(host, "r1")
    assert (host.live.release, made) == ("r1", ["r1"])


class Marks:
    """Stands in for the schema of the live release, which knows the revisions between."""

    def __init__(self, host: Any, release: str) -> None:
        self.release = release

    def refuse_interrupted(self) -> None:
        if self.interrupted:
            raise program.ReleaseError("revision 0002 was interrupted")

    def revision(self) -> str:
        return str(sys.modules["schema"].recorded(None))

    def head(self) -> str:
        return {"old": "0001", "new": "0002"}[self.release]

    def run(self, *arguments: str) -> dict[str, Any]:
        assert (self.release, arguments) == ("new", ("compatible", "0001", "0002"))
        return {"compatible": not self.unmarked, "unmarked": self.unmarked}

    unmarked: ClassVar[list[str]] = []
    interrupted = False


@pytest.fixture
def moved_on(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a host whose live release brought another schema."""
    for name, systemd.revision in (("old", "0001"), ("new", "0002")):
        put(host, name)
        deploy(host, name)
    monkeypatch.setattr(program, "Schema", Marks)
    monkeypatch.setattr(Marks, "unmarked", [])
    return host


def test_a_rollback_over_the_same_schema_asks_nothing(moved_on: Any, systemd: Systemd) -> None:
    systemd.revision = "0001"
    assert moved_on.rollback_target("", "") == {"release": "old", "downgrade": ""}
    assert moved_on.rollback_target("old", "") == {"release": "old", "downgrade": ""}


def test_a_rollback_stops_at_an_interrupted_migration(moved_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marks, "interrupted", True)
    for schema in ("", "keep", "downgrade"):
        with pytest.raises(program.ReleaseError, match="0002 was interrupted"):
            moved_on.rollback_target("", schema)
    # The same command again joins the run that is at work: that is no interruption.
    monkeypatch.setattr(program.Run, "active", lambda run: True)
    assert moved_on.rollback_target("", "keep") == {"release": "old", "downgrade": ""}


def test_a_rollback_over_another_schema_names_the_ways(moved_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"old ran on schema 0001, and the database has 0002: -e schema=keep leaves it.*; -e schema=downgrade takes"
    with pytest.raises(program.ReleaseError, match=words):
        moved_on.rollback_target("", "")
    assert moved_on.rollback_target("", "keep") == {"release": "old", "downgrade": ""}
    assert moved_on.rollback_target("", "downgrade") == {"release": "old", "downgrade": "0001"}
    monkeypatch.setattr(Marks, "unmarked", ["0002"])
    for schema in ("", "keep"):
        with pytest.raises(program.ReleaseError, match="cannot be kept, since these are not marked compatible: 0002"):
            moved_on.rollback_target("", schema)


def test_a_release_that_ran_on_a_newer_schema_still_has_its_own(host: Any, systemd: Systemd) -> None:
    systemd.revision = "0001"
    put(host, "old")
    deploy(host, "old")
    systemd.revision = "0002"
    put(host, "new")
    for name in ("new", "old", "new"):
        deploy(host, name)
    assert host.rollback_target("", "downgrade") == {"release": "old", "downgrade": "0001"}


def test_the_guard_asks_the_database_and_never_the_application(moved_on: Any, systemd: Systemd) -> None:
    """As of an application whose /version knows no schema, or that has none."""
    with pytest.raises(program.ReleaseError, match="old ran on schema 0001, and the database has 0002"):
        moved_on.rollback_target("", "")
    assert [moved_on.state(name)["schema"] for name in ("old", "new")] == ["0001", "0002"]


def test_a_revision_that_was_not_recorded_is_asked_of_the_release_itself(moved_on: Any) -> None:
    """As with a database that did not answer when the release became live: nothing unknown equals anything."""
    for name in ("old", "new"):
        moved_on.update_state(name, schema=None)
    with pytest.raises(program.ReleaseError, match="old ran on schema 0001, and the database has 0002"):
        moved_on.rollback_target("", "")


def test_a_rollback_without_alembic_says_that_nothing_was_compared(host: Any, systemd: Systemd) -> None:
    for name in ("old", "new"):
        applies(put(host, name), alembic="", database={"host": "DB_HOST"})
        deploy(host, name)
    assert host.rollback_target("", "") == {"release": "old", "downgrade": ""}
    host.activate(program.DeployRequest("rollback", "old", "me"), Progress())
    (note,) = host.notes
    assert "release old has no migrations (no alembic.ini)" in note and "was not checked" in note
    assert host.state("old")["schema"] is None


def test_a_rollback_from_alembic_to_a_release_without_it_takes_a_word(host: Any, systemd: Systemd) -> None:
    applies(put(host, "old"), alembic="")
    deploy(host, "old")
    put(host, "new")
    deploy(host, "new")
    for schema in ("", "downgrade"):
        with pytest.raises(program.ReleaseError, match=r"old has no migrations .* and new has: .*-e schema=keep"):
            host.rollback_target("", schema)
    assert host.rollback_target("", "keep") == {"release": "old", "downgrade": ""}


def test_a_release_of_an_older_version_cannot_be_gone_back_to(moved_on: Any) -> None:
    (moved_on.folder("old") / "release.json").write_text('{"release": "old"}')
    with pytest.raises(program.ReleaseError, match=r"old was made by an older version .* Fix: deploy its commit"):
        moved_on.rollback_target("old", "keep")
    with pytest.raises(program.ReleaseError, match="a previous release is not a release to go back to"):
        moved_on.rollback_target("", "keep")


@pytest.mark.parametrize("wanted", ["new", "never-seen", "failed"])
def test_a_rollback_goes_to_a_good_release_only(moved_on: Any, wanted: str) -> None:
    put(moved_on, "failed", state="failed")
    with pytest.raises(program.ReleaseError, match=f"{wanted} is not a release to go back to; good ones here: old"):
        moved_on.rollback_target(wanted, "keep")


def test_a_rollback_is_one_also_where_its_end_was_not_heard(
    moved_on: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control node was gone when `new` was left for `old`: the same command again is no way back to `new`."""
    systemd.revision = "0001"
    request = ["rollback-target", "--schema=keep"]
    deploy(moved_on, "old")
    moved_on.update_state("new", schema="0001")
    monkeypatch.setattr(program.Run, "unacknowledged", lambda _, kind: {"rollback": "old"}[kind])
    answer = release.dispatch(moved_on, release.parser().parse_args(request))
    assert answer == {"live": "old", "unacknowledged": True, "release": "old", "downgrade": ""}
    assert moved_on.rollback_target("new", "keep")["release"] == "new", "it can be named"
    monkeypatch.setattr(program.Run, "unacknowledged", lambda _, kind: "")
    answer = release.dispatch(moved_on, release.parser().parse_args(request))
    assert answer == {"live": "old", "unacknowledged": False, "release": "new", "downgrade": ""}


def test_a_host_by_itself_goes_back_to_what_it_chooses(moved_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, ...]] = []

    def begin(_: Any, options: Any, command: str) -> dict[str, Any]:
        begun.append((command, options.kind, options.release, options.downgrade, options.before))
        return {"changed": True}

    monkeypatch.setattr(release, "begin", begin)
    monkeypatch.setattr(program.Run, "active", lambda _: False)
    assert release.dispatch(moved_on, release.parser().parse_args(["rollback", "--schema=downgrade"]))["changed"]
    assert begun == [("activate", "rollback", "old", "0001", "new")]
    with pytest.raises(program.ReleaseError, match="never-seen is not a release to go back to"):
        release.dispatch(moved_on, release.parser().parse_args(["rollback", "--schema=", "never-seen"]))
    heard: list[str] = []
    monkeypatch.setattr(program.Run, "unacknowledged", lambda _, kind: {"rollback": "new"}[kind])
    monkeypatch.setattr(program.Run, "acknowledge", lambda _: heard.append("acknowledged"))
    answer = release.dispatch(moved_on, release.parser().parse_args(["rollback", "--schema="]))
    assert (answer["changed"], answer["release"], heard, len(begun)) == (False, "new", ["acknowledged"], 1)


def test_the_way_back_is_known_also_where_the_schema_of_a_later_release_was_kept(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.config = dataclasses.replace(host.config, keep_releases=3)
    for name, schema in (("first", "0001"), ("second", "0002"), ("third", "0003")):
        put(host, name, schema=schema)
        deploy(host, name)
    deploy(host, "second")
    systemd.revision = "0003"
    asked: list[Any] = []

    def run(schema: Any, *arguments: str) -> dict[str, Any]:
        asked.append((schema.release, *arguments))
        return {"compatible": True, "unmarked": []}

    monkeypatch.setattr(program.Schema, "run", run)
    assert host.rollback_target("first", "keep") == {"release": "first", "downgrade": ""}
    assert asked == [("third", "compatible", "0001", "0003")]
    down: list[str] = []

    def downgrade(schema: Any, *_: Any) -> dict[str, Any]:
        down.append(schema.release)
        return {}

    monkeypatch.setattr(program.Schema, "downgrade", downgrade)
    host.activate(program.DeployRequest("rollback", "first", "me"), Progress(), program.SchemaChange(downgrade="0001"))
    assert down == ["third"]


def test_what_was_chosen_for_another_live_release_is_not_gone_back_to(host: Any, systemd: Systemd) -> None:
    host.config = dataclasses.replace(host.config, keep_releases=3)
    for name in ("old", "new", "newest"):
        put(host, name)
        deploy(host, name)
    with pytest.raises(program.Abandoned, match="chosen when new was live, and newest is now: run the same command ag"):
        host.activate(program.DeployRequest("rollback", "old", "me", before="new"), Progress())
    assert (host.live.release, host.problems(), host.state("old")["state"]) == ("newest", [], "good")
    host.activate(program.DeployRequest("rollback", "new", "me", before="newest"), Progress())
    # A run that was torn has gone there already.
    host.activate(program.DeployRequest("rollback", "new", "me", before="newest"), Progress())
    assert host.live.release == "new"


def test_a_rollback_to_what_no_longer_starts_changes_nothing(host: Any, systemd: Systemd) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    systemd.broken.add("old")
    with pytest.raises(program.ReleaseError, match="old was refused, and what was live before still is"):
        host.activate(program.DeployRequest("rollback", "old", "me"), Progress())
    assert (host.live.release, host.problems(), host.state("old")["state"]) == ("new", [], "failed")
    assert systemd.active == {"nba@green.service", "nba@green.socket"}


def test_a_good_release_is_not_to_blame_for_what_keeps_the_live_one_from_being_ready_too(
    host: Any, systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    put(host, "never-good")
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (503, '{"reason": "database"}'))
    for name, state in (("old", "good"), ("never-good", "failed")):
        with pytest.raises(program.ReleaseError, match="503"):
            host.activate(program.DeployRequest("rollback", name, "me"), Progress())
        assert host.state(name)["state"] == state


@pytest.mark.parametrize("fails", [False, True])
def test_the_schema_goes_back_between_the_start_and_the_switch(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    seen: list[Any] = []

    def downgrade(schema: Any, revision: str, backup: bool) -> dict[str, Any]:
        seen.append((schema.release, revision, backup, host.live.release, host.idle.answering()))
        if fails:
            raise program.ReleaseError("cannot drop")
        return {"from": "0002", "to": "0001"}

    monkeypatch.setattr(program.Schema, "downgrade", downgrade)
    request, change = program.DeployRequest("rollback", "old", "me"), program.SchemaChange(downgrade="0001")
    if fails:
        with pytest.raises(program.ReleaseError, match="cannot drop"):
            host.activate(request, Progress(), change)
    else:
        host.activate(request, Progress(), change)
    assert seen == [("new", "0001", True, "new", "old")]
    assert (host.live.release, host.problems()) == ("new" if fails else "old", [])


@pytest.mark.parametrize("stop", ["downgraded", "switched"])
@pytest.mark.parametrize("again", ["works", "fails"])
def test_a_schema_that_was_taken_back_comes_forward_again_where_the_switch_fails(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, stop: str, again: str
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    progress, seen = Progress(stop), list[Any]()

    def downgrade(schema: Any, revision: str, backup: bool) -> dict[str, Any]:
        seen.append(list(progress.phases))
        return {"backup": "b1.sql.gz"}

    def change(schema: Any, command: list[str], backup: bool, made: str) -> dict[str, Any]:
        assert made == "b1.sql.gz", "the way back from here, too"
        seen.append((schema.release, command, backup))
        if again == "fails":
            raise program.ReleaseError("cannot add")
        return {}

    monkeypatch.setattr(program.Schema, "downgrade", downgrade)
    monkeypatch.setattr(program.Schema, "change", change)
    request, change_back = program.DeployRequest("rollback", "old", "me"), program.SchemaChange(downgrade="0001")
    words = {
        "works": r"(?s)another host refused it.*brought forward again; what only that held is in the backup b1\.sql",
        "fails": r"(?s)another host refused it.*at 0001, which is not that of new.*cannot add.*migrate\.yml; what only",
    }
    with pytest.raises(program.ReleaseError, match=words[again]) as refusal:
        host.activate(request, progress, change_back)
    assert isinstance(refusal.value, program.Abandoned) == (again == "works")
    noted = "the schema was brought forward again; what only that held is in the backup b1.sql"
    assert [note.partition(".gz")[0] for note in host.notes] == ([noted] if again == "works" else [])
    # Every host is ready, and none has switched.
    assert seen == [["migrated", "ready"], ("new", ["upgrade"], False)]
    assert (host.live.release, host.state("old")["state"]) == ("new", "good")
    left = host.problems()
    assert not left if again == "works" else "could not be undone" in left[0], "the next run tries it again"


@pytest.mark.parametrize("stop", ["migrated", "ready", "downgraded", "switched"])
def test_a_release_that_another_host_refused_is_taken_back(host: Any, systemd: Systemd, stop: str) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    with pytest.raises(program.Abandoned, match="another host refused it"):
        deploy(host, "new", stop)
    assert (host.live.release, host.problems()) == ("old", [])
    assert host.state("new")["state"] == "prepared", "it is not to blame"
    deploy(host, "new")
    assert (host.live.release, host.problems()) == ("new", [])


def test_what_cannot_be_put_away_is_no_reason_to_go_back(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")

    def refuse(_: Any) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(program.Host, "clean_up", refuse)
    monkeypatch.setattr(program.Slot, "stop", refuse)
    deploy(host, "new")
    assert (host.live.release, host.state("new")["state"]) == ("new", "good")
    # Never the same command again: after a rollback that would go forward.
    still_runs, still_there = host.notes
    assert still_runs.startswith("new is live, but nba@blue.service could not be stopped: Read-only file system. site")
    assert still_there.endswith(
        "old releases could not be removed: Read-only file system. The next deploy removes them"
    )


def test_what_cannot_be_enabled_or_linked_leaves_nothing_of_the_new_one(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")

    def refuse(_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(program.Slot, "enable", refuse)
    with pytest.raises(program.ReleaseError, match="switched back to old: No space left"):
        deploy(host, "new")
    assert (host.live.release, host.problems()) == ("old", [])


def test_what_cannot_be_recorded_is_no_reason_to_go_back(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    with monkeypatch.context() as patch:
        patch.setattr(program, "write_whole", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        deploy(host, "new")
    assert host.live.release == "new"
    assert "nba@blue.service" not in systemd.active | systemd.enabled
    assert host.notes[0].startswith("new is live, but that could not be kept: No space left on device. site.yml does")
    host.repair(Progress())
    assert (host.state("new")["state"], host.problems()) == ("good", [])


def test_a_first_release_that_another_host_refused_leaves_nothing_live(host: Any, systemd: Systemd) -> None:
    put(host, "first")
    with pytest.raises(program.Abandoned, match="switched back to nothing"):
        deploy(host, "first", "switched")
    assert host.live is None
    assert systemd.active == systemd.enabled == set()


def test_a_good_release_that_is_taken_back_stays_good(host: Any, systemd: Systemd) -> None:
    for name in ("first", "second"):
        put(host, name)
        deploy(host, name)
    with pytest.raises(program.Abandoned):
        deploy(host, "first", "switched")
    assert host.state("first")["state"] == "good"


def test_a_run_that_was_torn_after_its_switch_is_completed_by_a_repair(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    host.update_state("r1", state="prepared")
    systemd.active.add("nba@green.service")
    host.repair(Progress())
    assert (host.state("r1")["state"], host.problems()) == ("good", [])


def test_a_run_that_was_torn_on_its_way_to_an_earlier_release_is_completed_by_a_repair(
    host: Any, systemd: Systemd
) -> None:
    for name in ("first", "second"):
        put(host, name)
        deploy(host, name)
    deploy(host, "first")
    host.set_state("second", "good")
    assert host.problems() == ["the release second was made live last, and first is live"]
    host.repair(Progress())
    assert (host.good(), host.problems()) == (["first", "second"], [])


def test_what_came_last_is_not_told_by_the_clock(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, now in (("r1", 2_000_000_000), ("r2", 1_800_000_000), ("r3", 1_800_000_100)):
        monkeypatch.setattr(program.time, "time", lambda now=now: now)
        put(host, name)
        deploy(host, name)
    assert (host.problems(), host.good()) == ([], ["r3", "r2"])
    assert host.rollback_target("", "")["release"] == "r2"


@pytest.mark.parametrize(
    "midway", [lambda s: s.active.add("nba@green.service"), lambda s: s.changed.add("nba@blue.service")]
)
def test_what_a_run_at_work_has_yet_to_do_is_no_problem(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, midway: Any
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    midway(systemd)
    assert len(host.status()["problems"]) == 1
    monkeypatch.setattr(program.Run, "active", lambda run: True)
    assert host.status()["problems"] == []


@pytest.mark.parametrize(
    ("change", "schema", "expected"),
    [("", "0001", True), ("0002_more.py", "0001", False), ("", "0002", False), ("", "", False)],
)
def test_migrations_are_left_out_only_where_nothing_can_be_pending(  # noqa: PLR0917
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, change: str, schema: str, expected: bool
) -> None:
    for name in ("r1", "r2"):
        versions = put(host, name, at=time.time()) / "db/versions"
        versions.mkdir(parents=True)
        (versions / "0001_first.py").write_text("")
        (versions.parents[1] / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/db\n")
    if change:
        (host.folder("r2") / "db/versions" / change).write_text("")
    deploy(host, "r1")
    host.update_state("r1", schema="0001")
    systemd.revision = schema
    assert host.has_schema_of("r2") is expected


def test_migrations_that_cannot_be_found_are_never_left_out(host: Any, systemd: Systemd) -> None:
    for name in ("r1", "r2"):
        put(host, name)
    deploy(host, "r1")
    host.update_state("r1", schema="0001")
    assert not host.has_schema_of("r2")


@pytest.mark.parametrize("answers", [["1", "1", "2"], ["2", "1"]])
def test_a_release_is_ready_when_each_worker_has_answered(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    put(host, "r1")
    left = iter(answers)
    monkeypatch.setattr(gate, "workers_of", lambda _: {"1", "2"})
    monkeypatch.setattr(program.Slot, "version", lambda slot: {"release": "r1", "worker": next(left)})
    host.start(host.idle, "r1", lasting=False)
    assert list(left) == []


def test_a_worker_that_dies_before_all_have_answered_is_not_waited_for(
    host: Any, systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    workers = iter([{"1", "2"}, {"1", "3"}])
    monkeypatch.setattr(gate, "workers_of", lambda _: next(workers))
    monkeypatch.setattr(program.Slot, "version", lambda slot: {"release": "r1", "worker": "1"})
    with pytest.raises(program.ReleaseError, match="a worker died soon after it had started"):
        host.start(host.idle, "r1", lasting=False)


def test_switching_twice_does_nothing_the_second_time(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    before = host.live.name
    deploy(host, "r1")
    assert (host.live.name, host.problems()) == (before, [])


def test_the_public_address_is_asked_which_release_answers(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    answers, asked = iter(["r1", "r0"]), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Host"] == "nba.example.com"
            asked.append(self.path)
            body = json.dumps({"release": next(answers)} if self.path.endswith("version") else {}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        changed = {**host.config.__dict__, "public_url": url, "public_host": "nba.example.com"}
        watching = program.Host(program.Config(**changed))
        watching.gate(host.live).watch("r1", 0)
        with pytest.raises(program.ReleaseError, match=r"answered 200 \(r0\), not release r1"):
            watching.gate(host.live).watch("r1", 0)
        server.shutdown()
    with pytest.raises(program.ReleaseError, match="ConnectionRefusedError"):
        watching.gate(host.live).watch("r1", 0)
    assert set(asked) == {"/api/.waffle/version", "/health/ready"}


def test_the_link_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "live"
    program.replace_link(link, "one")
    seen: list[str] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        seen.append(str(link.readlink()))
        return rename(path, target)

    monkeypatch.setattr(program.Path, "rename", watched)
    program.replace_link(link, "two")
    assert (seen, str(link.readlink())) == (["one"], "two")
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


# --- cleaning up ---


def test_clean_up_keeps_what_is_needed_and_nothing_else(host: Any, systemd: Systemd) -> None:
    """Two good ones and one that was just prepared are kept; failed, forgotten and old ones go, with their venvs."""
    put(host, "oldest", "v-old", state="good", at=1)
    put(host, "older", "v-old", state="good", at=2)
    put(host, "newer", "v-new", state="good", at=3)
    put(host, "failed", "v-failed", state="failed", at=9)
    put(host, "unfinished", "v-unfinished", state="prepared", at=8)
    put(host, "live", "v-live", state="good", at=5)
    put(host, "another-runs", "v-another", state="prepared", at=time.time())
    (host.config.root / "venvs/v-orphan").mkdir()
    (host.config.root / "releases/.torn.partial").mkdir()
    deploy(host, "live")
    assert sorted(host.releases()) == ["another-runs", "live", "newer"]
    assert sorted(path.name for path in (host.config.root / "venvs").iterdir()) == ["v-another", "v-live", "v-new"]
    states = sorted(path.name for path in (host.config.root / "state").glob("*.json"))
    assert states == ["another-runs.json", "live.json", "newer.json"]
    assert not (host.config.root / "releases/.torn.partial").exists()


def test_clean_up_keeps_what_another_run_has_just_made(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "good", state="good", at=1)

    @contextlib.contextmanager
    def when_the_other_has_ended(host: Any, *_: Any) -> Iterator[None]:
        put(host, "another-runs", "v-another", state="prepared", at=time.time())
        yield

    monkeypatch.setattr(program.Host, "only_one_prepares", when_the_other_has_ended)
    host.clean_up()
    assert sorted(host.releases()) == ["another-runs", "good"]
    assert (host.config.root / "venvs/v-another").is_dir()


def test_failed_releases_do_not_push_out_good_ones(host: Any) -> None:
    put(host, "good", state="good", at=1)
    for number in range(5):
        put(host, f"failed{number}", state="failed", at=10 + number)
    host.clean_up()
    assert host.releases() == ["good"]


@pytest.mark.parametrize("keep", [0, 1])
def test_there_is_always_a_way_back(host: Any, systemd: Systemd, keep: int) -> None:
    host.config = dataclasses.replace(host.config, keep_releases=keep)
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    host.repair(Progress(), renewed=True)
    assert {host.slot(name).release for name in ("blue", "green")} == {"new"}
    assert host.releases() == ["new", "old"]


def test_what_a_slot_points_to_stays_whatever_its_age(host: Any) -> None:
    put(host, "ancient", "v1", state="failed", at=0)
    put(host, "idle", "v2", state="good", at=1)
    for number in range(3):
        put(host, f"new{number}", "v3", state="good", at=10 + number)
    program.replace_link(host.slot("blue").folder / "release", host.folder("ancient"))
    program.replace_link(host.slot("green").folder / "release", host.folder("idle"))
    program.replace_link(host.config.root / "live", host.slot("blue").folder)
    host.clean_up()
    assert sorted(host.releases()) == ["ancient", "idle", "new1", "new2"]
    assert sorted(path.name for path in (host.config.root / "venvs").iterdir()) == ["v1", "v2", "v3"]


# --- running ---


def test_asks_over_a_unix_socket() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/version" else 503)
            self.end_headers()
            self.wfile.write(b'{"release": "r1"}')

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "socket"

    with short_folder() as folder:
        path = f"{folder}/s"
        with socketserver.UnixStreamServer(path, Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            connection = slots.UnixConnection(path, 5)
            assert slots.ask(connection, "/version") == (200, '{"release": "r1"}')
            assert slots.ask(slots.UnixConnection(path, 5), "/health/ready")[0] == 503
            server.shutdown()
        status, reason = slots.ask(slots.UnixConnection(path, 5), "/version")
    assert status == 0
    assert reason.startswith(("ConnectionRefusedError", "ConnectionResetError"))


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a short path: that of a Unix socket has at most 107 bytes."""
    return tempfile.TemporaryDirectory(prefix="wi-", dir="/tmp")


def test_a_start_is_waited_for_until_it_answers(host: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0, 503, 200])
    monkeypatch.setattr(gate, "alive", slots.alive)
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (next(answers), ""))
    host.probe("blue", os.getpid())
    assert list(answers) == []


def test_nobody_waits_for_a_process_that_ended_or_never_answers(
    host: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.Slot, "ask", lambda *_, **__: (503, ""))
    monkeypatch.setattr(gate, "alive", slots.alive)
    with subprocess.Popen(["true"]) as ended:
        pass
    with pytest.raises(program.ReleaseError, match="main process ended"):
        host.probe("blue", ended.pid)
    with pytest.raises(program.ReleaseError, match=r"did not answer within 1 s \(503: an empty body\)\. Fix"):
        host.probe("blue", os.getpid())
    workers = itertools.count()
    monkeypatch.setattr(gate, "workers_of", lambda main: {str(next(workers))})
    with pytest.raises(program.ReleaseError, match=r"did not answer within 1 s .*; \d+ worker\(s\) died"):
        host.probe("blue", os.getpid())


def test_commands_of_a_release_run_under_the_service_s_account(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    users: list[str] = []

    def run_in(venv: Any, folder: Path, user: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        users.append(user)
        return subprocess.CompletedProcess(command, 1 if "fail" in command else 0, "out\n", "err\n")

    monkeypatch.setattr(runtimes.Venv, "run", run_in)
    assert host.execute("r1", ["python", "-m", "nba.seed"]) == "out\nerr"
    assert users == ["nba"]
    with pytest.raises(program.ReleaseError, match=r"`fail` in release r1 exited with status 1:\nout\nerr"):
        host.execute("r1", ["fail"])


def test_a_release_whose_worker_dies_soon_after_its_start_is_refused(
    root: Path, tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "release.json").write_text(json.dumps({**CONFIG, "root": str(root), "settle_seconds": 5}))
    monkeypatch.setattr(slots, "CONFIG", tmp_path / "release.json")
    host = program.Host(program.Config.load())
    put(host, "first")
    deploy(host, "first")
    put(host, "second")
    workers = iter([set(), {"1", "2"}, {"1", "2"}, {"1", "3"}])
    monkeypatch.setattr(gate, "workers_of", lambda _: next(workers))
    with pytest.raises(program.ReleaseError, match="a worker died soon after"):
        deploy(host, "second")
    assert (host.live.release, host.problems(), host.state("second")["state"]) == ("first", [], "failed")


def test_a_release_that_ends_as_soon_as_it_is_ready_does_not_last(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "first")
    deploy(host, "first")
    put(host, "second")
    host.config = dataclasses.replace(host.config, settle_seconds=5)
    settle = gate.Gate.settle

    def end_and_settle(gate: Any) -> None:
        systemd.active.discard(gate.slot.service)
        settle(gate)

    monkeypatch.setattr(gate.Gate, "settle", end_and_settle)
    with pytest.raises(program.ReleaseError, match="a worker died soon after"):
        deploy(host, "second")
    assert host.live.release == "first"


def test_a_process_is_alive_as_long_as_it_is_there() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert slots.alive(str(process.pid))
    assert not slots.alive(str(process.pid))
    assert not slots.alive("0")


# --- the schema ---


class Programs:
    """Plays migrations.py and backup.py, and keeps what they were asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.pending = [
            {"revision": "0002", "message": "Add", "compatible": False, "statements": ["A"], "warnings": []}
        ]
        self.failure: dict[str, Any] | None = None
        self.interrupted: dict[str, Any] | None = None
        self.notes: list[dict[str, Any]] = []
        self.killed = False
        self.folder = folder

    def run_in(self, _folder: Path, user: str, command: list[str], program: Path) -> subprocess.CompletedProcess[str]:
        assert (user, command[:3]) == ("nba-migrate", ["python", "-I", str(program)])
        assert program.name == "migrations.py"
        if "--note" in command:
            self.notes.append(json.loads(command.pop()))
            command.remove("--note")
        self.asked.append(" ".join(command[3:]))
        if command[3] == "plan":
            result: dict[str, Any] = {"current": "0001", "head": "0002", "pending": self.pending}
            return subprocess.CompletedProcess(command, 0, json.dumps({**result, "interrupted": self.interrupted}), "")
        if command[3] == "interrupted":
            return subprocess.CompletedProcess(command, 0, json.dumps({"interrupted": self.interrupted}), "")
        if self.killed:
            self.interrupted = HALF
            return subprocess.CompletedProcess(command, -9, "", "")
        if self.failure:
            return subprocess.CompletedProcess(
                command, 1, json.dumps({"failure": self.failure}), "revision 0002 failed"
            )
        result = {"from": "0001", "to": "0002", "applied": [{"revision": "0002"}]}
        return subprocess.CompletedProcess(command, 0, json.dumps(result), "")

    def run(self, *command: object, **_options: Any) -> subprocess.CompletedProcess[str]:
        assert [Path(str(part)).name for part in command[1:3]] == ["backup.py", "create"]
        self.asked.append("backup")
        return subprocess.CompletedProcess([], 0, '{"backup": "b1.sql.gz"}', "")


@pytest.fixture
def programs(host: Any, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = put(host, "r1")
    (folder / ".mysql.cnf").touch()
    (folder / "0002.py").write_text("broken")
    programs = Programs(folder)
    monkeypatch.setattr(runtimes.Venv, "run", programs.run_in)
    monkeypatch.setattr(sys.modules["schema"], "run", programs.run)
    databases = sys.modules["schema"].Database
    monkeypatch.setattr(databases, "marked", lambda database: programs.interrupted is not None)
    monkeypatch.setattr(databases, "name", lambda database: "shop")
    monkeypatch.setattr(databases, "turn", lambda database, work, seconds: contextlib.nullcontext())
    return programs


HALF = {"revision": "0002", "file": "0002.py", "from": "0001", "to": "0002", "applied": ["ALTER TABLE t ADD a INT"],
        "backup": "b1.sql.gz", "interrupted": True, "text": "revision 0002 failed"}  # fmt: skip
NOTHING = {**HALF, "applied": [], "interrupted": False}


def migrate(host: Any, backup: bool = True) -> Any:
    return program.Schema(host, "r1").migrate(backup)


def test_a_backup_is_made_where_something_is_pending_and_only_there(host: Any, programs: Programs) -> None:
    assert migrate(host)["backup"] == "b1.sql.gz"
    assert programs.asked == ["plan", "backup", "upgrade"]
    programs.asked.clear()
    assert migrate(host, backup=False)["backup"] is None
    assert programs.asked == ["plan", "upgrade"]
    programs.asked.clear()
    programs.pending = []
    assert migrate(host) == {"backup": None, "from": "0001", "to": "0001", "applied": []}
    assert programs.asked == ["plan"]


def test_what_is_planned_is_known_also_of_a_migration_that_fails(host: Any, programs: Programs) -> None:
    planned = ["release r1", "the database is at 0001, this release wants 0002", "0002: Add", "    A;"]
    programs.failure = NOTHING
    with pytest.raises(program.ReleaseError):
        migrate(host)
    assert host.migration == {"plan": planned}
    programs.failure = None
    assert migrate(host) == {
        "plan": planned, "backup": "b1.sql.gz", "from": "0001", "to": "0002", "applied": [{"revision": "0002"}]
    }  # fmt: skip


def test_a_release_without_access_to_the_database_makes_no_backup(host: Any, programs: Programs) -> None:
    (programs.folder / ".mysql.cnf").unlink()
    assert migrate(host)["backup"] is None
    assert programs.asked == ["plan", "upgrade"]


def test_a_downgrade_comes_after_a_backup(host: Any, programs: Programs) -> None:
    assert program.Schema(host, "r1").downgrade("0001", True)["backup"] == "b1.sql.gz"
    assert programs.asked == ["backup", "downgrade 0001"]


def test_a_half_applied_revision_names_the_ways_out(host: Any, programs: Programs) -> None:
    programs.failure = HALF
    with pytest.raises(program.ReleaseError, match="revision 0002 failed") as failed:
        migrate(host)
    assert "playbooks/restore.yml -l ENV -e backup=b1.sql.gz" in str(failed.value)
    assert "change 0002.py" in str(failed.value)
    assert "nba-release stamp r1 0002\n" in str(failed.value) and "nba-release stamp r1 0001\n" in str(failed.value)
    (note,) = programs.notes
    assert (note["backup"], note["release"]) == ("b1.sql.gz", "r1")


def test_a_mark_stops_whatever_changes_the_schema_and_nothing_is_backed_up(host: Any, programs: Programs) -> None:
    programs.interrupted = HALF
    schema = program.Schema(host, "r1")
    for begin in (lambda: migrate(host), lambda: schema.downgrade("0001", True), schema.refuse_interrupted):
        with pytest.raises(program.ReleaseError, match=r"(?s)revision 0002 failed.*-e backup=b1\.sql\.gz"):
            begin()
    assert programs.asked == ["plan", "interrupted", "interrupted"]


def test_a_mark_stops_a_release_that_needs_no_migration(
    host: Any, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.Host, "has_schema_of", lambda host, release: True)
    host.bring_schema("r1", True)
    assert programs.asked == [], "without a mark, Alembic is not started"
    programs.interrupted = HALF
    with pytest.raises(program.ReleaseError, match="No deploy, migration or rollback begins"):
        host.bring_schema("r1", True)


def test_a_killed_migration_is_reported_at_once(host: Any, programs: Programs) -> None:
    programs.killed = True
    with pytest.raises(program.ReleaseError, match="stamp r1 0002"):
        migrate(host)


def test_what_would_fail_is_not_begun(host: Any, programs: Programs) -> None:
    programs.pending[0]["problems"] = ["refused without SUPER"]
    with pytest.raises(program.ReleaseError, match="0002: refused without SUPER"):
        migrate(host)
    assert programs.asked == ["plan"]


def test_the_mark_is_looked_for_with_a_password_that_the_database_takes(
    host: Any, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r2")
    (host.folder("r2") / ".mysql.cnf").write_text("new")
    os.utime(programs.folder / ".mysql.cnf", (1, 1))
    schema = sys.modules["schema"]
    asked: list[str] = []

    def name(database: Any) -> str:
        asked.append(database.option_file.parent.name)
        if len(asked) == 1:
            raise schema.BackupError("1045")
        return "shop"

    monkeypatch.setattr(schema.Database, "name", name)
    assert program.Schema(host, "r1").interruption() is None
    assert asked == ["r2", "r1"]


def test_where_nothing_was_applied_the_next_run_tries_again(host: Any, programs: Programs) -> None:
    programs.failure = NOTHING
    with pytest.raises(program.ReleaseError, match="Nothing of revision 0002 was applied"):
        migrate(host)
    programs.failure = None
    assert migrate(host)["applied"]


def test_a_plan_is_shown_to_people_with_its_warnings() -> None:
    revision = {"revision": "0002", "message": "Add", "compatible": True, "statements": ["A", "B"], "warnings": ["w"]}
    assert sys.modules["schema"].plan_lines("r1", {"current": None, "head": "0002", "pending": [revision]}) == [
        "release r1",
        "the database is at no revision, this release wants 0002",
        "0002: Add, older code works on it",
        "    A;",
        "    B;",
        "    WARNING: w",
    ]
    nothing = sys.modules["schema"].plan_lines("r1", {"current": "1", "head": "1", "pending": []})
    assert nothing[-1] == "nothing is to be done"


def test_a_plan_of_an_application_without_migrations_says_so(host: Any) -> None:
    applies(put(host, "r1"), alembic="")
    plan = release.parser().parse_args(["plan", "--text", "r1"])
    assert "release r1 has no migrations (no alembic.ini)" in release.dispatch(host, plan)
    assert release.dispatch(host, release.parser().parse_args(["plan", "r1"]))["pending"] == []
    applies(host.folder("r1"), alembic="", schema_command=["tables.sql"])
    assert "app_schema_command: tables.sql" in release.dispatch(host, plan)


def test_a_schema_command_runs_once_for_an_environment(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, bool]] = []

    def apply(tables: Any, backup: bool) -> dict[str, Any]:
        ran.append((tables.release, backup))
        return {"backup": "b1.sql.gz"}

    monkeypatch.setattr(program.Tables, "apply", apply)
    applies(put(host, "r1"), alembic="", schema_command=["tables.sql"])
    deploy(host, "r1")
    assert ran == [], "another host did it"
    put(host, "r2")
    applies(host.folder("r2"), alembic="", schema_command=["tables.sql"])
    host.activate(program.DeployRequest("deploy", "r2", "me"), Progress(), program.SchemaChange(migrate=True))
    assert (ran, host.migration) == ([("r2", True)], {"backup": "b1.sql.gz"})


def test_a_release_that_cannot_sign_in_is_refused_before_its_database_is_touched(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(account: Any) -> None:
        raise program.ReleaseError(f"the release cannot sign in to its database as {account.user}")

    monkeypatch.setattr(program.Account, "sign_in", refuse)
    monkeypatch.setattr(program.Host, "bring_schema", lambda *_: pytest.fail("it was touched"))
    applies(put(host, "r1"), database={"host": "DB_HOST", "user": "DB_USER"})
    (host.folder("r1") / ".env").write_text("DB_HOST=db\nDB_USER=shop\n")
    with pytest.raises(program.ReleaseError, match="cannot sign in to its database as shop"):
        host.activate(program.DeployRequest("deploy", "r1", "me"), Progress(), program.SchemaChange(migrate=True))
    assert (host.live, host.state("r1")["state"]) == (None, "failed")


def test_a_release_whose_migration_fails_is_marked(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(schema: Any, backup: bool) -> None:
        raise program.ReleaseError("revision 0002 failed")

    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    monkeypatch.setattr(program.Schema, "migrate", refuse)
    with pytest.raises(program.ReleaseError, match="revision 0002 failed"):
        host.activate(program.DeployRequest("deploy", "new", "me"), Progress(), program.SchemaChange(migrate=True))
    assert (host.live.release, host.state("new")["state"], systemd.active) == (
        "old",
        "failed",
        {"nba@blue.service", "nba@blue.socket"},
    )


# --- the command line ---


def test_a_release_that_cannot_be_prepared_is_recorded(
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(program.Records, "keep", lambda _, receipt: kept.append(receipt))
    put(host, "old")
    deploy(host, "old")
    stream = sent("r1", digest="0" * 64, env="API_KEY=artefact\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(program.ReleaseError, match="digest differs") as refusal:
        release.dispatch(host, release.parser().parse_args(["prepare", "r1", "--by", "alice"]))
    (receipt,) = kept
    assert refusal.value.answer["receipt"] == receipt, "the control node keeps it, too"
    facts = [receipt[key] for key in ("kind", "outcome", "release", "before", "by", "commit")]
    assert facts == ["deploy", "failed", "r1", "old", "alice", "c0ffee"]
    assert "********" in receipt["error"] and "its digest differs" in receipt["error"]


def test_the_preparation_is_a_step_of_the_first_run_after_it(  # noqa: PLR0917
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, clock: Clock, monkeypatch: Any
) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(program.Records, "keep", lambda _, receipt: kept.append(receipt))
    monkeypatch.setattr(runtimes.Venv, "make", lambda *_: clock.sleep(40))
    monkeypatch.setattr(runtimes.Venv, "changes", lambda *_: [])
    host.prepare("r1", brought(host, "r1"))
    for kind in ("migrate", "deploy", "deploy"):
        deploy(host, "r1")
        host.keep_records({"kind": kind, "release": "r1", "before": "", "by": "me", "began": time.time() - 5})
    before, first, second = kept
    assert "prepare" not in {step["step"] for step in before["steps"]}, "it was not this run's"
    assert first["steps"][0] == {"step": "prepare", "seconds": 40}
    assert 45 <= first["seconds"] < 50 and host.state("r1")["seconds"] == second["seconds"] < 10
    assert "prepare" not in {step["step"] for step in second["steps"]}


@pytest.mark.parametrize(("found", "words"), [({}, "notes"), ({"error": "refused"}, "error")])
def test_a_receipt_that_cannot_be_kept_hides_nothing(
    host: Any, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], words: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(program.Host, "keep_records", refuse)
    receipt: dict[str, Any] = dict(found)
    release.keep(host, receipt)
    told = "its receipt could not be kept on the host: No space left on device"
    assert receipt == ({"notes": [told]} if words == "notes" else {"error": f"refused\n{told}"})


class Lead:
    """Stands in for the run that holds the lock, and for the unit that would be started."""

    def __init__(self, host: Any, monkeypatch: pytest.MonkeyPatch, **progress: Any) -> None:
        self.said: list[str] = []
        self.followed: dict[str, Any] = {"phase": "done", "receipt": {"outcome": "?"}}
        self.at_work = bool(progress)
        run = program.Run
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


def test_a_release_that_is_sent_along_is_prepared_before_the_run_begins(
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Lead(host, monkeypatch)
    monkeypatch.setattr(program.Records, "keep", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sent("bad", digest="0" * 64)))
    with pytest.raises(program.ReleaseError, match="digest differs"):
        lead.run("activate", "bad", "--prepare", "--by", "alice")
    assert (lead.said, host.releases()) == ([], [])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sent("r1")))
    assert lead.run("activate", "r1", "--prepare", "--by", "alice")["phase"] == "done"
    assert (lead.said, host.releases()) == (["deploy of r1 by alice", "follow"], ["r1"])


def test_who_left_while_a_release_was_prepared_gets_no_more_than_that(
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Lead(host, monkeypatch)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sent("r1")))
    read, write = os.pipe()
    os.close(read)
    # Closed only after it has failed once more to write what it holds.
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with pytest.raises(program.ReleaseError, match="prepared and no more"):
            lead.run("activate", "r1", "--prepare", "--by", "alice")
    assert (lead.said, host.releases()) == ([], ["r1"])


def test_a_run_of_somebody_else_is_not_taken_back(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="theirs", by="bob", request="deploy of theirs by bob", began=0)
    answer = lead.run("go-back", "old", "--refused", "ours", "--by", "alice")
    assert (answer["changed"], lead.said) == (False, [])
    assert answer["running"].startswith("deploy of theirs by bob")


def test_ones_own_run_is_taken_back(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="ours", by="alice")
    answer = lead.run("go-back", "old", "--refused", "ours", "--by", "alice")
    assert (answer["live"], answer["receipt"]) == ("old", {"outcome": "?"})
    assert lead.said == ["abandon", "follow"]


@pytest.mark.parametrize("had_ended", [False, True])
def test_what_could_not_be_taken_back_is_said(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, had_ended: bool
) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="ours", by="alice", ended=had_ended)
    lead.followed.update(receipt={"outcome": "failed"}, error="the schema is at 0001")
    command = ("go-back", "old", "--refused", "ours", "--by", "alice")
    if had_ended:
        assert lead.run(*command)["live"] == "old", "its own refusal was told when it ended"
        return
    with pytest.raises(program.ReleaseError, match="the schema is at 0001") as caught:
        lead.run(*command)
    assert caught.value.answer["live"] == "old"


def test_a_host_that_had_switched_in_an_earlier_run_goes_back(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "ours"):
        put(host, name)
        deploy(host, name)
    lead = Lead(host, monkeypatch)
    assert lead.run("go-back", "old", "--refused", "ours", "--by", "alice")["live"] == "ours", "the run is played"
    assert lead.said == ["rollback of old by alice", "follow"]
    lead.followed.update(error="it does not start")
    with pytest.raises(program.ReleaseError, match="it does not start") as caught:
        lead.run("go-back", "old", "--refused", "ours", "--by", "alice")
    assert caught.value.answer["live"] == "ours"


@pytest.mark.parametrize(("until", "said"), [("done", ["deploy of r1 by alice", "follow"]), ("switched", [])])
def test_what_went_down_after_its_switch_is_asked_to_come_to_its_end(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, until: str, said: list[str]
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    host.update_state("r1", state="prepared")
    lead = Lead(host, monkeypatch)
    assert "unfinished" not in lead.run("activate", "r1", "--by", "alice", "--until", until)
    assert lead.said == said


@pytest.mark.parametrize(
    ("release", "until", "at_work", "is_told"),
    [
        pytest.param("r1", "done", False, True, id="the live release"),
        pytest.param("r2", "done", False, False, id="what is not"),
        pytest.param("r1", "ready", False, False, id="what does not end yet"),
        pytest.param("r1", "done", True, False, id="what another run may change"),
    ],
)
def test_an_end_that_fails_refuses_nothing_that_is_live(  # noqa: PLR0917
    host: Any,
    systemd: Systemd,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    until: str,
    at_work: bool,
    is_told: bool,
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    lead = Lead(host, monkeypatch, request="deploy of r1 by alice")
    lead.followed.update(error="it is not ready")
    looks = iter([True, at_work])
    monkeypatch.setattr(program.Run, "active", lambda _: next(looks))
    command = ("activate", release, "--by", "alice", "--until", until)
    if is_told:
        assert lead.run(*command)["unfinished"] == "it is not ready"
        return
    with pytest.raises(program.ReleaseError, match="it is not ready"):
        lead.run(*command)


def test_what_was_torn_after_its_switch_is_brought_to_its_end(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    host.idle.enable()
    host.update_state("new", state="prepared")
    ends = host.incomplete_steps(host.live)
    assert ends == [
        "nba@blue.service still runs or is enabled, though it is not live",
        "the live release new is not recorded as a good one",
        "the release old was made live last, and new is live",
    ]
    with pytest.raises(program.Abandoned):
        deploy(host, "new", "switched")
    assert host.incomplete_steps(host.live) == ends, "who is told to go back ends nothing"
    deploy(host, "new")
    assert (host.live.release, host.incomplete_steps(host.live), host.good()[0]) == ("new", [], "new")


def test_what_was_torn_and_is_not_ready_is_not_called_good(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    host.update_state("r1", state="prepared")
    systemd.active.clear()
    systemd.broken.add("r1")
    with pytest.raises(program.ReleaseError, match="its main process ended"):
        deploy(host, "r1")
    assert (host.live.release, host.state("r1")["state"]) == ("r1", "prepared")


def test_a_run_says_what_was_live_when_it_began(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    monkeypatch.setattr(program.Records, "keep", lambda *_: None)
    monkeypatch.setattr(program.Run, "folder", property(lambda _: host.config.root / "run"))
    for name, before in (("new", "old"), ("newer", "new")):
        put(host, name)
        command = ["--in-unit", "activate", name, "--by", "me", "--token", "t1"]
        assert release.in_unit(host, release.parser().parse_args(command)) == 0
        assert release.finished(host.activation.progress())["before"] == before


def test_a_live_release_needs_no_run(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    deploy(host, "r1")
    lead = Lead(host, monkeypatch)
    assert lead.run("activate", "r1", "--by", "alice") == {"changed": False, "release": "r1", "phase": "done"}
    assert lead.said == []
