"""`make new-app` sets a clone up for an application of one's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import support
from tests.contract.conftest import AUTHOR, Project, as_published
from tests.support import ROOT, about_the_sample


@pytest.fixture
def clone(project: Project) -> Project:
    """Return a copy with the inventory of AWS."""
    shutil.copytree(ROOT / "inventory/aws", project.root / "inventory/aws", symlinks=True)
    return project


@pytest.fixture
def players(tmp_path: Path, clone: Project) -> Path:
    """Return a repository with the program that a tutorial ends with."""
    folder = tmp_path / "players"
    shutil.copytree(ROOT / "tests/apps/tutorial", folder, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    for arguments in (["init", "--quiet"], ["add", "--all"], [*AUTHOR, "commit", "--quiet", "--message", "players"]):
        assert clone.run("git", "-C", str(folder), *arguments).returncode == 0
    return folder


def new_app(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.run(sys.executable, "scripts/new-app", *arguments)


def files(project: Project) -> dict[str, str]:
    paths = [*project.root.glob("group_vars/*/*.yml"), project.root / "inventory/aws/aws_ec2.yml"]
    return {str(path.relative_to(project.root)): path.read_text() for path in paths}


def test_a_clone_is_set_up_once(clone: Project, players: Path) -> None:
    done = new_app(clone, "players", str(players))
    assert done.returncode == 0, done.stdout
    assert "application  main:app (main.py)" in done.stdout
    after = files(clone)
    values = yaml.safe_load(after["group_vars/all/vars.yml"])
    assert (values["project"], values["app_repository"]) == ("players", str(players))
    assert yaml.safe_load(after["inventory/aws/aws_ec2.yml"])["filters"]["tag:Project"] == "players"
    assert "group_vars/all/sample.yml" not in after
    again = new_app(clone, "players")
    assert again.returncode == 0, again.stdout
    assert "changed" not in again.stdout and files(clone) == after


@about_the_sample
def test_the_sample_keeps_its_settings_until_it_goes(clone: Project) -> None:
    done = new_app(clone, "shop")
    assert done.returncode == 0, done.stdout
    assert "app/ is still the sample" in done.stdout
    assert "group_vars/all/sample.yml" in files(clone)


@pytest.mark.parametrize("name", ["", "Shop", "9shop", "shop-", "a" * 17, "shop_x", "shop: x", "../shop"])
def test_a_bad_name_changes_nothing(clone: Project, name: str) -> None:
    before = files(clone)
    done = new_app(clone, name)
    assert (done.returncode, files(clone)) == (2, before)
    assert "Fix: make new-app NAME=shop" in done.stdout


def test_a_repository_is_no_more_than_an_address(clone: Project) -> None:
    before = files(clone)
    done = new_app(clone, "shop", 'x"\nproject: y')
    assert (done.returncode, files(clone)) == (2, before)


def test_the_other_tests_of_a_clone_run_as_before_it_was_set_up(clone: Project, players: Path) -> None:
    """`make quick` in a clone: the copies that tests work on have the published name, and no foreign repository."""
    before = (clone.root / "group_vars/all/vars.yml").read_text()
    assert new_app(clone, "players", str(players)).returncode == 0
    after = (clone.root / "group_vars/all/vars.yml").read_text()
    assert after != before and as_published(after) == before


@about_the_sample
def test_what_is_about_the_sample_is_left_out_in_a_clone_for_another_application(
    clone: Project, players: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is still there if the application has a repository of its own."""
    (clone.root / "app/nba/settings.py").touch()
    monkeypatch.setattr(support, "ROOT", clone.root)
    assert support.is_sample()
    assert new_app(clone, "players", str(players)).returncode == 0
    assert (clone.root / "app/nba/settings.py").is_file() and not support.is_sample()
