"""The lab itself: really boots hosts, breaks them, and looks for what is left behind.

It has a name and a subnet of its own, so it runs beside any other lab of this machine. The tests share one
lab and go on from each other's: booting is what takes time.
"""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]
import pytest

from lab.config import CHECKOUT, Lab

pytestmark = pytest.mark.lab

ENVIRONMENT = {"LAB_NAME": "labtest", "LAB_SUBNET": "10.203.2.0/24"}
UNSET = ("LAB_RELEASE", "PROD_HOSTS")
LAB = Lab.from_environment(ENVIRONMENT)
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def lab(*arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=CHECKOUT,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in UNSET} | ENVIRONMENT


def ssh(host: str, *command: str) -> str:
    return lab("ssh", host, "--", *command).stdout.strip()


def status() -> dict[str, dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(lab("status", "--json").stdout)
    return {row["host"]: row for row in rows}


def boot_ids() -> dict[str, str]:
    return {host: row["boot_id"] for host, row in status().items()}


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def own_processes() -> list[int]:
    """Return the ids of the lab's supervisors and systemd-nspawns."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if re.search(rb"(^|/)(sh|systemd-nspawn)\0.*\0waffle-labtest-", command):
            found.append(int(path.parent.name))
    return found


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def traces() -> dict[str, Any]:
    """Return everything on this machine that bears the lab's name or addresses."""

    def lines(*argv: str) -> list[str]:
        return [line for line in output(*argv).splitlines() if re.search(r"labtest|10\.203\.2\.", line)]

    places = [LAB.state, LAB.local, *Path("/sys/fs/cgroup").glob("**/waffle-labtest*")]
    return {
        "interfaces": lines("ip", "-brief", "address"),
        "routes": lines("ip", "route"),
        "namespaces": lines("ip", "netns"),
        "firewall": lines("nft", "list", "ruleset"),
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if "labtest" in line],
        "processes": own_processes(),
        "files": [str(path) for path in places if path.exists()],
    }


def others() -> dict[str, str]:
    """Return the firewall, the interfaces and the mounts that are not the lab's."""

    def rest(text: str) -> str:
        return "\n".join(line for line in text.splitlines() if not re.search("labtest|/run/netns ", line))

    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
    return {
        "interfaces": " ".join(sorted(link["ifname"] for link in links if "labtest" not in link["ifname"])),
        "mounts": rest(Path("/proc/self/mounts").read_text()),
    }


NOTHING: dict[str, Any] = {
    name: [] for name in ("interfaces", "routes", "namespaces", "firewall", "mounts", "processes", "files")
}


@pytest.fixture(scope="module", autouse=True)
def clean_up() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("hosts are booted by root")
    lab("down")
    assert traces() == NOTHING
    forwarding = FORWARDING.read_text()
    is_alone = not LAB.state_root.exists()
    yield
    lab("down")
    assert traces() == NOTHING
    if is_alone and not LAB.state_root.exists():
        assert FORWARDING.read_text() == forwarding


@pytest.fixture
def up() -> dict[str, str]:
    """Return the boot ids of a lab that runs."""
    lab("up")
    return boot_ids()


def test_hosts_are_bare_and_take_the_labs_key_alone(up: dict[str, str]) -> None:
    assert list(up) == ["db1", "dev1", "prod1"]
    for host in ("dev1", "prod1"):
        said = ssh(host, "id -un; hostname; sudo id -un; systemctl is-system-running")
        assert said.split() == ["admin", host, "root", "running"]
        assert ssh(host, "ls -d /var/lib/apt/lists/*Release /usr/sbin/policy-rc.d 2>/dev/null || true") == ""
        assert ssh(host, "getent hosts db1.waffle.lab db1 prod1").split()[0] == LAB.address("db1")
    assert len({ssh(host, "cat /etc/machine-id") for host in ("dev1", "prod1")}) == 2
    settings = ssh("dev1", "sudo sshd -T").splitlines()
    assert {"permitrootlogin no", "passwordauthentication no"} <= set(settings)


def test_hosts_reach_package_archives(up: dict[str, str]) -> None:
    del up
    ssh("dev1", "sudo apt-get update --error-on=any -qq && sudo rm -r /var/lib/apt/lists/*")


def test_inventory(up: dict[str, str]) -> None:
    del up
    inventory = json.loads(lab("inventory").stdout)
    assert inventory["dev"]["hosts"] == ["dev1"]
    assert inventory["_meta"]["hostvars"]["prod1"]["ansible_host"] == "10.203.2.21"
    assert inventory["all"]["vars"]["python_index_url"].startswith(("http", "file"))
    assert LAB.ssh_key.stat().st_mode & 0o777 == 0o600


def test_up_again_is_quick_and_changes_nothing(up: dict[str, str]) -> None:
    before = traces()
    started = time.monotonic()
    lab("up")
    assert time.monotonic() - started < 2
    assert boot_ids() == up
    assert traces() == before


def test_asking_for_the_state_shuts_nobody_out(up: dict[str, str]) -> None:
    del up
    for _ in range(20):  # OpenSSH 9.8 and later turn an address away after 15 connections without a login
        assert {row["state"] for row in status().values()} == {"answers"}
    assert ssh("dev1", "hostname") == "dev1"


