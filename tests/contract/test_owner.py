"""A host that another environment owns is refused before anything on it changes, by every playbook that could."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Project
from tests.support import ROOT, yaml_at

# In the place of ssh: runs the command on this machine, after what a login shell prints of its own.
SSH = "#!/bin/sh\necho 'owner=[other]'\necho welcome\nfor command; do :; done\nexec /bin/sh -c \"$command\"\n"
PLAY = """
- ansible.builtin.import_playbook: playbooks/reach.yml
- hosts: all
  gather_facts: false
  tasks: [{ansible.builtin.debug: {msg: "went on with {{ inventory_hostname }}"}}]
"""
RECORDS = ("owner", "project")
REPLACED = PLAY.replace(
    "went on with {{ inventory_hostname }}", "{{ inventory_hostname }}={{ replaced_project | default('none') }}"
)
NO_NAMES = [b"\x1b[2Jdev", b"d" * 100, b"{{ 7 * 7 }}", b"dev prod", b"dev\nprod", b"\xff\xfe", b"Dev"]
PLAYBOOKS = {path.name: yaml_at(path) for path in sorted((ROOT / "playbooks").glob("*.yml"))}


def reach(
    project: Project, records: list[bytes], *arguments: str, served: str = "nba\n", play: str = PLAY
) -> subprocess.CompletedProcess[str]:
    """Run the part that changing playbooks have in common, and a play after it, on a host for each record."""
    (project.root / "ssh").write_text(SSH)
    (project.root / "project-dev0").write_text(served)
    names = [f"dev{number}" for number in range(len(records) + 1)]  # one host has no record
    for name, recorded in zip(names, records, strict=False):
        (project.root / f"owner-{name}").write_bytes(recorded)
    dev = {
        "hosts": {name: {} for name in names},
        "vars": {"database_host": "db.example.com", "ansible_ssh_executable": str(project.root / "ssh")},
    }
    (project.root / "inventory/test/hosts.yml").write_text(json.dumps({"all": {"children": {"dev": dev}}}))
    (project.root / "play.yml").write_text(play)
    places = json.dumps({f"{name}_file": f"{project.root}/{name}-{{{{ inventory_hostname }}}}" for name in RECORDS})
    return project.run("ansible-playbook", "play.yml", "-i", "inventory/test", "-e", places, *arguments)


def test_a_host_of_this_environment_or_of_none_passes(project: Project) -> None:
    done = reach(project, [b"", b"dev\n"])
    assert done.returncode == 0 and done.stdout.count("went on") == 3, done.stdout


@pytest.mark.parametrize("options", [("--check",), ("-e", "take_over=test")])
def test_a_host_of_another_environment_stops_the_run(project: Project, options: tuple[str, ...]) -> None:
    done = reach(project, [b"prod\n", b"dev\n"], *options)
    said = " ".join(done.stdout.split())
    assert done.returncode == 2 and "went on" not in said
    assert "dev0 was refused, and no host was changed: its environment is prod" in said
    assert "and this run is for dev. Fix: correct the inventory or the limit." in said
    assert "ansible-playbook site.yml -l dev -e take_over=prod" in said


# Says what it was told, and then what it is given, which is a password where sudo asks for one.
LISTENING = "#!/bin/sh\nprintf '%s\\n' \"$*\" >>{0}/told\ntimeout 1 cat >>{0}/told\necho 'owner=[prod]'\n"


def test_a_password_for_sudo_stays_away_from_a_host_of_another_environment(project: Project) -> None:
    """Whoever was typed with -K, or given with -e: the owner is read without sudo."""
    reach(project, [b"prod\n"])
    (project.root / "ssh").write_text(LISTENING.format(project.root))
    words = ("play.yml", "-i", "inventory/test", "-e", "ansible_become_password=of-dev-alone")
    done = project.run("ansible-playbook", *words)
    told = (project.root / "told").read_text()
    assert done.returncode == 2 and "was refused" in done.stdout and "owner=" in told
    assert "of-dev-alone" not in told and "sudo -" not in told


def test_a_host_is_taken_over_by_the_name_of_its_environment(project: Project) -> None:
    done = reach(project, [b"prod\n", b"dev\n"], "-e", "take_over=prod")
    assert done.returncode == 0 and done.stdout.count("went on") == 3, done.stdout


@pytest.mark.parametrize(
    ("served", "replaced"),
    [
        ("nba\n", "none"),
        ("shop\n", "shop"),
        ("", "none"),
        ("../nba", "none"),
        ("{{ 7 * 7 }}", "none"),
        ("s" * 64, "none"),
    ],
)
def test_an_application_of_another_project_is_noted(project: Project, served: str, replaced: str) -> None:
    done = reach(project, [b"dev\n"], served=served, play=REPLACED)
    assert f"dev0={replaced}" in done.stdout and "dev1=none" in done.stdout, done.stdout


def test_deploy_alone_does_not_replace_an_application(project: Project) -> None:
    done = reach(
        project,
        [b"dev\n"],
        "-l",
        "dev",
        served="shop\n",
        play="- ansible.builtin.import_playbook: playbooks/deploy.yml\n",
    )
    said = " ".join(done.stdout.split())
    assert done.returncode == 2 and "dev0 was not changed: it serves shop" in said, said
    assert "Fix: ansible-playbook site.yml -l dev" in said


@pytest.mark.parametrize("name", ["nba", "shop", "", "../etc", "{{ 7 * 7 }}"])
def test_what_a_host_serves_is_never_removed(project: Project, name: str) -> None:
    removal = "- ansible.builtin.import_playbook: playbooks/remove.yml\n"
    done = reach(project, [b"dev\n"], "-l", "dev", "-e", json.dumps({"remove": name}), served="shop\n", play=removal)
    said = " ".join(done.stdout.split())
    assert done.returncode == 2 and "was not changed: remove is" in said, said
    assert "Remove the site" not in done.stdout


def test_nothing_of_a_record_that_is_no_name_is_shown(project: Project) -> None:
    done = reach(project, NO_NAMES)
    assert done.returncode == 2 and "went on" not in done.stdout
    said = " ".join(done.stdout.split())
    for number in range(len(NO_NAMES)):
        assert f"dev{number} was refused, and no host was changed: its environment is unknown" in said
    assert not [text for text in ("\x1b[2J", "dddd", "7 * 7", "dev prod") if text in done.stdout]
    assert reach(project, NO_NAMES, "-e", "take_over=unknown").returncode == 0


@pytest.mark.parametrize(("every_host", "goes_on"), [(False, 1), (True, 0)])
def test_a_playbook_decides_whether_one_silent_host_stops_it(project: Project, every_host: bool, goes_on: int) -> None:
    inventory = {"dev0": {"ansible_connection": "ssh"}, "dev1": {"ansible_connection": "local"}}
    text = json.dumps({"all": {"children": {"dev": {"hosts": inventory, "vars": {"ansible_ssh_executable": "false"}}}}})
    (project.root / "inventory/test/hosts.yml").write_text(text)
    imported = "import_playbook: playbooks/reach.yml"
    play = PLAY.replace(imported, f"{imported}\n  vars: {{every_host: {str(every_host).lower()}}}")
    (project.root / "play.yml").write_text(play)
    done = project.run("ansible-playbook", "play.yml", "-i", "inventory/test", ANSIBLE_SSH_RETRIES="0")
    assert done.returncode != 0 and done.stdout.count("went on") == goes_on, done.stdout


def imports(plays: list[dict[str, Any]]) -> list[str]:
    return [play.get("ansible.builtin.import_playbook", "") for play in plays]


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_every_playbook_that_changes_hosts_reads_the_owner_first(name: str) -> None:
    plays = PLAYBOOKS[name]
    changes = plays[0].get("vars", {}).get("preflight_changes", True) is not False
    if changes and any(play.get("become") for play in plays):
        # A play between them may check what was asked for: it has no task for a host (tasks/check_preview.yml).
        assert [name for name in imports(plays) if name][:2] == ["preflight.yml", "reach.yml"]
        before = plays[: imports(plays).index("reach.yml")]
        assert {task for play in before for task in play.get("tasks", ()) for task in task} <= {
            "name",
            "ansible.builtin.import_tasks",
        }


def test_what_only_looks_at_site_yml_reads_it_too() -> None:
    assert "playbooks/reach.yml" in imports(yaml_at("site.yml"))
    for name in ("plan.yml", "drift.yml"):
        assert "../site.yml" in imports(PLAYBOOKS[name])


def test_the_base_role_records_what_reach_reads() -> None:
    (record,) = [entry for entry in yaml_at("roles/base/vars/main.yml")["__base_settings"] if "content" in entry][:1]
    assert record == {"path": PLAYBOOKS["reach.yml"][0]["vars"]["owner_file"], "content": "{{ base_environment }}\n"}
    assert yaml_at("group_vars/all/vars.yml")["base_environment"] == "{{ environment_name }}"
    assert Path(record["path"]).is_absolute()
