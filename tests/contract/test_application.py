"""Preflight says what an application is, and stops before any host for what hosts could not install."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.conftest import AUTHOR, Project
from tests.support import ROOT

CHECK = ("ansible-playbook", "playbooks/preflight.yml", "-i", "inventory/test")


def bring(project: Project, folder: Path) -> None:
    """Have a project deploy another application."""
    shutil.rmtree(project.root / "app")
    shutil.copytree(folder, project.root / "app", ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    commit(project)


def commit(project: Project) -> None:
    for arguments in (["add", "--all", "app"], [*AUTHOR, "commit", "--quiet", "--message", "app"]):
        assert project.run("git", *arguments).returncode == 0


def findings(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.removeprefix("  - ") for line in done.stdout.splitlines() if line.startswith("  - ")]


def test_an_application_is_described_once_for_each_environment(project: Project) -> None:
    bring(project, ROOT / "tests/apps/tutorial")
    done = project.run(*CHECK, "-e", "all_environments=true")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("application  main:app (main.py)    python >=3.13, hosts may have 3.11, 3.13, 3.12") == 2
    assert done.stdout.count("\n  app_module: main:app\n") == 2
    assert "does not set what has no default: DB_DATABASE (main.py:26)" in " ".join(done.stdout.split())
    assert not project.called


def test_the_variables_that_are_set_need_no_line(project: Project) -> None:
    bring(project, ROOT / "tests/apps/tutorial")
    wiring = project.root / "group_vars/all/vars.yml"
    wiring.write_text(
        f"{wiring.read_text()}\napp_module: main:app\napp_settings_command: []\napp_migrations: false\n"
        "app_ready_path: /\napp_live_path: /\n"
    )
    done = project.run(*CHECK, "-l", "dev")
    assert done.returncode == 0, done.stdout
    assert "application  main:app" in done.stdout
    assert "to write into" not in done.stdout


@pytest.mark.parametrize("command", [CHECK, ("ansible-playbook", "site.yml", "-i", "inventory/test")])
def test_what_hosts_could_not_install_stops_the_run(project: Project, command: tuple[str, ...]) -> None:
    bring(project, ROOT / "tests/apps/tutorial")
    lock = project.root / "app/poetry.lock"
    lock.write_text(lock.read_text().replace("pydantic_core-2.50.5-cp313-cp313-", "pydantic_core-2.50.5-cp312-cp312-"))
    (project.root / "app/uv.lock").touch()
    commit(project)
    # As the lab's inventory, and that of AWS, say it.
    hosts = project.root / "inventory/test/hosts.yml"
    hosts.write_text(hosts.read_text().replace("192.0.2.1", "192.0.2.1, host_image: debian-12"))
    done = project.run(*command, "-l", "dev", "-e", "lock_file=poetry.lock", "-e", "confirm=dev")
    assert done.returncode == 2, done.stdout
    assert [finding.partition(":")[0] for finding in findings(done)] == ["Python"]
    hosts.write_text(hosts.read_text().replace("debian-12", "debian-13"))
    done = project.run(*command, "-l", "dev", "-e", "confirm=dev")
    assert [finding.partition(":")[0] for finding in findings(done)] == ["uv.lock and poetry.lock"]
    done = project.run(*command, "-l", "dev", "-e", "lock_file=poetry.lock", "-e", "confirm=dev")
    assert [finding.partition(":")[0] for finding in findings(done)] == ["pydantic-core 2.50.5"]
    assert not project.called
