"""Starts, finds and ends the machines: one systemd-nspawn each, found by what runs, not by what was noted."""

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.commands import indent, run, succeeds, tail, wait_until
from lab.errors import LabError
from lab.network import NAMESPACES
from lab.progress import notice

BOOT_SECONDS = 60.0
GRACE_SECONDS = 5.0
HIERARCHIES = [Path("/sys/fs/cgroup", part) for part in ("", "unified", "systemd")]
REBOOT_EXIT_CODE = 133
# systemd-nspawn with --keep-unit leaves the restart after a reboot to its caller. Each machine needs a
# control group of its own: otherwise all share one, and stopping a unit here stops its namesake there.
SUPERVISOR = f'echo $$ >"$1/cgroup.procs" || exit 1; shift; while "$@"; [ $? -eq {REBOOT_EXIT_CODE} ]; do :; done'
# The network namespace is the machine's own, and so are its parameters in /proc/sys/net.
SETTINGS = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}


@dataclass(frozen=True)
class Machine:
    """The processes of one machine; `leader` is its systemd, None before that runs."""

    name: str
    supervisors: tuple[int, ...]
    members: tuple[int, ...]
    leader: int | None

    @property
    def is_intact(self) -> bool:
        """Return True if all of it runs: a systemd that lost its systemd-nspawn lives on, but cannot reboot."""
        return bool(self.supervisors) and self.leader is not None

    @property
    def is_running(self) -> bool:
        """Return True if anything of it is alive."""
        return bool(self.supervisors or self.members)


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield each process with its command line; kernel threads have an empty one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")


def find(names: list[str]) -> dict[str, Machine]:
    """Return the machines of these names, running or not, in one pass over the process table."""
    inodes = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            inodes[(NAMESPACES / name).stat().st_ino] = name
    supervisors: dict[str, list[int]] = {name: [] for name in names}
    members: dict[str, list[int]] = {name: [] for name in names}
    leaders: dict[str, tuple[int, int]] = {}
    for pid, command in processes():
        if (name := supervised(command)) in supervisors:
            supervisors[name].append(pid)
            continue
        # In a container, processes with more rights than its root has cannot be looked into.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            owner = inodes.get(Path(f"/proc/{pid}/ns/net").stat().st_ino)
            if owner:
                members[owner].append(pid)
                # A container in the machine has a first process, too, in a namespace further in.
                if (ids := namespaced_ids(pid))[-1] == 1:
                    leaders[owner] = min(leaders.get(owner, (len(ids), pid)), (len(ids), pid))
    leader = {name: pid for name, (_, pid) in leaders.items()}
    return {name: Machine(name, tuple(supervisors[name]), tuple(members[name]), leader.get(name)) for name in names}


def supervised_names() -> set[str]:
    """Return the names of all machines that a systemd-nspawn or a supervisor runs for."""
    return {name for _, command in processes() if (name := supervised(command))}


def supervised(command: list[str]) -> str:
    """Return the machine's name if a command line is its supervisor's or its systemd-nspawn's, else ''."""
    if len(command) > 3 and command[:2] == ["sh", "-c"] and command[2] == SUPERVISOR:
        return command[3]
    if command and Path(command[0]).name == "systemd-nspawn" and "-M" in command[:-1]:
        return command[command.index("-M") + 1]
    return ""


def namespaced_ids(pid: int) -> list[int]:
    """Return the process ids that a process has, from this namespace to its own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return [pid]


def start(name: str, root: Path, console: Path) -> None:
    """Boot a machine from `root` in the network namespace of its name, detached from this process."""
    command = ["systemd-nspawn", "-q", "-D", str(root), "-M", name, "-b", "--register=no", "--keep-unit"]
    command += [f"--network-namespace-path={NAMESPACES / name}", "--link-journal=no", "--console=pipe"]
    # And so is its firewall.
    command += [f"--resolv-conf={resolv_conf_mode()}", "--capability=CAP_NET_ADMIN"]
    # For containers in it, which have a keyring and rules for devices.
    command += ["--system-call-filter=@keyring bpf"]
    if Path("/run/systemd/system").is_dir():
        unit = ["systemd-run", "--quiet", "--collect", f"--unit={name}"]
        unit += [f"--setenv={setting}={value}" for setting, value in SETTINGS.items()]
        properties = ["Delegate=yes", "KillMode=mixed", f"TimeoutStopSec={GRACE_SECONDS}", "TasksMax=16384"]
        properties += [f"RestartForceExitStatus={REBOOT_EXIT_CODE}", f"SuccessExitStatus={REBOOT_EXIT_CODE}"]
        properties += [f"StandardOutput=append:{console}", f"StandardError=append:{console}"]
        run([*unit, *(f"--property={entry}" for entry in properties), *command])
        return
    group = control_group(name)
    group.mkdir(exist_ok=True)
    with console.open("a") as log:
        subprocess.Popen(
            ["sh", "-c", SUPERVISOR, name, str(group), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **SETTINGS},
            start_new_session=True,
            cwd="/",
        )


def resolv_conf_mode() -> str:
    """Return nspawn's --resolv-conf mode: a host cannot reach systemd-resolved's stub at 127.0.0.53."""
    uplink = Path("/run/systemd/resolve/resolv.conf")
    own = Path("/etc/resolv.conf").read_text()
    return "copy-uplink" if "nameserver 127.0.0.53" in own and uplink.exists() else "copy-host"


def control_group(name: str) -> Path:
    """Return the machine's own control group, of the second version of the hierarchy."""
    mount, hybrid, _ = HIERARCHIES
    return (mount if (mount / "cgroup.controllers").exists() else hybrid) / name


