"""Preflight says what an application is, and stops before any host for what hosts could not install."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.contract.conftest import AUTHOR, Project
from tests.support import ROOT, about_the_sample, vault_secrets

CHECK = ("ansible-playbook", "playbooks/preflight.yml", "-i", "inventory/test")


SHOWN = """{{ {'settings': app_database | waffle.iron.database_settings(application), 'own': app_settings,
    'command': app_settings_command, 'module': application.module, 'nginx': [nginx_path, nginx_document_root],
    'health': health_path, 'database': database_name} | to_json }}"""


def bring(project: Project, folder: Path) -> None:
    """Configure a project to deploy another application."""
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
    assert done.stdout.count("application  main:app (main.py)    python >=3.13, hosts may have 3.11, 3.12, 3.13") == 2
    assert done.stdout.count("settings     5 variables exported (DB_HOST DB_PORT DB_USER DB_PASSWORD DB_DATABASE)") == 2
    assert "warning" not in done.stdout.lower()
    assert not project.called


WIRED = """{{ [nginx_path, nginx_strip_path, nginx_document_root, nginx_health_path, aws_health_path,
    aws_health_answers, mysql_client_manage_database] | to_json }}"""


@pytest.mark.parametrize(
    ("facts", "wired"),
    [
        ({}, ["/api", True, "/srv/nba/live/release/frontend", "/", "/", "success", True]),
        (
            {
                "path": "/v1",
                "strip_path": False,
                "page": False,
                "health_path": "/",
                "ready_answers": "any",
                "database": {},
            },
            ["/v1", False, "", "/", "/", "any", False],
        ),
        # What is stated by halves, as a role alone may do, has the rest from the same place.
        ({"path": "/"}, ["/", True, "/srv/nba/live/release/frontend", "/", "/", "success", True]),
    ],
)
def test_values_follow_from_the_application_or_from_one_place(
    project: Project, facts: dict[str, object], wired: list[object]
) -> None:
    known = json.dumps({"environment_leader": "dev1", **({"application": facts} if facts else {})})
    words = ("dev", "-i", "inventory/test", "-m", "ansible.builtin.debug", "-a", f"msg='{WIRED}'", "-e", known)
    done = project.run("ansible", *words, ANSIBLE_CALLBACK_RESULT_FORMAT="json")
    assert done.returncode == 0, done.stdout
    assert json.loads(json.loads(done.stdout.partition("=>")[2])["msg"]) == wired


def test_the_fact_about_the_application_has_one_reader() -> None:
    lines = (ROOT / "group_vars/all/vars.yml").read_text().splitlines()
    readers = {line.partition(":")[0] for line in lines if "application |" in line and not line.startswith("#")}
    assert readers == {"known_application", "app_application"}


@about_the_sample
def test_two_lines_are_enough(project: Project) -> None:
    """The application is in a repository of its own, and what the sample is told is not told it."""
    service = project.root.parent / "players"
    shutil.copytree(ROOT / "tests/apps/tutorial", service, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    for arguments in (["init", "--quiet"], ["add", "--all"], [*AUTHOR, "commit", "--quiet", "--message", "players"]):
        assert project.run("git", "-C", str(service), *arguments).returncode == 0
    wiring = project.root / "group_vars/all/vars.yml"
    text = wiring.read_text().replace("project: nba\n", "project: players\n")
    wiring.write_text(text.replace('app_repository: ""\n', f"app_repository: {service}\n"))
    show = {
        "name": "Show",
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"name": "Show", "ansible.builtin.copy": {"content": SHOWN, "dest": str(project.root / "shown")},
                   "delegate_to": "localhost", "vars": {"ansible_connection": "local"}}],
    }  # fmt: skip
    playbook = [{"name": "Check", "ansible.builtin.import_playbook": "playbooks/preflight.yml"}, show]
    (project.root / "show.yml").write_text(yaml.safe_dump(playbook, sort_keys=False))
    done = project.run("ansible-playbook", "show.yml", "-i", "inventory/test", "-l", "dev")
    assert done.returncode == 0, done.stdout
    shown = json.loads((project.root / "shown").read_text())
    settings = shown.pop("settings")
    assert settings.pop("DB_PASSWORD") == vault_secrets(project.view("dev"))["vault_database_password"]
    assert settings == {
        "DB_HOST": "db.example.com", "DB_PORT": "3306", "DB_USER": "players_dev", "DB_DATABASE": "players_dev",
    }  # fmt: skip
    assert shown == {
        "own": {}, "command": [], "module": "main:app", "nginx": ["/", ""], "health": "/", "database": "players_dev",
    }  # fmt: skip


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
