"""What a lab is called, where it lives and which hosts it has: plain values, nothing is changed here."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import LabError

CHECKOUT = Path(__file__).resolve().parent.parent
STATE_ROOT = Path("/var/lib/waffle-iron")
DOMAIN = "waffle.lab"
DATABASE_HOST = "db1"
DATABASE_PORT = 3306
DEFAULT_RELEASE = "trixie"
DEFAULT_SUBNETS = {"lab": "10.203.0.0/24", "test": "10.203.1.0/24", "scale": "10.203.2.0/24", "apps": "10.203.3.0/24"}
# The login that the distribution's own EC2 image has.
LOGINS = {"trixie": "admin", "bookworm": "admin", "noble": "ubuntu"}
# The names of the same systems as `machine_image` has them.
IMAGES = {"trixie": "debian-13", "bookworm": "debian-12", "noble": "ubuntu-24.04"}
# Last octet of a host: this number plus the number in its name; and how many fit before the next kind.
OFFSETS = {"db": (9, 1), "dev": (10, 9), "prod": (20, 9), "bare": (30, 99)}


@dataclass(frozen=True)
class HostSpec:
    """One host as asked for; `group` is its Ansible group.

    The database has no group and no release of its own: as with RDS, nobody logs in there.
    """

    name: str
    release: str
    group: str | None

    @property
    def is_database(self) -> bool:
        """Return True if this is the stand-in for RDS."""
        return self.name == DATABASE_HOST

    @property
    def login(self) -> str:
        """The account that the lab's key opens."""
        return LOGINS[self.release]

    @property
    def image(self) -> str:
        """The system, as `machine_image` names it."""
        return IMAGES[self.release]


def host_octet(name: str) -> int:
    """Last octet of the address of host `name`; LabError if the lab has no place for such a name."""
    match = re.fullmatch(r"([a-z]+)([1-9]\d?)", name)
    if match and match[1] in OFFSETS:
        offset, limit = OFFSETS[match[1]]
        if (number := int(match[2])) <= limit:
            return offset + number
    known = ", ".join(f"{kind}1..{limit}" for kind, (_, limit) in OFFSETS.items())
    raise LabError(f"no host can be called {name!r}: the lab knows {known}")


def check_release(release: str) -> str:
    """Return `release`; LabError if the lab cannot build it."""
    if release not in LOGINS:
        raise LabError(f"unknown release {release!r}: LAB_RELEASE may be {', '.join(LOGINS)}")
    return release


def parse_host(text: str, release: str) -> HostSpec:
    """Read `NAME[:RELEASE[:GROUP]]`; `release` and the group that the name suggests are the defaults."""
    name, _, rest = text.partition(":")
    wanted, _, group = rest.partition(":")
    host_octet(name)
    if name == DATABASE_HOST:
        raise LabError("db1 is always there and cannot be asked for by --host")
    if group and not re.fullmatch(r"[a-z][a-z0-9_]*", group):
        raise LabError(f"--host {text}: {group!r} is no group name")
    kind = name.rstrip("0123456789")
    usual = kind if kind in ("dev", "prod") else "ungrouped"
    return HostSpec(name, check_release(wanted or release), group or usual)


@dataclass(frozen=True)
class Lab:
    """A lab by its name and subnet, and every name that follows from them."""

    name: str
    network: ipaddress.IPv4Network
    checkout: Path = CHECKOUT
    state_root: Path = STATE_ROOT
    release: str = DEFAULT_RELEASE
    release_is_explicit: bool = field(default=False, compare=False)
    prod_hosts: int = 1

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Lab":
        """Read LAB_NAME, LAB_SUBNET, LAB_RELEASE and PROD_HOSTS; LabError names the wrong one."""
        name = environ.get("LAB_NAME") or "lab"
        if not re.fullmatch(r"[a-z][a-z0-9]{0,7}", name):
            raise LabError(
                f"LAB_NAME={name!r}: one to eight lower-case letters and digits, a letter first "
                "(the kernel allows an interface name 15 characters)"
            )
        subnet = environ.get("LAB_SUBNET") or DEFAULT_SUBNETS.get(name)
        if not subnet:
            raise LabError(f"a lab called {name!r} has no default subnet: set LAB_SUBNET, e.g. 10.203.9.0/24")
        try:
            network = ipaddress.IPv4Network(subnet)
        except ValueError as error:
            raise LabError(f"LAB_SUBNET={subnet!r}: {error}") from None
        if network.prefixlen != 24 or not network.is_private:
            raise LabError(f"LAB_SUBNET={subnet}: a private /24 is needed, e.g. 10.203.9.0/24")
        prod_hosts = environ.get("PROD_HOSTS") or "1"
        if not re.fullmatch(r"[0-9]", prod_hosts):
            raise LabError(f"PROD_HOSTS={prod_hosts!r}: a number from 0 to 9")
        release = environ.get("LAB_RELEASE") or ""
        return cls(
            name=name,
            network=network,
            release=check_release(release or DEFAULT_RELEASE),
            release_is_explicit=bool(release),
            prod_hosts=int(prod_hosts),
        )

    @property
    def bridge(self) -> str:
        """The bridge's interface name."""
        return f"waffle-{self.name}"

    @property
    def table(self) -> str:
        """The nftables table, of family inet."""
        return f"waffle_{self.name}"

    @property
    def tag(self) -> str:
        """Written on everything that could be somebody else's: alias of the bridge, comment of rules."""
        return f"waffle-iron lab {self.name}"

    @property
    def gateway(self) -> str:
        """The bridge's own address, the hosts' default route."""
        return str(self.network[1])

    @property
    def state(self) -> Path:
        """Machine-wide run-time state: the hosts' files, logs, the database's certificate authority."""
        return self.state_root / self.name

    @property
    def local(self) -> Path:
        """The checkout's own part: ssh key, known_hosts, inventory."""
        return self.checkout / ".lab" / self.name

    @property
    def ssh_key(self) -> Path:
        """The private key that opens every host."""
        return self.local / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The hosts' pinned keys."""
        return self.local / "known_hosts"

    def machine(self, host: str) -> str:
        """Name of the host's machine, network namespace and control group."""
        return f"waffle-{self.name}-{host}"

    def veth(self, host: str) -> str:
        """Name of the outside end of the host's cable."""
        return f"{self.name}-{host}"

    def address(self, host: str) -> str:
        """IPv4 address of a host."""
        return str(self.network[host_octet(host)])

    def host_dir(self, host: str) -> Path:
        """Where the host's overlay, keys and console log are."""
        return self.state / "hosts" / host

    def default_hosts(self, prod_hosts: int | None = None) -> list[HostSpec]:
        """Return the database, dev1 and the prod hosts."""
        count = self.prod_hosts if prod_hosts is None else prod_hosts
        return [
            HostSpec(DATABASE_HOST, "", None),
            HostSpec("dev1", self.release, "dev"),
            *(HostSpec(f"prod{number}", self.release, "prod") for number in range(1, count + 1)),
        ]
