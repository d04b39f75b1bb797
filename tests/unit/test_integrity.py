"""What a release and a virtual environment were, and what somebody changed in them since."""

from __future__ import annotations

import dataclasses
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.releases import Progress, Systemd, deploy, put
from tests.unit.test_attributes import OF_DIRECTORIES, OF_FILES, give

# The ones that the program itself imported.
attributes, basics, integrity = (sys.modules[name] for name in ("attributes", "basics", "integrity"))


@pytest.fixture(autouse=True)
def backups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(basics, "BACKUP_ROOT", tmp_path / "backups")
    return tmp_path / "backups"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.py").write_text("a = 1\n")
    (made / "sub/b.py").write_text("b = 1\n")
    (made / "link").symlink_to("a.py")
    return made


def edit_of_the_same_size_and_time(folder: Path) -> None:
    status = (folder / "a.py").stat()
    (folder / "a.py").write_text("a = 2\n")
    os.utime(folder / "a.py", ns=(status.st_atime_ns, status.st_mtime_ns))


def compiled(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/a.cpython-313.pyc").write_text("x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: None, []),
        (edit_of_the_same_size_and_time, ["a.py was changed"]),
        (lambda folder: (folder / "a.py").chmod(0o666), ["a.py was changed"]),
        (lambda folder: (folder / "a.py").unlink(), ["a.py is gone"]),
        (lambda folder: (folder / "sub/c.py").write_text(""), ["sub/c.py was added"]),
        (lambda folder: ((folder / "link").unlink(), (folder / "link").symlink_to("sub")), ["link was changed"]),
        (lambda folder: (folder / "a.py").touch(), []),
        (compiled, []),
    ],
)
def test_what_was_changed_is_told(folder: Path, change: Any, words: list[str]) -> None:
    known = integrity.take(folder)
    change(folder)
    assert integrity.compare(folder, known) == words


@pytest.fixture
def thawed(tmp_path: Path) -> Iterator[None]:
    yield
    attributes.clear_tree(str(tmp_path))


@pytest.mark.parametrize("name", OF_FILES)
@pytest.mark.parametrize("where", ["a.py", "sub/b.py", "sub/b.pyc"])
def test_an_attribute_of_a_file_is_told(folder: Path, thawed: None, name: str, where: str) -> None:
    known = integrity.take(folder)
    (folder / where).touch()
    (folder / where).chmod(0o660)  # an access list shows in the mode
    if where in known:
        known[where][0] = (folder / where).stat().st_mode
    give(folder / where, name)
    assert integrity.compare(folder, known) == [f"{where} has the attribute {name}"]


@pytest.mark.parametrize("name", OF_DIRECTORIES)
@pytest.mark.parametrize("where", [".", "sub"])
def test_an_attribute_of_a_directory_is_told(folder: Path, thawed: None, name: str, where: str) -> None:
    known = integrity.take(folder)
    give(folder / where, name)
    assert integrity.compare(folder, known) == [f"{where} has the attribute {name}"]


