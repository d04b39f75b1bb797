"""A release is made of what Ansible sends, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.releases import (
    CHECK_SETTINGS,
    NOTHING_PLANNED,
    Bundle,
    Busy,
    Clock,
    DeployRequest,
    Preparation,
    Progress,
    Receipts,
    ReleaseError,
    Releases,
    Schema,
    SchemaChange,
    SchemaChanges,
    Server,
    Systemd,
    activate,
    brought,
    bundles,
    member,
    put,
    release,
    runtimes,
    schema,
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
        host.preparation.prepare("r1", bundle)
    finally:
        os.umask(umask)
    folder = host.releases.folder("r1")
    assert (folder / "latest").read_text() == "app = 1\n"
    modes = {name: oct((folder / name).stat().st_mode & 0o777) for name in ("", "nba", "nba/main.py", "run", ".env")}
    assert modes == {"": "0o755", "nba": "0o755", "nba/main.py": "0o644", "run": "0o755", ".env": "0o640"}
    assert accounts == {".env": 901, ".env.migrate": 902, ".mysql.cnf": 902}
    assert installed == ["venv", "settings"]
    state = host.releases.state("r1")
    assert (state["state"], state["commit"]) == ("prepared", "c0ffee")
    assert host.releases.ids() == ["r1"]
    assert [path.name for path in folder.parent.iterdir()] == ["r1"]


def test_a_prepared_release_is_never_changed(host: Any, accounts: dict[str, int], installed: list[str]) -> None:
    host.preparation.prepare("r1", brought(host, "r1"))
    before = (host.releases.folder("r1") / "poetry.lock").read_text()
    host.preparation.prepare("r1", brought(host, "r1", member("poetry.lock", b"# another\n")))
    assert (host.releases.folder("r1") / "poetry.lock").read_text() == before


def test_what_another_run_prepared_meanwhile_is_taken(
    host: Any, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def waited(*_: Any) -> Iterator[None]:
        """The other run had the lock, and was done with the same release."""
        put(host, "r1")
        yield

    monkeypatch.setattr(Releases, "lock", waited)
    host.preparation.prepare("r1", brought(host, "r1"))
    assert installed == []


def test_who_comes_while_another_prepares_is_told_who(
    host: Any, clock: Clock, accounts: dict[str, int], installed: list[str]
) -> None:
    told = r"prepares a release on this host: deploy of r2 by bob, since 20.* UTC\.\nWait for it"
    with host.releases.lock("deploy of r2 by bob"), pytest.raises(Busy, match=told):
        host.preparation.prepare("r1", brought(host, "r1"), "deploy of r1 by alice", 0)
    assert (host.releases.ids(), installed, clock.now < 12) == ([], [], True)


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
    stack.enter_context(host.releases.lock(holder))

    def wait_for_its_end(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > ends:
            stack.close()

    monkeypatch.setattr(time, "sleep", wait_for_its_end)
    host.preparation.prepare("r1", brought(host, "r1"), "deploy of r1 by alice", wait)
    assert (host.releases.ids(), clock.now > ends) == (["r1"], True)


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
        host.preparation.prepare("r1", bundle)
    assert {(each.uid, each.gid, each.uname, each.gname) for each in members} == {(0, 0, "", "")}
    assert [oct(each.mode) for each in members] == ["0o644", "0o755"]
    assert oct((host.releases.folder("r1") / "run").stat().st_mode & 0o7777) == "0o755"


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
    with pytest.raises(ReleaseError, match="has no place in a release"):
        host.preparation.prepare("r1", bundle)
    assert list((root / "releases").iterdir()) == []
    assert list(root.parent.rglob("outside")) == []
    assert host.releases.state("r1") == {}


def test_refuses_another_digest(host: Any, root: Path, accounts: dict[str, int], installed: list[str]) -> None:
    with pytest.raises(ReleaseError, match="digest differs"):
        host.preparation.prepare("r1", brought(host, "r1", digest="0" * 64))
    assert list((root / "releases").iterdir()) == []


@pytest.mark.parametrize(("kept", "words"), [(-1, r"\(\d+ of \d+ bytes"), (40, r"\(0 of nobody knows"), (0, r"\(0 of")])
def test_what_did_not_arrive_whole_is_no_fault_of_the_release(host: Any, kept: int, words: str) -> None:
    whole = sent("r1").getvalue()
    stream = io.BytesIO(whole[:kept])
    with pytest.raises(ReleaseError, match=words):
        Bundle.of(stream, host.config.root)


def test_what_is_sent_is_read_to_its_end_also_where_it_is_of_no_use(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    stream = sent("r1")
    monkeypatch.setattr(bundles.shutil, "copyfileobj", refuse)
    with pytest.raises(OSError, match="No space"):
        Bundle.of(stream, host.config.root)
    assert stream.read() == b""


def test_refuses_to_fill_the_disk(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = brought(host, "r1")
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 20))
    with pytest.raises(ReleaseError, match="only 10 MiB are free"):
        host.preparation.prepare("r1", bundle)
    assert list((root / "releases").iterdir()) == []


def test_refused_settings_leave_nothing_behind_and_can_be_corrected(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "check_settings", CHECK_SETTINGS)
        patch.setattr(
            runtimes.Venv,
            "run",
            lambda *_: subprocess.CompletedProcess([], 1, "", "DATABASE_PORT: should be a valid integer\n"),
        )
        with pytest.raises(ReleaseError, match="DATABASE_PORT: should be a valid integer") as refusal:
            host.preparation.prepare("r1", brought(host, "r1"))
    assert "nothing was switched" in str(refusal.value)
    assert list((root / "releases").iterdir()) == []
    host.preparation.prepare("r1", brought(host, "r1"))
    assert host.releases.ids() == ["r1"]


def test_a_secret_in_a_refusal_is_masked(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = sent("r1", env="DATABASE_PASSWORD=hunter2-hunter2\n")

    def refuse(*_: Any) -> None:
        raise ReleaseError("input_value='hunter2-hunter2'")

    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(Preparation, "prepare", refuse)
    monkeypatch.setattr(Receipts, "write", lambda _, receipt, _facts: kept.append(receipt))
    monkeypatch.setattr(release.sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(ReleaseError) as refusal:
        release.prepare(host, SimpleNamespace(release="r1", by="me", wait=0))
    assert "hunter2" not in str(refusal.value) + str(kept)
    assert kept[0]["outcome"] == "failed"
    assert stream.read() == b"", "who sends it has sent all of it"


def test_an_interrupted_preparation_is_made_again(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str]
) -> None:
    (root / "releases/.r1.partial").mkdir()
    (root / "releases/.r1.partial/half").write_text("x")
    assert host.releases.ids() == []
    host.preparation.prepare("r1", brought(host, "r1"))
    assert not (host.releases.folder("r1") / "half").exists()


def test_a_preview_leaves_nothing(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(schema: Any, *arguments: str) -> dict[str, Any]:
        assert (host.releases.folder(schema.release) / "poetry.lock").is_file()
        (root / "venvs/made").mkdir(exist_ok=True)
        asked.append(schema.release)
        return {**NOTHING_PLANNED}

    monkeypatch.setattr(Schema, "run", run)
    (root / "venvs/kept").mkdir()
    bundle = brought(host, "r1")
    assert host.preparation.preview("r1", bundle, 2)["connections"] == {"checked": False}
    assert host.releases.ids() == []
    assert [path.name for path in (root / "releases").iterdir()] == []
    assert [path.name for path in (root / "venvs").iterdir()] == ["kept"]
    # One that is there is looked at where it is, and stays.
    host.preparation.prepare("r1", brought(host, "r1"))
    host.preparation.preview("r1", brought(host, "r1"), 2)
    assert host.releases.ids() == ["r1"]
    assert asked == [".r1.partial", "r1"]


def test_a_preview_of_what_is_refused_leaves_nothing_either(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(schema: Any, *arguments: str) -> None:
        raise ReleaseError("2 heads")

    monkeypatch.setattr(Schema, "run", refuse)
    with pytest.raises(ReleaseError, match="2 heads"):
        host.preparation.preview("r1", brought(host, "r1"), 2)
    assert list((root / "releases").iterdir()) == []


def test_a_preview_asks_with_the_present_password_where_the_run_brings_a_new_one(
    host: Any, root: Path, accounts: dict[str, int], installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = schema.AccessDenied
    asked: list[str] = []

    def run(schema: Any, *arguments: str) -> dict[str, Any]:
        asked.append((host.releases.folder(schema.release) / ".env.migrate").read_text())
        if asked[-1] != "B=present\n":
            raise denied("Access denied")
        return {**NOTHING_PLANNED}

    monkeypatch.setattr(Schema, "run", run)
    with pytest.raises(ReleaseError, match="Access denied"):
        host.preparation.preview("r1", brought(host, "r1"), 2)
    (put(host, "live") / ".env.migrate").write_text("B=present\n")
    monkeypatch.setattr(Releases, "live_release", "live")
    assert host.preparation.preview("r1", brought(host, "r1"), 2)["migrations"]["pending"] == []
    assert asked == ["B=2\n", "B=2\n", "B=present\n"]
    assert host.releases.ids() == ["live"] and not list((root / "releases").glob(".*"))


def test_a_preview_tells_of_connections_that_do_not_fit(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(host, "r1")
    (folder / ".env").write_text("POOL_SIZE=10\nPOOL_OVERFLOW=2\nPOOL_RECYCLE=280\n")
    (folder / ".mysql.cnf").touch()
    monkeypatch.setattr(Schema, "run", lambda schema, *arguments: {**NOTHING_PLANNED})
    server = Server(50, 28800, 10)
    monkeypatch.setattr(Server, "ask", lambda option_file, reserve: server)
    assert (
        "set POOL_SIZE to 8 or less" in host.preparation.preview("r1", brought(host, "r1"), 2)["connections"]["problem"]
    )
    assert host.preparation.preview("r1", brought(host, "r1"), 1)["connections"]["needed"] == 24


def test_connections_that_do_not_fit_stop_it_before_the_database_is_touched(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(host, "r1")
    (folder / ".env").write_text("POOL_SIZE=10\nPOOL_OVERFLOW=2\nPOOL_RECYCLE=280\n")
    (folder / ".mysql.cnf").touch()
    monkeypatch.setattr(Server, "ask", lambda option_file, reserve: Server(50, 28800, reserve))
    touched: list[str] = []
    monkeypatch.setattr(SchemaChanges, "migrate", lambda host, release, backup: touched.append(release))
    request = DeployRequest("deploy", "r1", "me")
    with pytest.raises(ReleaseError, match="set POOL_SIZE to 8 or less, or max_connections to 58 or more"):
        activate(host, request, Progress(), SchemaChange(migrate=True, workers=2))
    assert touched == [] and not host.releases.live
    assert host.releases.state("r1")["state"] == "failed"
    activate(host, request, Progress(), SchemaChange(migrate=True, workers=1))
    assert (touched, host.inspection.status()["live"]) == (["r1"], "r1")


def test_a_good_release_is_not_to_blame_for_a_database_that_it_does_not_know(
    moved_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy of an older commit: the next command that its refusal names is a rollback to the same release."""

    def refuse(*_: Any) -> None:
        raise ReleaseError("the database is at 0002, which it does not know: playbooks/rollback.yml")

    monkeypatch.setattr(SchemaChanges, "migrate", refuse)
    put(moved_on, "newest")
    for name, state in (("old", "good"), ("newest", "failed")):
        with pytest.raises(ReleaseError, match="does not know"):
            activate(moved_on, DeployRequest("deploy", name, "me"), Progress(), SchemaChange(migrate=True))
        assert moved_on.releases.state(name)["state"] == state
    assert moved_on.rollback.target("", "keep") == {"release": "old", "downgrade": ""}


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
        folder = host.releases.folder(name)
        folder.mkdir()
        (folder / "poetry.lock").write_text(lock)
        host.releases.runtime(folder).make(folder)
    links = [(host.releases.folder(name) / ".venv").resolve() for name in ("r1", "r2", "r3")]
    assert links == [made[0], made[0], made[1]]
    (made[1] / ".complete").unlink()
    (host.releases.folder("r3") / ".venv").unlink()
    host.releases.runtime(host.releases.folder("r3")).make(host.releases.folder("r3"))
    assert made == [links[0], links[2], links[2]], "a half-made one is made again"


