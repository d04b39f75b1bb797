"""How the control node reaches the hosts: the lab's ssh key, the pinned host keys, the inventory."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from lab.commands import run
from lab.config import DATABASE_HOST, DATABASE_PORT, DOMAIN, HostSpec, Lab
from lab.errors import LabError
from lab.hosts import image_of
from lab.state import write_atomically


def ensure_key_pair(path: Path, comment: str) -> str:
    """Make an ed25519 key pair in OpenSSH's format unless it is there; the public key."""
    public = path.with_suffix(".pub")
    if not (path.exists() and public.exists()):
        key = ed25519.Ed25519PrivateKey.generate()
        openssh = (
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        text = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_atomically(path, key.private_bytes(*openssh).decode())
        write_atomically(public, f"{text.decode()} {comment}\n", mode=0o644)
    return public.read_text()


def ensure_keys(lab: Lab, hosts: list[HostSpec]) -> None:
    """Make the lab's key and each host's, and pin the hosts' keys."""
    lab.local.mkdir(parents=True, exist_ok=True)
    ensure_key_pair(lab.ssh_key, f"waffle-lab-{lab.name}")
    lines = []
    for host in hosts:
        directory = lab.host_dir(host.name)
        directory.mkdir(parents=True, exist_ok=True)
        if not host.is_database:
            public = ensure_key_pair(directory / "ssh_host_ed25519_key", host.name)
            lines.append(f"{host.name},{host.name}.{DOMAIN},{lab.address(host.name)} {public}")
    write_atomically(lab.known_hosts, "".join(lines), mode=0o644)


def is_complete(lab: Lab) -> bool:
    """Return True if the checkout's part of the lab is there: key, pinned keys, inventory."""
    return all(path.exists() for path in (lab.ssh_key, lab.known_hosts, lab.local / "inventory.json"))


def ssh_options(lab: Lab) -> list[str]:
    """Return the options with which ssh trusts the pinned keys alone and offers the lab's key alone."""
    settings = (f"UserKnownHostsFile={lab.known_hosts}", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes")
    return [part for setting in settings for part in ("-o", setting)]


def ssh_command(lab: Lab, host: str, command: list[str]) -> list[str]:
    """Return the command line that logs in to a host, or runs a command there.

    LabError if the inventory, which any user may read who may read the key, has no such host.
    """
    try:
        hostvars = json.loads((lab.local / "inventory.json").read_text())["_meta"]["hostvars"]
    except FileNotFoundError:
        raise LabError(f"this checkout has no lab {lab.name!r}: `make up`") from None
    if host not in hostvars:
        raise LabError(f"the lab {lab.name!r} has no host {host!r}: it has {', '.join(hostvars)}")
    target = f"{hostvars[host]['ansible_user']}@{hostvars[host]['ansible_host']}"
    return ["ssh", "-i", str(lab.ssh_key), *ssh_options(lab), target, *(["--", *command] if command else [])]


def inventory(lab: Lab, hosts: list[HostSpec], python_index_url: str) -> dict[str, Any]:
    """Return the lab as an Ansible dynamic inventory."""
    groups: dict[str, Any] = {"dev": {"hosts": []}, "prod": {"hosts": []}}
    hostvars = {}
    for host in hosts:
        if host.group is None:
            continue
        groups.setdefault(host.group, {"hosts": []})["hosts"].append(host.name)
        hostvars[host.name] = {
            "ansible_host": lab.address(host.name),
            "ansible_user": host.login,
            "ansible_ssh_private_key_file": str(lab.ssh_key),
            "ansible_ssh_common_args": " ".join(ssh_options(lab)),
            "ansible_python_interpreter": "/usr/bin/python3",
            # What preflight takes the hosts' Python from, before any host is asked.
            "host_image": host.image,
            # Throwaway hosts: preflight asks nobody to confirm a change of them.
            "confirmed_inventory": True,
        }
    common = {
        "database_host": f"{DATABASE_HOST}.{DOMAIN}",
        "database_port": DATABASE_PORT,
        "python_index_url": python_index_url,
    }
    if image_of(lab, DATABASE_HOST).startswith("mariadb"):
        # MariaDB, the fallback, does not know MySQL's way to keep a password; the role then takes the server's own.
        common["mysql_client_auth_plugin"] = ""
    everything = {"children": sorted({*groups, "ungrouped"}), "vars": common}
    return {"all": everything, **groups, "_meta": {"hostvars": hostvars}}


def write_inventory(lab: Lab, hosts: list[HostSpec]) -> None:
    """Write what inventory/lab/hosts.py prints; give the lab's files to the owner of the checkout."""
    content = json.dumps(inventory(lab, hosts, python_index_url()), indent=2) + "\n"
    write_atomically(lab.local / "inventory.json", content)
    owner = lab.checkout.stat()
    for path in (lab.local.parent, lab.local, *lab.local.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)


def python_index_url() -> str:
    """Return the simple index that pip on this machine installs from."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    for python in (sys.executable, shutil.which("python3") or sys.executable):
        configured = run([python, "-m", "pip", "config", "get", "global.index-url"], check=False)
        if configured.returncode == 0:
            return configured.stdout.strip()
        program = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
        if (default := run([python, "-c", program], check=False)).returncode == 0:
            return default.stdout.strip()
    raise LabError("pip, which knows this machine's package index, was not found: install python3-pip")
