"""What hosts have: the Python of each distribution, its C library, and the wheels that fit the two."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

# Legacy names of a platform, and the C library (2.x) that each stands for.
LEGACY = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
# What clouds call the processors, and Python does.
VERSIONED = re.compile(r"python(3\.\d+)$")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Host:
    """A kind of host."""

    image: str
    """As `machine_image` names it."""
    python: str
    """The version of `/usr/bin/python3`."""
    glibc: int
    """The C library is 2.x."""
    machine: str = "x86_64"

    @property
    def title(self) -> str:
        """Return what messages call it."""
        return f"{self.image} on {self.machine}"

    @property
    def minor(self) -> tuple[int, int]:
        """Return the Python's version without its last part."""
        major, minor = self.python.split(".")[:2]
        return int(major), int(minor)

    @property
    def surroundings(self) -> dict[str, str]:
        """Return what a dependency's marker is asked about (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": "{}.{}".format(*self.minor),
            "sys_platform": "linux",
        }

    @functools.cached_property
    def tags(self) -> frozenset[Tag]:
        """Return what the name of a wheel may say so that it fits."""
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, 4, -1)]
        platforms += [f"{name}_{self.machine}" for name, minor in LEGACY.items() if minor <= self.glibc]
        platforms.append(f"linux_{self.machine}")
        interpreter = "cp{}{}".format(*self.minor)
        own = cpython_tags(self.minor, abis=[interpreter], platforms=platforms)
        return frozenset((*own, *compatible_tags(self.minor, interpreter, platforms)))

    def takes(self, wheel: str) -> bool:
        """Return True if a wheel of this name can be installed."""
        try:
            return not self.tags.isdisjoint(parse_wheel_filename(wheel)[3])
        except InvalidWheelFilename:
            return False


# The supported distributions; the Python is the one that each was released with.
IMAGES = {
    host.image: host
    for host in (Host("debian-12", "3.11.2", 36), Host("debian-13", "3.13.5", 41), Host("ubuntu-24.04", "3.12.3", 39))
}


def is_known(python: str) -> bool:
    """Return True if the version of `app_python` follows from its name, or from the host's system."""
    return python in ("", "/usr/bin/python3") or VERSIONED.search(python) is not None


def possible(image: str, machine: str, python: str) -> list[Host]:
    """Return the kinds of host that are possible, as far as the inventory says what they are.

    Args:
        image: as `machine_image` names it; empty if the inventory does not say it.
        machine: the processor; empty if the inventory does not say it.
        python: `app_python`, whose name may have a version.
    """
    machines = [MACHINES.get(machine, machine)] if machine else ["x86_64", "aarch64"]
    images = [IMAGES[image]] if image in IMAGES else list(IMAGES.values())
    hosts = [replace(host, machine=one) for host in images for one in machines]
    if found := VERSIONED.search(python):
        # Which patch it is, nobody says here.
        hosts = [replace(host, python=f"{found[1]}.99") for host in hosts]
    return hosts