def test_a_virtual_environment_that_cannot_be_made_leaves_nothing(
    host: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(builder: Any, *arguments: Any) -> None:
        venv = arguments[-1]
        venv.mkdir()
        raise ReleaseError("No space left on device")

    monkeypatch.setattr(runtimes.Builder, "build", build)
    for module in (runtimes, sys.modules["builder"]):
        monkeypatch.setattr(module, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Python 3.13.5", ""))
    host.releases.folder("r1").mkdir()
    (host.releases.folder("r1") / "poetry.lock").write_text("# lock\n")
    with pytest.raises(ReleaseError, match="No space left"):
        host.releases.runtime(host.releases.folder("r1")).make(host.releases.folder("r1"))
    assert list((root / "venvs").iterdir()) == []


def test_what_is_kept_of_a_changed_release_has_no_secrets(
    host: Any, accounts: dict[str, int], installed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("basics.BACKUP_ROOT", tmp_path / "backups")
    files = {"env": "API_TOKEN=token\n", "files/oci.pem": "a secret key\n"}
    for _ in range(2):
        host.preparation.prepare("r1", Bundle.of(sent("r1", **files), host.config.root))
        made = host.releases.folder("r1") / "typo.py"
        assert not made.exists() and (made.parent / ".files/oci.pem").is_file()
        made.write_text("changed outside of a run\n")
    kept = [path for path in (tmp_path / "backups").rglob("*") if path.is_file()]
    assert [path for path in kept if path.name == "typo.py"]
    assert not [path for path in kept if "token" in path.read_text() or "secret key" in path.read_text()]
