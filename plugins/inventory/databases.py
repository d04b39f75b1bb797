"""Finds each environment's database on AWS by its tags, and says which environment has no hosts there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible_collections.waffle.iron.plugins.plugin_utils.aws_errors import explained

DOCUMENTATION = r"""
name: databases
short_description: Finds each environment's database on AWS
description:
  - Comes after C(aws_ec2.yml) beside it, and adds no host.
  - Sets C(database_host) and C(database_port) of each environment's group to the endpoint of the RDS instance that
    carries the tags C(Project) and C(Environment), C(database_instance) to its identifier, and
    C(database_master_secret) to the ARN of the secret in which RDS keeps its master password, where it does.
  - Fails if the environment that is meant has no hosts; regions and names are those of group_vars.
options:
  plugin:
    description: Name of this plugin.
    required: true
    choices: [waffle.iron.databases]
"""


def carries(database: dict[str, Any], tags: dict[str, str]) -> bool:
    """Return True if an RDS instance, as boto3 describes it, has tags with these values."""
    return tags.items() <= {tag["Key"]: tag["Value"] for tag in database.get("TagList", [])}.items()


def databases(rds: Any, tags: dict[str, str]) -> Iterator[dict[str, str | int]]:
    """Yield the variables of each database that carries these tags; one that is being made has none.

    ``rds`` is boto3's client of a region.
    """
    for page in rds.get_paginator("describe_db_instances").paginate():
        for database in page["DBInstances"]:
            if carries(database, tags) and "Endpoint" in database:
                endpoint = database["Endpoint"]
                known = {
                    "database_host": endpoint["Address"],
                    "database_port": int(endpoint["Port"]),
                    "database_instance": database["DBInstanceIdentifier"],
                }
                if secret := database.get("MasterUserSecret"):
                    known["database_master_secret"] = secret["SecretArn"]
                yield known


def without_name(ec2: Any, tags: dict[str, str]) -> list[str]:
    """Return the ids of running instances that carry these tags and not ``Host``; ``ec2`` is boto3's client."""
    running = [{"Name": "instance-state-name", "Values": ["running"]}]
    filters = running + [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]
    return [
        instance["InstanceId"]
        for page in ec2.get_paginator("describe_instances").paginate(Filters=filters)
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
        if not any(tag["Key"] == "Host" for tag in instance["Tags"])
    ]


def difference(source: dict[str, Any], regions: set[str], project: str) -> str:
    """Return the line that ``aws_ec2.yml`` should have instead of one that it has, or nothing."""
    if set(source["regions"]) != regions:
        return f"regions: [{', '.join(sorted(regions))}]"
    if source["filters"]["tag:Project"] != project:
        return f'"tag:Project": {project}'
    return ""


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    """Reads regions and names from the group_vars beside the inventory, and nothing secret."""

    NAME = "waffle.iron.databases"

    def verify_file(self, path: str) -> bool:
        """Return True if the file is an inventory of this plugin."""
        return bool(super().verify_file(path)) and path.endswith("databases.yml")

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Set what is known of each environment."""
        # Most of a second: Ansible loads this plugin in each run, whatever the inventory is.
        import boto3  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        folder = Path(path).parent
        values = {file.parent.name: yaml.safe_load(file.read_text()) for file in folder.glob("group_vars/*/vars.yml")}
        project = str(values.pop("all")["project"])
        regions = {name: str(each["region"]) for name, each in sorted(values.items())}
        if line := difference(yaml.safe_load((folder / "aws_ec2.yml").read_text()), set(regions.values()), project):
            raise AnsibleParserError(f"inventory/aws/aws_ec2.yml: write `{line}`, as group_vars have it")
        empty = []
        for name, region in regions.items():
            tags = {"Project": project, "Environment": name}
            inventory.add_group(name)
            try:
                self._set_database(name, list(databases(boto3.client("rds", region_name=region), tags)))
                if not inventory.groups[name].get_hosts():
                    nameless = without_name(boto3.client("ec2", region_name=region), tags)
                    account = boto3.client("sts", region_name=region).get_caller_identity()["Account"]
                    empty.append(nothing(name, region, account, tags, nameless))
            except (BotoCoreError, ClientError) as error:
                raise AnsibleParserError(explained(str(error), os.path.relpath(path), [region])) from None
        meant = str(context.CLIARGS.get("subset") or "").split(",")
        if found := [text for text in empty if len(empty) == len(regions) or text.partition(":")[0] in meant]:
            raise AnsibleParserError("; ".join(found))

    def _set_database(self, name: str, found: list[dict[str, str | int]]) -> None:
        if len(found) > 1:
            addresses = ", ".join(sorted(str(known["database_host"]) for known in found))
            raise AnsibleParserError(
                f"{name} has several databases by their tags: {addresses}. Fix: remove the tags from the others"
            )
        for variable, value in (item for known in found for item in known.items()):
            self.inventory.set_variable(name, variable, value)


def nothing(name: str, region: str, account: str, tags: dict[str, str], nameless: list[str]) -> str:
    """Return why an environment has no hosts, with the account that was asked.

    ``nameless`` are running instances that are the environment's, and no hosts, since no tag says what they are called.
    """
    if nameless:
        return (
            f"{name}: {', '.join(nameless)} in {region} runs without the tag Host. Fix: set one, such as Host={name}1 "
            "(docs/aws.md, Existing machines)"
        )
    wanted = " and ".join(f"{key}={value}" for key, value in tags.items())
    return (
        f"{name}: no running host in {region} of the account {account} has the tags {wanted}. "
        f"Fix: ansible-playbook -i inventory/account playbooks/provision.yml -l {name}"
    )
