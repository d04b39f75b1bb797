"""The collection as another repository has it: what its archive holds, and that the roles and plugins are found."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.release import __version__ as ansible_version
from packaging.specifiers import SpecifierSet

from tests.contract.conftest import Project
from tests.hosts.world import copy_checkout
from tests.support import ROLES, ROOT, install_collection, module_at, yaml_at

COLLECTION = "waffle.iron"
SECRET = "a secret that no archive holds"
# Files beside those that Git tracks, as a checkout at work has them.
KEPT = (
    ".vault/dev", ".env", ".receipts/dev1/1.json", ".results/parity.json", ".access/dev/id_ed25519", "app/.env",
    "group_vars/dev/vault.yml", "hooks/after_switch.yml", "inventory/own/hosts.yml",
)  # fmt: skip
PLAY = """
- name: Use a plugin of each kind
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Write a file
      waffle.iron.managed_files:
        entries:
          - {path: "{{ playbook_dir }}/.env", content: "{{ {'KEY': 'two words'} | waffle.iron.dotenv }}"}
          - {path: "{{ playbook_dir }}/page", content: "{{ lookup('waffle.iron.rendered', 'page.j2') }}"}
    - name: Call a module
      waffle.iron.diagnosis: {project: no-such-project, environment: theirs, supported: {}, database: {}}
      register: examined
    - name: Check the answer
      ansible.builtin.assert: {that: "'application.bare' in examined.findings | map(attribute='key')"}
"""


class Installed(Project):
    """A repository of somebody else that has installed the collection."""

    @property
    def files(self) -> Path:
        """Return the folder of the installed collection."""
        return self.root / "collections/ansible_collections/waffle/iron"

    def documented(self, *arguments: str) -> dict[str, Any]:
        """Return what `ansible-doc` prints, without its warnings."""
        printed = self.run("ansible-doc", "--json", *arguments).stdout
        found: dict[str, Any] = json.loads(printed[printed.index("{") :])
        return found

    def play(self, text: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook."""
        (self.root / "play.yml").write_text(text)
        python = ("-e", f"ansible_python_interpreter={sys.executable}")
        return self.run("ansible-playbook", "-i", "localhost,", *python, *options, "play.yml")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive of a checkout at work; it is in the folder of a repository that has installed it."""
    checkout, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("other") / "repository"
    copy_checkout(checkout)
    for name in KEPT:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(SECRET)
    folder.mkdir()
    return install_collection(checkout, folder)


@pytest.fixture
def installed(archive: Path) -> Installed:
    return Installed(archive.parent)


def test_the_archive_holds_roles_and_plugins_and_no_secret(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        contents = [stream.read() for member in members if member.isfile() and (stream := tar.extractfile(member))]
    tops = {member.name.partition("/")[0] for member in members}
    assert tops == {"FILES.json", "LICENSE", "MANIFEST.json", "README.md", "docs", "meta", "plugins", "roles"}
    assert not [content for content in contents if SECRET.encode() in content or b"$ANSIBLE_VAULT;1" in content[:20]]
    assert not [member.name for member in members if "__pycache__" in member.name]


def test_it_holds_every_file_of_roles_and_plugins(installed: Installed) -> None:
    listed = subprocess.check_output(["git", "ls-files", "roles", "plugins", "meta"], cwd=ROOT, text=True).split()
    for name in listed:
        assert (installed.files / name).read_bytes() == (ROOT / name).read_bytes(), name
    links = [path for path in installed.files.rglob("*") if path.is_symlink()]
    shared = {"attributes.py", "environment.py", "messages.py", "redactor.py", "unix_http.py"}
    assert {path.name for path in links} == shared
    assert all(path.resolve().is_relative_to(installed.files.resolve()) for path in links)


def test_every_module_and_role_has_its_documentation(installed: Installed) -> None:
    modules = sorted(f"{COLLECTION}.{path.stem}" for path in ROOT.glob("plugins/modules/*.py"))
    told = installed.documented(*modules)
    assert sorted(name for name, known in told.items() if known["doc"]["short_description"]) == modules
    roles = sorted(f"{COLLECTION}.{role}" for role in ROLES)
    told = installed.documented("--type", "role", *roles)
    assert sorted(name for name, known in told.items() if known["entry_points"]["main"]["options"]) == roles


def test_a_plugin_of_each_kind_works(installed: Installed) -> None:
    (installed.root / "page.j2").write_text("{{ 'made from ' ~ 'a template' }}\n")
    done = installed.play(PLAY)
    assert done.returncode == 0, done.stdout
    assert (installed.root / "page").read_text() == "made from a template\n"
    assert (installed.root / ".env").read_text() == "KEY='two words'\n"


def test_every_role_is_found_and_states_what_it_needs(installed: Installed) -> None:
    roles = "".join(f"    - {COLLECTION}.{role}\n" for role in ROLES)
    done = installed.play(f"- name: Theirs\n  hosts: localhost\n  roles:\n{roles}", "--syntax-check")
    assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout
    head = "- name: Theirs\n  hosts: localhost\n  connection: local\n  gather_facts: false\n"
    ran = installed.play(f"{head}  roles: [{COLLECTION}.app]\n")
    assert ran.returncode == 2, ran.stdout
    assert "missing required arguments: app_fingerprint_key" in ran.stdout


def test_it_names_the_collections_that_its_roles_use() -> None:
    stated = yaml_at("galaxy.yml")["dependencies"]
    collections_in = module_at("plugins/action/control_node.py").collections_in
    tasks = [yaml.safe_load(path.read_text()) for path in ROOT.glob("roles/*/tasks/*.yml")]
    assert set(stated) == set(collections_in(tasks)) - {"ansible.builtin", COLLECTION}
    for name, versions in stated.items():
        found = subprocess.check_output([sys.executable, "-c", FIND, name], text=True)
        assert SpecifierSet(versions).contains(found), (name, found)


def test_it_needs_the_ansible_that_its_roles_need() -> None:
    needed = yaml_at("meta/runtime.yml")["requires_ansible"]
    assert SpecifierSet(needed).contains(ansible_version)
    for role in ROLES:
        assert needed == f">={yaml_at(f'roles/{role}/meta/main.yml')['galaxy_info']['min_ansible_version']}.0"


FIND = """
import importlib, json, pathlib, sys
folder = importlib.import_module(f"ansible_collections.{sys.argv[1]}").__path__[0]
print(json.loads((pathlib.Path(folder) / "MANIFEST.json").read_text())["collection_info"]["version"], end="")
"""
