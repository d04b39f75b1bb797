#!/usr/bin/python
"""Upgrades packages that somebody downgraded, and returns the installed packages."""

from __future__ import annotations

import json
import os
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: package_versions
short_description: Sees that no package is older than it was, and tells which are installed
description:
  - C(state=present) is content with any version, and C(state=latest) would upgrade whenever somebody converges. This
    module records the versions of all packages, and upgrades those alone that somebody took back since, a hold of
    theirs notwithstanding. What the host's sources do not offer any more is taken as it is, and recorded.
  - What it found is also a fact, by which later roles of the run know whether they must call apt at all.
options:
  record: {type: path, required: true, description: File that keeps the versions; root's.}
  lock_timeout: {type: int, default: 60, description: Seconds to wait for another apt.}
"""

EXAMPLES = r"""
- name: Restore downgraded packages
  waffle.iron.package_versions:
    record: /var/lib/waffle-iron/packages.json
"""

RETURN = r"""
ansible_facts:
  description: C(installed_packages), the names of all installed packages, without an architecture.
  type: dict
  returned: always
first:
  description: Whether nothing was recorded of this host yet.
  type: bool
  returned: always
changed_paths:
  description: Each package that was older, with both versions.
  type: list
  elements: str
  returned: always
"""

LISTING = "${binary:Package}\t${Version}\t${db:Status-Status}\n"


def installed() -> dict[str, str]:
    """Return the version of each installed package."""
    out = subprocess.run(["dpkg-query", "-W", "-f", LISTING], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [line.split("\t") for line in out.splitlines()]
    return {name: version for name, version, status in rows if status == "installed"}


def is_older(version: str, than: str) -> bool:
    """Compare two versions as dpkg does."""
    return subprocess.run(["dpkg", "--compare-versions", version, "lt", than], check=False).returncode == 0


def read(path: str) -> dict[str, str]:
    """Return the recorded versions; nothing before the first run, or if the file is not valid."""
    try:
        with open(path) as stream:
            found = json.load(stream)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: str, versions: dict[str, str]) -> None:
    """Record versions, whole or not at all."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(f"{path}.new", "w") as stream:
        json.dump(versions, stream, indent=0, sort_keys=True)
    os.rename(f"{path}.new", path)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "record": {"type": "path", "required": True},
            "lock_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    known, now = read(module.params["record"]), installed()
    older = [name for name, version in known.items() if name in now and is_older(now[name], version)]
    if older and not module.check_mode:
        module.run_command(
            ["apt-get", "install", "--yes", "--quiet", "--only-upgrade", "--no-install-recommends",
             "--allow-change-held-packages", "-o", f"DPkg::Lock::Timeout={module.params['lock_timeout']}",
             "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold", *older],
            environ_update={"DEBIAN_FRONTEND": "noninteractive"},
            check_rc=True,
        )  # fmt: skip
    words = [f"{name} is {now[name]}, and was {known[name]}" for name in older]
    if not module.check_mode and (found := installed()) != known:
        write(module.params["record"], found)
    names = sorted({name.partition(":")[0] for name in now})
    facts = {"installed_packages": names}
    module.exit_json(changed=bool(older), changed_paths=words, first=not known, ansible_facts=facts)


if __name__ == "__main__":
    main()
