"""Tunnel and console, with programs in the place of ssh and mysql that tell how they were called."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.contract.conftest import Project
from tests.support import AWKWARD, Unsafe, free_port, vault_secrets, vault_text

SECONDS = 120
INVENTORY = """
all:
  vars:
    access: "{{ inventory_dir }}/../../.access"
    ansible_user: admin
    ansible_ssh_private_key_file: "{{ access }}/id"
    ansible_ssh_common_args: -o HostKeyAlias=i-1 -o UserKnownHostsFile={{ access }}/known -o StrictHostKeyChecking=yes
  children:
    dev: {hosts: {dev1: {ansible_host: 192.0.2.1}}, vars: {database_host: db.example.com, database_port: 3310}}
    prod: {hosts: {prod1: {ansible_host: 192.0.2.2}}, vars: {database_host: prod.example.com}}
"""
PASSWORDS = {
    "vault_database_password": AWKWARD,
    "vault_database_reader_password": Unsafe(f"reader's {AWKWARD} {{{{ 1 }}}}"),
}
# Listens where the real one would, or ends at once, and says what it was given.
SSH = """#!{python}
import json, os, signal, socket, sys
open({calls!r} + "/ssh", "w").write(json.dumps([os.getpid(), *sys.argv[1:]]))
if os.path.exists({calls!r} + "/refuse"):
    sys.exit(255)
port = int(sys.argv[sys.argv.index("-L") + 1].split(":")[1])
with socket.create_server(("127.0.0.1", port)):
    signal.pause()
"""
MYSQL = """#!{python}
import json, os, sys
if "--version" in sys.argv:
    print("mysql  Ver 8.4.6 for Linux on x86_64 (MySQL Community Server - GPL)")
    sys.exit()
path = sys.argv[1].partition("=")[2]
mode = oct(os.stat(path).st_mode & 0o777)
open({calls!r} + "/mysql", "w").write(json.dumps([sys.argv[1:], mode, open(path).read(), dict(os.environ)]))
sys.exit(3)
"""


@pytest.fixture
def calls(project: Project) -> Path:
    """Return the folder in which the stand-ins write how they were called."""
    folder = project.root / "calls"
    folder.mkdir()
    programs = project.root / "bin"
    programs.mkdir()
    for name, text in (("ssh", SSH), ("mysql", MYSQL)):
        (programs / name).write_text(text.format(python=sys.executable, calls=str(folder)))
        (programs / name).chmod(0o755)
    (project.root / "inventory/test/hosts.yml").write_text(INVENTORY)
    return folder


def environment(project: Project) -> dict[str, str]:
    """Return the environment of a user whose ssh and mysql are the stand-ins."""
    inherited = project.environment()
    return {**inherited, "PATH": f"{project.root}/bin:{inherited['PATH']}", "INVENTORY": "inventory/test"}


def reach(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    return subprocess.run(
        [sys.executable, "scripts/reach", *arguments],
        cwd=project.root,
        env=environment(project),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def gone(process: int) -> bool:
    """Return True if a process has ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("end", "ignored", "words"),
    [
        (signal.SIGINT, "", "\nclosed\n"),
        (signal.SIGHUP, "", ""),
        # As a shell starts its background jobs, and some parents their children.
        (signal.SIGINT, "INT QUIT CHLD", "\nclosed\n"),
    ],
    ids=["ctrl-c", "closed", "background"],
)
def test_a_tunnel_stays_open_until_ctrl_c_or_the_terminal_s_end(
    project: Project, calls: Path, end: signal.Signals, ignored: str, words: str
) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            "sh",
            "-c",
            f'trap "" {ignored}; exec "$0" "$@"' if ignored else 'exec "$0" "$@"',
            sys.executable,
            "scripts/reach",
            "tunnel",
            "dev",
            str(port),
        ],
        cwd=project.root,
        env=environment(project),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"127.0.0.1:{port} is the database of dev, through dev1. Ctrl-C closes it.\n", line
        number, *arguments = json.loads((calls / "ssh").read_text())
        process.send_signal(end)
        assert process.wait(timeout=SECONDS) == 0
        assert process.stdout.read() == words
        assert gone(number)
    finally:
        process.kill()
        process.wait()
    access = f"{project.root}/.access"
    options = {arguments[index + 1] for index, word in enumerate(arguments) if word == "-o"}
    assert options >= {
        "HostName=192.0.2.1",
        "User=admin",
        f"IdentityFile={access}/id",
        "HostKeyAlias=i-1",
        f"UserKnownHostsFile={access}/known",
        "StrictHostKeyChecking=yes",
        "ExitOnForwardFailure=yes",
        "ControlPath=none",
    }
    assert f"127.0.0.1:{port}:db.example.com:3310" in arguments
    assert arguments[-1] == "dev1"


