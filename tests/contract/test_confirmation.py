"""Who must confirm a change, and how: real runs on a terminal and without one, and no host contacted."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time

import pytest

from tests.contract.conftest import Project

QUESTION = "Type the environment's name to go on:"
SECONDS = 90


def on_a_terminal(project: Project, answer: str, *arguments: str) -> tuple[int, str]:
    """Run site.yml on a terminal, type ``answer`` where it asks, and return exit code and output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "ansible-playbook", "site.yml", "-i", "inventory/test", *arguments],
        cwd=project.root,
        env={**project.environment(), "TERM": "dumb", "COLUMNS": "1000"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    output, typed, deadline = "", 0.0, time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    output += os.read(master, 1 << 16).decode(errors="replace")
                except OSError:  # the last one that had the terminal open has ended
                    break
            # What is typed before Ansible listens is thrown away; only the first line that it hears counts.
            if QUESTION in output and time.monotonic() > typed + 1:
                os.write(master, f"{answer}\r".encode())
                typed = time.monotonic()
        return process.wait(timeout=SECONDS), output.replace("\r", "")
    finally:
        process.terminate()  # Ansible then ends its workers, too
        process.wait(timeout=SECONDS)
        os.close(master)


def test_the_right_word_goes_on(project: Project) -> None:
    code, output = on_a_terminal(project, "prod", "-l", "prod")
    assert output.count(QUESTION) == 1, output
    assert "This run may change prod (prod1)." in output
    assert project.called
    assert code == 4


@pytest.mark.parametrize("answer", ["dev", "", "prod1"])
def test_a_wrong_word_stops(project: Project, answer: str) -> None:
    code, output = on_a_terminal(project, answer, "-l", "prod")
    assert code == 2, output
    assert "nothing was changed on any host: the answer was not 'prod'" in output
    assert not project.called


def test_who_was_confirmed_beforehand_is_not_asked(project: Project) -> None:
    code, output = on_a_terminal(project, "", "-l", "prod", "-e", "confirm=prod")
    assert (code, project.called) == (4, True), output
    assert QUESTION not in output


def test_without_a_terminal_the_command_is_named(project: Project) -> None:
    done = project.playbook("-l", "prod", "-e", "app_version=HEAD")
    assert done.returncode == 2, done.stdout
    assert not project.called
    command = "ansible-playbook site.yml -i inventory/test -l prod -e app_version=HEAD -e confirm=prod"
    assert f"there is no terminal to confirm that on. If it is meant: {command}\n" in done.stdout
    assert project.run(*command.split()).returncode == 4
    assert project.called


def test_the_word_for_another_environment_is_refused(project: Project) -> None:
    done = project.playbook("-l", "prod", "-e", "confirm=dev")
    assert done.returncode == 2, done.stdout
    assert "confirm is 'dev', and this run may change prod (prod1). If it is meant: -e confirm=prod" in done.stdout
    assert not project.called


def test_one_of_two_environments_is_confirmed(project: Project) -> None:
    refused = project.playbook("-e", "all_environments=true")
    assert (refused.returncode, project.called) == (2, False), refused.stdout
    assert "-e all_environments=true -e confirm=prod" in refused.stdout
    done = project.playbook("-e", "all_environments=true", "-e", "confirm=prod")
    assert project.called, done.stdout


@pytest.mark.parametrize(
    ("playbook", "arguments"),
    [("site.yml", ["--check"]), ("playbooks/releases.yml", []), ("playbooks/preflight.yml", [])],
)
def test_what_changes_nothing_is_not_asked(project: Project, playbook: str, arguments: list[str]) -> None:
    done = project.run("ansible-playbook", playbook, "-i", "inventory/test", "-l", "prod", *arguments)
    assert "confirm" not in re.sub("Request confirmation of the change|preflight_confirmed", "", done.stdout)
    assert done.returncode == (0 if playbook.endswith("preflight.yml") else 4), done.stdout


def test_a_change_after_a_look_is_asked(project: Project) -> None:
    arguments = ("-i", "inventory/test", "-l", "prod")
    done = project.run("ansible-playbook", "playbooks/preflight.yml", "playbooks/base.yml", *arguments)
    assert "no terminal" in done.stdout
    assert (done.returncode, project.called) == (2, False)


def test_an_inventory_can_say_that_its_hosts_need_no_confirmation(project: Project) -> None:
    hosts = project.root / "inventory/test/hosts.yml"
    hosts.write_text(hosts.read_text().replace("192.0.2.2", "192.0.2.2, confirmed_inventory: true"))
    done = project.playbook("-l", "prod")
    assert (done.returncode, project.called) == (4, True), done.stdout


@pytest.mark.parametrize(
    "arguments", [["--skip-tags", "always"], ["--start-at-task", "Create the application's accounts"]]
)
def test_preflight_cannot_be_left_out(project: Project, arguments: list[str]) -> None:
    done = project.playbook("-l", "prod", *arguments)
    assert (done.returncode, project.called) == (1, False), done.stdout
    assert "leaves preflight out" in done.stdout
