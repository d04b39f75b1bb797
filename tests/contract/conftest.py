"""A copy of the project with secrets of its own, and hosts that tell when somebody calls them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret

from tests.support import ENVIRONMENTS, ROOT

PARTS = (
    "ansible.cfg", "collections", "site.yml", "playbooks", "roles", "plugins", "group_vars", "scripts",
    "vault.example.yml",
)  # fmt: skip
AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.com")
INVENTORY = """
all:
  vars:
    database_host: db.example.com
    ansible_ssh_executable: {called}
    ansible_ssh_retries: 0
  children:
    dev: {{hosts: {{dev1: {{ansible_host: 192.0.2.1}}}}}}
    prod: {{hosts: {{prod1: {{ansible_host: 192.0.2.2}}}}}}
"""


def as_published(values: str) -> str:
    """Return group_vars/all/vars.yml without what `make new-app` wrote: tests bring applications of their own."""
    named = re.sub(r"^project: .*$", "project: nba", values, flags=re.MULTILINE)
    return re.sub(r"^app_repository: .*$", 'app_repository: ""', named, flags=re.MULTILINE)


@dataclass
class Project:
    """A copy of the project that a test may damage."""

    root: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of a user who has the control environment active and set nothing."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "GIT_"))}
        tools = Path(sys.executable).parent
        own = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(self.root.parent), "ANSIBLE_NOCOLOR": "1"}
        return {**kept, **own, "GIT_CONFIG_GLOBAL": os.devnull}

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, with variables in its environment."""
        return subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def playbook(self, *arguments: str, inventory: str = "inventory/test") -> subprocess.CompletedProcess[str]:
        """Run site.yml."""
        return self.run("ansible-playbook", "site.yml", "-i", inventory, *arguments)

    def vars_file(self, environment: str) -> Path:
        """Return the file with an environment's values."""
        return self.root / "group_vars" / environment / "vars.yml"

    def vault(self, environment: str) -> Path:
        """Return the file with an environment's secrets."""
        return self.root / "group_vars" / environment / "vault.yml"

    def view(self, environment: str) -> str:
        """Return an environment's secrets in clear."""
        text: str = self.opener(environment).decrypt(self.vault(environment).read_text()).decode()
        return text

    def encrypt(self, environment: str, clear: str) -> None:
        """Replace an environment's secrets."""
        self.vault(environment).write_bytes(self.opener(environment).encrypt(clear, vault_id=environment))

    def opener(self, environment: str) -> Any:
        """Return what `ansible-vault` uses, with an environment's password; starting that takes a second each time."""
        password = (self.root / ".vault" / environment).read_bytes().strip()
        return VaultLib([(environment, VaultSecret(password))])

    @property
    def called(self) -> bool:
        """Return True if anything tried to reach a host."""
        return (self.root / "called").exists()


def collection_with(folder: Path, actions: dict[str, str]) -> str:
    """Make a copy of the collection's plugins with other actions; return the folder for ANSIBLE_COLLECTIONS_PATH."""
    plugins = folder / "collections/ansible_collections/waffle/iron/plugins"
    shutil.copytree(ROOT / "plugins", plugins, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in actions.items():
        (plugins / f"action/{name}.py").write_text(text)
    return str(folder / "collections")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the copy that the others are made from."""
    root = tmp_path_factory.mktemp("project") / "copy"
    root.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(
                source, root / part, symlinks=True, ignore=shutil.ignore_patterns("vault.yml", "__pycache__")
            )
        else:
            shutil.copy2(source, root / part)
    project = Project(root)
    everywhere = root / "group_vars/all/vars.yml"
    everywhere.write_text(as_published(everywhere.read_text()))
    for environment in ENVIRONMENTS:
        made = project.run(sys.executable, "scripts/make-secrets", environment)
        assert made.returncode == 0, made.stdout
    folder = root / "inventory/test"
    folder.mkdir(parents=True)
    (folder / "group_vars").symlink_to("../../group_vars")
    (root / "app/nba").mkdir(parents=True)
    (root / "app/nba/main.py").write_text("from fastapi import FastAPI\n\napp = FastAPI()\n")
    (root / "app/poetry.lock").write_text("# lock\n")
    for arguments in (["init", "--quiet"], ["add", "app"], [*AUTHOR, "commit", "--quiet", "--message", "app"]):
        done = project.run("git", *arguments)
        assert done.returncode == 0, done.stdout
    return project


@pytest.fixture
def project(pristine: Project, tmp_path: Path) -> Project:
    """Return a copy of one's own."""
    copy = Project(tmp_path / "waffle")
    shutil.copytree(pristine.root, copy.root, symlinks=True)
    program = copy.root / "ssh"
    program.write_text(f"#!/bin/sh\ntouch '{copy.root}/called'\nexit 255\n")
    program.chmod(0o755)
    (copy.root / "inventory/test/hosts.yml").write_text(INVENTORY.format(called=program))
    return copy
