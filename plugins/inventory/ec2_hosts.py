"""Reads an inventory of amazon.aws.aws_ec2, and says in words why it cannot be read."""

from __future__ import annotations

import os
import re
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.plugins.loader import inventory_loader
from ansible_collections.waffle.iron.plugins.plugin_utils.aws_errors import explained

DOCUMENTATION = r"""
name: ec2_hosts
short_description: Says why an inventory of amazon.aws.aws_ec2 cannot be read
description:
  - Hands files that end with C(aws_ec2.yml) or C(aws_ec2.yaml) to C(amazon.aws.aws_ec2).
  - Ansible ends before its first play where an inventory cannot be read, so no playbook could explain that.
"""

KNOWN_FILE = re.compile(r"aws_ec2\.ya?ml$")


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    """Stands before amazon.aws.aws_ec2."""

    NAME = "waffle.iron.ec2_hosts"

    def verify_file(self, path: str) -> bool:
        """Return True if a file is an inventory of amazon.aws.aws_ec2."""
        return bool(super().verify_file(path)) and KNOWN_FILE.search(path) is not None

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory by amazon.aws.aws_ec2; raise `AnsibleParserError` with the fix if it fails."""
        file = os.path.relpath(path)
        options = loader.load_from_file(path, cache="none") or {}
        regions = [str(region) for region in options.get("regions", [])]
        asked = inventory_loader.get("amazon.aws.aws_ec2")
        inventory._target_plugin = asked  # as Ansible's own plugin `auto` does it
        try:
            asked.parse(inventory, loader, path, cache=cache)
        except AnsibleError as error:
            import boto3  # noqa: PLC0415 (half a second, which only this failure should take)

            known = boto3.session.Session().get_available_regions("ec2")
            raise AnsibleParserError(explained(str(error), file, regions, known)) from None
        asked.update_cache_if_changed()
