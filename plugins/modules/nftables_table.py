#!/usr/bin/python
"""Loads a table of nftables into the kernel if it differs from its text."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nftables_table
short_description: Holds a table of nftables in the kernel equal to a text that says it
description:
  - Loads the rules where the kernel has others, be it that they are new or that somebody flushed or changed them. No
    module of Ansible's collections looks at the rules that are loaded.
  - Both are compared as C(nft) prints them; for the wanted ones it loads the text into a network namespace that is
    empty and gone afterwards. Other tables are not looked at.
options:
  table: {type: str, required: true, description: Family and name of the table.}
  content:
    type: str
    description: The rules, as in a file of nftables. They must replace the table as a whole, to be loaded twice.
  state:
    type: str
    choices: [present, absent]
    default: present
    description: With C(absent) the table is deleted if there is one; a host without C(nft) has none.
"""

EXAMPLES = r"""
- name: Load the firewall
  waffle.iron.nftables_table:
    table: inet waffle_iron
    content: "{{ lookup('ansible.builtin.template', 'nftables.conf.j2') }}"

- name: Delete the firewall of a preview
  waffle.iron.nftables_table:
    table: inet nba-pr-12
    state: absent
"""

RETURN = r"""
diff:
  description: The rules that were loaded, and those that are wanted.
  type: dict
  returned: with C(state=present)
"""

# Loads its input where no packet passes, and prints the rules as the kernel has them.
ALONE = 'nft --file - && nft list table "$@"'


def remove(module: AnsibleModule, table: list[str]) -> None:
    """Delete a table if there is one, and exit."""
    found = bool(module.get_bin_path("nft")) and module.run_command(["nft", "list", "table", *table])[0] == 0
    if found and not module.check_mode:
        module.run_command(["nft", "delete", "table", *table], check_rc=True)
    module.exit_json(changed=found)


def main() -> None:
    """Compare, load, and tell."""
    module = AnsibleModule(
        argument_spec={
            "table": {"type": "str", "required": True},
            "content": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["content"])],
        supports_check_mode=True,
    )
    content, table = module.params["content"], module.params["table"].split()
    if module.params["state"] == "absent":
        remove(module, table)
    code, wanted, errors = module.run_command(["unshare", "--net", "sh", "-c", ALONE, "sh", *table], data=content)
    if code != 0:
        module.fail_json(msg=f"nft does not take the rules of table {module.params['table']}: {errors.strip()}")
    # Without the table this fails, which is the same as no rules.
    _, loaded, _ = module.run_command(["nft", "list", "table", *table])
    changed = loaded != wanted
    if changed and not module.check_mode:
        module.run_command(["nft", "--file", "-"], data=content, check_rc=True)
    header = f"table {module.params['table']}"
    module.exit_json(
        changed=changed,
        diff={"before_header": header, "after_header": header, "before": loaded, "after": wanted},
    )


if __name__ == "__main__":
    main()
