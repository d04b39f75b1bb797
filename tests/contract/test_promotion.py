"""What one environment takes from another: the action itself, against a host of this machine, and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import AUTHOR, Project
from tests.contract.test_structure import tasks_in
from tests.support import ROOT, yaml_at

INVENTORY = """
all:
  children:
    dev: {{hosts: {{dev1: {dev1}}}}}
    prod: {{hosts: {{prod1: {{ansible_connection: local}}}}}}
"""
PLAY = """
- name: Ask
  hosts: all
  gather_facts: false
  tasks:
    - name: Ask
      waffle.iron.promotion:
        group: dev
        command: "{{ release_program }}"
        artefact: {digest: 0123abcd, commit: 89abcdef89abcdef, subject: A change}
        override: "{{ promotion_override | default('') }}"
      register: asked
    - name: Show
      ansible.builtin.debug:
        var: asked
"""
STATUS = {"live": "old-1", "releases": [{"id": "old-1", "commit": "0" * 40, "subject": "Before"}]}


@pytest.fixture
def asking(project: Project) -> Project:
    """Return a project in which dev's password is away, and dev1 is this machine."""
    (project.root / ".vault/dev").unlink()
    (project.root / "playbooks/ask.yml").write_text(PLAY)
    (project.root / "inventory/test/hosts.yml").write_text(INVENTORY.format(dev1="{ansible_connection: local}"))
    return project


