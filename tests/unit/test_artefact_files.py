"""What cannot be part of an artefact is named on the control node: from real Git repositories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.files import outside

from tests.support import module_at

artefact = module_at("plugins/action/artefact.py")
AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.com")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def git(folder: Path, *arguments: str | bytes) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *AUTHOR, "-C", folder, *arguments], check=True, capture_output=True, env=environment)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return the folder of an application inside a repository."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "main.py").write_text("app = 1\n")
    (tmp_path / "beside").write_text("not part of the application\n")
    git(tmp_path, "init", "--quiet")
    return folder


def findings(app: Path, **options: Any) -> list[str]:
    """Return what is said against an application; nothing if it can be packed."""
    git(app.parent, "add", "--all")
    git(app.parent, "commit", "--quiet", "--message", "work")
    tree, _, _ = artefact.tree_of(app, "HEAD")
    try:
        artefact.archive(app, tree, **options)
    except AnsibleActionFail as error:
        head, *lines = str(error.message).splitlines()
        assert head == "the application cannot be packed:"
        return [line.removeprefix("  - ") for line in lines]
    return []


def test_everything_that_cannot_be_packed_is_named_at_once(app: Path) -> None:
    (app / "model.bin").write_text(POINTER)
    (app / "env").symlink_to("/etc/passwd")
    (app / "beside").symlink_to("../beside")
    (app / os.fsdecode(b"caf\xe9.txt")).write_text("latin-1")
    (app / "big").write_bytes(bytes(2 << 20))
    (app / "more.big").write_bytes(bytes((1 << 20) + 1))
    (app / "edge").write_bytes(bytes(1 << 20))
    module = app / "module"
    git(app, "init", "--quiet", "module")
    git(module, "commit", "--quiet", "--allow-empty", "--message", "x")
    found = findings(app, limit=1)
    assert [(path, words.split(" Fix: ")[0]) for path, words in (line.split(": ", 1) for line in found)] == [
        ("big", "2 MB, and a file of the application may have 1 MB."),
        (r"caf\xe9.txt", "the name is not UTF-8, as hosts read names."),
        ("module", "a Git submodule cannot be part of the application."),
        ("more.big", "2 MB, and a file of the application may have 1 MB."),
        ("beside", "the link to '../beside' leaves the folder of the application, and hosts refuse such links."),
        ("env", "the link to '/etc/passwd' leaves the folder of the application, and hosts refuse such links."),
        ("model.bin", "a pointer of Git LFS, and not the file: an archive has what Git has."),
    ]
    assert all(" Fix: " in line for line in found)


def test_what_looks_like_it_and_is_fine_is_packed(app: Path) -> None:
    (app / "docs.txt").write_text(f"Git LFS writes:\n{POINTER}")
    (app / "long.txt").write_text(POINTER + "x" * 2000)
    (app / "link").symlink_to("pkg/../main.py")
    (app / "dangling").symlink_to("nowhere")
    (app / "loop").symlink_to("loop")
    (app / "pkg").mkdir()
    (app / "pkg/up").symlink_to("../main.py")
    (app / "é \N{PARTY POPPER}.txt").write_text("UTF-8")
    assert findings(app) == []


def test_a_link_is_followed_through_other_links() -> None:
    links = {"a/b/c/root": "../../..", "escape": "a/b/c/root/..", "fine": "a/b/c/root/main.py", "chain": "escape"}
    assert list(outside(links)) == ["escape", "chain"]
