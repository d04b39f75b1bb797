"""Finds the AWS resources with the name of an environment, of the kinds that modules identify by name alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import boto3
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from botocore.exceptions import BotoCoreError, ClientError


def resources(client: Callable[[str], Any], name: str, parameters: str) -> Iterator[dict[str, Any]]:
    """Yield ``named`` (its kind and name) and ``tags`` of each that is there; ``client`` makes boto3's of a service."""
    iam, balancing, rds = client("iam"), client("elbv2"), client("rds")

    def balancing_tags(arn: str) -> Any:
        return balancing.describe_tags(ResourceArns=[arn])["TagDescriptions"][0]["Tags"]

    def rds_tags(arn: str) -> Any:
        return rds.list_tags_for_resource(ResourceName=arn)["TagList"]

    def role() -> Iterator[Any]:
        yield iam.get_role(RoleName=name)["Role"].get("Tags", [])

    def profile() -> Iterator[Any]:
        yield iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"].get("Tags", [])

    def balancer() -> Iterator[Any]:
        for found in balancing.describe_load_balancers(Names=[name])["LoadBalancers"]:
            yield balancing_tags(found["LoadBalancerArn"])

    def targets() -> Iterator[Any]:
        for found in balancing.describe_target_groups(Names=[name])["TargetGroups"]:
            yield balancing_tags(found["TargetGroupArn"])

    def subnets() -> Iterator[Any]:
        for found in rds.describe_db_subnet_groups(DBSubnetGroupName=name)["DBSubnetGroups"]:
            yield rds_tags(found["DBSubnetGroupArn"])

    def settings() -> Iterator[Any]:
        for found in rds.describe_db_parameter_groups(DBParameterGroupName=parameters)["DBParameterGroups"]:
            yield rds_tags(found["DBParameterGroupArn"])

    for named, find in (
        (f"role {name}", role),
        (f"instance profile {name}", profile),
        (f"load balancer {name}", balancer),
        (f"target group {name}", targets),
        (f"subnet group {name}", subnets),
        (f"parameter group {parameters}", settings),
    ):
        try:
            for tags in find():
                yield {"named": named, "tags": {tag["Key"]: tag["Value"] for tag in tags}}
        except ClientError as error:
            if not error.response["Error"]["Code"].removesuffix("Fault").endswith(("NotFound", "NoSuchEntity")):
                raise


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone, and changes nothing.

    The collections have modules for some of these kinds only, each of which takes seconds.

    Arguments:
        region: region of the environment.
        name: name of all of them but the parameter group.
        parameters: name of that.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("region", "name", "parameters"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the resources as ``resources``."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        asked = self._task.args

        def client(service: str) -> Any:
            return boto3.client(service, region_name=asked["region"])

        try:
            found = list(resources(client, asked["name"], asked["parameters"]))
        except (BotoCoreError, ClientError) as error:
            raise AnsibleActionFail(str(error)) from error
        return {**result, "changed": False, "resources": found}