def ask(project: Project, answers: dict[str, object], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the action on prod1, with a release program on dev1 that gives these answers."""
    program = project.root / "release"
    lines = "".join(f"'{words}') echo '{json.dumps(answer)}' ;;\n" for words, answer in answers.items())
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{lines}*) echo "no answer to $*" >&2; exit 1 ;;\nesac\n')
    program.chmod(0o755)
    command = ("ansible-playbook", "playbooks/ask.yml", "-i", "inventory/test", "-l", "prod")
    return project.run(*command, "-e", f"release_program={program}", *arguments)


def test_what_was_good_there_is_taken_without_dev_s_password(asking: Project) -> None:
    done = ask(asking, {"proven 0123abcd": {"proven": True, "release": "r-1", "at": 1.5}})
    assert done.returncode == 0, done.stdout
    assert "release: r-1" in done.stdout


def test_the_password_that_was_typed_stays_with_its_environment(asking: Project) -> None:
    sudo, log, password = (asking.root / name for name in ("sudo", "log", "password"))
    sudo.write_text(f'#!/bin/sh\necho "$*" >>{log}\nwhile [ "$1" != /bin/sh ]; do shift; done\nexec "$@"\n')
    sudo.chmod(0o755)
    password.write_text("prods-own\n")
    dev1 = f"{{ansible_connection: local, ansible_become_user: other, ansible_become_exe: {sudo}}}"
    (asking.root / "inventory/test/hosts.yml").write_text(INVENTORY.format(dev1=dev1))
    done = ask(asking, {"proven 0123abcd": {"proven": True}}, "--become", f"--become-password-file={password}")
    assert done.returncode == 0, done.stdout
    # Without a password, sudo is told not to ask for one.
    assert " -n " in log.read_text()


def test_what_was_not_is_refused_with_what_is_there(asking: Project) -> None:
    answers: dict[str, object] = {"proven 0123abcd": {"proven": False}, "status": STATUS}
    done = ask(asking, answers)
    assert done.returncode == 2
    for words in (
        "the artefact 0123abcd of commit 89abcdef89ab (A change) was never live and healthy on dev",
        "dev1 runs old-1 (commit 000000000000, Before)",
        "`ansible-playbook playbooks/deploy.yml -l dev -e app_version=89abcdef89abcdef`",
        """-e 'promotion_override="the reason"'""",
    ):
        assert words in done.stdout
    asked = (asking.root / "playbooks/ask.yml").read_text()
    with_front_end = asked.replace("subject: A change}", "subject: A change, frontend: f00d}")
    (asking.root / "playbooks/ask.yml").write_text(with_front_end)
    assert "-e app_version=89abcdef89abcdef -e app_frontend_version=f00d`" in ask(asking, answers).stdout
    preview = ask(asking, answers, "--check")
    assert preview.returncode == 0, preview.stdout
    assert "a run without --check would end here" in preview.stdout


@pytest.mark.parametrize("answer", [{}, {"proven": "true"}, {"proven": 1}])
def test_only_a_plain_yes_counts(asking: Project, answer: dict[str, object]) -> None:
    done = ask(asking, {"proven 0123abcd": answer, "status": STATUS})
    assert (done.returncode, "proven 0123abcd` gave a wrong answer" in done.stdout) == (2, True), done.stdout


def test_a_program_that_fails_is_no_proof(asking: Project) -> None:
    done = ask(asking, {})
    assert done.returncode == 2
    assert "dev1 (dev) could not be asked" in done.stdout
    assert "no answer to proven 0123abcd" in done.stdout


def test_a_host_that_cannot_be_reached_is_no_proof(asking: Project) -> None:
    gone = "{ansible_host: 192.0.2.1, ansible_ssh_executable: /bin/false, ansible_ssh_retries: 0}"
    (asking.root / "inventory/test/hosts.yml").write_text(INVENTORY.format(dev1=gone))
    done = ask(asking, {"proven 0123abcd": {"proven": True}})
    assert done.returncode == 2, done.stdout
    assert "dev1 (dev) could not be asked" in done.stdout
    assert """-e 'promotion_override="the reason"'""" in done.stdout


def test_a_reason_takes_the_place_of_the_proof(asking: Project) -> None:
    done = ask(asking, {}, "-e", 'promotion_override="dev is down"')
    assert done.returncode == 0, done.stdout
    assert "override: dev is down" in done.stdout


@pytest.mark.parametrize("reason", ["x", "       .", "two\\nlines of it"])
def test_a_reason_must_say_something(asking: Project, reason: str) -> None:
    done = ask(asking, {}, "-e", json.dumps({"promotion_override": reason.replace("\\n", "\n")}))
    assert done.returncode == 2, done.stdout
    assert "promotion_override: must be one line of at least 8 characters that say why" in done.stdout


# --- what runs code of an artefact asks first ---

# Commands of the release program, and the variables that hold them, that run code of a release.
RUNS_CODE = re.compile(r"__app_(preparation|activate|by_itself)|\b(preview|plan|migrate)\b")


def steps(name: str, when: str = "") -> Iterator[tuple[str, str]]:
    """Yield what a task file of the role does, with the conditions, and with those of the files that it takes in."""
    for task in tasks_in(yaml_at(f"roles/app/tasks/{name}")):
        held = f"{when} {task.get('when', '')}"
        yield from ((kind, held) for kind in ("promotion",) if f"waffle.iron.{kind}" in task)
        if RUNS_CODE.search(str(task.get("waffle.iron.release", {}).get("command", ""))):
            yield "code", held
        for key in ("ansible.builtin.import_tasks", "ansible.builtin.include_tasks"):
            # What is named by a variable is a hook, or a file that has the attempt beside it.
            for file in {task.get(key), task.get("vars", {}).get("__app_attempt")} & {path.name for path in TASKS}:
                yield from steps(str(file), held)


TASKS = sorted((ROOT / "roles/app/tasks").glob("*.yml"))


@pytest.mark.parametrize("entry", ["deploy.yml", "plan.yml", "migrate.yml"])
def test_the_proof_comes_before_any_code(entry: str) -> None:
    done = [kind for kind, _ in steps(entry)]
    assert "code" in done and done[0] == "promotion"


def test_a_plan_runs_no_code_without_proof() -> None:
    """It asks, and goes on with what needs no code."""
    (preview,) = steps("preview.yml")
    assert preview[0] == "code" and "__app_proven" in preview[1]


# --- code from another repository ---


def committed(project: Project, folder: Path) -> Path:
    """Make a repository of a folder, with all that is in it, and return the folder."""
    for arguments in (["init", "--quiet"], ["add", "."], [*AUTHOR, "commit", "--quiet", "--message", "all"]):
        assert project.run("git", "-C", str(folder), *arguments).returncode == 0
    return folder


@pytest.fixture
def elsewhere(project: Project, tmp_path: Path) -> Path:
    """Return a repository with an application in a folder."""
    folder = tmp_path / "elsewhere"
    (folder / "service").mkdir(parents=True)
    (folder / "service/poetry.lock").write_text("# lock\n")
    (folder / "service/main.py").write_text("from fastapi import FastAPI\n\napp = FastAPI()\n")
    return committed(project, folder)


def test_an_application_of_another_repository(project: Project, elsewhere: Path) -> None:
    arguments = ("-l", "dev", "-e", f"app_repository={elsewhere}", "-e", "app_repository_folder=service")
    done = project.playbook(*arguments)
    assert (done.returncode, project.called) == (4, True), done.stdout


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["app_version=v9"], "app_version: 'v9' is not a commit, tag or branch of"),
        (["app_repository_folder=nowhere"], "app_repository_folder: 'nowhere' is not a folder of"),
        (["app_repository_folder="], "no lock file is in HEAD, and hosts install from one alone"),
        (["app_repository=/nowhere/at/all"], "app_repository: /nowhere/at/all could not be fetched"),
    ],
)
def test_what_is_wrong_with_another_repository_is_said_first(
    project: Project, elsewhere: Path, extra: list[str], words: str
) -> None:
    named = [f"app_repository={elsewhere}", "app_repository_folder=service", *extra]
    done = project.playbook("-l", "dev", *(part for word in named for part in ("-e", word)))
    assert (done.returncode, project.called) == (2, False), done.stdout
    assert words in done.stdout


def test_a_stale_lock_is_refused_before_any_host(project: Project, elsewhere: Path) -> None:
    (elsewhere / "service/pyproject.toml").write_text('[project]\nname = "own"\ndependencies = ["rich"]\n')
    committed(project, elsewhere)
    named = ("-e", f"app_repository={elsewhere}", "-e", "app_repository_folder=service")
    done = project.playbook("-l", "dev", *named)
    assert (done.returncode, project.called) == (2, False), done.stdout
    assert "poetry.lock is older than pyproject.toml" in done.stdout
    assert "run `poetry lock` there and commit it" in done.stdout


@pytest.fixture
def site(project: Project, tmp_path: Path) -> Path:
    """Return a repository with a built front end in a folder."""
    folder = tmp_path / "site"
    (folder / "dist").mkdir(parents=True)
    (folder / "dist/index.html").write_text("theirs\n")
    return committed(project, folder)


def test_a_front_end_of_another_repository_is_part_of_the_artefact(project: Project, site: Path) -> None:
    """With the cached artefact, which is what goes to a host."""
    cache = project.root.parent / ".cache/waffle-iron/artefacts"
    named = ("-e", f"app_frontend_repository={site}", "-e", "app_frontend_folder=dist")
    done = project.run("ansible-playbook", "playbooks/preflight.yml", "-i", "inventory/test", "-l", "dev", *named)
    assert done.returncode == 0, done.stdout
    (made,) = cache.glob("*.tar")
    with tarfile.open(made) as tar:
        assert tar.getnames() == ["frontend/index.html", "nba/main.py", "poetry.lock"]


def test_what_is_wrong_with_a_front_end_is_said_before_a_host_is_touched(project: Project, site: Path) -> None:
    (site / "dist/index.html").write_text("not committed\n")
    done = project.playbook("-l", "dev", "-e", f"app_frontend_repository={site}", "-e", "app_frontend_folder=dist")
    assert (done.returncode, project.called) == (2, False), done.stdout
    assert "app_frontend_repository: " in done.stdout and "not committed" in done.stdout


def test_the_credentials_of_a_repository_are_not_shown(project: Project) -> None:
    secret = "http://someone:hunter2hunter2@127.0.0.1:1/a.git"
    path = project.root / "group_vars/all/vars.yml"
    path.write_text(path.read_text().replace('app_repository: ""', f'app_repository: "{secret}"'))
    done = project.playbook("-l", "dev", "-vvv")
    assert (done.returncode, project.called) == (2, False), done.stdout
    assert "app_repository: http://127.0.0.1:1/a.git could not be fetched" in done.stdout
    assert "hunter2" not in done.stdout