def test_a_port_that_is_taken_is_refused(project: Project, calls: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = reach(project, "tunnel", "dev", str(port))
    assert done.returncode == 1
    assert done.stdout.startswith(f"local port {port} is taken")
    assert done.stdout.endswith(f"make tunnel ENV=dev PORT={port + 1}\n")
    assert not (calls / "ssh").exists()


def test_a_refused_connection_is_told(project: Project, calls: Path) -> None:
    (calls / "refuse").touch()
    done = reach(project, "tunnel", "dev", str(free_port()))
    assert (done.returncode, done.stdout) == (1, "ssh exited with status 255. Fix: add your address to ssh_sources\n")


@pytest.mark.parametrize("arguments", [("tunnel", ""), ("tunnel", "stage"), ("db", "all")])
def test_an_environment_must_be_named(project: Project, calls: Path, arguments: tuple[str, str]) -> None:
    done = reach(project, *arguments)
    assert done.returncode == 1
    assert done.stdout == f"ENV={arguments[1]}: name one of dev, prod, as in: make {arguments[0]} ENV=dev\n"


def console(project: Project, calls: Path, *arguments: str) -> tuple[str, str]:
    """Open a console; return what was said and the option file, having seen that the passwords are nowhere else."""
    name = arguments[0]
    clear = {**vault_secrets(project.view(name)), **PASSWORDS}
    project.encrypt(name, vault_text(clear))
    done = reach(project, "db", *arguments)
    assert done.returncode == 3, done.stdout  # the client's own
    command, mode, options, inherited = json.loads((calls / "mysql").read_text())
    number, *ssh = json.loads((calls / "ssh").read_text())
    assert command == [next(iter(command))]
    assert command[0].startswith("--defaults-file=/dev/fd/")
    assert mode == "0o600"
    for secret in clear.values():
        assert secret not in f"{ssh} {command} {inherited} {done.stdout}"
    deadline = time.monotonic() + 10
    while not gone(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(number)
    return done.stdout, options


def login(options: str) -> dict[str, str]:
    """Return user and password of an option file."""
    found = re.findall(r'^(user|password)\s*=\s*"(.*)"$', options, re.MULTILINE)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}


def test_a_console_has_its_password_from_memory(project: Project, calls: Path) -> None:
    said, options = console(project, calls, "dev")
    assert said == ""
    assert login(options) == {"user": "nba_dev", "password": PASSWORDS["vault_database_password"]}


def test_prod_s_console_is_of_an_account_that_only_reads_unless_it_is_told_to_write(
    project: Project, calls: Path
) -> None:
    said, options = console(project, calls, "prod")
    assert said == "prod: this console only reads. To write: make db ENV=prod WRITE=yes\n"
    assert login(options) == {"user": "nba_prod_read", "password": PASSWORDS["vault_database_reader_password"]}
    said, options = console(project, calls, "prod", "yes")
    assert said == ""
    assert login(options) == {"user": "nba_prod", "password": PASSWORDS["vault_database_password"]}


def test_a_vault_of_before_is_told_what_it_lacks(project: Project, calls: Path) -> None:
    clear = yaml.safe_load(project.view("prod"))
    del clear["vault_database_reader_password"]
    project.encrypt("prod", yaml.safe_dump(clear))
    done = reach(project, "db", "prod")
    assert done.returncode == 1
    assert done.stdout == (
        "group_vars/prod/vault.yml has no vault_database_reader_password. Add it: ansible-vault edit "
        "group_vars/prod/vault.yml; then site.yml makes the account\n"
    )
    assert not (calls / "mysql").exists()
