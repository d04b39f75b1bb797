"""The machine: operating system, disks, memory, clock, apt and its units."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.doctor.findings import Area, Finding, call

LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock")
FREE_PERCENT = 5
FREE_BYTES = 100 << 20
FREE_MEMORY_BYTES = 64 << 20
CLOCK_SECONDS = 30
# struct flock of 64-bit Linux: type, whence, start, length, process id.
FLOCK = "hhqqi4x"


def system(text: str, supported: Mapping[str, Iterable[str]]) -> tuple[str, list[Finding]]:
    """Return the name of the operating system in ``/etc/os-release``, and a finding if it is not supported."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name, version = (values.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID"))
    label = f"{name or 'unknown'} {version or 'of no version'}"
    if version in supported.get(name, ()):
        return label, []
    known = ", ".join(f"{one} {' and '.join(versions)}" for one, versions in supported.items())
    return label, [
        Finding(
            "host.system",
            f"this host runs {label}, and the roles know {known}",
            "start the machine from one of those images, and put its address into the inventory",
        )
    ]


def folders(name: str) -> tuple[str, ...]:
    """Return the folders that have to have space."""
    return ("/", "/tmp", "/var/log", "/var/lib", f"/var/backups/{name}", "/var/backups", f"/srv/{name}")  # noqa: S108


def disks(paths: Iterable[str]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Return what is free on the file systems of some folders, each once, and findings about them."""
    seen: set[int] = set()
    usage, findings = [], []
    for path in paths:
        if not Path(path).is_dir() or (device := Path(path).stat().st_dev) in seen:
            continue
        seen.add(device)
        told = os.statvfs(path)
        used = round(100 - 100 * told.f_bavail / max(1, room(told)))
        inodes = round(100 * (1 - told.f_favail / told.f_files)) if told.f_files else 0
        usage.append({"path": path, "used_percent": used, "free_bytes": told.f_bavail * told.f_frsize})
        findings += disk(path, told)
        if inodes > 100 - FREE_PERCENT:
            findings.append(
                Finding(
                    "host.inodes",
                    f"the file system of {path} has no room for more files: {inodes}% of its inodes are in use",
                    f"on the host: du --inodes -x {path} | sort -n | tail",
                )
            )
    return usage, findings


def room(told: os.statvfs_result) -> int:
    """Return the blocks that files may take, as `df` reckons: without those that are kept for root."""
    return told.f_blocks - told.f_bfree + told.f_bavail


def disk(path: str, told: os.statvfs_result) -> list[Finding]:
    """Return a finding if a file system is full or cannot be written to."""
    free = told.f_bavail * told.f_frsize
    if told.f_flag & os.ST_RDONLY:
        words = f"the file system of {path} can only be read; the kernel does that after an error of the disk"
        return [Finding("host.disk", words, "on the host: dmesg | grep -i 'error\\|remount'; then restart the machine")]
    if told.f_blocks and (free < FREE_BYTES or told.f_bavail * 100 < room(told) * FREE_PERCENT):
        words = f"the file system of {path} is full: {free >> 20} MiB are free"
        return [
            Finding("host.disk", words, f"on the host: du -xh {path} | sort -h | tail; journalctl --vacuum-size=100M")
        ]
    return []


def memory(text: str) -> tuple[int, list[Finding]]:
    """Return the bytes that are available by ``/proc/meminfo``, and a finding if that is next to nothing."""
    values = {key: int(size) << 10 for key, size in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}
    available, total = values.get("MemAvailable", 0), values.get("MemTotal", 0)
    if available > max(FREE_MEMORY_BYTES, total // 50):
        return available, []
    return available, [
        Finding(
            "host.memory",
            f"{available >> 20} MiB of {total >> 20} MiB memory are available",
            "on the host: ps -eo rss,comm --sort -rss | head; lower workers_max, or set swap_megabytes "
            "(group_vars/<environment>/vars.yml)",
        )
    ]


def clock(ahead: float) -> list[Finding]:
    """Return a finding if the clock is not the control node's; ``ahead`` is in seconds."""
    if abs(ahead) < CLOCK_SECONDS:
        return []
    words = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the control node's"
    return [Finding("host.clock", words, "on the host: timedatectl; systemctl restart systemd-timesyncd")]


def holder(path: str) -> int:
    """Return the process id that locks a file, 0 if none does; nothing is locked for that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(descriptor)
    kind, _, _, _, process = struct.unpack(FLOCK, answer)
    return 0 if kind == fcntl.F_UNLCK else process


def packages(locks: Iterable[str] = LOCKS) -> list[Finding]:
    """Return findings about apt: somebody holds its lock, or a run of dpkg was cut off."""
    for path in locks:
        if process := holder(path):
            known = Path(f"/proc/{process}/comm")
            name = known.read_text().strip() if known.exists() else "a process"
            words = f"apt is locked by {name} (process {process}); a run that installs something waits for it"
            command = f"wait, or look on the host: ps -o pid,etime,args {process}"
            return [Finding("host.apt", words, command, urgent=False)]
    if call("dpkg", "--audit").out.strip():
        words = "an installation of packages was cut off half-way"
        return [Finding("host.packages", words, "on the host: dpkg --configure -a", urgent=False)]
    return []


def units(listing: str, name: str) -> list[Finding]:
    """Return a finding for the failed units of ``systemctl --failed``, beside those that have an area of their own."""
    own = re.compile(rf"nginx\.service|{re.escape(name)}@.*")
    failed = [line.split()[0] for line in listing.splitlines() if line.split()]
    foreign = [unit for unit in failed if not own.fullmatch(unit)]
    if not foreign:
        return []
    words = f"systemd has failed units: {', '.join(foreign)}"
    command = f"on the host: systemctl status {foreign[0]}; journalctl -n 50 -u {foreign[0]}"
    return [Finding("host.units", words, command, urgent=False)]


def examine(name: str, supported: Mapping[str, Iterable[str]], ahead: float) -> Area:
    """Return what is wrong with the machine that the application ``name`` is on."""
    area = Area("host")
    label, findings = system(Path("/etc/os-release").read_text(), supported)
    area.findings += findings
    usage, findings = disks(folders(name))
    area.findings += findings
    available, findings = memory(Path("/proc/meminfo").read_text())
    area.findings += [*findings, *clock(ahead), *packages()]
    area.findings += units(call("systemctl", "--failed", "--plain", "--no-legend", "--no-pager").out, name)
    fullest = max(usage, key=lambda one: int(one["used_percent"]))
    area.facts = {"system": label, "disk": fullest, "memory_bytes": available}
    area.checked = [
        label,
        f"{fullest['used_percent']}% of {fullest['path']} used",
        f"{available >> 20} MiB memory",
        f"clock {ahead:+.0f} s",
        "inodes",
        "apt",
        "units",
    ]
    return area
