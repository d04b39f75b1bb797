"""The inventory of AWS feeds a run on real hosts, and backups go to S3. moto's server stands in for the account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.hosts.conftest import Converged
from tests.hosts.world import Run, World

pytestmark = pytest.mark.lab
REGION = "eu-west-1"
BUCKET = "nba-backups"
SITE = ("-i", "inventory/aws", "site.yml", "-l", "dev")


@dataclass(frozen=True)
class Account:
    """An account whose instances have the addresses and the keys of the lab's hosts of dev."""

    here: World
    url: str
    known: dict[str, Any]

    def client(self, service: str) -> Any:
        """Return boto3's client."""
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.client(service, endpoint_url=self.url, region_name=REGION, **keys)

    def ansible(self, *arguments: str, **settings: str) -> Run:
        """Run a playbook as somebody with credentials; what only a lab needs comes along."""
        lab = {name: self.known["all"]["vars"][name] for name in ("database_host", "python_index_url")}
        extra = json.dumps({**lab, "mysql_client_tls_ca_url": ""})
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        return self.here.ansible(*arguments, "-e", extra, AWS_ENDPOINT_URL=self.url, **keys, **settings)

    def launch(self, name: str, subnet: str) -> None:
        """Start the instance that stands for a host of the lab, and pin its key as provision.yml does."""
        host = self.known["_meta"]["hostvars"][name]
        tags = {
            "Project": "nba", "Environment": "dev", "Host": name, "Login": host["ansible_user"], "Address": "private"
        }  # fmt: skip
        made = self.client("ec2").run_instances(
            ImageId="ami-12c6146b",
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
            PrivateIpAddress=host["ansible_host"],
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            ],
        )
        lines = (self.here.root / ".lab" / self.here.name / "known_hosts").read_text().splitlines()
        (key,) = [line.partition(" ")[2] for line in lines if host["ansible_host"] in line.split()[0].split(",")]
        with (self.here.root / ".access/dev/known_hosts").open("a") as stream:
            stream.write(f"{made['Instances'][0]['InstanceId']} {key}\n")


@pytest.fixture
def account(here: World, converged: Converged) -> Iterator[Account]:
    """Serve an account where the lab's hosts reach it."""
    known = json.loads((here.root / ".lab" / here.name / "inventory.json").read_text())
    network = here.address("dev1").rpartition(".")[0]
    server = ThreadedMotoServer(ip_address=f"{network}.1", port=0, verbose=False)
    server.start()
    try:
        address, port = server.get_host_and_port()
        yield Account(here, f"http://{address}:{port}", known)
    finally:
        server.stop()


@pytest.fixture
def instances(account: Account) -> Iterator[Account]:
    """Return the account with an instance for each host of dev."""
    access = account.here.root / ".access/dev"
    access.mkdir(parents=True, mode=0o700)
    try:
        key = access / "id_ed25519"
        key.touch(mode=0o600)
        key.write_bytes((account.here.root / ".lab" / account.here.name / "id_ed25519").read_bytes())
        network = account.here.address("dev1").rpartition(".")[0] + ".0/24"
        ec2 = account.client("ec2")
        vpc = ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=network)["Subnet"]["SubnetId"]
        for name in account.known["dev"]["hosts"]:
            account.launch(name, subnet)
        yield account
    finally:
        for path in access.iterdir():
            path.unlink()
        access.rmdir()


def test_the_inventory_of_aws_converges_real_hosts(here: World, instances: Account) -> None:
    hosts = set(instances.known["dev"]["hosts"])
    before = {host: here.status(host)["live"] for host in hosts}
    try:
        with here.edited("group_vars/dev/vars.yml", lambda text: text.replace("log_level: INFO", "log_level: ERROR")):
            run = instances.ansible(*SITE).succeeded()
            assert set(run.changed()) - {"localhost"} == hosts
            for host in hosts:
                live = here.get(host, "/api/version").json()["release"]
                assert live == here.status(host)["live"] != before[host]
            again = instances.ansible(*SITE).succeeded()
            assert set(again.changed().values()) == {0}
    finally:
        here.ansible("playbooks/deploy.yml", "-l", "dev").succeeded()


def test_a_machine_with_another_key_than_the_pinned_one_is_not_reached(here: World, instances: Account) -> None:
    pins = here.root / ".access/dev/known_hosts"
    names = [line.split()[0] for line in pins.read_text().splitlines()]
    ours = (here.root / ".lab" / here.name / "id_ed25519.pub").read_text()
    pins.write_text("".join(f"{name} {ours}" for name in names))
    # A connection that an earlier run left open is not asked for its key.
    alone = {"ANSIBLE_SSH_ARGS": "-o ControlPath=none"}
    run = instances.ansible("-i", "inventory/aws", "playbooks/base.yml", "-l", "dev", **alone)
    assert run.code == 4
    assert "Host key verification failed" in run.output


@pytest.fixture
def bucket(here: World, account: Account) -> Iterator[Any]:
    """Return boto3's S3 with the bucket for the backups of prod, whose first host may use it."""
    s3 = account.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    here.shell("prod1", "mkdir -m 0700 /root/.aws")
    here.write("prod1", "/root/.aws/credentials", "[default]\naws_access_key_id=it\naws_secret_access_key=plays\n")
    try:
        with (
            here.edited("group_vars/prod/vars.yml", lambda text: text.replace('bucket: ""', f'bucket: "{BUCKET}"')),
            here.edited("group_vars/all/vars.yml", lambda text: f"{text}app_backup_endpoint: {account.url}\n"),
        ):
            here.ansible("playbooks/base.yml", "-l", "prod").succeeded()
            here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
            yield s3
    finally:
        here.execute("prod1", "rm", "-r", "/root/.aws")
        here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
        # site.yml removes no package, and parity would name what prod alone has.
        for host in ("prod1", "prod2"):
            here.execute(host, "apt-get", "-qq", "purge", "--auto-remove", "python3-boto3")


@pytest.mark.long
def test_a_backup_comes_back_from_s3_to_a_host_that_has_it_no_more(here: World, bucket: Any) -> None:
    user = here.get("prod1", "/api/users", "POST", {"name": "Kept", "email": "away@example.com"}).json()
    made = json.loads(here.execute("prod1", "nba-backup", "create"))["backup"]
    assert [item["Key"] for item in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]] == [f"nba/prod/{made}"]
    here.execute("prod1", "rm", f"/var/backups/nba/{made}")
    assert here.get("prod1", f"/api/users/{user['id']}", "DELETE").status == 204

    listed = here.ansible("playbooks/restore.yml", "-l", "prod")
    assert f"{made}  0.0 MiB  s3://{BUCKET}/nba/prod/" in listed.output
    here.ansible("playbooks/restore.yml", "-l", "prod", "-e", f"backup={made}").succeeded()
    assert here.get("prod1", f"/api/users/{user['id']}").json() == user
    assert here.get("prod1", f"/api/users/{user['id']}", "DELETE").status == 204
