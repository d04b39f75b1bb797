"""Previews: which are refused, whose database one has, and its comment."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest
import yaml

from tests.contract.conftest import Project
from tests.contract.jobs import COMMIT, called, script
from tests.support import ROOT, yaml_at

COMMENTS = """
import subprocess
comments = {comments!r}
if "--jq" in sys.argv:
    jq = ["jq", "-r", sys.argv[sys.argv.index("--jq") + 1]]
    print(subprocess.run(jq, input=json.dumps(comments), capture_output=True, text=True, check=True).stdout, end="")
"""
MARK = "<!-- waffle-iron preview -->"


def comment(number: int, body: str, kind: str = "Bot") -> dict[str, Any]:
    """Return a comment as GitHub's API has it."""
    return {"id": number, "user": {"type": kind}, "body": body}


@pytest.mark.skipif(not shutil.which("jq"), reason="gh has a jq of its own, its stand-in here takes the machine's")
@pytest.mark.parametrize(
    ("comments", "method", "place"),
    [
        ([], "POST", "issues/12/comments"),
        # Of another workflow, newer than ours or alone; of somebody who quotes ours.
        ([comment(1, "Coverage 97 %"), comment(2, f"{MARK}\nPerson", "User")], "POST", "issues/12/comments"),
        ([comment(3, f"{MARK}\nold"), comment(4, "Coverage")], "PATCH", "issues/comments/3"),
    ],
)
def test_a_preview_has_one_comment_and_writes_into_no_other(
    project: Project, comments: list[dict[str, Any]], method: str, place: str
) -> None:
    file = called(project, "gh", COMMENTS.format(comments=comments))
    done = script(project, "scripts/preview-comment", "12", COMMIT, "http://pr-12.dev.test/")
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text().partition("][")[2].join(["[", ""]))
    assert written == [
        "api", "--silent", "-X", method, f"repos/{{owner}}/{{repo}}/{place}",
        "-f", f"body={MARK}\nPreview of {COMMIT} on dev - http://pr-12.dev.test/",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [[], ["12", COMMIT], ["12", COMMIT, ""]])
def test_a_preview_without_an_address_has_no_comment(project: Project, words: list[str]) -> None:
    file = called(project, "gh")
    assert (script(project, "scripts/preview-comment", *words).returncode, file.exists()) == (2, False)


PLAY = """
- hosts: all
  gather_facts: false
  vars_files: [vars/preview.yml]
  tasks:
    - ansible.builtin.copy:
        dest: "{{ checkout }}/told.json"
        content: "{{ {'settings': app_database, 'migration': app_migration_database, 'backup': app_backup_connection,
                      'migrates': app_migrations, 'accounts': mysql_client_accounts, 'seed': app_seed} | to_json }}"
      delegate_to: localhost
"""


@pytest.mark.parametrize(
    ("database", "state", "own"), [("own", "present", True), ("live", "present", False), ("live", "absent", True)]
)
def test_a_preview_has_a_database_of_its_own_or_reads_the_live_one(
    project: Project, database: str, state: str, own: bool
) -> None:
    """What is removed is its own, whatever the setting says by then."""
    (project.root / "playbooks/look.yml").write_text(PLAY)
    values = {"preview": "pr-12", "preview_database": database, "preview_state": state, "preview_domain": "dev.test"}
    words = ("-i", "inventory/test", "-l", "dev", "-e", json.dumps(values))
    done = project.run("ansible-playbook", "playbooks/look.yml", *words)
    assert done.returncode == 0, done.stdout
    told = json.loads((project.root / "told.json").read_text())
    secrets = yaml.safe_load(project.view("dev"))
    assert told["settings"]["name"] == ("nba_dev_pr_12" if own else "nba_dev")
    assert told["settings"]["user"] == ("nba_dev_pr_12" if own else "nba_dev_read")
    migration = "nba_dev_migrate_pr_12" if own else "nba_dev_read"
    assert {told["migration"]["user"], told["backup"]["user"]} == {migration}
    assert (told["migrates"], told["seed"]) == (own, own)
    assert all(account["name"].endswith("_pr_12") for account in told["accounts"]) is own
    # Of its environment's passwords, what a host gets of it has none but the reader's, to read with.
    given = {told["settings"]["password"], told["migration"]["password"], told["backup"]["password"]}
    known = {secret for name, secret in secrets.items() if name.startswith("vault_database")}
    assert given & known == (set() if own else {secrets["vault_database_reader_password"]})
    assert len(given) == (2 if own else 1) and all(len(each) >= 16 for each in given)


CHECKED = {"preflight_passed": True, "preflight_built": True, "preflight_confirmed": True, "preview_domain": "x.test"}


def refused(project: Project, environment: str, **values: object) -> str:
    """Return why a preview is refused; nothing if it would be made."""
    words = ("-i", "inventory/test", "-l", environment, "-e", json.dumps({"preview": "pr-12", **CHECKED, **values}))
    done = project.run("ansible-playbook", "playbooks/preview.yml", *words)
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout
    return "" if project.called else " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("preview", "word"),
    [
        ("migrate", "migrate"),  # the live application's account for migrations
        ("read", "read"),  # its reader, in the database
        ("release", "release"),  # the folder of its run
        ("pr-1-green", "green"),  # a slot of the preview pr-1
        ("migrate-pr-1", "migrate"),  # the migration account of the preview pr-1, in the database
    ],
)
def test_a_preview_has_no_name_of_the_live_application(project: Project, preview: str, word: str) -> None:
    """Least of all one that is to be removed."""
    state = "absent" if preview == word else "present"
    told = refused(project, "dev", preview=preview, preview_state=state)
    assert f"preview={preview} is refused: nba's own accounts, units, folders or databases have {word} in" in told


def test_every_name_that_the_roles_make_is_reserved(project: Project) -> None:
    """What follows the project's name, or stands in a database account's: no preview may be called so."""
    reserved = set(yaml_at("playbooks/tasks/check_preview.yml")[0]["vars"]["reserved"])
    values = yaml_at("roles/app/vars/main.yml")
    made = {account["name"] for account in values["__app_accounts"]} | set(values["__app_traces"])
    made |= set(yaml_at("group_vars/all/vars.yml")["mysql_client_accounts"][1]["scratch_databases"])
    text = " ".join(made) + (ROOT / "roles/app/files/builder.py").read_text()
    words = re.findall(r"(?:app_name|database_name|config\.name) ?\}+[-@]([a-z-]+)", text)
    assert len(words) > 10
    assert {part for word in words for part in word.rstrip("-").split("-")} <= reserved
    accounts = [yaml_at(f"group_vars/{name}/vars.yml") for name in ("dev", "prod")]
    for known in accounts:
        for key in ("database_migration_user", "database_reader_user"):
            assert known[key].removeprefix(f"{known['database_user']}_") in reserved


def test_a_preview_is_made_where_code_needs_no_proof(project: Project) -> None:
    told = refused(project, "prod")
    assert "no preview is made in prod: its promote_from is" in told and "-l dev -e preview=pr-12" in told
    assert refused(project, "prod", preview_state="absent") == "", "it can be removed"


def test_no_containerfile_of_a_pull_request_is_built(project: Project) -> None:
    told = refused(project, "dev", app_runtime="container")
    assert "no preview is made with app_runtime" in told and "-e app_runtime=venv" in told
    assert refused(project, "dev", app_runtime="container", preview_state="absent") == ""


def test_any_other_preview_is_made(project: Project) -> None:
    assert refused(project, "dev", preview="greener") == ""
