"""An environment's whole life on AWS, in order: made, found, made again, changed, refused, removed."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.aws.conftest import REGION, Cloud
from tests.aws.server import SCARCE, host_key

pytestmark = [pytest.mark.aws, pytest.mark.timeout(3000)]
HOME = "203.0.113.7/32"
OURS = {"Project": "nba", "Environment": "dev"}
NAMED: dict[str, Any] = {"dns_zone": "example.com", "dns_name": "www.example.com"}
# What the environment grows into.
LARGER: dict[str, Any] = {
    **NAMED,
    "instance_type": "t3.small",
    "database_class": "db.t4g.small",
    "ssh_sources": ["198.51.100.0/24"],
    "deletion_protection": True,
    "load_balancer": True,
}
GROWN: dict[str, Any] = {**LARGER, "host_count": 2}
# As roles/app does it for each host, before and after it switches.
BALANCE = """
- name: Balance
  hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Balance
      ansible.builtin.include_role: {name: balancer, tasks_from: "{{ tasks }}"}
"""
Done = subprocess.CompletedProcess[str]


def values(**changes: Any) -> list[str]:
    """Return arguments that set values of the environment."""
    return ["-l", "dev", "-e", json.dumps({"ssh_sources": [HOME], "host_address": "private", **changes})]


def recap(done: Done) -> dict[str, int]:
    """Return the numbers of a run's last line."""
    line = [line for line in done.stdout.splitlines() if line.startswith("dev_account ")][-1]
    return {name: int(number) for name, number in (part.split("=") for part in line.split(":")[1].split())}


@pytest.fixture(scope="module")
def half(cloud: Cloud) -> Iterator[Done]:
    """Return the first run, for which AWS had no database; one address is there from a run that was cut off."""
    cloud.prepare()
    owned = [{"Key": key, "Value": value} for key, value in (("Name", "nba-dev1"), *OURS.items())]
    specifications = [{"ResourceType": "elastic-ip", "Tags": owned}]
    cloud.client("ec2").allocate_address(Domain="vpc", TagSpecifications=specifications)
    cloud.client("route53").create_hosted_zone(Name="example.com", CallerReference="tests")
    done = cloud.play("provision", *values(database_class=SCARCE))
    assert done.returncode == 2, done.stdout
    yield done
    cloud.prepare()


@pytest.fixture(scope="module")
def made(cloud: Cloud, half: Done) -> Done:
    """Return the run that made the rest."""
    done = cloud.play("provision", *values(**NAMED), "-vvv")
    assert done.returncode == 0, done.stdout
    return done


@pytest.fixture(scope="module")
def host(cloud: Cloud, made: Done) -> dict[str, Any]:
    """Return the one instance that was made."""
    (instance,) = cloud.instances()
    found: dict[str, Any] = instance
    return found


def plain(value: Any) -> Any:
    """Return a value without the mark that Ansible puts on what comes from outside."""
    return value.get("__ansible_unsafe", value) if isinstance(value, dict) else value


def tags(thing: dict[str, Any], key: str = "Tags") -> dict[str, str]:
    """Return the tags of something that boto3 describes."""
    return {tag["Key"]: tag["Value"] for tag in thing[key]}


def test_what_is_sold_out_is_said_and_the_same_command_goes_on(half: Done, made: Done) -> None:
    said = " ".join(half.stdout.split())
    assert "Create the database: AWS has no machine of this kind free now" in said
    assert "Fix: the same command again later, or another instance_type" in said
    assert "What was made stays; the same command goes on from there" in said
    # The database, the host, its address, the pin and the name: what stood was not made again.
    assert recap(made)["changed"] == 5, made.stdout


def test_what_a_month_costs_is_said_before(made: Done) -> None:
    assert made.stdout.index("US dollars a month") < made.stdout.index("Create the network")


def test_no_secret_is_printed_or_left(cloud: Cloud, made: Done) -> None:
    kept = [path for folder in (".access", "inventory") for path in (cloud.project.root / folder).rglob("*")]
    text = made.stdout + "".join(path.read_text() for path in kept if path.is_file())
    for secret in yaml.safe_load(cloud.project.view("dev")).values():
        assert secret not in text
    assert "PRIVATE KEY" not in made.stdout