def control_groups(prefix: str) -> list[str]:
    """Return the names of the control groups with this prefix."""
    return [path.name for hierarchy in HIERARCHIES for path in hierarchy.glob(f"{prefix}*") if path.is_dir()]


def wait_ready(name: str, console: Path, *, must_be_clean: bool) -> None:
    """Wait until the machine's systemd has started everything.

    LabError with the failed units and the end of the console log if it does not within BOOT_SECONDS, or if a
    unit failed; if `must_be_clean` is false, a failed unit, which may be the user's own, is only a notice.
    """
    state = "no systemd"

    def settled() -> bool:
        nonlocal state
        leader = find([name])[name].leader
        if leader is None:
            return False
        state = inside(leader, ["systemctl", "is-system-running"]).stdout.strip() or "no answer"
        return state in ("running", "degraded", "maintenance")

    wait_until(settled, BOOT_SECONDS)
    leader = find([name])[name].leader
    if state == "running":
        return
    failed = inside(leader, ["systemctl", "--failed", "--plain", "--no-legend"]).stdout if leader else ""
    if state == "degraded" and not must_be_clean:
        notice(f"{name} is up, but units failed:\n{indent(failed)}")
        return
    raise LabError(
        f"{name} did not boot within {BOOT_SECONDS:.0f} s, systemd says: {state}\n{indent(failed)}\n"
        f"  the console log {console} ends:\n{indent(tail(console))}"
    )


def boot_id(leader: int) -> str:
    """Return the id that the machine's kernel gives to this boot, '-' between two boots."""
    try:
        return Path(f"/proc/{leader}/root/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "-"  # it goes down, or has not mounted its /proc yet


def enter(leader: int, command: list[str]) -> list[str]:
    """Return the command line that runs a command as root inside the machine of that systemd."""
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
    clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
    clean += ["LANG=C.UTF-8", f"TERM={os.environ.get('TERM', 'dumb')}"]
    return ["nsenter", f"--target={leader}", *namespaces, "--", *clean, *command]


def inside(leader: int, command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as root inside a machine; the caller checks its exit code."""
    return run(enter(leader, command), stdin=stdin, check=False)


def stop(name: str, grace: float = GRACE_SECONDS) -> bool:
    """End a machine: an orderly shutdown for `grace` seconds, then by force; whether anything ran."""
    machine = find([name])[name]
    if not machine.is_running:
        remove_control_group(name)
        return False
    if machine.leader and grace:
        send(machine.leader, signal.SIGRTMIN + 4, name)  # systemd's own signal for "power off"
        wait_until(lambda: not find([name])[name].is_running, grace)
    if Path("/run/systemd/system").is_dir() and succeeds(["systemctl", "--quiet", "is-active", name]):
        run(["systemctl", "stop", name])

    def gone() -> bool:
        left = find([name])[name]
        # The supervisor first, or it would take the end of its machine for something to report.
        for pid in (*sorted(left.supervisors), *left.members):
            send(pid, signal.SIGKILL, name)
        return not left.is_running

    if not wait_until(gone, 10):
        raise LabError(f"processes of {name} do not end: {find([name])[name]}")
    remove_control_group(name)
    return True


def send(pid: int, number: int, name: str) -> None:
    """Signal a process if it still belongs to the machine: its id may be somebody else's by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        machine = find([name])[name]
        if pid in (*machine.supervisors, *machine.members):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def remove_control_group(name: str) -> None:
    """Remove the machine's control groups, the deepest first; the kernel refuses those in use.

    systemd-nspawn makes one in each hierarchy that is mounted.
    """
    if Path("/run/systemd/system").is_dir():
        return

    def removed() -> bool:
        for hierarchy in HIERARCHIES:
            for path, _, _ in os.walk(hierarchy / name, topdown=False):
                try:
                    Path(path).rmdir()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    return False  # a process is still on its way out
        return True

    if not wait_until(removed, 10):
        raise LabError(f"the control group {control_group(name)} is in use")
