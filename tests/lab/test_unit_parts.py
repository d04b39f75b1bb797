"""Small parts of the lab that need no host: waiting, mirrors, state, certificates, quoting, checks."""

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509

from lab import checks, commands, database, images, lifecycle, machines, network, progress, state, tls
from lab.config import CHECKOUT, HostSpec, Lab
from lab.errors import LabError


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    network = ipaddress.IPv4Network("10.9.9.0/24")
    lab = Lab(name="unit", network=network, checkout=tmp_path / "checkout", state_root=tmp_path / "state")
    lab.state.mkdir(parents=True)
    return lab


def test_failure_says_command_code_and_output() -> None:
    with pytest.raises(LabError, match=r"exit code 3:\n    no luck"):
        commands.run([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])


def test_missing_program_is_named() -> None:
    with pytest.raises(LabError, match="'no-such-program' is not installed"):
        commands.run(["no-such-program"])


def test_wait_until_gives_up() -> None:
    assert commands.wait_until(lambda: True, seconds=0)
    assert not commands.wait_until(lambda: False, seconds=0.05, interval=0.01)


def test_parallel_reports_every_failure() -> None:
    def fail(text: str) -> None:
        raise LabError(text)

    with pytest.raises(LabError, match=r"(?s)first.*second"):
        commands.parallel([lambda: fail("first"), lambda: None, lambda: fail("second")])


