"""playbooks/parity.yml reports nothing for equal hosts, and names each difference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.mutations import ATTRIBUTES, give
from tests.hosts.world import UNPROVEN, Run, World

pytestmark = [pytest.mark.lab, pytest.mark.long]
# bare1 has another release of Debian on purpose.
ALIKE = "dev1:prod1:prod2"


def taken_back(path: str, kind: str) -> str:
    """Return a shell command that removes from a file what `give` gave it."""
    return f"python3 -c 'import os, sys; os.removexattr(sys.argv[1], \"{ATTRIBUTES[kind]}\")' {path}"


# What a person may do to a host manually, how it is taken back, and the fact that must be named.
CHANGES = (
    (
        "mkdir -p /root/extra/DEBIAN && printf 'Package: extra\\nVersion: 1\\nArchitecture: all\\nMaintainer: a\\n"
        "Description: b\\n' >/root/extra/DEBIAN/control && dpkg-deb -b /root/extra && dpkg -i /root/extra.deb",
        "dpkg -P extra; rm -r /root/extra /root/extra.deb",
        "packages/extra",
    ),
    (
        "mount -o remount,bind,rw /proc/sys; cd /proc/sys/net/ipv4; cat tcp_fin_timeout >/root/before; "
        "echo 42 >tcp_fin_timeout; mount -o remount,bind,ro /proc/sys",
        "mount -o remount,bind,rw /proc/sys; cp /root/before /proc/sys/net/ipv4/tcp_fin_timeout; rm /root/before; "
        "mount -o remount,bind,ro /proc/sys",
        "sysctl/net.ipv4.tcp_fin_timeout",
    ),
    (
        "echo 'daemon ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/extra; chmod 440 /etc/sudoers.d/extra",
        "rm /etc/sudoers.d/extra",
        "sudoers/etc/sudoers.d/extra",
    ),
    (
        "chmod 666 /usr/local/lib/nba/basics.py",
        "chmod 644 /usr/local/lib/nba/basics.py",
        "files/usr/local/lib/nba/basics.py",
    ),
    (
        "cd /srv/nba/live/release/nba; cp -a seed.py /root/seed.py; echo '# edited' >>seed.py",
        "cd /srv/nba/live/release/nba; cp -a /root/seed.py seed.py; rm /root/seed.py",
        "files/srv/nba/releases/<release>/nba/seed.py",
    ),
    (
        "cd /srv/nba/live/release/.venv/lib/python3*/site-packages; "
        "cp -a click/core.py /root; echo '# edited' >>click/core.py",
        "cd /srv/nba/live/release/.venv/lib/python3*/site-packages; cp -a /root/core.py click; rm /root/core.py",
        "environment/content of click",
    ),
    (
        give("/usr/local/lib/nba/release.py", "attribute"),
        taken_back("/usr/local/lib/nba/release.py", "attribute"),
        "files/usr/local/lib/nba/release.py",
    ),
    (
        give("/srv/nba/live/release/.venv/bin/uvicorn", "capability"),
        taken_back("/srv/nba/live/release/.venv/bin/uvicorn", "capability"),
        "files/srv/nba: attributes",
    ),
    ("useradd --no-create-home mallory", "userdel mallory", "users/user mallory"),
    (
        "mkdir /etc/systemd/system/nginx.service.d; "
        "printf '[Service]\\nEnvironment=API_TOKEN=hunter2-hunter2\\n' >/etc/systemd/system/nginx.service.d/extra.conf",
        "rm -r /etc/systemd/system/nginx.service.d; systemctl daemon-reload",
        "units/nginx.service",
    ),
    (
        "cd /etc/systemd/system; printf '[Service]\\nExecStart=/bin/true\\n' >extra.service; "
        "printf '[Timer]\\nOnCalendar=yearly\\n[Install]\\nWantedBy=timers.target\\n' >extra.timer; "
        "systemctl enable extra.timer",
        "systemctl disable extra.timer; rm /etc/systemd/system/extra.*; systemctl daemon-reload",
        "enabled/extra.timer",
    ),
    (
        "echo 'server { listen 127.0.0.1:8124; }' >/etc/nginx/conf.d/extra.conf",
        "rm /etc/nginx/conf.d/extra.conf",
        "nginx/etc/nginx/conf.d/extra.conf",
    ),
    (
        "echo 'MaxAuthTries 3' >/etc/ssh/sshd_config.d/extra.conf",
        "rm /etc/ssh/sshd_config.d/extra.conf",
        "sshd/maxauthtries",
    ),
    (
        "sed -i.before 's/^DATABASE_POOL_SIZE=.*/DATABASE_POOL_SIZE=11/' /srv/nba/live/release/.env",
        "mv /srv/nba/live/release/.env.before /srv/nba/live/release/.env",
        "application/.env: DATABASE_POOL_SIZE",
    ),
    (
        "systemd-run --unit extra-listener python3 -m http.server --bind 127.0.0.1 8123; "
        "until grep -q ':1FBB 00000000:0000 0A' /proc/net/tcp; do sleep 0.1; done",
        "systemctl stop extra-listener",
        "listening/tcp 127.0.0.1:8123",
    ),
)
# The same for the database: on the server, so that both hosts of prod have it.
IN_THE_DATABASE = (
    (
        "GRANT DROP ON nba_prod.* TO nba_prod",
        "REVOKE DROP ON nba_prod.* FROM nba_prod",
        "accounts/the application's account",
    ),
    ("CREATE INDEX extra ON users (name)", "DROP INDEX extra ON users", "schema/index users.extra"),
)


@dataclass(frozen=True)
class Result:
    """A run, and what it wrote."""

    run: Run
    report: dict[str, Any]
    page: str

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the facts of a kind by their names."""
        facts = (fact for fact in self.report["facts"] if fact["kind"] == kind)
        return {f"{fact['section']}/{fact['fact'].lstrip('/')}": fact for fact in facts}