def test_the_host_is_as_it_should_be(cloud: Cloud, host: dict[str, Any]) -> None:
    assert tags(host) == {
        "Name": "nba-dev1",
        "Project": "nba",
        "Environment": "dev",
        "Role": "app",
        "Host": "dev1",
        "Login": "admin",
        "Image": "debian-13",
        "Address": "private",
        "DiskGigabytes": "20",
    }
    # The newest one of the publisher, for this processor.
    assert host["ImageId"] == "ami-0deb00000000013a2"
    assert host["InstanceType"] == "t3.micro"
    assert host["MetadataOptions"]["HttpTokens"] == "required"
    assert host["IamInstanceProfile"]["Arn"].endswith("/nba-dev")
    (volume,) = cloud.client("ec2").describe_volumes(
        Filters=[{"Name": "attachment.instance-id", "Values": [host["InstanceId"]]}]
    )["Volumes"]
    assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 20, "gp3")
    (address,) = cloud.client("ec2").describe_addresses()["Addresses"]
    assert address["InstanceId"] == host["InstanceId"]


def test_the_name_leads_to_the_host(cloud: Cloud, host: dict[str, Any]) -> None:
    (record,) = records(cloud.client("route53"))
    (address,) = cloud.client("ec2").describe_addresses()["Addresses"]
    assert (record["Name"], record["TTL"]) == ("www.example.com.", 60)
    assert record["ResourceRecords"] == [{"Value": address["PublicIp"]}]


def rules(cloud: Cloud, name: str) -> dict[int, list[str]]:
    """Return who reaches which port of a security group."""
    filters = [{"Name": "group-name", "Values": [name]}]
    (group,) = cloud.client("ec2").describe_security_groups(Filters=filters)["SecurityGroups"]
    return {
        rule["FromPort"]: sorted(
            [source["CidrIp"] for source in rule["IpRanges"]]
            + [source["GroupId"] for source in rule["UserIdGroupPairs"]]
        )
        for rule in group["IpPermissions"]
    }


def test_only_what_must_be_reached_is_reached(cloud: Cloud, host: dict[str, Any]) -> None:
    (group,) = host["SecurityGroups"]
    assert rules(cloud, "nba-dev-web") == {80: ["0.0.0.0/0"], 443: ["0.0.0.0/0"], 22: [HOME]}
    assert rules(cloud, "nba-dev-database") == {3306: [group["GroupId"]]}


def test_both_subnets_lead_to_the_internet_and_are_in_two_zones(cloud: Cloud, made: Done) -> None:
    ec2 = cloud.client("ec2")
    own = [{"Name": f"tag:{key}", "Values": [value]} for key, value in OURS.items()]
    subnets = {
        subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in ec2.describe_subnets(Filters=own)["Subnets"]
    }
    # Of those that the account can use.
    assert sorted(subnets.values()) == [f"{REGION}b", f"{REGION}c"]
    (gateway,) = ec2.describe_internet_gateways(Filters=own)["InternetGateways"]
    (table,) = ec2.describe_route_tables(Filters=own)["RouteTables"]
    ways = {route["DestinationCidrBlock"]: route.get("GatewayId") for route in table["Routes"]}
    assert ways == {"10.10.0.0/16": "local", "0.0.0.0/0": gateway["InternetGatewayId"]}
    assert {each["SubnetId"] for each in table["Associations"] if "SubnetId" in each} == set(subnets)


def database(cloud: Cloud) -> dict[str, Any]:
    """Return the one database."""
    (found,) = cloud.client("rds").describe_db_instances()["DBInstances"]
    instance: dict[str, Any] = found
    return instance


def test_the_database_is_as_it_should_be(cloud: Cloud, made: Done) -> None:
    found = database(cloud)
    assert found["DBInstanceIdentifier"] == "nba-dev"
    assert (found["StorageEncrypted"], found["PubliclyAccessible"], found["MultiAZ"]) == (True, False, False)
    assert found["DBParameterGroups"][0]["DBParameterGroupName"] == "nba-dev-mysql84"
    assert found["DBSubnetGroup"]["DBSubnetGroupName"] == "nba-dev"
    assert (found["BackupRetentionPeriod"], found["CopyTagsToSnapshot"]) == (1, True)
    (group,) = found["VpcSecurityGroups"]
    (described,) = cloud.client("ec2").describe_security_groups(GroupIds=[group["VpcSecurityGroupId"]])[
        "SecurityGroups"
    ]
    assert described["GroupName"] == "nba-dev-database"
    parameters = cloud.client("rds").describe_db_parameters(DBParameterGroupName="nba-dev-mysql84")["Parameters"]
    assert {each["ParameterName"]: each.get("ParameterValue") for each in parameters} == {
        "require_secure_transport": "1",
        "log_bin_trust_function_creators": "1",
    }
    assert found["MasterUsername"] == "waffle_dev"
    assert "DBName" not in found or not found["DBName"]


