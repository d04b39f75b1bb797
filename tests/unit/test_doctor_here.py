"""The doctor's part on the control node: what ssh, AWS and Ansible say, and what it is called; and the screens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, module_at

plugin = module_at("plugins/action/diagnosis.py")
control_node = module_at("plugins/action/control_node.py")
screens = module_at("plugins/filter/screens.py")
TARGET = plugin.Target("192.0.2.1", "admin", 22, "/keys/dev")
REFUSED = "admin@192.0.2.1: Permission denied (publickey)."
OFFERED = "debug1: Offering public key: /keys/dev ED25519 SHA256:abc explicit\n"
CHANGED = """\
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
The fingerprint for the ED25519 key sent by the remote host is
SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDeBYHh8uZcaIgUGDE.
Offending ED25519 key in /home/me/.ssh/known_hosts:7
Host key for 192.0.2.1 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "others", "key", "words", "command"),
    [
        (
            "ssh: Could not resolve hostname nowhere: Name or service not known",
            [],
            "name",
            "does not resolve",
            "ansible_host",
        ),
        (
            "ssh: connect to host 192.0.2.1 port 22: Connection refused",
            [],
            "port",
            "no ssh server answers",
            "systemctl enable --now ssh",
        ),
        (
            "ssh: connect to host 192.0.2.1 port 22: Connection timed out",
            [],
            "unreachable",
            "nothing answers (Connection timed out)",
            "security group",
        ),
        (
            "ssh: connect to host 192.0.2.1 port 22: No route to host",
            [],
            "unreachable",
            "nothing answers (No route to host)",
            "security group",
        ),
        ("ssh: timed out after 20 s", [], "unreachable", "timed out after 20 s", "security group"),
        (
            CHANGED,
            [],
            "host_key_changed",
            "SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDeBYHh8uZcaIgUGDE: another machine",
            "ssh-keygen -f /home/me/.ssh/known_hosts -R 192.0.2.1",
        ),
        (
            "No ED25519 host key is known for 192.0.2.1 and you have requested strict checking.\n"
            "Host key verification failed.",
            [],
            "host_key_unknown",
            "is not known on this machine",
            "ssh -i /keys/dev admin@192.0.2.1",
        ),
        (
            f"Permissions 0644 for '/keys/dev' are too open.\n{REFUSED}",
            [],
            "key_mode",
            "mode 0644",
            "chmod 600 /keys/dev",
        ),
        (
            f"no such identity: /keys/dev: No such file or directory\n{REFUSED}",
            [],
            "key_missing",
            "/keys/dev does not exist",
            "ansible_ssh_private_key_file",
        ),
        (
            f'Load key "/keys/dev": invalid format\n{REFUSED}',
            [],
            "key_unusable",
            "cannot be used: invalid format",
            "ssh-add /keys/dev",
        ),
        (OFFERED + REFUSED, ["ubuntu"], "user", "and ubuntu with the same key", "ansible_user: ubuntu"),
        (
            'Please login as the user "ubuntu" rather than the user "root".',
            [],
            "user",
            "and ubuntu with the same key",
            "ansible_user: ubuntu",
        ),
        (OFFERED + REFUSED, [], "key", "refuses admin with /keys/dev", "ansible_ssh_private_key_file"),
        (REFUSED, [], "key", "refuses admin with no key at all", "ansible_ssh_private_key_file"),
        (
            "debug1: x\nkex_exchange_identification: Connection closed by remote host\ndebug1: y",
            [],
            "other",
            "failed: kex_exchange_identification: Connection closed by remote host",
            "-v",
        ),
    ],
)
def test_words_of_ssh(said: str, others: list[str], key: str, words: str, command: str) -> None:
    found = plugin.about_ssh(said, TARGET, others)
    assert found["key"] == f"ssh.{key}"
    assert words in found["words"]
    assert command in found["command"]


OPEN = "sudo: yes\npython: yes\ndoor: open\n"


@pytest.mark.parametrize(
    ("out", "sudo", "keys"),
    [
        (OPEN, True, []),
        ("sudo: a password is required\npython: yes\ndoor: open\n", True, ["ssh.sudo"]),
        ("sudo: a password is required\npython: yes\ndoor: open\n", False, []),
        ("sh: 1: sudo: not found\npython: yes\ndoor: open\n", True, ["ssh.sudo"]),
        ("sudo: yes\ndoor: open\n", True, ["host.python"]),
        (OPEN + "full: /\n", True, ["host.disk"]),
        (OPEN + "inodes: /tmp\n", True, ["host.inodes"]),
    ],
)
def test_the_doorstep(out: str, sudo: bool, keys: list[str]) -> None:
    assert [one["key"] for one in plugin.about_door(out, TARGET, sudo, "/usr/bin/python3")] == keys


@pytest.mark.parametrize(
    ("there", "ahead"), [(1000, 0), (999, 0), (1005, 0), (990, -9), (1100, 95), (None, 0)], ids=str
)
def test_a_slow_answer_is_no_wrong_clock(there: int | None, ahead: float) -> None:
    """The host is asked at 1000 and has answered by 1005."""
    assert plugin.ahead_of("" if there is None else f"x\nclock: {there}\n", 1000.0, 1005.0) == ahead


