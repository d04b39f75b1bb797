"""The metadata that a release has of its own project."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

project = sys.modules["project"]


def written(folder: Path, text: str) -> list[importlib.metadata.Distribution]:
    """Return what Python finds of a release with this pyproject.toml."""
    (folder / "pyproject.toml").write_text(text)
    project.write_metadata(folder)
    return list(importlib.metadata.distributions(path=[str(folder / ".project")]))


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ((ROOT / "tests/apps/team/pyproject.toml").read_text(), "club", "2.4.1"),
        ((ROOT / "tests/apps/tutorial/pyproject.toml").read_text(), "players", "0.1.0"),
        ("[tool.poetry]\nname = 'My.Shop-api'  # ours\nversion = '1.0.post1+a.2'\n", "My.Shop-api", "1.0.post1+a.2"),
        ('[project]\nname = "shop"\ndynamic = ["version"]\n[tool.poetry]\nversion = "3"\n', "shop", "3"),
        ('[project]\nname = "shop"\nversion = "1"\n[[tool.uv.index]]\nname = "torch"\nversion = "2"\n', "shop", "1"),
        ('[ project ]\n"name" = "shop"\nversion = "1"\nauthors = [\n    {name = "A"},\n]\n', "shop", "1"),
    ],
)
def test_python_knows_the_project_of_a_release(tmp_path: Path, text: str, name: str, version: str) -> None:
    (found,) = written(tmp_path, text)
    assert (found.metadata["Name"], found.version) == (name, version)


@pytest.mark.parametrize(
    "text",
    [
        '[project]\nname = "shop"\ndynamic = ["version"]\n',
        '[project]\nversion = "1"\n',
        "# none\n",
        "",
        '[project]\nname = "../../elsewhere"\nversion = "1"\n',
        '[project]\nname = "shop"\nversion = "1/../../elsewhere"\n',
    ],
)
def test_what_states_no_name_and_version_has_none(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, text) == []
    assert not (tmp_path / ".project").exists()


def test_a_project_without_pyproject_toml_has_none(tmp_path: Path) -> None:
    project.write_metadata(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plug_ins_of_the_project_are_found(tmp_path: Path) -> None:
    (found,) = written(
        tmp_path,
        '[project]\nname = "shop"\nversion = "1"\n[project.scripts]\nshop = "shop.cli:main"\nodd = "not an entry"\n'
        "[project.entry-points.\"shop.payments\"]\ncard = 'shop.card'\n",
    )
    assert {(each.group, each.name, each.value) for each in found.entry_points} == {
        ("console_scripts", "shop", "shop.cli:main"),
        ("shop.payments", "card", "shop.card"),
    }


@pytest.mark.parametrize("link", [False, True])
def test_a_file_of_an_editor_is_in_nobody_s_way(tmp_path: Path, link: bool) -> None:
    (tmp_path / "other").write_text("kept")
    (tmp_path / ".project").symlink_to("other") if link else (tmp_path / ".project").write_text("<xml/>")
    assert len(written(tmp_path, '[project]\nname = "shop"\nversion = "1"\n')) == 1
    assert (tmp_path / "other").read_text() == "kept"


def test_the_path_of_a_release_has_its_code_and_its_metadata(tmp_path: Path) -> None:
    facts = {"application": {"module": "club.main:app", "folder": "src"}}
    (tmp_path / "release.json").write_text(json.dumps(facts))
    assert project.python_path(tmp_path) == [tmp_path / "src", tmp_path, tmp_path / ".project"]
    (tmp_path / "release.json").write_text("{}")
    assert project.python_path(tmp_path) == [tmp_path, tmp_path / ".project"]
