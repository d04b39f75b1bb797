"""Where a checkout may be: a folder whose name some program would misread is refused before anything is made there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

FILES = ("Makefile", "scripts/bootstrap", "poetry.lock", "roles/python/files/poetry.txt")


def checkout(folder: Path) -> Path:
    """Make a checkout of what `make setup` needs. A file in the place of .tools/ ends that before a download."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".tools").touch()
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make."""
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("character", [*" :;,'\"`$%&#!*?|<>()[]{}\\\t", "{{ x }}"])
@pytest.mark.parametrize("target", ["setup", "check"])
def test_a_folder_with_a_name_that_would_be_misread_is_refused_at_once(
    tmp_path: Path, character: str, target: str
) -> None:
    folder = checkout(tmp_path / f"my{character}project")
    done = make(folder, target)
    assert done.returncode == 2
    first, then, *_ = done.stderr.splitlines()
    assert first.startswith(f'bootstrap: cannot work in "{folder}": ')
    assert then.startswith("bootstrap: move the checkout to a folder ")
    assert sorted(path.name for path in folder.iterdir()) == [".tools", "Makefile", "poetry.lock", "roles", "scripts"]
    assert make(folder, "help").returncode == 0


def test_a_link_to_such_a_folder_is_refused_too(tmp_path: Path) -> None:
    checkout(tmp_path / "my project")
    (tmp_path / "link").symlink_to("my project")
    assert f'cannot work in "{tmp_path}/my project"' in make(tmp_path / "link", "setup").stderr


@pytest.mark.parametrize("name", ["project", "My_project-2.0+a@b=c~d", "projet-é"])
def test_other_names_are_fine(tmp_path: Path, name: str) -> None:
    done = make(checkout(tmp_path / name), "setup")
    assert ".tools" in done.stderr
    assert "cannot work in" not in done.stderr


@pytest.mark.parametrize("moved", [True, False])
def test_a_virtual_environment_that_was_moved_is_made_anew(tmp_path: Path, moved: bool) -> None:
    folder = checkout(tmp_path / "project")
    program = folder / ".venv/bin/ansible-playbook"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{tmp_path / 'before' if moved else folder}/.venv/bin/python\n")
    make(folder, "setup")
    assert program.exists() != moved
