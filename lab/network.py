"""Bridge, network namespaces, masquerading: the lab's own, told from others' by the lab's tag."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lab.commands import run, succeeds
from lab.config import Lab
from lab.errors import LabError
from lab.state import machine_locked

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
SAVED_FORWARDING = "ip_forward.before"
NAMESPACES = Path("/run/netns")


def ip_json(*arguments: str) -> list[dict[str, Any]]:
    """Return what `ip -json` says; an empty list if it says nothing."""
    result: list[dict[str, Any]] = json.loads(run(["ip", "-json", *arguments]).stdout or "[]")
    return result


def links() -> dict[str, dict[str, Any]]:
    """Return this machine's interfaces by name."""
    return {link["ifname"]: link for link in ip_json("link", "show")}


def mac(name: str) -> str:
    """Return the hardware address that belongs to a name, locally administered.

    The lab knows its own bridge by it: the kernel takes an address, but no alias, in the call that creates
    an interface, so an interrupted `up` never leaves a bridge that looks like somebody else's. And a host
    that was reset is reached at once: with a new address, others would ask for the old one for a while.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


def is_own_bridge(lab: Lab, link: dict[str, Any]) -> bool:
    """Return True if an interface is the bridge that this lab made."""
    return link.get("address") == mac(lab.tag)


def table_comment(lab: Lab) -> str | None:
    """Return the comment of the nftables table of the lab's name, None if there is no such table."""
    listing = run(["nft", "--json", "list", "tables"]).stdout
    for entry in json.loads(listing)["nftables"]:
        table = entry.get("table", {})
        if table.get("family") == "inet" and table.get("name") == lab.table:
            # Not every nft prints the comment as JSON.
            text = run(["nft", "list", "table", "inet", lab.table]).stdout
            return lab.tag if f'comment "{lab.tag}"' in text else ""
    return None


def ensure(lab: Lab) -> None:
    """Make bridge, forwarding and masquerading; what is already there stays."""
    bridge = links().get(lab.bridge)
    if bridge is None:
        run(["ip", "link", "add", "name", lab.bridge, "address", mac(lab.tag), "type", "bridge"])
        run(["ip", "link", "set", lab.bridge, "alias", lab.tag])
    elif not is_own_bridge(lab, bridge):
        raise LabError(f"the interface {lab.bridge} exists and is not the lab's: choose another LAB_NAME")
    run(["ip", "address", "replace", f"{lab.gateway}/{lab.network.prefixlen}", "dev", lab.bridge])
    run(["ip", "link", "set", lab.bridge, "up"])
    enable_forwarding(lab)
    run(["nft", "-f", "-"], stdin=ruleset(lab))
    for rule in accept_rules(lab):
        if not succeeds(["iptables", "-w", "-C", *rule]):
            run(["iptables", "-w", "-I", *rule])


def ruleset(lab: Lab) -> str:
    """Return the nftables script that puts the lab's table in place, whether it existed or not."""
    return f"""
table inet {lab.table} {{ comment "{lab.tag}"; }}
flush table inet {lab.table}
table inet {lab.table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {lab.network} ip daddr != {lab.network} masquerade
    }}
}}
"""


def accept_rules(lab: Lab) -> list[list[str]]:
    """Return the iptables rules without which a firewall such as Docker's would drop the lab's packets."""
    if not shutil.which("iptables"):
        return []
    policy = run(["iptables", "-w", "-S", "FORWARD"], check=False).stdout
    ours = f'"{lab.tag}"' in policy
    if "-P FORWARD DROP" not in policy and not ours:
        return []
    comment = ["-m", "comment", "--comment", lab.tag, "-j", "ACCEPT"]
    return [["FORWARD", direction, lab.bridge, *comment] for direction in ("-i", "-o")]


def enable_forwarding(lab: Lab) -> None:
    """Switch IPv4 forwarding on; the value before the first lab is kept for the last one to restore."""
    saved = lab.state_root / SAVED_FORWARDING
    with machine_locked():
        if (before := FORWARDING.read_text()).strip() != "1":
            if not saved.exists():
                saved.write_text(before)
            FORWARDING.write_text("1\n")


def restore_forwarding(lab: Lab) -> bool:
    """Restore IPv4 forwarding if no other lab needs it; whether anything was changed."""
    saved = lab.state_root / SAVED_FORWARDING
    with machine_locked():
        if not saved.exists() or any(entry.is_dir() for entry in lab.state_root.iterdir()):
            return False
        FORWARDING.write_text(saved.read_text())
        saved.unlink()
    return True


def namespaces(lab: Lab) -> list[str]:
    """Return the names of the lab's network namespaces, in use or left over."""
    return sorted(path.name for path in NAMESPACES.glob(f"waffle-{lab.name}-*"))


def plug_in(lab: Lab, host: str) -> None:
    """Give a host that does not run a new network namespace with its address."""
    namespace, veth = lab.machine(host), lab.veth(host)
    unplug(lab, host)
    run(["ip", "netns", "add", namespace])
    peer = ["peer", "name", "eth0", "address", mac(namespace), "netns", namespace]
    run(["ip", "link", "add", "name", veth, "master", lab.bridge, "type", "veth", *peer])
    run(["ip", "link", "set", veth, "up"])
    inside = ["ip", "-netns", namespace]
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "address", "add", f"{lab.address(host)}/{lab.network.prefixlen}", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    run([*inside, "route", "add", "default", "via", lab.gateway])


def unplug(lab: Lab, host: str) -> None:
    """Remove a host's cable and namespace, as far as they are there."""
    veth = lab.veth(host)
    link = links().get(veth)
    if link and link.get("master") == lab.bridge:
        run(["ip", "link", "delete", veth])
    elif link:
        raise LabError(f"the interface {veth} exists and is not the lab's: choose another LAB_NAME")
    if (NAMESPACES / lab.machine(host)).exists():
        run(["ip", "netns", "delete", lab.machine(host)])


def remove(lab: Lab) -> list[str]:
    """Remove bridge, table and accept rules; return what was removed. Others' are left alone."""
    removed = []
    for rule in accept_rules(lab):
        while succeeds(["iptables", "-w", "-D", *rule]):
            removed.append(f"firewall rule {rule[1]} {rule[2]}")
    if table_comment(lab) == lab.tag:
        run(["nft", "delete", "table", "inet", lab.table])
        removed.append(f"nftables table {lab.table}")
    if is_own_bridge(lab, links().get(lab.bridge, {})):
        run(["ip", "link", "delete", lab.bridge])
        removed.append(f"bridge {lab.bridge}")
    return removed
