"""Reads an inventory of amazon.aws.aws_ec2, and says in words why it cannot be read, or why it is empty."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.plugins.loader import inventory_loader

DOCUMENTATION = r"""
name: ec2_hosts
short_description: Says why an inventory of amazon.aws.aws_ec2 cannot be read
description:
  - Hands files that end with C(aws_ec2.yml) or C(aws_ec2.yaml) to C(amazon.aws.aws_ec2).
  - Ansible ends before its first play where an inventory cannot be read, so no playbook could explain that.
"""

KNOWN_FILE = re.compile(r"aws_ec2\.ya?ml$")
# What AWS and its library say, and what that means: words and the next command, `{region}` being the one asked.
REASONS = (
    (
        r"Unable to locate credentials|Insufficient credentials|could not be found|NoCredentials",
        "this machine has no AWS credentials",
        "aws configure, or export AWS_PROFILE=NAME of one in ~/.aws/config",
    ),
    (
        r"ExpiredToken|RequestExpired|token .*expired|SSO session",
        "the AWS credentials have expired",
        "aws sso login, or new temporary keys",
    ),
    (
        r"InvalidClientTokenId|AuthFailure|SignatureDoesNotMatch|UnrecognizedClient",
        "AWS refuses the credentials",
        "aws sts get-caller-identity; is this machine's clock right?",
    ),
    (
        r"UnauthorizedOperation|AccessDenied",
        "the AWS credentials may not list instances",
        "let their policy allow ec2:DescribeInstances (aws sts get-caller-identity says whose they are)",
    ),
    (
        r"specify a region|NoRegion",
        "no AWS region is set",
        "set `regions` in {file}, or export AWS_REGION=eu-central-1",
    ),
    (
        r"Could not connect to the endpoint|Connect timeout|EndpointConnectionError",
        "AWS cannot be reached in region {region}",
        "curl -sI https://ec2.{region}.amazonaws.com; behind a proxy, export HTTPS_PROXY",
    ),
)


def in_words(said: str, file: str, regions: Iterable[str], known: Iterable[str]) -> str:
    """Return why an inventory cannot be read, and the next command.

    Args:
        said: what AWS or its library said.
        file: the inventory.
        regions: those that were asked.
        known: those that there are.
    """
    asked, there = list(regions), list(known)
    for region in asked:
        if region not in there:
            near = ", ".join(name for name in there if name.partition("-")[0] == region.partition("-")[0])
            return f"{file}: AWS has no region {region}. Next: set `regions` in it to one of {near or ', '.join(there)}"
    for pattern, words, command in REASONS:
        if re.search(pattern, said, re.IGNORECASE):
            filled = {"region": ", ".join(asked) or "of this machine", "file": file}
            return f"{file}: {words.format(**filled)}. Next: {command.format(**filled)}"
    return f"{file}: {said}"


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    """Stands before amazon.aws.aws_ec2."""

    NAME = "ec2_hosts"

    def verify_file(self, path: str) -> bool:
        """Tell whether a file is an inventory of amazon.aws.aws_ec2."""
        return bool(super().verify_file(path)) and KNOWN_FILE.search(path) is not None

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Let amazon.aws.aws_ec2 fill the inventory; raise `AnsibleParserError` in words where it cannot."""
        file = os.path.relpath(path)
        options = loader.load_from_file(path, cache="none") or {}
        regions = [str(region) for region in options.get("regions", [])]
        before = set(inventory.hosts)
        asked = inventory_loader.get("amazon.aws.aws_ec2")
        inventory._target_plugin = asked  # as Ansible's own plugin `auto` does it
        try:
            asked.parse(inventory, loader, path, cache=cache)
        except AnsibleError as error:
            import boto3  # noqa: PLC0415 (half a second, which only this failure should take)

            known = boto3.session.Session().get_available_regions("ec2")
            raise AnsibleParserError(in_words(str(error), file, regions, known)) from None
        asked.update_cache_if_changed()
        if set(inventory.hosts) <= before:
            place = ", ".join(regions) or "the region of this machine"
            self.display.warning(
                f"{file}: no instance in {place} fits its filters. Is the region right (`regions`), do the "
                "instances run, and do they have the tags that `filters` names?"
            )
