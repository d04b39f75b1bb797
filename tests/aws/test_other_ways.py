"""An environment made in the other ways: Ubuntu in the account's default network, and RDS keeps the master password.

That network is used, and never changed or removed.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.aws.conftest import Cloud

pytestmark = [pytest.mark.aws, pytest.mark.timeout(3000)]
# prod: its keys and pins are not those that other tests look at.
VALUES: dict[str, Any] = {
    "network_cidr": "default",
    "host_address": "public",  # moto's are those of strangers: nothing is sent there
    "machine_image": "ubuntu-24.04",
    "host_count": 2,
    "load_balancer": True,
    "confirm": "prod",
}


def play(cloud: Cloud, name: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook on prod."""
    return cloud.play(name, "-l", "prod", "-e", json.dumps({**VALUES, **changes}))


def plain(value: Any) -> Any:
    """Return a value without the mark that Ansible puts on what comes from outside."""
    return value.get("__ansible_unsafe", value) if isinstance(value, dict) else value


def changed(done: subprocess.CompletedProcess[str]) -> int:
    """Return how many tasks changed something."""
    (number,) = re.findall(r"^prod_account .* changed=(\d+)", done.stdout, re.MULTILINE)
    return int(number)


def default_network(cloud: Cloud) -> dict[str, list[dict[str, Any]]]:
    """Return what AWS makes with an account, as boto3 describes it."""
    ec2 = cloud.client("ec2")
    (network,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    inside = [{"Name": "vpc-id", "Values": [network["VpcId"]]}]
    attached = [{"Name": "attachment.vpc-id", "Values": [network["VpcId"]]}]
    subnets = ec2.describe_subnets(Filters=inside)["Subnets"]
    for subnet in subnets:
        del subnet["AvailableIpAddressCount"]  # what stands in it is not its own
    return {
        "network": [network],
        "subnets": sorted(subnets, key=lambda subnet: str(subnet["AvailabilityZone"])),
        "routes": ec2.describe_route_tables(Filters=inside)["RouteTables"],
        "gateways": ec2.describe_internet_gateways(Filters=attached)["InternetGateways"],
    }


@pytest.fixture(scope="module")
def before(cloud: Cloud) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Empty account and master password; return the default network, with the gateway that moto does not make."""
    cloud.prepare()
    secrets = cloud.project.view("prod")
    cloud.project.encrypt("prod", re.sub(r"^(vault_database_master_password): .*$", r'\1: ""', secrets, flags=re.M))
    ec2 = cloud.client("ec2")
    (network,) = default_network(cloud)["network"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway["InternetGatewayId"], VpcId=network["VpcId"])
    found = default_network(cloud)
    assert all(found.values())
    yield found
    cloud.project.encrypt("prod", secrets)
    cloud.prepare()


@pytest.fixture(scope="module")
def made(cloud: Cloud, before: dict[str, list[dict[str, Any]]]) -> subprocess.CompletedProcess[str]:
    """Return the run that made the machines."""
    done = play(cloud, "provision")
    assert done.returncode == 0, done.stdout
    return done


def test_everything_stands_in_it_and_it_stays_as_it_was(
    cloud: Cloud, before: dict[str, list[dict[str, Any]]], made: subprocess.CompletedProcess[str]
) -> None:
    (network,), subnets = before["network"], before["subnets"]
    identity, first_two = network["VpcId"], {subnet["SubnetId"] for subnet in subnets[:2]}
    assert {instance["VpcId"] for instance in cloud.instances()} == {identity}
    assert {instance["SubnetId"] for instance in cloud.instances()} == first_two
    (database,) = cloud.client("rds").describe_db_instances()["DBInstances"]
    assert database["DBSubnetGroup"]["VpcId"] == identity
    (balancer,) = cloud.client("elbv2").describe_load_balancers()["LoadBalancers"]
    assert balancer["VpcId"] == identity
    assert default_network(cloud) == before
    assert len(cloud.client("ec2").describe_vpcs()["Vpcs"]) == 1


def test_rds_keeps_the_master_password_and_the_inventory_finds_it(
    cloud: Cloud, made: subprocess.CompletedProcess[str]
) -> None:
    (database,) = cloud.client("rds").describe_db_instances()["DBInstances"]
    secret = cloud.client("secretsmanager").get_secret_value(SecretId=database["MasterUserSecret"]["SecretArn"])
    password = json.loads(secret["SecretString"])["password"]
    look = ("-m", "ansible.builtin.debug", "-a", "var=mysql_client_master_password")
    done = cloud.noted("inventory", "ansible", "prod1", "-i", "inventory/aws", *look)
    assert done.returncode == 0, done.stdout
    assert password in done.stdout
    assert password not in made.stdout
    assert "secretsmanager:GetSecretValue" in cloud.called["inventory"]


def test_the_inventory_has_the_image_s_login_and_the_address_that_stays(
    cloud: Cloud, made: subprocess.CompletedProcess[str]
) -> None:
    done = cloud.noted("inventory", "ansible-inventory", "-i", "inventory/aws", "--list", "--limit", "prod")
    assert done.returncode == 0, done.stdout
    known = json.loads(done.stdout[done.stdout.index("{") :])["_meta"]["hostvars"]
    addresses = {each["InstanceId"]: each["PublicIp"] for each in cloud.client("ec2").describe_addresses()["Addresses"]}
    for instance in cloud.instances():
        (host,) = [tag["Value"] for tag in instance["Tags"] if tag["Key"] == "Host"]
        assert instance["ImageId"] == "ami-0abc00000000024a1"
        assert plain(known[host]["ansible_user"]) == "ubuntu"
        assert plain(known[host]["ansible_host"]) == addresses[instance["InstanceId"]]


def test_another_run_changes_nothing(cloud: Cloud, made: subprocess.CompletedProcess[str]) -> None:
    instances = cloud.instances()
    done = play(cloud, "provision")
    assert done.returncode == 0, done.stdout
    assert changed(done) == 0, done.stdout
    assert len(cloud.instances()) == len(instances)


def test_a_preview_changes_nothing(cloud: Cloud, made: subprocess.CompletedProcess[str]) -> None:
    done = cloud.play("provision", "-l", "prod", "-e", json.dumps(VALUES), "--check")
    assert done.returncode == 0, done.stdout
    assert changed(done) == 0, done.stdout


def test_a_network_of_its_own_is_refused_from_then_on(cloud: Cloud, made: subprocess.CompletedProcess[str]) -> None:
    done = play(cloud, "provision", network_cidr="10.20.0.0/16")
    assert done.returncode == 2
    assert "network_cidr: prod1 stands in vpc-" in " ".join(done.stdout.split())
    assert changed(done) == 0


def test_removal_leaves_it_whatever_tags_it_has(
    cloud: Cloud, before: dict[str, list[dict[str, Any]]], made: subprocess.CompletedProcess[str]
) -> None:
    ec2 = cloud.client("ec2")
    identities = [
        thing[key]
        for kind, key in (
            ("network", "VpcId"),
            ("subnets", "SubnetId"),
            ("routes", "RouteTableId"),
            ("gateways", "InternetGatewayId"),
        )
        for thing in before[kind]
    ]
    tags = [{"Key": "Project", "Value": "nba"}, {"Key": "Environment", "Value": "prod"}]
    ec2.create_tags(Resources=identities, Tags=tags)
    rds = cloud.client("rds")
    (database,) = rds.describe_db_instances()["DBInstances"]
    # As a run leaves it that gets no further; the value has changed since.
    rds.modify_db_instance(DBInstanceIdentifier="nba-prod", DeletionProtection=False)
    lifted = [{"Key": "FinalSnapshot", "Value": "true"}]
    rds.add_tags_to_resource(ResourceName=database["DBInstanceArn"], Tags=lifted)
    done = play(cloud, "deprovision", deletion_protection=False)
    assert done.returncode == 0, done.stdout
    ec2.delete_tags(Resources=identities, Tags=tags)
    assert default_network(cloud) == before
    snapshots = rds.describe_db_snapshots()["DBSnapshots"]
    (last,) = [each for each in snapshots if each["SnapshotType"] == "manual"]
    assert last["DBSnapshotIdentifier"].startswith("nba-prod-final-")
    for left in (
        cloud.instances(),
        cloud.client("rds").describe_db_instances()["DBInstances"],
        cloud.client("elbv2").describe_load_balancers()["LoadBalancers"],
        [group for group in ec2.describe_security_groups()["SecurityGroups"] if group["GroupName"] != "default"],
        ec2.describe_addresses()["Addresses"],
    ):
        assert left == []


@pytest.mark.parametrize("name", ["inventory", "provision", "deprovision"])
def test_the_documented_policy_allows_what_was_asked(
    cloud: Cloud, made: subprocess.CompletedProcess[str], name: str
) -> None:
    assert cloud.denied(name) == set()


def test_where_there_is_none_it_is_said_how_to_get_one(
    cloud: Cloud, before: dict[str, list[dict[str, Any]]], made: subprocess.CompletedProcess[str]
) -> None:
    ec2 = cloud.client("ec2")
    for subnet in before["subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    done = play(cloud, "provision")
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert "nothing was changed. network_cidr: eu-west-1 has no default VPC with subnets in two zones" in said
    assert "aws ec2 create-default-vpc --region eu-west-1" in said
    assert "in group_vars/prod/vars.yml" in said