def parity(here: World, *arguments: str) -> Result:
    """Run the playbook and read its report."""
    folder = here.root / ".results"
    for name in ("parity.json", "parity.html"):
        (folder / name).unlink(missing_ok=True)
    run = here.ansible("playbooks/parity.yml", *arguments)
    report = json.loads((folder / "parity.json").read_text())
    return Result(run, report, (folder / "parity.html").read_text())


@pytest.fixture(scope="module")
def alike(here: World, converged: Converged) -> Result:
    """Return the comparison of the hosts as they are made, whatever other tests brought to some of them."""
    here.ansible("playbooks/deploy.yml", "-e", "all_environments=true", *UNPROVEN).succeeded()
    return parity(here, "-l", ALIKE)


def test_dev_and_prod_are_alike(alike: Result) -> None:
    assert alike.of_kind("undeclared") == {}
    alike.run.succeeded()
    assert alike.run.changed() == {"dev1": 0, "prod1": 0, "prod2": 0}
    summary = alike.report["summary"]
    assert len(summary) == 20
    assert {section: sum(counts.values()) for section, counts in summary.items() if not sum(counts.values())} == {}
    for section, least in {
        "packages": 100,
        "schema": 8,
        "database": 30,
        "sysctl": 100,
        "sshd": 50,
        "files": 300,
    }.items():
        assert sum(summary[section].values()) >= least, section


def test_what_differs_names_its_variable(alike: Result) -> None:
    declared = alike.of_kind("declared")
    for fact, variable in (
        ("application/.env: DATABASE_PASSWORD", "database_password"),
        ("application/.env: DATABASE_POOL_SIZE", "database_pool_size"),
        ("application/.env: DOCS_ENABLED", "docs_enabled"),
        ("application/release.json: workers_max", "workers_max"),
        ("application/release.json: seed_command", "sample_data"),
        ("units/nba@<live>.service", "memory_max"),
        ("accounts/the application's account", "database_name"),
    ):
        assert variable in declared[fact]["variables"], fact


def test_each_host_has_a_card(here: World, alike: Result) -> None:
    for host, about in alike.report["hosts"].items():
        assert about["release"] == about["answers"] == here.status(host)["live"]
        assert about["schema"]
        assert about["uptime_seconds"] > 0
        assert about["certificate_days"] is None


@contextmanager
def changed_manually(here: World) -> Iterator[list[str]]:
    """Change prod2 and prod's database in every way; yield what must be named."""
    with ExitStack() as stack:
        # What was put back manually is younger than the processes that read it.
        stack.callback(lambda: here.ansible("site.yml", "-l", "prod2", *UNPROVEN).succeeded())
        stack.callback(here.shell, "prod2", "\n".join(f"({back})" for _, back, _ in CHANGES))
        here.shell("prod2", "set -e\n" + "\n".join(f"({change})" for change, _, _ in CHANGES))
        for change, back, _ in IN_THE_DATABASE:
            stack.callback(here.sql, "nba_prod", back)
            here.sql("nba_prod", change)
        yield [fact for _, _, fact in (*CHANGES, *IN_THE_DATABASE)]


def test_every_manual_change_is_named(here: World, alike: Result) -> None:
    with changed_manually(here) as facts:
        found = parity(here, "-l", ALIKE)
    undeclared = found.of_kind("undeclared")
    assert [fact for fact in facts if fact not in undeclared] == []
    assert found.run.code == 2
    assert f"{len(undeclared)} undeclared differences: " in found.run.output
    assert "parity_accepted in group_vars/all/parity.yml" in found.run.output
    assert undeclared["packages/extra"]["values"] == {"dev1": None, "prod1": None, "prod2": "1"}
    for text in (found.run.output, found.page, json.dumps(found.report)):
        assert "hunter2" not in text
        for environment in ("dev", "prod"):
            assert [key for key, value in here.secrets(environment).items() if value in text] == []
    assert parity(here, "-l", ALIKE).of_kind("undeclared") == {}


def test_another_release_of_debian_is_undeclared_and_a_silent_host_is_named(
    here: World, alike: Result, tmp_path: Path
) -> None:
    """With no limit at all, and one host more that does not answer."""
    gone = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    (tmp_path / "gone.json").write_text(json.dumps({"dev": {"hosts": {"gone1": gone}}}))
    found = parity(here, "-i", "inventory/lab", "-i", str(tmp_path / "gone.json"))
    assert found.run.code != 0
    assert "gone1 could not be read" in found.run.output
    assert found.report["unreachable"] == ["gone1"]
    assert found.of_kind("undeclared")["system/release"]["values"]["bare1"].startswith("Debian GNU/Linux 12")
