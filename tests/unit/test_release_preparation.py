"""A release is made of what Ansible sends, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.releases import (
    CHECK_SETTINGS,
    Clock,
    Progress,
    Systemd,
    brought,
    bundles,
    member,
    program,
    put,
    release,
    runtimes,
    sent,
)


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
