"""Preflight as somebody meets it: real runs of site.yml, each with one or more mistakes, and no host contacted."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
import yaml
from dotenv import dotenv_values

from tests.contract.conftest import Project
from tests.support import AWKWARD, Unsafe, vault_secrets, vault_text

ANOTHER_INVENTORY = """
all:
  children:
    dev: {hosts: {dev1: {}, both1: {}}}
    prod: {hosts: {prod1: {}, both1: {}}}
    others: {hosts: {stray1: {}}}
"""


def refused(project: Project, *arguments: str, inventory: str = "inventory/test", code: int = 2) -> list[str]:
    """Run site.yml, see it refused before a host is called and without a secret, and return the findings."""
    done = project.playbook(*arguments, inventory=inventory)
    assert done.returncode == code, done.stdout
    assert not project.called
    for secret in SECRETS.get(str(project.root), set()):
        assert secret not in done.stdout
    message = done.stdout.partition("Task failed: ")[2].partition("\nOrigin:")[0]
    head, *findings = message.splitlines()
    assert head == f"nothing was changed on any host; {len(findings)} finding(s):"
    return [finding.removeprefix("  - ") for finding in findings]


SECRETS: dict[str, set[str]] = {}


@pytest.fixture(autouse=True)
def secrets(project: Project) -> set[str]:
    """Know the secrets of this copy, to look for them in what is printed."""
    values = {value for name in ("dev", "prod") for value in yaml.safe_load(project.view(name)).values()}
    SECRETS[str(project.root)] = values
    return values


def change(project: Project, environment: str, **values: str | None) -> None:
    """Set values of an environment as they stand in its file, or take them out."""
    path = project.vars_file(environment)
    text = path.read_text()
    for name, value in values.items():
        text, count = re.subn(rf"^{name}:.*\n", "" if value is None else f"{name}: {value}\n", text, flags=re.M)
        assert count == 1, name
    path.write_text(text)


def change_secrets(project: Project, environment: str, **values: str) -> None:
    """Set secrets of an environment."""
    clear = {**vault_secrets(project.view(environment)), **values}
    project.encrypt(environment, vault_text(clear))
    SECRETS[str(project.root)].update(values.values())


def test_uncommitted_work_is_for_dev_alone(project: Project) -> None:
    (project.root / "app/new.py").write_text("new = 1\n")
    done = project.playbook("-l", "prod", "-e", "confirm=prod")
    assert done.returncode == 2 and "has changes that are not committed" in done.stdout, done.stdout
    assert "git add -A && git commit" in done.stdout and not project.called
    assert "has changes that are not committed" not in project.playbook("-l", "dev").stdout
    assert project.called


def test_a_good_run_goes_on_to_the_host(project: Project) -> None:
    done = project.playbook("-l", "dev")
    assert project.called, done.stdout
    assert done.returncode == 4
    assert "finding(s)" not in done.stdout


def test_both_environments_need_a_word(project: Project) -> None:
    done = project.playbook("-e", "all_environments=true", "-e", "confirm=prod")
    assert project.called, done.stdout


def test_hosts_of_both_environments_may_be_compared_from_any_tree(project: Project) -> None:
    (project.root / "app/poetry.lock").write_text("# not committed\n")
    done = project.run("ansible-playbook", "playbooks/parity.yml", "-i", "inventory/test")
    assert project.called, done.stdout
    assert "finding(s)" not in done.stdout
    assert done.returncode == 4


def test_looking_at_both_environments_is_no_check_of_what_follows(project: Project) -> None:
    preflight = {"ansible.builtin.import_playbook": "playbooks/preflight.yml"}
    looking = {**preflight, "vars": {"preflight_changes": False, "preflight_any_limit": True}}
    (project.root / "both.yml").write_text(yaml.safe_dump([looking, preflight]))
    done = project.run("ansible-playbook", "both.yml", "-i", "inventory/test")
    assert "no limit" in done.stdout
    assert not project.called
    assert done.returncode == 2


@pytest.mark.parametrize(("arguments", "words"), [([], "no limit"), (["-l", "all"], "the limit spans dev and prod")])
def test_one_environment_must_be_named(project: Project, arguments: list[str], words: str) -> None:
    (finding,) = refused(project, *arguments)
    assert finding.startswith(words)
    assert "`ansible-playbook site.yml -l dev` or `ansible-playbook site.yml -l prod`" in finding


def test_the_command_to_type_is_the_one_that_was_typed(project: Project) -> None:
    done = project.run("ansible-playbook", "playbooks/base.yml", "-i", "inventory/test")
    assert done.returncode == 2
    assert "`ansible-playbook playbooks/base.yml -l dev`" in done.stdout


def test_everything_that_is_wrong_is_said_at_once(project: Project) -> None:
    change(project, "dev", database_name="", log_level='""', workers_max="two", memory_max=None, docs_enabled='"no"')
    change_secrets(project, "dev", vault_database_password="change-me", vault_database_migration_password="kurz")
    text = project.view("dev")
    project.encrypt("dev", re.sub(r"^vault_fingerprint_key.*\n", "", text, flags=re.M))
    (project.root / "inventory/test/hosts.yml").write_text(
        (project.root / "inventory/test/hosts.yml").read_text().replace("db.example.com", "CHANGE-ME")
    )
    # The run must not print it, but it is a word of the message as well.
    SECRETS[str(project.root)].discard("change-me")
    findings = refused(project, "-l", "dev", "--tags", "ngnix", "--skip-tags", "bsae")
    edit = "Fix: ansible-vault edit group_vars/dev/vault.yml"
    known = "Known: app, aws, aws_removal, aws_snapshot, balancer, base, mysql_client, nginx, python"
    expected = {
        "tag 'ngnix': nothing carries it": known,
        "tag 'bsae': nothing carries it": known,
        "database_host (the inventory)": "still holds the placeholder",
        "database_name (group_vars/dev/vars.yml)": "letters, digits and _, at most 32",
        "database_password (vault_database_password in group_vars/dev/vault.yml)": f"the placeholder. {edit}",
        "database_migration_password (vault_database_migration_password in group_vars/dev/vault.yml)": edit,
        "fingerprint_key (vault_fingerprint_key in group_vars/dev/vault.yml)": f"what it refers to is not. {edit}",
        "workers_max (group_vars/dev/vars.yml)": "a whole number, 1 or more",
        "memory_max (group_vars/dev/vars.yml)": "is not set, or what it refers to is not",
        "log_level (group_vars/dev/vars.yml)": "DEBUG, INFO, WARNING or ERROR",
        "docs_enabled (group_vars/dev/vars.yml)": "true or false",
    }
    assert len(findings) == len(expected)
    for finding, (begin, end) in zip(findings, expected.items(), strict=True):
        assert finding.startswith(begin)
        assert finding.endswith(end)


def test_any_printable_secret_is_fine(project: Project) -> None:
    change_secrets(project, "dev", vault_database_password=AWKWARD)
    done = project.playbook("-l", "dev")
    assert project.called, done.stdout
    assert AWKWARD not in done.stdout


TEMPLATES = {
    "vault_database_master_password": "twelve{{ 7 * 7 }}",
    "vault_database_migration_password": "twelve{#characters#}",
    "vault_database_password": "twelve{{characters",
    "vault_database_reader_password": "twelve{% endif",
    "vault_of_an_app": "twelve{{ lookup('pipe', 'touch called') }}",
}


def test_a_secret_that_would_be_a_template_is_refused_by_its_name(project: Project) -> None:
    change_secrets(project, "dev", **TEMPLATES)
    findings = refused(project, "-l", "dev")
    assert findings == [
        f"{name} (group_vars/dev/vault.yml): holds {{{{, {{% or {{#, with which a template begins. Write !unsafe "
        f"before the value, {name}: !unsafe '...': ansible-vault edit group_vars/dev/vault.yml"
        for name in sorted(TEMPLATES)
    ]


SHOW = """
- name: Show what each secret arrives as
  hosts: dev
  gather_facts: false
  tasks:
    - name: Keep the secrets
      ansible.builtin.copy:
        content: "{{ found | to_json }}"
        dest: "{{ playbook_dir }}/found.json"
        mode: "0600"
      vars:
        secrets:
          master: "{{ database_master_password }}"
          migration: "{{ database_migration_password }}"
          password: "{{ database_password }}"
          reader: "{{ database_reader_password }}"
        found:
          secrets: "{{ secrets }}"
          dotenv: "{{ secrets | waffle.iron.dotenv }}"
          rendered: "{{ lookup('waffle.iron.rendered', playbook_dir ~ '/file.j2') }}"
          evaluated: "{{ secrets | dict2items | map(attribute='value') | join(' ') }}"
      delegate_to: localhost