def test_database_has_tls_and_master_accounts(up: dict[str, str]) -> None:
    del up
    password = "p@$$w\"o'rd #1 \\ ${HOME} %d é"
    for _ in range(2):
        result = lab("database-account", "--user", "dev_master", "--environment", "dev", stdin=password)
        assert password not in result.stdout + result.stderr
    context = ssl.create_default_context(cafile=str(LAB.state / "authority/ca.crt"))
    connection = pymysql.connect(
        host=LAB.address("db1"),
        user="dev_master",
        password=password.encode(),  # PyMySQL would encode text as Latin-1
        ssl=context,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE x")
        cursor.execute("CREATE USER x@'%' IDENTIFIED BY 'x'")
        cursor.execute("GRANT SELECT ON x.* TO x@'%'")
        cursor.execute("DROP USER x@'%'")
        cursor.execute("DROP DATABASE x")
        cursor.execute("SELECT @@character_set_server")
        assert cursor.fetchone() == ("utf8mb4",)


def test_up_starts_a_stopped_database(up: dict[str, str]) -> None:
    assert lab("database", "stop").stdout == "inactive\n"
    assert lab("database", "status", check=False).returncode == 3
    assert status()["db1"]["state"] == "silent"
    lab("up")
    assert lab("database", "status").stdout == "active\n"
    assert boot_ids() == up


def test_a_reboot_from_inside_is_survived(up: dict[str, str]) -> None:
    ssh("dev1", "echo here | sudo tee /root/kept >/dev/null")
    lab("ssh", "dev1", "--", "sudo systemctl reboot", check=False)

    def rebooted() -> bool:
        row = status()["dev1"]
        return row["boot_id"] not in (up["dev1"], "-") and row["state"] == "answers"

    wait_until(rebooted)
    assert ssh("dev1", "sudo cat /root/kept") == "here"
    assert boot_ids()["prod1"] == up["prod1"]


def test_one_hosts_units_are_not_anothers(up: dict[str, str]) -> None:
    del up
    for host in ("dev1", "prod1"):
        ssh(host, "sudo systemd-run --quiet --unit=same sleep 1000")
    ssh("dev1", "sudo systemctl stop same")
    assert ssh("prod1", "systemctl is-active same") == "active"


def test_reset_makes_a_bare_host_with_the_same_address_and_key(up: dict[str, str]) -> None:
    ssh("dev1", "echo here | sudo tee /root/kept >/dev/null")
    pinned = LAB.known_hosts.read_text()
    lab("reset", "dev1")
    assert ssh("dev1", "sudo ls /root") == ""
    assert LAB.known_hosts.read_text() == pinned
    assert boot_ids()["prod1"] == up["prod1"]


def test_poweroff_and_boot_keep_the_disk(up: dict[str, str]) -> None:
    del up
    ssh("prod1", "echo here | sudo tee /root/kept >/dev/null")
    lab("poweroff", "prod1")
    assert status()["prod1"]["state"] == "stopped"
    assert "console" in lab("logs", "prod1").stderr
    lab("boot", "prod1")
    assert ssh("prod1", "sudo cat /root/kept") == "here"


def test_killed_processes_are_recovered_from(up: dict[str, str]) -> None:
    ssh("dev1", "echo here | sudo tee /root/kept >/dev/null")
    for pid in own_processes():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not own_processes())
    assert traces()["mounts"]
    lab("up")
    assert ssh("dev1", "sudo cat /root/kept") == "here"
    assert not set(up.values()) & set(boot_ids().values())


def test_another_checkout_is_told_whose_lab_it_is(up: dict[str, str], tmp_path: Path) -> None:
    path = LAB.state / "state.json"
    original = path.read_text()
    path.write_text(json.dumps({**json.loads(original), "owner": str(tmp_path)}))
    try:
        for command in ("up", "down"):
            result = lab(command, check=False)
            assert result.returncode == 1
            assert f"make -C {tmp_path} down" in result.stderr
    finally:
        path.write_text(original)
    assert boot_ids() == up


@pytest.mark.parametrize("after", [1.3, *(pytest.param(after, marks=pytest.mark.long) for after in (0.8, 2.5))])
def test_ctrl_c_leaves_what_up_can_go_on_from(up: dict[str, str], after: float) -> None:
    del up
    lab("down")
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "up"],
        cwd=CHECKOUT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)  # the point: at any moment
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    lab("up")
    assert {row["state"] for row in status().values()} == {"answers"}


def test_down_without_state_leaves_nothing(up: dict[str, str]) -> None:
    del up
    (LAB.state / "state.json").unlink()
    before = others()
    lab("down")
    assert traces() == NOTHING
    assert others() == before


def test_a_bridge_of_somebody_else_is_refused_and_untouched() -> None:
    lab("down")
    output("ip", "link", "add", "waffle-labtest", "type", "bridge")
    try:
        before = subprocess.run(["ip", "link", "show", "waffle-labtest"], capture_output=True, check=True).stdout
        result = lab("up", check=False)
        assert result.returncode == 1
        assert "waffle-labtest is not the lab's" in result.stderr
        lab("down")
        after = subprocess.run(["ip", "link", "show", "waffle-labtest"], capture_output=True, check=True).stdout
        assert after == before
        assert not LAB.state.exists()
    finally:
        output("ip", "link", "delete", "waffle-labtest")


def test_a_table_of_somebody_else_is_refused_and_untouched() -> None:
    lab("down")
    output("nft", "add", "table", "inet", "waffle_labtest")
    try:
        assert "waffle_labtest is not the lab's" in lab("up", check=False).stderr
        lab("down")
        assert output("nft", "list", "table", "inet", "waffle_labtest")
    finally:
        output("nft", "delete", "table", "inet", "waffle_labtest")


def test_a_subnet_in_use_is_refused() -> None:
    lab("down")
    output("ip", "link", "add", "taken0", "type", "bridge")
    try:
        output("ip", "address", "add", "10.203.2.77/30", "dev", "taken0")
        assert "10.203.2.76/30 on taken0" in lab("up", check=False).stderr
        assert not LAB.state.exists()
    finally:
        output("ip", "link", "delete", "taken0")