def test_interrupt_ends_running_programs() -> None:
    program = (
        "import threading, os, signal\n"
        "from lab import commands\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    commands.parallel([lambda: commands.run(['sleep', '60'])] * 2)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    started = time.monotonic()
    argv = [sys.executable, "-c", program]
    result = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.stdout == "interrupted\n"
    assert time.monotonic() - started < 10


def test_long_steps_show_life(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REPEAT", 0.01)
    with progress.step("dig"):
        threading.Event().wait(0.1)
    assert "... dig: 0 s" in capsys.readouterr().err


DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list.d/debian.sources", DEB822),
        (
            "sources.list",
            "# deb http://old.example/ bookworm main\n"
            "deb [signed-by=/k arch=amd64] http://mirror.example/debian/ bookworm main\n"
            "deb http://mirror.example/security bookworm-security main\n",
        ),
    ],
)
def test_finds_this_machines_mirror(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert images.find_mirror(tmp_path, "bookworm") == "http://mirror.example/debian/"
    assert images.find_mirror(tmp_path, "bookworm-security") == "http://mirror.example/security"
    assert images.find_mirror(tmp_path, "trixie") == ""


def test_an_image_is_named_by_its_whole_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = images.bare("trixie").key
    assert images.bare("trixie").key == before
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert images.bare("trixie").key != before


def test_a_killed_build_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE_ROOT", tmp_path)
    recipe = images.bare("trixie")
    (tmp_path / f".building-{recipe.key}-x/root").mkdir(parents=True)
    assert not recipe.is_built


def test_state_round_trip(lab: Lab) -> None:
    assert state.load(lab) is None
    hosts = {spec.name: spec for spec in lab.default_hosts()}
    state.save(lab, state.State(lab.checkout, hosts))
    assert state.load(lab) == state.State(lab.checkout, hosts)


def test_broken_state_is_an_error(lab: Lab) -> None:
    (lab.state / "state.json").write_text("{")
    with pytest.raises(LabError, match=r"state\.json cannot be read"):
        state.load(lab)


def test_two_commands_do_not_work_on_one_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOCKS", lab.state_root)
    with state.locked(lab), pytest.raises(LabError, match=f"process {os.getpid()}"), state.locked(lab):
        pass
    with state.locked(lab):
        pass


def test_hosts_that_were_asked_for_stay(lab: Lab) -> None:
    bare = HostSpec("bare1", "bookworm", "dev")
    current = state.State(lab.checkout, {"bare1": bare})
    assert [spec.name for spec in lifecycle.wanted_hosts(lab, current, [])] == [
        "db1",
        "dev1",
        "prod1",
        "bare1",
    ]


def test_a_host_does_not_change_its_release_silently(lab: Lab) -> None:
    current = state.State(lab.checkout, {"bare1": HostSpec("bare1", "bookworm", "dev")})
    with pytest.raises(LabError, match="release bookworm"):
        lifecycle.wanted_hosts(lab, current, [HostSpec("bare1", "trixie", "dev")])


def test_database_certificate(lab: Lab) -> None:
    tls.ensure_authority(lab)
    pem, _ = tls.database_certificate(lab)
    authority = x509.load_pem_x509_certificate(tls.authority(lab).encode())
    certificate = x509.load_pem_x509_certificate(pem.encode())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["db1.waffle.lab", "db1"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.9.9.10")]
    assert (lab.state / "authority/ca.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("text", "literal"), [("a'b", "'a''b'"), ("a\\", "'a\\\\'"), ('é"$', "'é\"$'")])
def test_sql_quoting(text: str, literal: str) -> None:
    assert database.quote(text) == literal


def test_machines_are_known_by_their_command_lines() -> None:
    nspawn = ["systemd-nspawn", "-q", "-D", "/x", "-M", "waffle-unit-dev1", "-b"]
    supervisor = ["sh", "-c", machines.SUPERVISOR, "waffle-unit-dev1", "/group", *nspawn]
    assert machines.supervised(nspawn) == machines.supervised(supervisor) == "waffle-unit-dev1"
    assert machines.supervised(["sh", "-c", "true", "waffle-unit-dev1", "x"]) == ""
    assert machines.supervised(["vi", "-M", "waffle-unit-dev1"]) == ""


def test_a_container_in_a_machine_is_not_taken_for_its_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waffle-unit-dev1").symlink_to(f"/proc/{os.getpid()}/ns/net")
    child = subprocess.Popen(["sleep", "60"])
    try:
        ids = {os.getpid(): [700, 1], child.pid: [701, 20, 1]}
        monkeypatch.setattr(machines, "NAMESPACES", tmp_path)
        monkeypatch.setattr(machines, "namespaced_ids", ids.__getitem__)
        for order in (list(ids), list(ids)[::-1]):
            monkeypatch.setattr(machines, "processes", lambda order=order: [(pid, ["x"]) for pid in order])
            assert machines.find(["waffle-unit-dev1"])["waffle-unit-dev1"].leader == os.getpid()
    finally:
        child.kill()
        child.wait()


def test_only_a_machines_own_processes_are_signalled() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        machines.send(child.pid, signal.SIGKILL, "waffle-unit-dev1")
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_docker_drops_forwarded_packets_unless_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = "-P FORWARD ACCEPT"

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, policy, "")

    monkeypatch.setattr(shutil, "which", lambda _: "/usr/sbin/iptables")
    monkeypatch.setattr(network, "run", run)
    assert network.accept_rules(lab) == []
    policy = "-P FORWARD DROP"
    assert [rule[1:3] for rule in network.accept_rules(lab)] == [["-i", lab.bridge], ["-o", lab.bridge]]


def test_not_root_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="sudo make up"):
        checks.require_root()


def test_all_findings_come_at_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {(ipaddress.IPv4Network("10.9.0.0/16"), "eth7")}
    monkeypatch.setattr(checks, "used_networks", lambda: used)
    monkeypatch.setattr(checks, "FREE_GIB", 10**9)
    monkeypatch.setattr(checks, "missing_packages", lambda _: [])
    monkeypatch.setattr(network, "links", dict)
    monkeypatch.setattr(network, "table_comment", lambda _: "somebody else's")
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    with pytest.raises(LabError, match=r"(?s)GiB free.*inet waffle_unit is not.*10\.9\.0\.0/16 on eth7"):
        checks.before_up(lab, [])


def test_missing_programs_without_apt_are_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LabError, match=r"install .*mmdebstrap.*systemd-container"):
        checks.before_up(lab, [])