"""


def test_a_secret_that_is_marked_as_unsafe_is_written_as_it_is(project: Project) -> None:
    change_secrets(project, "dev", **{name: Unsafe(text) for name, text in TEMPLATES.items()})
    done = project.playbook("-l", "dev")
    assert project.called, done.stdout
    (project.root / "show.yml").write_text(SHOW)
    (project.root / "file.j2").write_text("{{ database_password }} {{ database_way.password }}")
    done = project.run("ansible-playbook", "show.yml", "-i", "inventory/test", "-l", "dev")
    assert done.returncode == 0, done.stdout
    found = json.loads((project.root / "found.json").read_text())
    secrets = dict(zip(("master", "migration", "password", "reader"), TEMPLATES.values(), strict=False))
    assert found["secrets"] == secrets
    assert dotenv_values(stream=io.StringIO(found["dotenv"])) == secrets
    assert found["rendered"] == " ".join([secrets["password"]] * 2)
    assert found["evaluated"] == " ".join(secrets.values())


def test_a_missing_vault(project: Project) -> None:
    project.vault("dev").unlink()
    assert refused(project, "-l", "dev") == ["group_vars/dev/vault.yml: does not exist. Fix: make secrets ENV=dev"]


def test_a_vault_in_clear(project: Project) -> None:
    project.vault("dev").write_text(project.view("dev"))
    command = "ansible-vault encrypt --encrypt-vault-id dev group_vars/dev/vault.yml"
    assert refused(project, "-l", "dev") == [f"group_vars/dev/vault.yml: is not encrypted. Encrypt it: {command}"]
    done = project.run(*command.split())
    assert done.returncode == 0, done.stdout
    assert project.playbook("-l", "dev").returncode == 4


def test_a_secret_in_two_environments(project: Project) -> None:
    secret = yaml.safe_load(project.view("dev"))
    same = ("vault_database_password", "vault_database_master_password")
    change_secrets(project, "prod", **{key: secret[key] for key in same})
    edit = "Change one: ansible-vault edit group_vars/prod/vault.yml"
    assert refused(project, "-l", "dev") == [
        f"database_password: is the same in dev and prod. {edit}",
        f"database_master_password: is the same in dev and prod. {edit}",
    ]


def test_a_master_password_that_rds_keeps(project: Project) -> None:
    for name in ("dev", "prod"):
        change_secrets(project, name, vault_database_master_password="")
    SECRETS[str(project.root)].discard("")
    assert project.playbook("-l", "dev").returncode == 4  # the host, at last
    look = ("-m", "ansible.builtin.debug", "-a", "msg={{ mysql_client_master_password }}")
    done = project.run("ansible", "dev1", "-i", "inventory/test", *look)
    assert done.returncode == 2
    assert "database_master_password (group_vars/dev/vault.yml) is empty, and RDS keeps none" in done.stdout
    assert "ansible-playbook -i inventory/account playbooks/provision.yml -l dev" in done.stdout


@pytest.mark.parametrize("damage", ["password gone", "password wrong", "vault gone"])
def test_dev_needs_nothing_of_prod(project: Project, damage: str) -> None:
    if damage == "vault gone":
        project.vault("prod").unlink()
    elif damage == "password gone":
        (project.root / ".vault/prod").unlink()
    else:
        (project.root / ".vault/prod").write_text("wrong\n")
    done = project.playbook("-l", "dev")
    assert project.called, done.stdout


def test_a_lost_link(project: Project) -> None:
    (project.root / "inventory/test/group_vars").unlink()
    (finding,) = refused(project, "-l", "dev")
    assert finding.startswith("environment_name: group_vars/dev was not loaded for dev1.")
    assert finding.endswith("ln -s ../../group_vars inventory/<name>/group_vars")


def test_hosts_in_the_wrong_group(project: Project) -> None:
    (project.root / "inventory/test/hosts.yml").write_text(ANOTHER_INVENTORY)
    findings = refused(project, "-l", "both1,stray1")
    assert findings[0] == "both1 (the inventory): must be in one environment's group, is in dev and prod"
    assert findings[1] == "stray1 (the inventory): must be in one environment's group, is in none"


def test_an_environment_that_calls_itself_by_another_name(project: Project) -> None:
    change(project, "dev", environment_name="prod")
    assert refused(project, "-l", "dev") == ["environment_name (group_vars/dev/vars.yml): is not the group's name, dev"]


def ended(project: Project, *arguments: str) -> str:
    """Run site.yml, see it end before a host is called, and return its one error."""
    done = project.playbook(*arguments)
    assert done.returncode == 1, done.stdout
    assert not project.called
    (error,) = [line for line in done.stdout.splitlines() if line.startswith("[ERROR]: ")]
    return error.removeprefix("[ERROR]: ")


@pytest.mark.parametrize("name", ["my project", "a%b", "a,b"])
def test_a_folder_whose_name_ssh_or_ansible_would_misread(project: Project, name: str) -> None:
    moved = Project(project.root.rename(project.root.with_name(name)))
    assert f"this checkout is in {str(moved.root)!r}: ssh or Ansible would misread" in ended(moved, "-l", "dev")


def test_the_wrong_vault_password(project: Project) -> None:
    (project.root / ".vault/dev").write_text("wrong\n")
    message = ".vault/dev does not hold its vault password. Fix: put the right one there"
    assert ended(project, "-l", "dev") == f"group_vars/dev/vault.yml: {message}"


def test_no_vault_password(project: Project) -> None:
    (project.root / ".vault/dev").unlink()
    message = "cannot be opened. Fix: put its vault password into .vault/dev (one line, mode 0600)"
    assert ended(project, "-l", "dev") == f"group_vars/dev/vault.yml: {message}"


def test_no_vault_password_at_all(project: Project) -> None:
    shutil.rmtree(project.root / ".vault")
    assert "/.vault/prod was not found" in ended(project, "-l", "dev")


def test_a_vault_under_another_id(project: Project) -> None:
    project.vault("dev").write_text(project.vault("dev").read_text().replace("AES256;dev", "AES256;prod", 1))
    command = "ansible-vault rekey --encrypt-vault-id dev group_vars/dev/vault.yml"
    assert ended(project, "-l", "dev").endswith(f"is not encrypted under the vault id dev. Correct it: {command}")


def test_values_that_are_not_yaml(project: Project) -> None:
    project.vars_file("dev").write_text("a: [\n")
    assert ended(project, "-l", "dev").startswith("group_vars/dev/vars.yml: YAML parsing failed")


@pytest.mark.parametrize("arguments", [["-l", "dev"], []])
def test_an_inventory_without_hosts(project: Project, arguments: list[str]) -> None:
    (project.root / "inventory/test/hosts.yml").write_text("all: {children: {dev: {}, prod: {}}}\n")
    assert "no host took part" in ended(project, *arguments)


def test_an_inventory_that_is_not_there(project: Project) -> None:
    done = project.playbook("-l", "dev", inventory="inventory/nope")
    assert done.returncode == 1
    assert "inventory/nope" in done.stdout


def test_an_inventory_that_cannot_be_read(project: Project) -> None:
    (project.root / "inventory/test/hosts.yml").write_text("all: [\n")
    done = project.playbook("-l", "dev")
    assert done.returncode == 1
    assert "inventory/test/hosts.yml" in done.stdout


def test_a_group_that_does_not_exist(project: Project) -> None:
    done = project.playbook("-l", "staging")
    assert done.returncode == 1
    assert "staging" in done.stdout


@pytest.mark.parametrize("limit", ["dev,staging", "dev:!staging", "stag*"])
def test_a_part_of_the_limit_that_matches_nothing(project: Project, limit: str) -> None:
    done = project.playbook("-l", limit)
    assert (done.returncode, project.called) == (1, False), done.stdout
    assert "stag" in done.stdout


def test_a_value_that_the_shell_cut_in_pieces(project: Project) -> None:
    """Ansible itself takes the first word and says nothing."""
    (finding,) = refused(project, "-l", "dev", "-e", "promotion_override=dev is down")
    assert finding.startswith("-e: 'is down' belongs to no variable.")


def test_an_environment_to_promote_from_without_hosts(project: Project) -> None:
    change(project, "prod", promote_from="stage")
    (finding,) = refused(project, "-l", "prod")
    assert finding.startswith("promote_from (group_vars/prod/vars.yml): the inventory has no group 'stage' with hosts")


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("container", "app: Containerfile is not there, and app_runtime is container"),
        ("docker", "app_runtime: 'docker' is neither of venv and container"),
    ],
)
def test_what_a_release_cannot_run_in(project: Project, runtime: str, words: str) -> None:
    done = project.playbook("-l", "dev", "-e", f"app_runtime={runtime}")
    assert done.returncode == 2, done.stdout
    assert words in done.stdout and "group_vars/all/vars.yml" in done.stdout
    assert not project.called


def test_hooks_that_are_no_tasks(project: Project) -> None:
    folder = project.root / "hooks"
    folder.mkdir()
    for name, text in {
        "after_failure": "- name: Tell\n  ansible.builtin.debug: {msg: it failed}\n",
        "after_switch": "- name: Tell\n  ansible.builtin.debug: {msg: it is live\n",
        "before_migrate": "- name: Tell\n  ansible.builtin.debugg: {msg: it begins}\n",
        "before_switch": "name: Tell\n",
        "values": "name: whatever a hook reads\n",
    }.items():
        (folder / f"{name}.yml").write_text(text)
    migrate, ready, switch = refused(project, "-l", "dev")
    assert switch.startswith("hooks/after_switch.yml: YAML parsing failed")
    assert migrate.startswith("hooks/before_migrate.yml: couldn't resolve module/action 'ansible.builtin.debugg'")
    assert ready == "hooks/before_switch.yml: included task files must contain a list of tasks"
    # A way back must not depend on what is checked out.
    project.run("ansible-playbook", "playbooks/rollback.yml", "-i", "inventory/test", "-l", "dev")
    assert project.called


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"app_sandbox": {"ProtectSystem": False}}, "ProtectSystem cannot be opened"),
        ({"app_sandbox": {"ProcSubset": "pid"}}, "ProcSubset does not take pid"),
        ({"app_sandbox": {"ProcSubset": "all"}, "app_runtime": "container"}, "a container has podman's"),
        ({"app_packages": ["libmagic1=1:5.44-3"]}, "'libmagic1=1:5.44-3' is no name of a Debian package"),
        ({"app_packages": ["libmagic1"], "app_runtime": "container"}, "a container has a system of its own"),
    ],
)
def test_what_an_application_cannot_have_beside_it(project: Project, values: dict[str, object], words: str) -> None:
    (finding,) = refused(project, "-l", "dev", "-e", json.dumps(values))
    assert finding.startswith(f"{next(iter(values))} (where it is set): ") and words in finding and "Fix: " in finding


def test_what_an_application_may_have_beside_it(project: Project) -> None:
    values = {"app_sandbox": {"ProcSubset": "all"}, "app_packages": ["libmagic1"]}
    assert "finding(s)" not in project.playbook("-l", "dev", "-e", json.dumps(values)).stdout
    assert project.called