def test_sudo_that_asks_is_told_from_sudo_that_refuses() -> None:
    asks, refuses = (
        plugin.about_door(f"{said}\npython: yes\n", TARGET, True, "/usr/bin/python3")[0]
        for said in ("sudo: a password is required", "admin is not in the sudoers file.")
    )
    assert "sudo asks for a password" in asks["words"]
    assert asks["command"].startswith("give it with -K, or put 'admin ALL=(ALL) NOPASSWD: ALL' into /etc/sudoers.d/")
    assert "sudo refuses: admin is not in the sudoers file." in refuses["words"]


def test_host_key_checking_is_never_weakened() -> None:
    assert "StrictHostKeyChecking" not in (ROOT / "plugins/action/diagnosis.py").read_text()
    assert plugin.PROBE["BatchMode"] == "yes"


def finding(key: str, follows_from: str = "") -> dict[str, str]:
    return {"key": key, "words": f"{key} is wrong", "command": f"fix {key}", "follows_from": follows_from}


def test_the_report_has_causes_with_their_consequences() -> None:
    causes = [finding("database.password"), finding("certificate.expired")]
    text = plugin.report([*causes, finding("application.health", "database.password")], {"ssh": "all", "host": ""})
    assert text.splitlines() == [
        "1. database: database.password is wrong",
        "   next: fix database.password",
        "   follows from it: application: application.health is wrong",
        "2. certificate: certificate.expired is wrong",
        "   next: fix certificate.expired",
        "checked:",
        "  ssh: all",
    ]
    assert plugin.report([], {"ssh": "all"}).splitlines()[0] == "all is well"


def test_the_options_of_the_next_command() -> None:
    assert plugin.command_options("dev", []) == "-l dev"
    assert plugin.command_options("dev", [f"{Path.cwd()}/inventory/aws"]) == "-i inventory/aws -l dev"
    assert plugin.command_options("dev", ["/else where/hosts"]) == "-i '/else where/hosts' -l dev"


# --- the control node ---


@pytest.mark.parametrize(
    ("required", "running", "found"),
    [
        (">=3.12,<3.15", (3, 12), 0),
        (">=3.12,<3.15", (3, 11), 1),
        (">=3.12,<3.15", (3, 15), 1),
        ("", (3, 9), 0),
    ],
)
def test_pythons(required: str, running: tuple[int, int], found: int) -> None:
    assert len(list(control_node.python_findings(required, running))) == found


def test_versions_of_ansible() -> None:
    assert list(control_node.version_findings("2.21.5", "2.21.5")) == []
    assert list(control_node.version_findings("", "2.21.5")) == []
    assert len(list(control_node.version_findings("2.21.5", "2.14.3"))) == 1
    assert control_node.locked_version(ROOT / "poetry.lock", "ansible-core").startswith("2.")
    assert control_node.locked_version(ROOT / "nowhere.lock", "ansible-core") == ""


def test_collections_of_this_project_are_known_and_installed() -> None:
    missing = "\n".join(control_node.collection_findings(ROOT, lambda name: False))
    assert "ansible.mysql is not installed, which roles/mysql_client/tasks/" in missing
    assert list(control_node.collection_findings(ROOT, control_node.is_installed)) == []
    assert not control_node.is_installed("acme.tools")


# --- the screen of every environment ---


def host(name: str, reached: bool = True, findings: Any = (), **facts: Any) -> dict[str, Any]:
    examined = {"reached": reached, "findings": list(findings), "facts": facts}
    return {"inventory_hostname": name, "environment_name": name.rstrip("0123456789"), "examined": examined}


def test_the_screen() -> None:
    well = host(
        "dev1",
        release="a-1",
        since=0,
        commit="1234abcd",
        subject="Say hello",
        schema="0001",
        health="ready",
        requests={"minutes": 15, "count": 200, "failed": 3},
        disk={"path": "/", "used_percent": 41},
        certificate_days=80,
    )
    well["examined"]["facts"]["since"] = 1_795_000_000.0
    ill = host("dev2", findings=[finding("nginx.port"), finding("nginx.upstream", "nginx.port")], release="a-1")
    gone = host("prod1", reached=False, findings=[finding("ssh.port")])
    lines = screens.status_screen([well, ill, gone]).splitlines()
    assert lines[0].split()[:3] == ["HOST", "ENV", "RELEASE"]
    words = " ".join(lines[1].split())
    assert words == "dev1 dev a-1 2026-11-18 11:06 1234abcd Say hello 0001 ready 200 in 15 min 1.5% 41% 80 d"
    assert "not well" in lines[2]
    assert lines[3].split() == ["prod1", "prod", "unreachable"]
    assert lines[4:] == [
        "dev2: nginx: nginx.port is wrong",
        "prod1: ssh: ssh.port is wrong",
        "next: ansible-playbook playbooks/doctor.yml -l dev",
        "next: ansible-playbook playbooks/doctor.yml -l prod",
    ]
    # Columns are columns.
    assert lines[0].index("HEALTH") == lines[1].index("ready") == lines[2].index("not well")