def test_many_changes_are_counted() -> None:
    assert integrity.in_words(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert integrity.in_words(["a"]) == "a"


def test_two_folders_exchange_their_names_at_once(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    integrity.exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/new").exists() and (tmp_path / "new/old").exists()
    with pytest.raises(OSError, match="renameat2"):
        integrity.exchange(tmp_path / "nowhere", tmp_path / "old")


def live(host: Any, name: str = "r1") -> Path:
    """Make a release live and record what it is."""
    folder = put(host, name)
    host.releases.integrity.record(folder)
    host.releases.integrity.record((folder / ".venv").resolve())
    deploy(host, name)
    assert host.inspection.problems() == []
    return folder


def test_an_edited_release_is_damaged(host: Any, systemd: Systemd) -> None:
    folder = live(host)
    (folder / ".env").write_text("A=2\n")
    assert host.inspection.status()["damaged"]
    assert host.inspection.problems() == ["release r1: .env was changed"]


@pytest.mark.parametrize("name", OF_FILES)
def test_what_was_given_an_attribute_loses_it_and_stays(
    host: Any, systemd: Systemd, thawed: None, backups: Path, name: str
) -> None:
    folder, other = live(host), put(host, "r0", state="good")
    host.releases.integrity.record(other)
    venv = (folder / ".venv").resolve()
    for path in (folder / ".env", other / ".env", venv / ".complete"):
        path.chmod(0o640)
        host.releases.integrity.record(path.parent)
        give(path, name)
    first, second, third = host.inspection.problems()
    assert first.startswith("release r1: .env ") and second.startswith("the virtual environment of r1: .complete ")
    assert third.startswith(f"{other} is no release that could be gone back to: .env ")
    host.repair.live_slot(Progress())
    assert host.inspection.problems() == [] and set(host.releases.ids()) == {"r1", "r0"}
    assert attributes.in_tree(str(host.config.root)) == {} and not backups.exists()


def test_a_release_is_finished_without_what_its_folder_hands_down(host: Any, thawed: None) -> None:
    folder = put(host, "r1")
    give(folder, "system.posix_acl_default")
    (folder / "new").touch()
    host.releases.integrity.record(folder)
    assert attributes.in_tree(str(folder)) == {}


def test_an_immutable_release_can_be_removed(host: Any, systemd: Systemd, thawed: None) -> None:
    live(host)
    old = put(host, "r0", state="failed")
    give(old / ".env", "immutable")
    give(old, "immutable")
    host.releases.clean_up()
    assert not old.exists()


def test_a_release_that_is_a_link_is_damaged(host: Any, systemd: Systemd) -> None:
    folder = live(host)
    folder.rename(folder.with_name(".elsewhere"))
    folder.symlink_to(".elsewhere")
    assert host.inspection.problems() == ["release r1: it is not the folder that it was"]


def test_an_edited_environment_is_replaced_for_all_that_share_it(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = live(host), put(host, "r0", state="good")
    host.releases.integrity.record(other)
    venv = (folder / ".venv").resolve()
    (venv / "added.py").touch()
    (problem,) = host.inspection.problems()
    assert problem == "the virtual environment of r1: added.py was added"
    made = venv.with_name("anew")

    def anew(_: Any, __: Path) -> Path:
        made.mkdir()
        (made / ".complete").touch()
        host.releases.integrity.record(made)
        return made

    monkeypatch.setattr(sys.modules["runtimes"].Venv, "venv_for", anew)
    monkeypatch.setattr(sys.modules["runtimes"].Venv, "server_for", lambda _, release: (release / ".server").resolve())
    host.repair.live_slot(Progress())
    assert [(path / ".venv").resolve() for path in (folder, other)] == [made, made]
    assert host.inspection.problems() == []


def test_what_is_no_release_is_moved_away(host: Any, systemd: Systemd, backups: Path) -> None:
    folder = live(host)
    copy = folder.with_name("copy")
    copy.mkdir()
    edited = put(host, "r0", state="good")
    host.releases.integrity.record(edited)
    (edited / "more").touch()
    words = "is no release that could be gone back to"
    assert host.inspection.problems() == [f"{copy} {words}", f"{edited} {words}: more was added"]
    host.repair.live_slot(Progress())
    assert host.inspection.problems() == [] and host.releases.ids() == ["r1"]
    assert len(list(backups.glob("*/*"))) == 2


def test_the_release_that_was_made_live_last_is_the_one_that_should_be(host: Any, systemd: Systemd) -> None:
    live(host, "r1")
    live(host, "r2")
    systemd.active.add("nba@blue.service")
    systemd.enabled.update(("nba@blue.service", "nba@blue.socket"))
    (host.config.root / "live").unlink()
    (host.config.root / "live").symlink_to(host.releases.slot("blue").folder)
    assert "the release r2 was made live last, and r1 is live" in host.inspection.problems()


@pytest.fixture
def process(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a real process the live slot's."""
    monkeypatch.setattr(integrity.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=os.getuid()))
    monkeypatch.setattr(integrity, "run", systemd.run)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield str(child.pid)
        child.communicate(b"\n")


def test_a_process_that_is_older_than_its_files_is_found(
    host: Any, systemd: Systemd, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = live(host)
    slot, unit = host.releases.live, host.config.root / "unit"
    time.sleep(0.05)  # the kernel counts in hundredths
    unit.touch()
    (found,) = host.releases.integrity.process_problems(slot, {"MainPID": process, "FragmentPath": str(unit)})
    assert found == f"nba@blue.service runs since before {unit} was changed"
    # The clock goes back a day: a restart would not help.
    today = time.time
    monkeypatch.setattr(integrity.time, "time", lambda: today() - 86400)
    assert host.releases.integrity.process_problems(slot, {"MainPID": process, "FragmentPath": str(unit)}) == []
    assert folder.is_dir()


def test_a_process_that_is_older_than_its_certificates_is_found(
    host: Any, systemd: Systemd, process: str, tmp_path: Path
) -> None:
    live(host)
    bundle, link = tmp_path / "bundle.pem", tmp_path / "link.pem"
    link.symlink_to(bundle)
    time.sleep(0.05)  # the kernel counts in hundredths
    bundle.touch()
    slot = dataclasses.replace(
        host.releases.live, config=dataclasses.replace(host.config, certificate_files=[str(link)])
    )
    (found,) = host.releases.integrity.process_problems(slot, {"MainPID": process})
    assert found == f"nba@blue.service runs since before {bundle} was changed"


def test_a_process_of_another_account_is_found(
    host: Any, systemd: Systemd, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(host)
    account = SimpleNamespace(pw_uid=pwd.getpwuid(os.getuid()).pw_uid + 1)
    monkeypatch.setattr(integrity.pwd, "getpwnam", lambda name: account)
    (found,) = host.releases.integrity.process_problems(host.releases.live, {"MainPID": process})
    assert "runs as the account" in found and found.endswith(f"nba-blue is {account.pw_uid}")


def test_strangers_leave_the_service_s_group(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = live(host)
    members = ["nba-migrate", "ada"]
    monkeypatch.setattr(
        integrity.grp,
        "getgrnam",
        lambda name: SimpleNamespace(gr_gid=os.getgid(), gr_mem=members if name == "nba" else []),
    )
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(integrity, "run", lambda *command, **options: called.append(command))
    assert host.releases.integrity.account_problems(folder) == [
        "the group nba has members that may read its secrets: ada"
    ]
    host.releases.integrity.repair_accounts([folder])
    assert called == [("gpasswd", "--delete", "ada", "nba")]


def test_a_release_starts_anew_in_the_other_slot(host: Any, systemd: Systemd) -> None:
    live(host)
    host.repair.live_slot(Progress(), renewed=True)
    assert (host.releases.live.name, host.releases.live.release, host.inspection.problems()) == ("green", "r1", [])
    assert host.releases.state("r1")["state"] == "good"


def test_a_folder_in_the_place_of_the_link_is_moved_away(host: Any, systemd: Systemd, backups: Path) -> None:
    live(host)
    (host.config.root / "live").unlink()
    (host.config.root / "live").mkdir()
    assert host.inspection.problems() == ["no release is live"]
    deploy(host, "r1")
    assert host.releases.live.release == "r1" and len(list(backups.glob("*/*"))) == 1
