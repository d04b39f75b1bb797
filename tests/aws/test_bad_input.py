"""What goes wrong with an account before anything is in it, and what is said then. None of it makes anything."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.aws.conftest import Cloud
from tests.aws.server import FULL

pytestmark = pytest.mark.aws


def said(text: str) -> str:
    """Return output with its line breaks taken out: Ansible folds messages."""
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def nothing_is_made(cloud: Cloud) -> Iterator[None]:
    """Check that the account did not change."""
    before = [instance["InstanceId"] for instance in cloud.instances()]
    yield
    assert [instance["InstanceId"] for instance in cloud.instances()] == before


@pytest.fixture
def refusing() -> Iterator[str]:
    """Return the address of an AWS that says that the session has expired."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b"<ErrorResponse><Error><Code>ExpiredToken</Code><Message>expired</Message></Error></ErrorResponse>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_credentials(cloud: Cloud) -> None:
    done = cloud.play("provision", "-l", "dev", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    assert done.returncode == 2
    assert "nothing was changed: this machine has no AWS credentials. Fix: aws configure" in said(done.stdout)


def test_no_credentials_for_the_inventory(cloud: Cloud) -> None:
    command = ("ansible-playbook", "-i", "inventory/aws", "site.yml", "-l", "dev")
    done = cloud.run(*command, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    assert done.returncode == 1
    assert "this machine has no AWS credentials. Fix: aws configure" in said(done.stdout)


def test_an_expired_session(cloud: Cloud, refusing: str) -> None:
    done = cloud.play("provision", "-l", "dev", AWS_ENDPOINT_URL=refusing)
    assert done.returncode == 2
    assert "nothing was changed: the AWS credentials have expired. Fix: aws sso login" in said(done.stdout)
    done = cloud.run("ansible-inventory", "-i", "inventory/aws", "--list", AWS_ENDPOINT_URL=refusing)
    assert done.returncode == 1
    assert "the AWS credentials have expired. Fix: aws sso login" in said(done.stdout)


def test_a_region_that_is_not_there(cloud: Cloud) -> None:
    done = cloud.play("provision", "-l", "dev", "-e", "region=eu-wset-1")
    assert done.returncode == 2
    assert "region: 'eu-wset-1' is none of AWS's" in said(done.stdout)


def test_an_inventory_that_looks_elsewhere(cloud: Cloud) -> None:
    path = cloud.project.vars_file("dev")
    text = path.read_text()
    path.write_text(text.replace("region: eu-west-1", "region: eu-central-1"))
    try:
        done = cloud.run("ansible-inventory", "-i", "inventory/aws", "--list")
    finally:
        path.write_text(text)
    assert done.returncode == 1
    assert "write `regions: [eu-central-1, eu-west-1]`" in said(done.stdout)


def test_an_image_that_is_not_there(cloud: Cloud) -> None:
    done = cloud.play("provision", "-l", "dev", "-e", "machine_image=debian-12")
    assert done.returncode == 2
    assert "eu-west-1 has no image debian-12-amd64-2* of the account 136693071363" in said(done.stdout)


def test_a_quota_that_is_used_up(cloud: Cloud) -> None:
    done = cloud.play("provision", "-l", "dev", "-e", f"network_cidr={FULL}")
    assert done.returncode == 2
    assert "Create the network: the account may not have more of this in eu-west-1" in said(done.stdout)
    assert "VpcLimitExceeded" in done.stdout
    assert "Fix: remove what is not used, or ask for more under Service Quotas" in said(done.stdout)


def test_a_name_that_is_taken(cloud: Cloud) -> None:
    rds = cloud.client("rds")
    rds.create_db_instance(
        DBInstanceIdentifier="nba-dev",
        Engine="mysql",
        DBInstanceClass="db.t4g.micro",
        AllocatedStorage=20,
        MasterUsername="somebody",
        MasterUserPassword="somebody-else",
    )
    ec2, iam, balancing = cloud.client("ec2"), cloud.client("iam"), cloud.client("elbv2")
    (network,) = ec2.describe_vpcs()["Vpcs"]
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]][:2]
    trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}]}
    iam.create_role(RoleName="nba-dev", AssumeRolePolicyDocument=json.dumps(trust))
    iam.create_instance_profile(InstanceProfileName="nba-dev")
    balancing.create_load_balancer(Name="nba-dev", Subnets=subnets)
    balancing.create_target_group(Name="nba-dev", Protocol="HTTP", Port=80, VpcId=network["VpcId"])
    rds.create_db_subnet_group(DBSubnetGroupName="nba-dev", DBSubnetGroupDescription="x", SubnetIds=subnets)
    group = {"DBParameterGroupName": "nba-dev-mysql84", "DBParameterGroupFamily": "mysql8.4", "Description": "x"}
    rds.create_db_parameter_group(**group)
    try:
        done = cloud.play("provision", "-l", "dev")
        assert done.returncode == 2
        for thing in ("database", "role", "instance profile", "load balancer", "target group", "subnet group"):
            assert f"{thing} nba-dev: is there without this environment's tags" in said(done.stdout), thing
        assert "parameter group nba-dev-mysql84: is there without this environment's tags" in said(done.stdout)
        assert len(rds.describe_db_instances()["DBInstances"]) == 1
        assert iam.get_role(RoleName="nba-dev")["Role"]["AssumeRolePolicyDocument"] == trust
    finally:
        cloud.prepare()


def test_a_preview_of_a_network_alone(cloud: Cloud) -> None:
    """A run that was cut off left it, and nothing of AWS can be looked at in it."""
    ec2 = cloud.client("ec2")
    tags = [{"Key": key, "Value": value} for key, value in (("Project", "nba"), ("Environment", "dev"))]
    specifications = [{"ResourceType": "vpc", "Tags": tags}]
    network = ec2.create_vpc(CidrBlock="10.10.0.0/16", TagSpecifications=specifications)["Vpc"]
    done = cloud.play("provision", "-l", "dev", "--check")
    ec2.delete_vpc(VpcId=network["VpcId"])
    assert done.returncode == 0, done.stdout
    assert "US dollars a month" in done.stdout


def test_hosts_are_not_an_account(cloud: Cloud) -> None:
    folder = cloud.project.root / "inventory/test"
    (folder / "hosts.yml").write_text("all: {vars: {database_host: db}, children: {dev: {hosts: {dev1: }}}}\n")
    done = cloud.run("ansible-playbook", "-i", "inventory/test", "playbooks/provision.yml", "-l", "dev")
    assert done.returncode == 2
    command = "ansible-playbook -i inventory/account playbooks/provision.yml -l dev"
    assert f"dev1 is a host: `{command}`" in said(done.stdout)
