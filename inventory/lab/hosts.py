#!/usr/bin/env python3
"""Ansible's inventory of the local lab: prints what `lab up` wrote, or the hosts that it would boot.

The defaults let `ansible-lint`, `--syntax-check` and `--list-hosts` work before there is a lab. Only the
standard library is used: whichever Python comes first on the path runs this.
"""

import json
import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_SUBNETS = {"lab": "10.203.0", "test": "10.203.1", "scale": "10.203.2"}


def default_inventory(name: str) -> dict[str, object]:
    """Return the lab as a first `lab up` makes it; nothing in it needs a host to exist."""
    prefix = os.environ.get("LAB_SUBNET", "").rpartition(".")[0] or DEFAULT_SUBNETS.get(name, "10.203.0")
    local = CHECKOUT / ".lab" / name
    common = {
        "ansible_user": "admin",
        "ansible_ssh_private_key_file": str(local / "id_ed25519"),
        "ansible_ssh_common_args": (
            f"-o UserKnownHostsFile={local}/known_hosts -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes"
        ),
        "ansible_python_interpreter": "/usr/bin/python3",
        # What preflight takes the hosts' Python from, before any host is asked.
        "host_image": "debian-13",
        # Throwaway hosts: preflight asks nobody to confirm a change of them.
        "confirmed_inventory": True,
    }
    return {
        "all": {
            "children": ["dev", "prod", "ungrouped"],
            "vars": {"database_host": "db1.waffle.lab", "database_port": 3306},
        },
        "dev": {"hosts": ["dev1"]},
        "prod": {"hosts": ["prod1"]},
        "_meta": {
            "hostvars": {
                "dev1": {"ansible_host": f"{prefix}.11", **common},
                "prod1": {"ansible_host": f"{prefix}.21", **common},
            }
        },
    }


def main() -> int:
    """Answer `--list` and `--host NAME` as Ansible asks them; return the exit code."""
    if sys.argv[1:2] == ["--host"]:
        print("{}")  # everything is in _meta
        return 0
    name = os.environ.get("LAB_NAME") or "lab"
    path = CHECKOUT / ".lab" / name / "inventory.json"
    try:
        inventory = json.loads(path.read_text())
    except FileNotFoundError:
        inventory = default_inventory(name)
    except (OSError, ValueError) as error:
        print(f"{path} cannot be read ({error}): `make up` writes it anew", file=sys.stderr)
        return 1
    print(json.dumps(inventory, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
