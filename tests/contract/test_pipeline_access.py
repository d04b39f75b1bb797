"""scripts/with-access: the secrets of a job are in memory for one command, and gone after it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Project
from tests.contract.jobs import SECRETS
from tests.support import ENVIRONMENTS

MEMORY = Path("/dev/shm")  # noqa: S108


@pytest.fixture
def bare(project: Project) -> Project:
    """Return a checkout as a job has it: the vaults, and nothing that opens them."""
    if not MEMORY.is_dir():
        pytest.skip("Linux alone has a file system in memory at hand")
    for environment in ENVIRONMENTS:
        (project.root / ".vault" / environment).rename(project.root / f"password-{environment}")
    (project.root / ".vault").rmdir()
    (project.root / ".venv/bin").mkdir(parents=True)
    return project


def given(project: Project, environment: str = "dev", **changed: str) -> dict[str, str]:
    """Return a job's environment."""
    password = (project.root / f"password-{environment}").read_text().strip()
    values = {"VAULT_PASSWORD": password, "SSH_KEY": "dev's key", "PROMOTE_FROM_SSH_KEY": "other key"}
    kept = {**project.environment(), "GITHUB_ACTIONS": ""}
    return {**kept, **values, "KNOWN_HOSTS": "i-1 ssh-ed25519 AAAA", **changed}


