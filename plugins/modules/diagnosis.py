#!/usr/bin/python
"""Finds out what is wrong on a host, in one call that changes nothing."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.waffle.iron.plugins.module_utils.doctor import database, machine, service, web
from ansible_collections.waffle.iron.plugins.module_utils.doctor.findings import Area, arranged

DOCUMENTATION = r"""
module: diagnosis
short_description: Finds out what is wrong on a host, in one call that changes nothing
description:
  - Looks at the machine, the database, the application, nginx and its certificates, each within seconds, and
    returns what is wrong in words, the most basic cause first, each with the next command.
  - The action plugin of the same name looks at the way to the host before it calls this module.
options:
  project: {type: str, required: true, description: Name of the application.}
  target: {type: str, required: true, description: "Options for the next command, such as C(-l dev)."}
  supported: {type: dict, required: true, description: Versions of each operating system that the roles know.}
  database: {type: dict, required: true, description: "C(host), C(port), C(name), C(tls_ca); a release has its own."}
  accounts: {type: dict, default: {}, description: Privileges that each account of the database needs.}
  minutes: {type: int, default: 15, description: How far back requests are counted.}
  ahead: {type: float, default: 0, description: "Seconds that the host's clock is before the control node's."}
"""

EXAMPLES = r"""
- name: Examine the host
  waffle.iron.diagnosis:
    project: nba
    target: -l dev
    supported: {debian: ["12", "13"]}
    database: {host: db.example.com, port: 3306, name: nba, tls_ca: ""}
"""

RETURN = r"""
findings:
  description: C(key), C(words), C(command) and C(follows_from), the key of the finding that it follows from.
  type: list
  elements: dict
  returned: always
checked: {description: What was looked at, by area., type: dict, returned: always}
facts: {description: "Release, schema, health, requests, disk, certificate.", type: dict, returned: always}
"""


def examine(options: dict[str, Any]) -> dict[str, Any]:
    """Return what is wrong on this host, and what is known of it."""
    name, target = options["project"], options["target"]
    library, program = f"/usr/local/lib/{name}/release.json", f"/usr/local/sbin/{name}-release"
    machinery = [machine.examine(name, options["supported"], options["ahead"])]
    facts: dict[str, Any] = {"requests": web.recent_requests(options["minutes"])}
    if not (os.path.exists(library) and os.path.exists(program)):
        bare = Area("application")
        machinery.append(bare.add("bare", "not converged yet", f"ansible-playbook site.yml {target}"))
    else:
        config = json.loads(Path(library).read_text())
        slot, release = service.live_release(Path(config["root"]))
        with ThreadPoolExecutor() as pool:
            data = pool.submit(database.examine, options["database"], options["accounts"], target, release, program)
            application = pool.submit(service.examine, config, program, target)
            sites = pool.submit(web.examine, config, slot, release, target)
        edge, configuration = sites.result()
        machinery += [data.result(), application.result(), edge, web.examine_certificates(configuration, target)]
        machinery.append(service.sandbox(Path(library).parent))
    for area in machinery:
        facts.update({key: value for key, value in area.facts.items() if value is not None})
    return {
        "findings": arranged(finding for area in machinery for finding in area.findings),
        "checked": {area.name: ", ".join(area.checked) for area in machinery},
        "facts": facts,
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
            "supported": {"type": "dict", "required": True},
            "database": {"type": "dict", "required": True},
            "accounts": {"type": "dict", "default": {}},
            "minutes": {"type": "int", "default": 15},
            "ahead": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **examine(module.params))


if __name__ == "__main__":
    main()
