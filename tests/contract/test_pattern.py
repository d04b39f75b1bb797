"""One pattern: what dev and prod are made of is the same, task by task and file by file, and both can be made."""

from __future__ import annotations

import configparser
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.conftest import Project
from tests.support import (
    ENVIRONMENTS,
    ROLES,
    ROOT,
    Unsafe,
    about_the_sample,
    application_of,
    is_sample,
    module_at,
    vault_secrets,
    vault_text,
)

environment = module_at("roles/app/files/environment.py")
settings = module_at("plugins/action/settings.py")
slots = module_at("roles/app/files/slots.py")

PLAYBOOKS = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "site.yml", *ROOT.glob("playbooks/*.yml")])
TEMPLATES = {role: sorted(path.name for path in (ROOT / f"roles/{role}/templates").glob("*")) for role in ROLES}
# What is not made by a template: file and the expression behind it, as the role's tasks have it.
EXPRESSIONS = {
    "app": {
        ".env": "__app_env",
        ".env.migrate": "__app_migration_env",
        ".mysql.cnf": "__app_backup_options",
        "release.json": "__app_config | to_nice_json",
        "backup.json": "__app_backup_config | to_nice_json",
    }
}
# What preflight would have found out.
APPLICATION = {**application_of(ROOT / ("app" if is_sample() else "tests/apps/tutorial")), "artefact": "a" * 64}
# In both accounts' passwords: it reaches the files as it is.
TEMPLATE = "{{ 7 * 7 }} {% if {# # #}"
RENDER = """
- name: Render everything
  ansible.builtin.copy:
    content: "{{% set files = {{}} %}}{{% for name in {templates} %}}{{% set _ = files.update(
      {{name: lookup('ansible.builtin.template', name)}}) %}}{{% endfor %}}{expressions}{{{{ files | to_json }}}}"
    dest: "{folder}/{role}-{{{{ inventory_hostname }}}}.json"
    mode: "0600"
"""


def test_the_lists_of_tasks_are_equal(project: Project) -> None:
    listed = {}
    for environment in ENVIRONMENTS:
        command = ("ansible-playbook", *PLAYBOOKS, "-i", "inventory/test", "-l", environment, "--list-tasks")
        done = project.run(*command)
        assert done.returncode == 0, done.stdout
        listed[environment] = done.stdout
    assert not project.called
    assert listed["dev"].count("TAGS: ") > 100
    assert listed["dev"] == listed["prod"]


Files = dict[str, dict[str, str]]  # by role and name


@dataclass(frozen=True)
class Kitchen:
    """A copy of the project in which Ansible renders everything that the roles make, on this machine alone."""

    project: Project
    folder: Path

    def render(self, *arguments: str) -> dict[str, Files]:
        """Return the files for the host of each environment."""
        done = self.project.run("ansible-playbook", "rendered.yml", "-i", "inventory/test", *arguments)
        assert done.returncode == 0, done.stdout
        return {
            name: {role: json.loads((self.folder / f"{role}-{name}1.json").read_text()) for role in TEMPLATES}
            for name in ENVIRONMENTS
        }


