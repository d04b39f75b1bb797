"""What would make `up` fail is found before anything is changed, all of it at once."""

import ipaddress
import os
import shutil
from pathlib import Path

from lab import images, network
from lab.commands import indent, run, succeeds
from lab.config import HostSpec, Lab
from lab.errors import LabError
from lab.progress import step

FREE_GIB = 3
# Program: the Debian package that has it.
PROGRAMS = {
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "systemd-nspawn": "systemd-container",
}
KEYRINGS = {
    "debian": ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    "ubuntu": ("/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu-keyring"),
}


def require_root() -> None:
    """Raise LabError unless this process is root's."""
    if os.geteuid() != 0:
        raise LabError("hosts are booted and removed by root: use `sudo make up`, `sudo make down`")


def before_up(lab: Lab, specs: list[HostSpec]) -> None:
    """Check all that booting these hosts needs, then install missing Debian packages.

    LabError lists every finding with what to do about it.
    """
    packages = missing_packages(specs)
    findings = [*kernel(), *disk(lab), *names_and_subnet(lab, specs)]
    if packages and not shutil.which("apt-get"):
        findings.append(f"programs are missing: install {' '.join(packages)} (Debian's names of the packages)")
    if not findings and packages:
        install(packages)
    if not packages or not findings:
        findings += archives(specs)
    if findings:
        raise LabError("nothing was changed, because\n" + "\n".join(f"  - {finding}" for finding in findings))


def missing_packages(specs: list[HostSpec]) -> list[str]:
    """Return the Debian packages that this machine lacks for these hosts."""
    missing = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    for spec in specs:
        keyring, package = KEYRINGS[images.distribution(spec.release)]
        if not Path(keyring).exists():
            missing.add(package)
    return sorted(missing)


def install(packages: list[str]) -> None:
    """Install Debian packages; LabError with apt's words if that fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    names = " ".join(packages)
    command = ["apt-get", "--quiet", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    with step(f"install {names}"):
        try:
            run([*command, "update"], env=environment)
            run([*command, "install", *packages], env=environment)
        except LabError as error:
            raise LabError(
                f"the lab needs these packages, and apt-get failed: {names}\n{error}\nFix: install them manually"
            ) from error


def kernel() -> list[str]:
    """Return what the kernel, or the container this may be, does not offer."""
    findings = []
    if "overlay" not in Path("/proc/filesystems").read_text() and not _can_load("overlay"):
        findings.append("the kernel has no overlay file system (module overlay)")
    cgroup = Path("/sys/fs/cgroup")
    if not any((cgroup / path / "cgroup.procs").exists() for path in (".", "unified")):
        findings.append(f"no cgroup v2 hierarchy is mounted at {cgroup} or {cgroup}/unified")
    if not os.access(network.FORWARDING, os.W_OK):
        findings.append(f"{network.FORWARDING} cannot be written: a privileged container or a real machine is needed")
    return findings


def _can_load(module: str) -> bool:
    return bool(shutil.which("modprobe")) and succeeds(["modprobe", module])


def disk(lab: Lab) -> list[str]:
    """Return what is wrong with the disks that hold state and images."""
    findings = set()
    for path in (lab.state_root, images.CACHE_ROOT):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**30
        if free < FREE_GIB:
            findings.add(f"{existing} has {free:.1f} GiB free, {FREE_GIB} are needed")
        if path == lab.state_root and run(["stat", "-f", "-c", "%T", existing]).stdout.strip() == "overlayfs":
            findings.add(f"{path} is on an overlay, where hosts' disks cannot be: mount another file system there")
    return sorted(findings)


def names_and_subnet(lab: Lab, specs: list[HostSpec]) -> list[str]:
    """Return what has the lab's names or addresses and is not the lab's."""
    if not (shutil.which("ip") and shutil.which("nft")):
        return []  # iproute2 and nftables are about to be installed: there is nothing yet that they made
    findings = []
    links = network.links()
    if lab.bridge in links and not network.is_own_bridge(lab, links[lab.bridge]):
        findings.append(f"the interface {lab.bridge} is not the lab's: set another LAB_NAME and LAB_SUBNET")
    if network.table_comment(lab) not in (None, lab.tag):
        findings.append(f"the nftables table inet {lab.table} is not the lab's: set another LAB_NAME and LAB_SUBNET")
    for spec in specs:
        veth = links.get(lab.veth(spec.name))
        if veth and veth.get("master") != lab.bridge:
            findings.append(
                f"the interface {lab.veth(spec.name)} is not the lab's: set another LAB_NAME and LAB_SUBNET"
            )
    for taken, device in used_networks():
        if device != lab.bridge and lab.network.overlaps(taken):
            findings.append(f"the subnet {lab.network} is in use ({taken} on {device}): set LAB_SUBNET")
    return findings


def used_networks() -> set[tuple[ipaddress.IPv4Network, str]]:
    """Return the networks that this machine has addresses in or routes to, with their interfaces."""
    used = set()
    for interface in network.ip_json("-4", "address", "show"):
        for address in interface["addr_info"]:
            prefix = f"{address['local']}/{address['prefixlen']}"
            used.add((ipaddress.IPv4Network(prefix, strict=False), str(interface["ifname"])))
    for route in network.ip_json("-4", "route", "show"):
        if route["dst"] != "default":
            used.add((ipaddress.IPv4Network(route["dst"]), str(route.get("dev", "several interfaces"))))
    return used


def archives(specs: list[HostSpec]) -> list[str]:
    """Return which package archives, of those that images must still be built from, cannot be reached."""
    findings = []
    for release in sorted({spec.release for spec in specs if not spec.is_database}):
        recipe = images.bare(release)
        if recipe.is_built:
            continue
        with step(f"look for the archive of {release}"):
            try:
                images.probe(recipe)
            except LabError as error:
                findings.append(f"the package archive of {release} cannot be used:\n{indent(str(error))}")
    return findings