def test_the_keys_are_made_and_pinned(cloud: Cloud, host: dict[str, Any]) -> None:
    folder = cloud.project.root / ".access/dev"
    assert stat.S_IMODE((folder / "id_ed25519").stat().st_mode) == 0o600
    identity = host["InstanceId"]
    assert (folder / "known_hosts").read_text() == f"{identity} {host_key(identity)}\n"


def test_the_inventory_finds_it(cloud: Cloud, host: dict[str, Any]) -> None:
    done = cloud.noted("inventory", "ansible-inventory", "-i", "inventory/aws", "--list", "--limit", "dev")
    assert done.returncode == 0, done.stdout
    listed = json.loads(done.stdout[done.stdout.index("{") :])
    assert listed["dev"]["hosts"] == ["dev1"]
    known = listed["_meta"]["hostvars"]["dev1"]
    assert plain(known["ansible_host"]) == host["PrivateIpAddress"]
    assert plain(known["ansible_user"]) == "admin"
    assert plain(known["database_host"]) == database(cloud)["Endpoint"]["Address"]
    assert plain(known["database_instance"]) == database(cloud)["DBInstanceIdentifier"]
    assert known["environment_name"] == "dev"


def test_ssh_is_told_the_pinned_key(cloud: Cloud, host: dict[str, Any]) -> None:
    done = cloud.run("python", "scripts/reach", "ssh-config", HOME=str(cloud.project.root))
    assert done.returncode == 0, done.stdout
    text = (cloud.project.root / ".access/ssh_config").read_text()
    config = subprocess.run(
        ["ssh", "-G", "-F", str(cloud.project.root / ".access/ssh_config"), "nba-dev1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert text.count("Host nba-") == 1
    for line in (
        f"hostname {host['PrivateIpAddress']}",
        "user admin",
        f"hostkeyalias {host['InstanceId']}",
        "stricthostkeychecking true",
        f"userknownhostsfile {cloud.project.root}/.access/dev/known_hosts",
        f"identityfile {cloud.project.root}/.access/dev/id_ed25519",
    ):
        assert line in config


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/deploy.yml"])
def test_the_account_is_not_a_host(cloud: Cloud, playbook: str) -> None:
    done = cloud.run("ansible-playbook", "-i", "inventory/account", playbook, "-l", "dev")
    assert done.returncode == 2
    assert f"dev_account is an AWS account, not a host: `ansible-playbook -i inventory/aws {playbook} -l dev`" in (
        done.stdout
    )


def test_another_run_changes_nothing(cloud: Cloud, host: dict[str, Any]) -> None:
    done = cloud.play("provision", *values(**NAMED))
    assert done.returncode == 0, done.stdout
    assert recap(done)["changed"] == 0, done.stdout
    assert [instance["InstanceId"] for instance in cloud.instances()] == [host["InstanceId"]]


def test_changes_are_applied_and_strangers_rules_go(cloud: Cloud, host: dict[str, Any]) -> None:
    (group,) = host["SecurityGroups"]
    cloud.client("ec2").authorize_security_group_ingress(
        GroupId=group["GroupId"], IpProtocol="tcp", FromPort=8000, ToPort=8000, CidrIp="0.0.0.0/0"
    )
    done = cloud.play("provision", *values(**LARGER))
    assert done.returncode == 0, done.stdout
    (instance,) = cloud.instances()
    assert (instance["InstanceId"], instance["InstanceType"]) == (host["InstanceId"], "t3.small")
    assert instance["State"]["Name"] == "running"
    assert database(cloud)["DBInstanceClass"] == "db.t4g.small"
    assert database(cloud)["DeletionProtection"] is True
    assert rules(cloud, "nba-dev-web") == {80: ["0.0.0.0/0"], 443: ["0.0.0.0/0"], 22: ["198.51.100.0/24"]}
    # No host is behind the load balancer yet.
    assert "www.example.com stays with the hosts: the load balancer has none that is healthy" in (
        " ".join(done.stdout.split())
    )
    (record,) = records(cloud.client("route53"))
    assert "AliasTarget" not in record


def test_a_host_gets_requests_once_the_role_balancer_says_so(cloud: Cloud, host: dict[str, Any]) -> None:
    """Provisioning names no host, since it serves nothing yet; site.yml does at its end, and a deploy meanwhile not.

    Each time it waits until that is so: what is `initial` gets no request, and what is `draining` cannot be named.
    """
    balancing = cloud.client("elbv2")
    (group,) = balancing.describe_target_groups()["TargetGroups"]

    def named() -> list[str]:
        found = balancing.describe_target_health(TargetGroupArn=group["TargetGroupArn"])["TargetHealthDescriptions"]
        return [target["Target"]["Id"] for target in found if target["TargetHealth"]["State"] == "healthy"]

    (cloud.project.root / "playbooks/balance.yml").write_text(BALANCE)
    switched_on = ("-i", "inventory/aws", "-l", "dev", "-e", json.dumps({"load_balancer": True}))
    assert named() == []
    for tasks, changed, expected in (
        ("main", 1, [host["InstanceId"]]),
        ("main", 0, [host["InstanceId"]]),
        ("cut off", 0, []),
        ("main", 1, [host["InstanceId"]]),
        ("leave", 1, []),
        ("leave", 0, []),
        ("main", 1, [host["InstanceId"]]),
    ):
        if tasks == "cut off":  # a deploy that was, while its host drained
            balancing.deregister_targets(TargetGroupArn=group["TargetGroupArn"], Targets=[{"Id": host["InstanceId"]}])
            continue
        play = ("ansible-playbook", "playbooks/balance.yml", *switched_on, "-e", f"tasks={tasks}")
        done = cloud.noted("inventory", *play)
        assert done.returncode == 0, done.stdout
        assert re.search(rf"^dev1 .* changed={changed} ", done.stdout, re.M), done.stdout
        assert named() == expected


def records(dns: Any) -> list[dict[str, Any]]:
    """Return the addresses in the one zone."""
    (zone,) = dns.list_hosted_zones()["HostedZones"]
    found = dns.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
    return [record for record in found if record["Type"] == "A"]


def test_more_hosts_leave_the_first_one_whatever_the_newest_image_is(cloud: Cloud, host: dict[str, Any]) -> None:
    cloud.client("ec2").deregister_image(ImageId=host["ImageId"])
    done = cloud.play("provision", *values(**GROWN))
    assert done.returncode == 0, done.stdout
    first, second = sorted(cloud.instances(), key=lambda instance: tags(instance)["Host"])
    assert first["InstanceId"] == host["InstanceId"]
    assert (tags(second)["Host"], second["ImageId"]) == ("dev2", "ami-0deb00000000013a1")
    assert first["SubnetId"] != second["SubnetId"]


def test_the_name_leads_to_the_load_balancer_once_that_has_a_host(cloud: Cloud, made: Done) -> None:
    balancing, dns = cloud.client("elbv2"), cloud.client("route53")
    (balancer,) = balancing.describe_load_balancers()["LoadBalancers"]
    (group,) = balancing.describe_target_groups()["TargetGroups"]
    assert (group["HealthCheckPath"], group["Matcher"]) == ("/health/ready", {"HttpCode": "200-299"})
    (record,) = records(dns)
    assert record["Name"] == "www.example.com."
    assert record["AliasTarget"]["DNSName"].rstrip(".") == balancer["DNSName"]


def test_what_would_replace_a_machine_is_refused(cloud: Cloud, host: dict[str, Any]) -> None:
    done = cloud.play("provision", *values(network_cidr="10.11.0.0/16", machine_image="ubuntu-24.04"))
    assert done.returncode == 2
    assert "network_cidr: the network is 10.10.0.0/16" in " ".join(done.stdout.split())
    assert "machine_image: dev1 runs debian-13" in " ".join(done.stdout.split())
    assert recap(done)["changed"] == 0
    assert host["InstanceId"] in [instance["InstanceId"] for instance in cloud.instances()]


def test_removal_must_be_confirmed_on_dev_as_well(cloud: Cloud, made: Done) -> None:
    done = cloud.play("deprovision", *values())
    assert done.returncode == 2
    assert "this run removes the machines of dev (dev_account)" in done.stdout
    assert "-e confirm=dev" in done.stdout
    assert len(cloud.instances()) == 2


def test_what_is_of_others_stops_the_removal(cloud: Cloud, host: dict[str, Any]) -> None:
    ec2 = cloud.client("ec2")
    start = {"ImageId": "ami-0deb00000000013a2", "SubnetId": host["SubnetId"], "MinCount": 1, "MaxCount": 1}
    (other,) = ec2.run_instances(**start)["Instances"]
    iam = cloud.client("iam")
    # As if somebody had made a role of that name.
    iam.untag_role(RoleName="nba-dev", TagKeys=["Project"])
    done = cloud.play("deprovision", *values(confirm="dev"))
    iam.tag_role(RoleName="nba-dev", Tags=[{"Key": "Project", "Value": "nba"}])
    assert done.returncode == 2
    assert f"nothing was removed. role nba-dev, {other['InstanceId']}: has the name" in " ".join(done.stdout.split())
    assert recap(done)["changed"] == 0
    ec2.terminate_instances(InstanceIds=[other["InstanceId"]])


def test_removal_leaves_nothing_but_what_is_not_ours(cloud: Cloud, made: Done) -> None:
    ec2 = cloud.client("ec2")
    others = ec2.run_instances(ImageId="ami-0deb00000000013a2", MinCount=1, MaxCount=1)["Instances"]
    # What is switched off by now was made all the same.
    switched_off = {**GROWN, "load_balancer": False, "deletion_protection": False}
    done = cloud.play("deprovision", *values(**switched_off, confirm="dev"))
    assert done.returncode == 0, done.stdout
    assert [instance["InstanceId"] for instance in cloud.instances()] == [others[0]["InstanceId"]]
    rds = cloud.client("rds")
    assert rds.describe_db_instances()["DBInstances"] == []
    # AWS protected it, whatever the values say by now, so it left something.
    (snapshot,) = [each for each in rds.describe_db_snapshots()["DBSnapshots"] if each["SnapshotType"] == "manual"]
    assert snapshot["DBSnapshotIdentifier"].startswith("nba-dev-final-")
    assert tags(snapshot, "TagList")["FinalSnapshot"] == "true"
    own = [{"Name": "tag:Project", "Values": ["nba"]}]
    for left in (
        ec2.describe_vpcs(Filters=own)["Vpcs"],
        ec2.describe_subnets(Filters=own)["Subnets"],
        ec2.describe_security_groups(Filters=own)["SecurityGroups"],
        ec2.describe_internet_gateways(Filters=own)["InternetGateways"],
        ec2.describe_route_tables(Filters=own)["RouteTables"],
        rds.describe_db_subnet_groups()["DBSubnetGroups"],
        [each for each in rds.describe_db_parameter_groups()["DBParameterGroups"] if "nba-dev" in str(each)],
        cloud.client("iam").list_instance_profiles()["InstanceProfiles"],
        ec2.describe_addresses()["Addresses"],
        cloud.client("elbv2").describe_load_balancers()["LoadBalancers"],
        cloud.client("elbv2").describe_target_groups()["TargetGroups"],
        records(cloud.client("route53")),
        ec2.describe_key_pairs()["KeyPairs"],
        [role for role in cloud.client("iam").list_roles()["Roles"] if role["RoleName"].startswith("nba")],
    ):
        assert left == []
    assert (cloud.project.root / ".access/dev/id_ed25519").exists()


def test_removal_can_be_repeated_and_needs_no_load_balancer(cloud: Cloud, made: Done) -> None:
    dns = cloud.client("route53")
    (zone,) = dns.list_hosted_zones()["HostedZones"]
    # As a run without a load balancer leaves it.
    addresses = [{"Value": "192.0.2.7"}, {"Value": "192.0.2.3"}]
    plain = {"Name": "www.example.com", "Type": "A", "TTL": 60, "ResourceRecords": addresses}
    change = {"Changes": [{"Action": "CREATE", "ResourceRecordSet": plain}]}
    dns.change_resource_record_sets(HostedZoneId=zone["Id"], ChangeBatch=change)
    done = cloud.play("deprovision", *values(**NAMED, confirm="dev"))
    assert done.returncode == 0, done.stdout
    assert recap(done)["changed"] == 1, done.stdout
    assert records(dns) == []


def test_the_empty_inventory_says_why(cloud: Cloud, made: Done) -> None:
    done = cloud.run("ansible-inventory", "-i", "inventory/aws", "--list")
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert f"dev: no running host in {REGION} of the account 123456789012 has the tags Project=nba" in text
    assert "ansible-playbook -i inventory/account playbooks/provision.yml -l dev" in text
    tags = [{"Key": key, "Value": value} for key, value in OURS.items()]
    specifications = [{"ResourceType": "instance", "Tags": tags}]
    start = {"ImageId": "ami-0deb00000000013a1", "MinCount": 1, "MaxCount": 1, "TagSpecifications": specifications}
    (nameless,) = cloud.client("ec2").run_instances(**start)["Instances"]
    done = cloud.run("ansible-inventory", "-i", "inventory/aws", "--list")
    assert done.returncode == 1
    assert f"dev: {nameless['InstanceId']} in {REGION} runs without the tag Host" in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", ["inventory", "provision", "deprovision"])
def test_the_documented_policy_allows_what_was_asked(cloud: Cloud, made: Done, name: str) -> None:
    """moto allows everything, so what was asked is compared with what the policy says."""
    assert cloud.denied(name) == set()
    assert name == "inventory" or "route53:ChangeResourceRecordSets" in cloud.called[name]
