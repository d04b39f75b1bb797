"""The module that writes the files of a concern in one call."""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.waffle.iron.plugins.module_utils import attributes

from tests.support import ROOT, module_at
from tests.unit.test_attributes import OF_DIRECTORIES, OF_FILES, give

managed_files = module_at("plugins/modules/managed_files.py")
USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name
REFUSE = [sys.executable, "-c", "raise SystemExit('line 3: no such directive')"]


@pytest.fixture(autouse=True)
def backups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "backups"
    monkeypatch.setattr(managed_files, "BACKUP_ROOT", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "root"
    folder.mkdir()
    yield folder
    attributes.clear_tree(str(folder))


def entry(path: Path, content: str | None = None, **options: Any) -> dict[str, Any]:
    given = {"path": str(path), "owner": USER, "group": GROUP, **options}
    return given if content is None else {**given, "content": content}


def call(capsys: pytest.CaptureFixture[str], *entries: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return its result."""
    check = {"_ansible_check_mode": options.pop("check", False), "_ansible_diff": True}
    with patch_module_args({"entries": list(entries), **options, **check}), contextlib.suppress(SystemExit):
        managed_files.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return kind, mode and content of everything below a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        state = managed_files.describe(str(path))
        found[str(path.relative_to(folder))] = tuple(sorted(state.items()))
    return found


def test_creates_and_is_idempotent(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        entry(root / "d", state="directory", mode="0700"),
        entry(root / "d/file", "é\n", mode="0640"),
        entry(root / "d/plain", ""),
        entry(root / "link", state="link", target="d/file"),
    ]
    first = call(capsys, *entries)
    assert first["changed"] is True
    assert first["changed_paths"] == [item["path"] for item in entries]
    assert (root / "link").read_text() == "é\n"
    modes = [(root / name).stat().st_mode & 0o7777 for name in ("d", "d/file", "d/plain")]
    assert modes == [0o700, 0o640, 0o644]

    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    second = call(capsys, *entries)
    assert (second["changed"], second["changed_paths"], second["diff"]) == (False, [], [])
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    "wanted",
    [{"content": "new\n"}, {"content": "old\n", "mode": "0600"}],
    ids=["content", "mode"],
)
def test_changes_what_differs(root: Path, capsys: pytest.CaptureFixture[str], wanted: dict[str, str]) -> None:
    (root / "file").write_text("old\n")
    (root / "file").chmod(0o644)
    assert call(capsys, entry(root / "file", **wanted))["changed_paths"] == [str(root / "file")]
    assert (root / "file").read_text() == wanted["content"]
    assert oct((root / "file").stat().st_mode & 0o7777) == oct(int(wanted.get("mode", "0644"), 8))
    assert call(capsys, entry(root / "file", **wanted))["changed"] is False


def test_changes_the_owner(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_text("text")
    (root / "file").chmod(0o644)
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(managed_files.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=4711))
    monkeypatch.setattr(managed_files.os, "chown", lambda path, uid, gid: owners.append((uid, gid)))
    tree = managed_files.Tree(check_mode=False)
    tree.apply({**entry(root / "file", "text", owner="somebody"), "state": "file", "mode": None})
    assert tree.changed == [str(root / "file")]
    assert owners == [(4711, os.getgid())]


def test_an_unknown_owner_stops_the_run_but_not_a_preview(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = entry(root / "file", "text", owner="no-such-account")
    refused = call(capsys, entry(root / "first", "text"), wanted)
    assert refused["failed"] is True
    assert "'no-such-account' does not exist" in refused["msg"]
    assert snapshot(root) == {}
    assert call(capsys, wanted, check=True)["changed_paths"] == [str(root / "file")]


def test_removes_without_deleting(root: Path, backups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "file").write_text("precious")
    gone = [entry(root / "file", state="absent"), entry(root / "never-there", state="absent")]
    assert call(capsys, *gone)["changed_paths"] == [str(root / "file")]
    assert not (root / "file").exists()
    assert [path.read_text() for path in backups.rglob("*") if path.is_file()] == ["precious"]
    assert call(capsys, *gone)["changed"] is False


def test_what_stands_in_the_way_is_quarantined(root: Path, backups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a").mkdir()
    (root / "a/inside").write_text("precious")
    (root / "b").write_text("a file where a link belongs")
    (root / "c").symlink_to("b")
    call(
        capsys,
        entry(root / "a", "now a file"),
        entry(root / "b", state="link", target="a"),
        entry(root / "c", state="directory"),
    )
    assert (root / "a").read_text() == "now a file"
    assert (root / "b").readlink() == Path("a")
    assert (root / "c").is_dir()
    assert not (root / "c").is_symlink()
    kept = sorted(path.read_text() for path in backups.rglob("*") if path.is_file() and not path.is_symlink())
    assert kept == ["a file where a link belongs", "precious"]
    assert oct(next(backups.iterdir()).stat().st_mode & 0o777) == "0o700"


def test_two_of_one_name_are_both_kept(root: Path, backups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "x").mkdir()
    (root / "x/y").write_text("one")
    (root / "x__y").write_text("two")
    call(capsys, entry(root / "x/y", state="absent"), entry(root / "x__y", state="absent"))
    assert sorted(path.read_text() for path in backups.rglob("*") if path.is_file()) == ["one", "two"]


def test_purges_what_nobody_named(root: Path, backups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "kept").write_text("kept")
    (root / "foreign").write_text("foreign")
    (root / "folder").mkdir()
    options = {"purge": [str(root), str(root / "not-there")]}
    result = call(capsys, entry(root / "kept", "kept"), **options)
    assert result["changed_paths"] == [str(root / "folder"), str(root / "foreign")]
    assert [path.name for path in root.iterdir()] == ["kept"]
    assert [path.read_text() for path in backups.rglob("*") if path.is_file()] == ["foreign"]


def everything(root: Path) -> list[dict[str, Any]]:
    """Prepare something in each state and return entries that change all of it."""
    for name in ("content", "mode", "gone", "to-directory", "to-link"):
        (root / name).write_text("old")
        (root / name).chmod(0o644)
    for name in ("folder", "to-file"):
        (root / name).mkdir()
        (root / name).chmod(0o755)
    (root / "to-file/inside").write_text("old")
    (root / "link").symlink_to("content")
    return [
        entry(root / "content", "new"),
        entry(root / "mode", "old", mode="0600"),
        entry(root / "gone", state="absent"),
        entry(root / "to-directory", state="directory"),
        entry(root / "to-directory/inside", "new"),
        entry(root / "to-link", state="link", target="folder"),
        entry(root / "folder", state="directory", mode="0700"),
        entry(root / "to-file", "new"),
        entry(root / "link", state="link", target="folder"),
        entry(root / "new", state="directory"),
        entry(root / "new/inside", "new"),
    ]


def test_a_refused_change_is_undone_whole(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = everything(root)
    (root / "folder/foreign").write_text("old")
    before = snapshot(root)
    result = call(capsys, *entries, purge=[str(root / "folder")], validate=REFUSE)
    assert result["failed"] is True
    assert "line 3: no such directive" in result["msg"]
    assert "put back" in result["msg"]
    assert snapshot(root) == before


def test_an_accepted_change_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, *everything(root), validate=[sys.executable, "-c", ""])
    assert (result["changed"], result.get("failed", False)) == (True, False)
    assert (root / "to-directory/inside").read_text() == "new"


def test_nothing_is_validated_where_nothing_changed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "file").write_text("text")
    (root / "file").chmod(0o644)
    result = call(capsys, entry(root / "file", "text"), validate=REFUSE)
    assert (result["changed"], result.get("failed", False)) == (False, False)


def test_check_mode_names_the_same_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = everything(root)
    before = snapshot(root)
    preview = call(capsys, *entries, purge=[str(root / "folder")], validate=REFUSE, check=True)
    assert snapshot(root) == before
    done = call(capsys, *entries, purge=[str(root / "folder")])
    assert preview["changed_paths"] == done["changed_paths"] == [item["path"] for item in entries]


def test_a_full_disk_keeps_the_old_file(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "first").write_text("old")
    (root / "second").write_text("old")
    for name in ("first", "second"):
        (root / name).chmod(0o644)
    before = snapshot(root)
    sync, calls = os.fsync, []

    def full_at_the_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(managed_files.os, "fsync", full_at_the_second)
    result = call(capsys, entry(root / "first", "new"), entry(root / "second", "new"))
    assert "nothing was changed" in result["msg"]
    assert "No space left" in result["msg"]
    assert snapshot(root) == before


def test_the_diff_tells_attributes_and_content(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "file").write_text("old\n")
    (root / "file").chmod(0o644)
    (root / "link").symlink_to("old")
    diffs = call(capsys, entry(root / "file", "new\n", mode="0600"), entry(root / "link", state="link", target="new"))[
        "diff"
    ]
    ids = f"uid={os.getuid()} gid={os.getgid()}"
    assert [(diff["before"], diff["after"]) for diff in diffs] == [
        (f"file mode=0644 {ids}\nold\n", f"file mode=0600 {ids}\nnew\n"),
        ("link to old\n", "link to new\n"),
    ]
    assert diffs[0]["before_header"] == diffs[0]["after_header"] == str(root / "file")


def test_a_new_file_has_an_empty_before(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diff = call(capsys, entry(root / "file", "new\n"), check=True)["diff"][0]
    assert diff["before"] == ""
    assert diff["after"].endswith("\nnew\n")


@pytest.mark.parametrize("name", OF_FILES)
def test_an_attribute_of_a_file_is_found_and_removed(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (root / "file").write_text("text")
    (root / "file").chmod(0o644)
    give(root / "file", name)
    found = call(capsys, entry(root / "file", "text"), check=True)
    assert found["changed"] and name in found["diff"][0]["before"] and name not in found["diff"][0]["after"]
    assert attributes.attributes_of(str(root / "file")) == [name]
    assert call(capsys, entry(root / "file", "other"))["changed"]
    assert (root / "file").read_text() == "other"
    assert (attributes.in_tree(str(root)), (root / "file").stat().st_mode & 0o777) == ({}, 0o644)
    assert not call(capsys, entry(root / "file", "other"))["changed"]


@pytest.mark.parametrize("name", OF_DIRECTORIES)
def test_an_attribute_of_a_directory_is_found_and_removed(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (root / "d").mkdir(mode=0o755)
    give(root / "d", name)
    assert call(capsys, entry(root / "d", state="directory"), check=True)["changed"]
    assert call(capsys, entry(root / "d", state="directory"))["changed"]
    assert (attributes.in_tree(str(root)), (root / "d").stat().st_mode & 0o777) == ({}, 0o755)
    assert not call(capsys, entry(root / "d", state="directory"))["changed"]


@pytest.mark.parametrize("name", OF_FILES)
def test_what_is_in_a_directory_loses_its_attributes_if_asked(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/file").write_text("text")
    give(root / "d/e/file", name)
    assert not call(capsys, entry(root / "d", state="directory"))["changed"]
    found = call(capsys, entry(root / "d", state="directory", recurse=True))
    assert found["changed_paths"] == [str(root / "d")]
    assert f"{name} of {root}/d/e/file" in found["diff"][0]["before"]
    assert attributes.in_tree(str(root)) == {} and (root / "d/e/file").read_text() == "text"
    assert not call(capsys, entry(root / "d", state="directory", recurse=True))["changed"]


def test_a_purged_directory_loses_its_attributes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(root, "system.posix_acl_access")
    assert call(capsys, entry(root / "new", "text"), purge=[str(root)])["changed_paths"] == [
        str(root / "new"), str(root),
    ]  # fmt: skip
    assert attributes.attributes_of(str(root)) == []
    assert not call(capsys, entry(root / "new", "text"), purge=[str(root)])["changed"]


def test_a_new_file_does_not_inherit_an_access_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(root, "system.posix_acl_default")
    assert call(capsys, entry(root / "file", "text"), entry(root / "d", state="directory"))["changed"]
    assert [attributes.attributes_of(str(root / name)) for name in ("file", "d")] == [[], []]
    assert not call(capsys, entry(root / "file", "text"), entry(root / "d", state="directory"))["changed"]


def test_missing_folders_above_are_made(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, entry(root / "a/b/file", "text"))["changed"]
    assert (root / "a/b/file").read_text() == "text"


def test_a_purge_keeps_what_was_asked_for(
    root: Path, backups: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ours", "kept-1", "packaged", "foreign"):
        (root / name).write_text(name)
    (root / "above").mkdir()
    monkeypatch.setattr(managed_files, "packaged", lambda paths: {str(root / "packaged")})
    options = {"purge": [str(root)], "keep": [str(root / "kept-*")]}
    known = [entry(root / "ours", "ours", mode="0644"), entry(root / "above/below", "text")]
    found = call(capsys, *known, **options, keep_packaged=True, check=True)
    assert str(root / "foreign") in found["changed_paths"] and str(root / "packaged") not in found["changed_paths"]
    call(capsys, *known, **options, keep_packaged=True)
    assert {path.name for path in root.iterdir()} == {"ours", "kept-1", "packaged", "above"}
    call(capsys, *known, **options)
    assert {path.name for path in root.iterdir()} == {"ours", "kept-1", "above"}


def test_what_a_package_brought_is_known_also_behind_a_link(root: Path) -> None:
    if not shutil.which("dpkg-query"):
        pytest.skip("no dpkg here")
    (root / "link").symlink_to("/usr/bin/dpkg")
    (root / "mine").touch()
    assert managed_files.packaged([str(root / "link"), str(root / "mine")]) == {str(root / "link")}


def test_a_service_that_is_older_than_its_files_is_a_change(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    since = managed_files.started(str(os.getpid()))
    assert time.time() - 3600 < since < time.time()
    monkeypatch.setattr(managed_files, "reading_since", lambda service: since)
    (root / "file").write_text("text")
    (root / "file").chmod(0o644)
    found = call(capsys, entry(root / "file", "text"), readers={"x.service": str(root)})
    assert found["changed_paths"] == [f"x.service is older than {root}"]
    monkeypatch.setattr(managed_files, "reading_since", lambda service: time.time() + 1)
    assert not call(capsys, entry(root / "file", "text"), readers={"x.service": str(root)})["changed"]
    monkeypatch.setattr(managed_files, "reading_since", lambda service: None)
    assert not call(capsys, entry(root / "file", "text"), readers={"x.service": str(root)})["changed"]


# --- as a task, which brings it to the host as a plain program ---


def play(root: Path, task: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a task on this machine."""
    playbook = root / "play.yml"
    settings = {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_VAULT_IDENTITY_LIST": "test@README.md"}
    playbook.write_text(f"- {{hosts: all, gather_facts: false, tasks: [{{waffle.iron.managed_files: {task}}}]}}\n")
    return subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", *options, playbook],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **settings},
    )  # fmt: skip


def test_a_task_writes_what_is_wanted_and_says_so(root: Path) -> None:
    content = "p@$$w\"o'rd \\ ${HOME} %d é\n\n"
    wanted = entry(root / "new", content)
    task = json.dumps({"entries": [wanted], "purge": [str(root / "none")]})
    previewed = play(root, task, "--check", "--diff")
    assert "changed=1" in previewed.stdout and "+p@$$w" in previewed.stdout, previewed.stdout
    assert not (root / "new").exists()
    assert "changed=1" in play(root, task).stdout
    assert (root / "new").read_text() == content
    assert "changed=0" in play(root, task).stdout


def test_a_task_brings_a_file_of_the_control_node_as_it_is(root: Path) -> None:
    (root / "files").mkdir()
    (root / "files/program").write_text("{{ not_a_template }} é\n\n")
    task = json.dumps({"entries": [entry(root / "new", source="program", mode="0700")]})
    assert "changed=1" in play(root, task).stdout
    assert (root / "new").read_text() == "{{ not_a_template }} é\n\n"
    assert (root / "new").stat().st_mode & 0o777 == 0o700
    assert "changed=0" in play(root, task).stdout


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"entries": [{"path": "/x", "source": "no-such"}]}, "Could not find or access 'no-such'"),
        ({"entries": [{"path": "/x", "source": "a", "content": "b"}]}, "Unsupported parameters"),
        ({"entries": [{"path": "/x", "state": "fine"}]}, "value of state must be one of: file, directory, link"),
        ({"entries": [{"path": "/x"}]}, "state is file but all of the following are missing: content"),
        ({"entries": [], "purges": []}, "managed_files) module: purges"),
        ({"entries": [entry(Path("/proc/new"), "x")]}, "nothing was changed: "),
    ],
)
def test_a_task_that_cannot_be_done_says_why(root: Path, task: dict[str, Any], words: str) -> None:
    done = play(root, json.dumps(task))
    assert done.returncode != 0 and words in " ".join(done.stdout.split()), done.stdout


def test_the_interpreter_is_that_of_modules(root: Path) -> None:
    nothing = json.dumps({"entries": []})
    done = play(root, nothing, "-e", "ansible_python_interpreter={{ '/no/such' }}/python")
    assert done.returncode != 0 and "/no/such/python: " in done.stdout, done.stdout
    assert play(root, nothing, "-e", "ansible_python_interpreter=auto_silent").returncode == 0
