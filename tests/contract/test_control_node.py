"""What Ansible makes of the project, without a host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contract.conftest import Project
from tests.support import ENVIRONMENTS, ROOT, yaml_at

PLAYBOOKS = sorted(path.name for path in ROOT.glob("playbooks/*.yml"))


def test_every_playbook_passes_the_syntax_check(project: Project) -> None:
    paths = ["site.yml", *(f"playbooks/{name}" for name in PLAYBOOKS)]
    done = project.run("ansible-playbook", "-i", "inventory/test", "--syntax-check", *paths)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    assert [line.removeprefix("playbook: ") for line in done.stdout.splitlines() if line] == paths


def test_the_configuration_is_valid(project: Project) -> None:
    done = project.run("ansible-config", "validate", "--type", "all")
    assert done.returncode == 0, done.stdout
    changed = project.run("ansible-config", "dump", "--only-changed").stdout.replace("= true", "= True")
    for setting in ("DEFAULT_PRIVATE_ROLE_VARS", "DEFAULT_VAULT_ID_MATCH", "INVENTORY_ANY_UNPARSED_IS_FAILED"):
        assert f"{setting}({project.root}/ansible.cfg) = True" in changed, setting
    assert f"INJECT_FACTS_AS_VARS({project.root}/ansible.cfg) = False" in changed


# What a play has, ad-hoc commands show, and the inventory lists: the three ways that people look at values.
SHOW = """
- name: Show
  hosts: all
  gather_facts: false
  tasks:
    - name: Write what the play has
      ansible.builtin.copy:
        content: "{{ dict(names | zip(names | map('extract', vars))) | to_json }}"
        dest: "{{ folder }}/{{ inventory_hostname }}.json"
        mode: "0600"
      vars:
        names: "{{ wanted | from_json }}"
      connection: local
      delegate_to: localhost
"""


def test_plays_and_the_inventory_show_the_same_values(project: Project, tmp_path: Path) -> None:
    inventory = ["-i", "inventory/test", "-e", f"ansible_python_interpreter={sys.executable}"]
    (project.root / "playbooks/show.yml").write_text(SHOW)
    # Those without a template: the inventory lists templates as they stand.
    names = {
        environment: [
            key for key, value in yaml_at(f"group_vars/{environment}/vars.yml").items() if "{{" not in json.dumps(value)
        ]
        for environment in ENVIRONMENTS
    }
    wanted = json.dumps(json.dumps(sorted({*names["dev"], "project"})))
    (project.root / "extra.yml").write_text(f"wanted: {wanted}\nfolder: {tmp_path}\n")
    played = project.run("ansible-playbook", "playbooks/show.yml", *inventory, "-e", "@extra.yml")
    assert played.returncode == 0, played.stdout
    listed = json.loads(project.run("ansible-inventory", "-i", "inventory/test", "--list").stdout)["_meta"]["hostvars"]
    for environment in ENVIRONMENTS:
        seen = json.loads((tmp_path / f"{environment}1.json").read_text())
        assert seen == {name: listed[f"{environment}1"][name] for name in seen}
        assert seen["environment_name"] == environment
        assert len(seen) > 15


def test_the_lab_s_inventory_gives_the_same_values(project: Project) -> None:
    """Also before there is a lab."""
    for part in ("hosts.py", "group_vars"):
        target = project.root / "inventory/lab" / part
        target.parent.mkdir(exist_ok=True)
        source = ROOT / "inventory/lab" / part
        target.symlink_to(source.readlink()) if source.is_symlink() else target.write_bytes(source.read_bytes())
    (project.root / "inventory/lab/hosts.py").chmod(0o755)
    listed = project.run("ansible-inventory", "--list")
    assert listed.returncode == 0, listed.stdout
    hosts = json.loads(listed.stdout)["_meta"]["hostvars"]
    assert {hosts[name]["environment_name"] for name in hosts} == set(ENVIRONMENTS)
    assert set(yaml_at("group_vars/dev/vars.yml")) | {"database_host"} <= set(hosts["dev1"])


# --- secrets ---


def test_vaults_are_made_once_and_open_with_their_own_password_alone(project: Project) -> None:
    example = set(yaml_at("vault.example.yml"))
    secrets = {name: yaml.safe_load(project.view(name)) for name in ENVIRONMENTS}
    for name in ENVIRONMENTS:
        assert set(secrets[name]) == example
        assert all(len(value) >= 32 and value != "change-me" for value in secrets[name].values())
        assert project.vault(name).read_text().startswith(f"$ANSIBLE_VAULT;1.2;AES256;{name}\n")
        assert oct((project.root / ".vault" / name).stat().st_mode & 0o777) == "0o600"
    assert set(secrets["dev"].values()) & set(secrets["prod"].values()) == set()

    before = project.vault("dev").read_bytes()
    again = project.run(sys.executable, "scripts/make-secrets", "dev")
    assert (again.returncode, again.stdout) == (0, "group_vars/dev/vault.yml exists and was left as it is\n")
    assert project.vault("dev").read_bytes() == before

    assert "vault_database_password: " in project.run("ansible-vault", "view", "group_vars/dev/vault.yml").stdout
    other = subprocess.run(
        ["ansible-vault", "view", "--vault-id", "dev@.vault/prod", "group_vars/dev/vault.yml"],
        cwd=project.root,
        env={**project.environment(), "ANSIBLE_VAULT_IDENTITY_LIST": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode != 0
    assert "vault_database" not in other.stdout


def test_ansible_vault_edits_and_rekeys_as_usual(project: Project) -> None:
    """The command for another password is the one in docs/operations.md."""
    file = "group_vars/dev/vault.yml"
    editor = "sed -i s/^vault_database_password:.*/vault_database_password:\\ another-password/"
    assert project.run("env", f"EDITOR={editor}", "ansible-vault", "edit", file).returncode == 0
    assert yaml.safe_load(project.view("dev"))["vault_database_password"] == "another-password"

    (project.root / ".vault/dev.new").write_text("another vault password\n")
    ids = ("--vault-id", "dev@.vault/dev", "--new-vault-id", "dev@.vault/dev.new")
    rekeyed = project.run("ansible-vault", "rekey", *ids, file)
    assert rekeyed.returncode == 0, rekeyed.stdout
    (project.root / ".vault/dev.new").rename(project.root / ".vault/dev")
    assert yaml.safe_load(project.view("dev"))["vault_database_password"] == "another-password"
    assert project.playbook("-l", "dev", "--list-tasks").returncode == 0


@pytest.mark.parametrize(("arguments", "code"), [(["staging"], 2), ([""], 2), ([], 2)])
def test_an_environment_that_does_not_exist_is_named(project: Project, arguments: list[str], code: int) -> None:
    done = project.run(sys.executable, "scripts/make-secrets", *arguments)
    assert done.returncode == code
    assert "name one of dev, prod, as in: make secrets ENV=dev" in done.stdout


def test_a_vault_without_its_password_is_left_alone(project: Project) -> None:
    (project.root / ".vault/dev").unlink()
    before = project.vault("dev").read_bytes()
    done = project.run(sys.executable, "scripts/make-secrets", "dev")
    assert done.returncode == 1
    assert "put its vault password" in done.stdout
    assert project.vault("dev").read_bytes() == before
    assert not (project.root / ".vault/dev").exists()