def access(project: Project, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/with-access."""
    return subprocess.run(
        [str(project.root / "scripts/with-access"), *words],
        cwd=project.root,
        env=given(project, words[0], **changed),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def left(project: Project) -> list[str]:
    """Return what is left of secrets, in memory and in the checkout."""
    links = [str(project.root / name) for name in (".vault", ".access") if os.path.lexists(project.root / name)]
    return [
        *links,
        *(str(path) for path in MEMORY.glob(f"waffle-access-{zlib.crc32(str(project.root).encode()):08x}-*")),
    ]


LOOK = """
find -L .vault .access -type f | sort
stat -Lc %a .vault .access .access/dev .access/dev/id_ed25519 .vault/* | sort -u
stat -Lfc %T .vault .access | sort -u
"""


def test_a_command_finds_the_secrets_in_memory_and_nobody_else_can_read_them(bare: Project) -> None:
    done = access(bare, "dev", "sh", "-c", LOOK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        ".access/dev/id_ed25519", ".access/dev/known_hosts", ".vault/dev", "600", "700", "tmpfs",
    ]  # fmt: skip
    assert left(bare) == []


def test_prod_has_the_key_to_dev_s_hosts_and_not_its_vault(bare: Project) -> None:
    done = access(bare, "prod", "sh", "-c", "ls .vault; cat .access/prod/id_ed25519 .access/dev/id_ed25519")
    assert done.stdout.splitlines() == ["prod", "dev's key", "other key"]


def test_the_command_opens_the_vault_and_gets_no_secret_otherwise(bare: Project) -> None:
    view = access(bare, "dev", "ansible-vault", "view", "group_vars/dev/vault.yml")
    assert "vault_database_password" in view.stdout, view.stderr
    password = given(bare)["VAULT_PASSWORD"]
    told = access(bare, "dev", "sh", "-c", "env; tr '\\0' ' ' </proc/$PPID/cmdline; tr '\\0' ' ' </proc/$$/cmdline")
    assert told.returncode == 0
    assert not any(secret in told.stdout + told.stderr for secret in (password, "dev's key"))


def test_ssh_takes_the_keys_and_the_pins_alone(bare: Project) -> None:
    shown = 'set -- $ANSIBLE_SSH_COMMON_ARGS; ssh -G "$@" host | grep -E "^(identi|batch|strict|userknown)"'
    done = access(bare, "prod", "bash", "-c", shown)
    found = re.sub(rf"{MEMORY}/waffle-access-\w+-\w+/", "", done.stdout).splitlines()
    assert sorted(found) == [
        "batchmode yes",
        "identitiesonly yes",
        "identityfile access/dev/id_ed25519",
        "identityfile access/prod/id_ed25519",
        "stricthostkeychecking true",
        "userknownhostsfile access/prod/known_hosts",
    ]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("", "StrictHostKeyChecking=yes -o UserKnownHostsFile=/dev/shm/"),
        ("ansible_ssh_common_args: -o HostKeyAlias=i-1", "HostKeyAlias=i-1"),
    ],
)
def test_ansible_hands_them_to_ssh_unless_the_inventory_has_its_own(bare: Project, own: str, wanted: str) -> None:
    (bare.root / "ssh").write_text(f'#!/bin/sh\necho "$@" >>{bare.root}/called\nexit 255\n')
    inventory = bare.root / "inventory/test/hosts.yml"
    inventory.write_text(inventory.read_text().replace("  children:", f"    {own}\n  children:"))
    done = access(bare, "dev", "ansible", "dev", "-i", "inventory/test", "-m", "ansible.builtin.ping")
    assert done.returncode == 4, done.stdout + done.stderr
    assert wanted in (bare.root / "called").read_text()
    assert ("UserKnownHostsFile" in (bare.root / "called").read_text()) is not bool(own)


def test_what_a_host_prints_is_no_command_to_github(bare: Project) -> None:
    host = "printf '::set-output name=artefact::%064d\\n' 0; exit 3"
    done = access(bare, "dev", "sh", "-c", host, GITHUB_ACTIONS="true")
    first, printed, last = done.stdout.splitlines()
    stopped = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", first)
    assert stopped and (last, done.returncode) == (f"::{stopped[1]}::", 3)
    assert printed.startswith("::set-output")
    assert access(bare, "dev", "true").stdout == ""


@pytest.mark.parametrize("code", [0, 3, 99])
def test_the_exit_code_is_the_command_s_and_nothing_is_left(bare: Project, code: int) -> None:
    assert (access(bare, "dev", "sh", "-c", f"exit {code}").returncode, left(bare)) == (code, [])


def test_a_command_that_is_not_there_leaves_nothing(bare: Project) -> None:
    done = access(bare, "dev", "no-such-command")
    assert (done.returncode, left(bare)) == (2, [])
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("name", ["VAULT_PASSWORD", "SSH_KEY", "PROMOTE_FROM_SSH_KEY", "KNOWN_HOSTS"])
def test_a_secret_that_is_missing_is_named_and_the_others_stay_unsaid(bare: Project, name: str) -> None:
    done = access(bare, "prod", "true", **{name: " "})
    assert (done.returncode, left(bare)) == (2, [])
    assert f"{name}: not set for prod" in done.stderr
    assert given(bare, "prod")["VAULT_PASSWORD"] not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_cancelled_leaves_nothing(bare: Project, number: signal.Signals) -> None:
    """As GitHub cancels: a signal to this one process. Of what is killed outright, the next run takes care."""
    mark = bare.root / "at-work"
    process = subprocess.Popen(
        [str(bare.root / "scripts/with-access"), "dev", "sh", "-c", f"touch {mark}; exec sleep 300"],
        cwd=bare.root,
        env=given(bare),
        stdin=subprocess.DEVNULL,
    )
    wait_for(mark.exists)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.send_signal(number)
    code = process.wait(timeout=20)
    if number == signal.SIGKILL:
        os.kill(child, number)
        assert len(left(bare)) == 3
        assert access(bare, "dev", "true").returncode == 0
    else:
        assert code == 128 + number
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    assert left(bare) == []


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_runs_in_one_checkout_do_not_take_each_other_s_secrets(bare: Project) -> None:
    inner = f"{bare.root}/scripts/with-access dev true; echo $?; cat .vault/dev"
    names = " ".join(f"{name}=x" for name in SECRETS)
    done = access(bare, "dev", "sh", "-c", f"export {names}; {inner}")
    assert done.stdout.split() == ["2", given(bare)["VAULT_PASSWORD"]]
    assert "at work in this checkout" in done.stderr


def test_a_machine_with_secrets_of_its_own_keeps_them(bare: Project) -> None:
    (bare.root / ".vault").mkdir()
    (bare.root / ".vault/dev").write_text("mine")
    done = access(bare, "dev", "true")
    assert (done.returncode, (bare.root / ".vault/dev").read_text()) == (2, "mine")
    assert "its own secrets" in done.stderr
    assert left(bare) == [str(bare.root / ".vault")]