@pytest.fixture(scope="module")
def kitchen(pristine: Project, tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    """Give each role of a copy a list of tasks that renders: with its own defaults and variables, and real values."""
    folder, copy = tmp_path_factory.mktemp("rendered"), Project(tmp_path_factory.mktemp("kitchen") / "waffle")
    shutil.copytree(pristine.root, copy.root, symlinks=True)
    for name in ENVIRONMENTS:
        secrets = vault_secrets(copy.view(name))
        for key in ("vault_database_password", "vault_database_migration_password"):
            secrets[key] = Unsafe(f"{secrets[key]}{TEMPLATE}")
        copy.encrypt(name, vault_text(secrets))
    hosts: dict[str, Any] = {name: {"hosts": {f"{name}1": {}}} for name in ENVIRONMENTS}
    local = {"ansible_connection": "local", "database_host": "db.example.com"}
    (copy.root / "inventory/test/hosts.yml").write_text(yaml.safe_dump({"all": {"vars": local, "children": hosts}}))
    for role, templates in TEMPLATES.items():
        expressions = "".join(
            f"{{% set _ = files.update({{'{name}': {expression}}}) %}}"
            for name, expression in EXPRESSIONS.get(role, {}).items()
        )
        task = RENDER.format(templates=templates, expressions=expressions, folder=folder, role=role)
        (copy.root / f"roles/{role}/tasks/rendered.yml").write_text(task)
    include = "ansible.builtin.include_role"
    tasks = [{"name": f"Role {role}", include: {"name": role, "tasks_from": "rendered"}} for role in TEMPLATES]
    found = {"application": APPLICATION, "__app_artefact": {"digest": APPLICATION["artefact"]}}
    play = {"name": "Render", "hosts": "all", "gather_facts": False, "vars": found, "tasks": tasks}
    (copy.root / "rendered.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    return Kitchen(copy, folder)


@pytest.fixture(scope="module")
def rendered(kitchen: Kitchen) -> dict[str, Files]:
    """Return the files of both environments, from the real values of each."""
    return kitchen.render()


def env_in(files: Files, name: str = ".env") -> dict[str, str]:
    """Return what a `.env` sets."""
    return dict(environment.dotenv_values(files["app"][name]))


def test_both_environments_make_the_same_files(rendered: dict[str, Files]) -> None:
    names = {name: [(role, file) for role in files for file in files[role]] for name, files in rendered.items()}
    assert names["dev"] == names["prod"]
    assert len(names["dev"]) >= 16


def test_nothing_is_left_to_fill_in(rendered: dict[str, Files]) -> None:
    for files in rendered.values():
        for name, text in (item for role in files.values() for item in role.items()):
            assert not re.search(r"\{\{|\{%|\bNone\b|change-me", text.replace(TEMPLATE, "")), name


def test_with_the_same_values_every_byte_is_the_same(kitchen: Kitchen) -> None:
    """So nothing but values makes a difference: prod's host is given dev's."""
    files = kitchen.render("-e", "@group_vars/dev/vars.yml", "-e", "@group_vars/dev/vault.yml")
    assert files["dev"] == files["prod"]


@about_the_sample
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_application_takes_its_settings(rendered: dict[str, Files], kitchen: Kitchen, environment: str) -> None:
    """By its schema, which a test of the application holds to `Settings`; tests/hosts asks `Settings` itself."""
    schema = json.loads((ROOT / "app/settings.schema.json").read_text())
    env, migrate = (env_in(rendered[environment], name) for name in (".env", ".env.migrate"))
    assert set(env) == set(schema["properties"])
    assert list(settings.findings(schema, env)) == list(settings.findings(schema, {**env, **migrate})) == []


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_way_to_the_database_is_in_the_settings(
    rendered: dict[str, Files], kitchen: Kitchen, environment: str
) -> None:
    env, migrate = (env_in(rendered[environment], name) for name in (".env", ".env.migrate"))
    secrets, names = vault_secrets(kitchen.project.view(environment)), APPLICATION["database"]
    assert TEMPLATE in secrets["vault_database_password"] and TEMPLATE in rendered[environment]["app"][".mysql.cnf"]
    assert (env[names["user"]], migrate[names["user"]]) == (f"nba_{environment}", f"nba_{environment}_migrate")
    assert env[names["password"]] == secrets["vault_database_password"]
    assert migrate == {
        names["user"]: migrate[names["user"]],
        names["password"]: secrets["vault_database_migration_password"],
    }


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_programs_on_the_hosts_take_their_configuration(rendered: dict[str, Files], environment: str) -> None:
    files = rendered[environment]["app"]
    config = slots.Config(**json.loads(files["release.json"]))
    assert set(config.pool_settings.values()) <= set(env_in(rendered[environment]))
    options = configparser.ConfigParser(interpolation=None)
    options.read_string(files[".mysql.cnf"])
    assert options.sections() == ["client", "mysql"]
