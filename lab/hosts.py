"""One host from the image to a running machine: an overlay of its own, its identity, its boot."""

import os
import shutil
import socket
import uuid
from pathlib import Path

from lab import database, images, machines, network, tls
from lab.commands import run, wait_until
from lab.config import DATABASE_PORT, DOMAIN, HostSpec, Lab
from lab.errors import LabError

SERVICE_SECONDS = 20.0
# A machine that is a container itself cannot raise its limits for those in it.
CONTAINERS = '[containers]\ndefault_ulimits = ["nofile=1024:8192", "nproc=4096:4096"]\n'
# Since 9.8, OpenSSH turns away an address that often connects without a login, which is how `answers` asks.
PENALIZING_RELEASES = ("trixie",)


def image_of(lab: Lab, host: str) -> str:
    """Return the name of the image that a host was made of; '' if there is no such host."""
    marker = lab.host_dir(host) / "image"
    return marker.read_text() if marker.exists() else ""


def boot(lab: Lab, spec: HostSpec, image: images.Recipe, names: list[str]) -> None:
    """Boot a host that does not run. What it had on its disk is kept; a new host is bare."""
    directory = lab.host_dir(spec.name)
    machine = lab.machine(spec.name)
    root, console = directory / "root", directory / "console.log"
    machines.stop(machine, grace=0)
    unmount(root)
    network.plug_in(lab, spec.name)
    marker = directory / "image"
    if not marker.exists():
        _erase_disk(directory)
    for part in ("root", "upper", "work"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    lower = images.CACHE_ROOT / marker.read_text() if marker.exists() else image.root
    if not lower.is_dir():
        raise LabError(f"{spec.name}: its image {lower} is gone: `lab reset {spec.name}`")
    options = f"lowerdir={lower},upperdir={directory / 'upper'},workdir={directory / 'work'}"
    run(["mount", "-t", "overlay", machine, "-o", options, root])
    is_new = not marker.exists()
    if is_new:
        personalize(lab, spec, root)
        if spec.is_database:
            database.configure(lab, root, image.kind)
        # Last: a disk that was not finished is thrown away by the next boot.
        marker.write_text(image.key)
    write_hosts_file(lab, spec.name, names)
    machines.start(machine, root, console)
    machines.wait_ready(machine, console, must_be_clean=is_new)
    wait_for_service(lab, spec)


def finish(lab: Lab, spec: HostSpec) -> None:
    """Wait until a running host has booted; start a stopped database."""
    machines.wait_ready(lab.machine(spec.name), lab.host_dir(spec.name) / "console.log", must_be_clean=False)
    if spec.is_database and not answers(lab, spec):
        database.control(lab, "start")
    wait_for_service(lab, spec)


def answers(lab: Lab, spec: HostSpec) -> bool:
    """Return True if the host's sshd, or the database, speaks."""
    return greets((lab.address(spec.name), DATABASE_PORT if spec.is_database else 22))


def wait_for_service(lab: Lab, spec: HostSpec) -> None:
    """Wait until sshd, or the database, answers; LabError after SERVICE_SECONDS."""
    if not wait_until(lambda: answers(lab, spec), SERVICE_SECONDS):
        service = "the database" if spec.is_database else "sshd"
        raise LabError(
            f"{spec.name} runs, but {service} does not answer at {lab.address(spec.name)}: see "
            f"`lab logs {spec.name}`; `lab reset {spec.name}` makes a bare host of it"
        )


def greets(address: tuple[str, int]) -> bool:
    """Return True if a server takes a connection and speaks first, as sshd and MySQL do."""
    try:
        with socket.create_connection(address, timeout=1) as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


def personalize(lab: Lab, spec: HostSpec, root: Path) -> None:
    """Give a fresh disk what a cloud's first boot gives: name, machine id, host key, the login's key."""
    (root / "etc/hostname").write_text(f"{spec.name}\n")
    # systemd wants an initialised id: `systemd-firstboot` fails in a machine without one.
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    authority = root / "usr/local/share/ca-certificates/waffle-lab-database.crt"
    authority.parent.mkdir(parents=True, exist_ok=True)
    authority.write_text(tls.authority(lab))
    images.chroot(root, "update-ca-certificates")
    if spec.is_database:
        return
    containers = root / "etc/containers/containers.conf"
    containers.parent.mkdir(exist_ok=True)
    containers.write_text(CONTAINERS)
    key = lab.host_dir(spec.name) / "ssh_host_ed25519_key"
    for source, mode in ((key, 0o600), (key.with_suffix(".pub"), 0o644)):
        copy = root / "etc/ssh" / source.name
        shutil.copyfile(source, copy)
        copy.chmod(mode)
    if spec.release in PENALIZING_RELEASES:
        exempt = f"PerSourcePenaltyExemptList {lab.gateway}\n"
        (root / "etc/ssh/sshd_config.d/20-lab.conf").write_text(exempt)
    home = root / "home" / spec.login
    owner = home.stat()
    directory = home / ".ssh"
    directory.mkdir(mode=0o700, exist_ok=True)
    keys = directory / "authorized_keys"
    keys.write_text(lab.ssh_key.with_suffix(".pub").read_text())
    keys.chmod(0o600)
    for path in (directory, keys):
        os.chown(path, owner.st_uid, owner.st_gid)


def write_hosts_file(lab: Lab, host: str, names: list[str]) -> None:
    """Write the name of every host of the lab into a host, which may run."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{lab.address(other)} {other}.{DOMAIN} {other}" for other in names]
    (lab.host_dir(host) / "root/etc/hosts").write_text("\n".join(lines) + "\n")


def unmount(root: Path) -> bool:
    """Unmount a host's disk, however often it is mounted; whether it was."""
    mounted = False
    while root.is_mount():
        run(["umount", root])
        mounted = True
    return mounted


def erase(lab: Lab, host: str) -> None:
    """Stop a host and throw away its disk; its address, keys and place in the lab stay."""
    machines.stop(lab.machine(host))
    directory = lab.host_dir(host)
    unmount(directory / "root")
    (directory / "image").unlink(missing_ok=True)
    _erase_disk(directory)


def _erase_disk(directory: Path) -> None:
    for part in ("upper", "work"):
        if (directory / part).exists():
            shutil.rmtree(directory / part)


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [mount for mount in mounts if mount.startswith(f"{directory}/")]


def mounted_images() -> set[str]:
    """Return the names of the images under any host's disk on this machine."""
    used = set()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, _, kind, options, *_ = line.split()
        if kind == "overlay":
            lower = [option for option in options.split(",") if option.startswith("lowerdir=")]
            used |= {Path(option.removeprefix("lowerdir=")).name for option in lower}
    return used
