"""The application's settings are checked against its own schema, before any host is called."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.contract.conftest import AUTHOR, Project

CHECK = ("ansible-playbook", "playbooks/preflight.yml", "-i", "inventory/test")
TWO_OF_PROD = "prod: {hosts: {prod2: {ansible_host: 192.0.2.3}, prod1: "


ORIGIN = "^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["DATABASE_HOST", "DATABASE_USER", "DATABASE_PASSWORD", "DATABASE_NAME"],
    "properties": {
        **{name: {"type": "string"} for name in ("DATABASE_HOST", "DATABASE_PASSWORD", "DATABASE_NAME", "LOG_LEVEL")},
        "DATABASE_USER": {"type": "string", "maxLength": 32},
        "DATABASE_PORT": {"type": "integer"},
        "DATABASE_POOL_SIZE": {"type": "integer", "maximum": 100},
        "DATABASE_POOL_OVERFLOW": {"type": "integer"},
        "CORS_ORIGINS": {"type": "array", "items": {"type": "string", "pattern": ORIGIN}},
        "DOCS_ENABLED": {"type": "boolean"},
    },
}
OWN = """
app_settings:
  DATABASE_POOL_SIZE: "{{ database_pool_size }}"
  DATABASE_POOL_OVERFLOW: "{{ database_pool_overflow }}"
  CORS_ORIGINS: "{{ cors_origins | join(',') }}"
  DOCS_ENABLED: "{{ docs_enabled | bool | lower }}"
  LOG_LEVEL: "{{ log_level }}"
app_migration_settings: {}
"""
READS = "from fastapi import FastAPI\nimport os\n" + "".join(f'os.environ["{name}"]\n' for name in SCHEMA["properties"])


@pytest.fixture
def described(project: Project) -> Project:
    """Return a copy whose application says what it may be told, and that has two hosts in prod."""
    app = project.root / "app"
    (app / "nba/main.py").write_text(f"{READS}app = FastAPI()\n")
    (app / "poetry.lock").write_text('[[package]]\nname = "pymysql"\nversion = "1.2.4"\n')
    (app / "settings.schema.json").write_text(json.dumps(SCHEMA))
    for arguments in (["add", "app"], [*AUTHOR, "commit", "--quiet", "--message", "Describe the settings"]):
        assert project.run("git", *arguments).returncode == 0
    wiring = project.root / "group_vars/all/vars.yml"
    wiring.write_text(wiring.read_text() + OWN)
    hosts = project.root / "inventory/test/hosts.yml"
    hosts.write_text(hosts.read_text().replace("prod: {hosts: {prod1: ", TWO_OF_PROD))
    return project


def edit(project: Project, path: str, pattern: str, replacement: str) -> None:
    """Replace one line of a file."""
    text, count = re.subn(pattern, replacement, (project.root / path).read_text(), flags=re.MULTILINE)
    assert count == 1, pattern
    (project.root / path).write_text(text)


def findings(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what the check of the settings found."""
    return [line.removeprefix("  - ") for line in done.stdout.splitlines() if line.startswith("  - ")]


def test_settings_that_fit_pass_for_both_environments_without_a_host(described: Project) -> None:
    done = described.run(*CHECK, "-e", "all_environments=true")
    assert done.returncode == 0, done.stdout
    assert not described.called
    assert "settings.schema.json" not in done.stdout


def test_everything_wrong_about_them_is_named_before_any_host_is_called(described: Project) -> None:
    wiring = "group_vars/all/vars.yml"
    edit(described, wiring, r"^  DATABASE_POOL_OVERFLOW:", "  DATABASE_POOL_OVERFLOWS:")
    edit(described, wiring, r"^database_way:\n  host: .*", "database_way:")
    edit(described, wiring, r"^  LOG_LEVEL: .*", '  LOG_LEVEL: "{{ nobody_sets_this }}"\n  LD_PRELOAD: x\n  A-B: x')
    edit(described, "group_vars/prod/vars.yml", r"^database_pool_size: .*", "database_pool_size: 500")
    edit(described, "group_vars/prod/vars.yml", r"^cors_origins: .*", 'cors_origins: ["https://Geheim.example/a"]')
    expected = {
        "DATABASE_HOST: is missing",
        "DATABASE_POOL_OVERFLOWS (database_pool_overflow): unknown setting; did you mean DATABASE_POOL_OVERFLOW?",
        "DATABASE_POOL_SIZE (database_pool_size): should be 100 or less",
        "CORS_ORIGINS (cors_origins): item 1 should match ^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$",
        "LOG_LEVEL (nobody_sets_this): refers to something that is not set",
        "LD_PRELOAD: is what the system steers processes by, and settings are exported to them. Rename it",
        "A-B: is no name of an environment variable (letters, digits and _). Rename it",
    }
    secrets = yaml.safe_load(described.view("prod")).values()
    for command in (("ansible-playbook", "site.yml", "-i", "inventory/test"), CHECK):
        done = described.run(*command, "-l", "prod", "-e", "confirm=prod")
        assert done.returncode == 2, done.stdout
        # prod2 as well: what stops the first host, stops them all.
        assert not described.called
        assert set(findings(done)) == expected, done.stdout
        assert "Geheim" not in done.stdout
        assert not [secret for secret in secrets if secret in done.stdout]


def test_a_list_is_checked_as_what_is_written(described: Project) -> None:
    edit(described, "group_vars/all/vars.yml", r"^  CORS_ORIGINS: .*", '  CORS_ORIGINS: "{{ cors_origins }}"')
    edit(described, "group_vars/all/vars.yml", r"^  DOCS_ENABLED: .*", '  DOCS_ENABLED: "{{ docs_enabled }}"')
    edit(
        described,
        "group_vars/dev/vars.yml",
        r"^cors_origins: .*",
        'cors_origins: ["https://{{ environment_name }}.example"]',
    )
    done = described.run(*CHECK, "-l", "dev")
    assert done.returncode == 0, done.stdout
    shown = described.run(
        "ansible", "dev", "-m", "debug", "-a", "msg={{ app_settings | waffle.iron.dotenv }}", "-i", "inventory/test"
    )
    assert """CORS_ORIGINS='["https://dev.example"]'""" in shown.stdout, shown.stdout
    assert re.search(r"DOCS_ENABLED=(true|false)\b", shown.stdout)


def test_a_setting_of_the_migrations_alone_is_checked_too(described: Project) -> None:
    edit(described, "group_vars/dev/vars.yml", r"^database_migration_user: .*", f"database_migration_user: {'x' * 32}")
    edit(described, "group_vars/all/vars.yml", r"^app_migration_settings: {}", "app_migration_settings:\n  OTHER: 1")
    assert findings(described.run(*CHECK, "-l", "dev")) == ["OTHER: unknown setting"]


def test_an_application_without_a_schema_is_checked_on_the_host_and_that_is_said(described: Project) -> None:
    for arguments in (["rm", "--quiet", "app/settings.schema.json"], [*AUTHOR, "commit", "--quiet", "--message", "No"]):
        assert described.run("git", *arguments).returncode == 0
    done = described.run(*CHECK, "-l", "dev")
    assert done.returncode == 0, done.stdout
    assert "no schema to check them by" in " ".join(done.stdout.split())


def test_going_back_is_not_held_up_by_settings_that_it_does_not_use(described: Project) -> None:
    edit(described, "group_vars/dev/vars.yml", r"^database_pool_size: .*", "database_pool_size: 500")
    done = described.run("ansible-playbook", "playbooks/rollback.yml", "-i", "inventory/test", "-l", "dev")
    assert described.called, done.stdout


def test_secret_files_are_checked_with_the_settings(described: Project) -> None:
    secret = "-----BEGIN PRIVATE KEY-----"
    schema = described.root / "app/settings.schema.json"
    declared = {**SCHEMA, "required": [*SCHEMA["required"], "OCI_PEM_FILE"]}
    declared["properties"] = {**SCHEMA["properties"], "OCI_PEM_FILE": {"type": "string", "pattern": "^/"}}
    schema.write_text(json.dumps(declared))
    assert described.run("git", *AUTHOR, "commit", "--quiet", "--all", "--message", "Read a key").returncode == 0
    done = described.run(*CHECK, "-l", "dev")
    assert "OCI_PEM_FILE: is missing" in done.stdout
    good = {"oci.pem": secret, "other": secret}
    done = described.run(*CHECK, "-l", "dev", "-e", json.dumps({"app_files": good}))
    assert done.returncode == 0, done.stdout
    wiring = described.root / "group_vars/all/vars.yml"
    files = {"a/b": secret, "log-level": 5, "ld_preload": secret, "python.pem": "{{ vault_nothing }}"}
    wiring.write_text(wiring.read_text() + f"app_files: {json.dumps(files)}\n")
    done = described.run(*CHECK, "-l", "dev", "-e", json.dumps({"app_settings": {"LOG_LEVEL_FILE": "a"}}))
    found = [line for line in findings(done) if "app_files" in line]
    assert [line.partition(":")[0] for line in found] == [f"app_files {name}" for name in sorted(files)]
    assert "is no name" in found[0] and "steers processes" in found[1] and "not set" in found[3]
    assert "BEGIN" not in done.stdout and not described.called
