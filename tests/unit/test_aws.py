"""The pieces for AWS that need no AWS: prices, refusals, host keys, and what is said of an empty inventory."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.waffle.iron.plugins.plugin_utils.aws_errors import explained

from tests.support import ENVIRONMENTS, ROOT, module_at, yaml_at

FILTERS = module_at("plugins/filter/aws.py")
KEYS = module_at("plugins/action/host_keys.py")
PASSWORDS = module_at("plugins/action/managed_password.py")
DATABASES = module_at("plugins/inventory/databases.py")
VALUES: dict[str, Any] = {
    "environment": "dev",
    "region": "eu-west-1",
    "image": "debian-13",
    "images": {"debian-13": {}},
    "network": "10.10.0.0/16",
    "ssh_sources": ["203.0.113.7/32"],
    "password": "a" * 41,
}
WANTED: dict[str, Any] = {
    "name": "nba-dev",
    "tags": {"Project": "nba", "Environment": "dev"},
    "environment": "dev",
    "region": "eu-west-1",
    "network": "10.10.0.0/16",
    "image": "debian-13",
    "disk": 20,
    "hosts": ["dev1"],
    "database_version": "8.4",
    "database_disk": 20,
    "managed_password": False,
    "private_key": ".access/dev/id_ed25519",
}
HOST = {"instance_id": "i-1", "vpc_id": "vpc-1", "tags": {"Host": "dev1", "Image": "debian-13", "DiskGigabytes": "20"}}
DATABASE = {
    "db_instance_identifier": "nba-dev",
    "tags": {"Project": "nba", "Environment": "dev", "More": "x"},
    "engine_version": "8.4.6",
    "allocated_storage": 20,
    "storage_encrypted": True,
    "db_subnet_group": {"vpc_id": "vpc-1"},
}
FOUND: dict[str, Any] = {
    "networks": [{"vpc_id": "vpc-1", "cidr_block": "10.10.0.0/16"}],
    "default_subnets": [{"vpc_id": "vpc-0"}, {"vpc_id": "vpc-0"}],
    "instances": [HOST],
    "databases": [DATABASE],
    "keys": [{"key_name": "nba-dev"}],
    "named": [],
    "private_key": True,
}


def test_good_values_have_no_findings() -> None:
    assert FILTERS.aws_value_findings(VALUES) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"region": "eu-wset-1"}, "region: 'eu-wset-1' is none of AWS's"),
        ({"image": "debian-9"}, "machine_image: 'debian-9' is none of debian-13"),
        ({"network": "10.10.0.0/8"}, "network_cidr: 10.10.0.0/8 has host bits set"),
        ({"network": "10.0.0.0/8"}, "must be a private network between /16 and /24"),
        ({"network": "8.8.0.0/16"}, "must be a private network"),
        ({"ssh_sources": ["0.0.0.0/0"]}, "ssh_sources: 0.0.0.0/0 is the whole world"),
        ({"ssh_sources": ["my-laptop"]}, "ssh_sources: 'my-laptop' has no length"),
        ({"ssh_sources": ["203.0.113.7"]}, "ssh_sources: '203.0.113.7' has no length. Name your own"),
        ({"ssh_sources": ["2001:db8::/48"]}, "ssh_sources: Expected 4 octets"),
        ({"password": "with/slash-in-it"}, "ansible-vault edit group_vars/dev/vault.yml"),
        ({"password": "a" * 42}, "RDS takes at most 41 characters"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], words: str) -> None:
    (finding,) = FILTERS.aws_value_findings({**VALUES, **change})
    assert words in finding


def test_a_secret_is_not_in_a_finding() -> None:
    assert "slash-in" not in str(FILTERS.aws_value_findings({**VALUES, "password": "slash-in/it"}))


def test_the_account_s_default_network_is_a_value() -> None:
    assert FILTERS.aws_value_findings({**VALUES, "network": "default"}) == []


@pytest.mark.parametrize(
    "found", [FOUND, {**FOUND, "networks": [], "instances": [], "databases": [], "keys": [], "named": []}]
)
def test_nothing_is_refused_where_nothing_is_lost(found: dict[str, Any]) -> None:
    assert FILTERS.aws_refusals(WANTED, found) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "10.11.0.0/16"}, "network_cidr: the network is 10.10.0.0/16"),
        ({"image": "ubuntu-24.04"}, "machine_image: dev1 runs debian-13"),
        ({"disk": 10}, "disk_gigabytes: the disk of dev1 has 20"),
        ({"hosts": []}, "host_count: dev1 is there"),
        ({"database_version": "8.0"}, "database_version: nba-dev runs 8.4.6"),
        ({"database_version": "8"}, ""),
        ({"database_disk": 19}, "database_gigabytes: nba-dev has 20"),
        ({"database_disk": 30}, ""),
        ({"tags": {"Project": "nba", "Environment": "prod"}}, "is there without this environment's tags"),
    ],
)
def test_what_would_destroy_something_is_refused(change: dict[str, Any], words: str) -> None:
    refusals = FILTERS.aws_refusals({**WANTED, **change}, FOUND)
    assert len(refusals) == bool(words)
    assert words in str(refusals)


STANDING: dict[str, Any] = {**FOUND, "networks": [], "default_subnets": [{"vpc_id": "vpc-1"}, {"vpc_id": "vpc-1"}]}


def test_machines_in_the_default_network_stay_there() -> None:
    assert FILTERS.aws_refusals({**WANTED, "network": "default"}, STANDING) == []
    host, database = FILTERS.aws_refusals(WANTED, STANDING)
    assert host.startswith("network_cidr: dev1 stands in vpc-1, which is not the network 10.10.0.0/16")
    assert database.startswith("network_cidr: nba-dev stands in vpc-1")


def test_machines_in_a_network_of_their_own_stay_there() -> None:
    (refusal,) = FILTERS.aws_refusals({**WANTED, "network": "default"}, FOUND)
    assert refusal.startswith("network_cidr: the network is 10.10.0.0/16")


@pytest.mark.parametrize("subnets", [[], [{"vpc_id": "vpc-1"}]])
def test_without_a_default_network_it_is_said_how_to_get_one(subnets: list[dict[str, str]]) -> None:
    empty = {**STANDING, "instances": [], "databases": [], "default_subnets": subnets}
    (refusal,) = FILTERS.aws_refusals({**WANTED, "network": "default"}, empty)
    assert refusal.startswith("network_cidr: eu-west-1 has no default VPC with subnets in two zones")
    assert "aws ec2 create-default-vpc --region eu-west-1" in refusal
    assert refusal.endswith("such as 10.10.0.0/16, in group_vars/dev/vars.yml")


def test_a_key_pair_without_its_private_key_is_refused() -> None:
    (refusal,) = FILTERS.aws_refusals(WANTED, {**FOUND, "private_key": False})
    assert ".access/dev/id_ed25519 is not on this machine" in refusal


def test_a_password_that_rds_keeps_is_not_the_vault_s() -> None:
    kept = {**FOUND, "databases": [{**DATABASE, "master_user_secret": {"secret_arn": "arn"}}]}
    assert FILTERS.aws_refusals({**WANTED, "managed_password": True}, kept) == []
    (refusal,) = FILTERS.aws_refusals(WANTED, kept)
    assert refusal.startswith("database_master_password: RDS keeps that of nba-dev")


def test_two_hosts_of_a_name_are_refused() -> None:
    (refusal,) = FILTERS.aws_refusals(WANTED, {**FOUND, "instances": [HOST, {**HOST, "instance_id": "i-2"}]})
    assert "same tag Host" in refusal


def test_a_name_that_is_somebody_else_s_is_refused() -> None:
    ours, theirs = {"named": "role nba-dev", "tags": WANTED["tags"]}, {"named": "target group nba-dev", "tags": {}}
    (refusal,) = FILTERS.aws_refusals(WANTED, {**FOUND, "named": [ours, theirs]})
    assert refusal.startswith(
        "target group nba-dev: is there without this environment's tags, so it is somebody else's"
    )


def test_what_has_other_tags_is_foreign() -> None:
    things = [DATABASE, {"key_name": "nba-dev", "tags": {"Project": "nba"}}, {**DATABASE, "tags": {}}]
    assert FILTERS.aws_foreign(things, WANTED["tags"]) == ["nba-dev", "nba-dev"]


ZONES = [{"zone_name": f"eu-west-1{letter}"} for letter in "cba"]


def test_the_subnets_are_parts_of_the_network_in_two_zones() -> None:
    first, second = {"cidr": "10.10.0.0/20"}, {"cidr": "10.10.16.0/20"}
    assert FILTERS.aws_subnets("10.10.0.0/16", ZONES, []) == [
        {**first, "zone": "eu-west-1a"},
        {**second, "zone": "eu-west-1b"},
    ]
    # One that is there stays where it is, and the other goes elsewhere.
    there = [{"cidr_block": "10.10.16.0/20", "availability_zone": "eu-west-1a"}]
    assert FILTERS.aws_subnets("10.10.0.0/16", ZONES, there) == [
        {**first, "zone": "eu-west-1b"},
        {**second, "zone": "eu-west-1a"},
    ]


def test_a_region_with_one_zone_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="no two zones"):
        FILTERS.aws_subnets("10.10.0.0/16", ZONES[:1], [])


def test_minor_updates_of_aws_are_kept() -> None:
    assert FILTERS.aws_kept_version([DATABASE], "8.4") == "8.4.6"
    assert FILTERS.aws_kept_version([], "8.4") == "8.4"


def test_the_estimate_comes_from_the_table_of_the_document() -> None:
    bill = [
        {"name": "t3.micro", "count": 2, "text": "hosts"},
        {"name": "load balancer", "count": 0, "text": "none"},
        {"name": "x9.huge", "count": 1, "text": "unknown"},
    ]
    host, total, unknown = FILTERS.aws_monthly_cost((ROOT / "docs/aws.md").read_text(), bill)
    assert host.split() == ["15.18", "hosts:", "2", "x", "t3.micro"]
    assert total.split()[0] == "15.18"
    assert " in 20" in total
    assert "x9.huge: is not in the table" in unknown


def test_the_table_has_what_the_environments_are_made_of() -> None:
    known = {name for name, _ in FILTERS.PRICE.findall((ROOT / "docs/aws.md").read_text())}
    for environment in ENVIRONMENTS:
        values = yaml_at(f"group_vars/{environment}/vars.yml")
        assert {values["instance_type"], values["database_class"]} <= known
    fixed = {item["name"] for item in yaml_at("roles/aws/vars/main.yml")["__aws_bill"] if "{{" not in item["name"]}
    assert fixed <= known


# --- what AWS says ---


@pytest.mark.parametrize(
    ("said", "region", "words"),
    [
        ("Unable to locate credentials", "eu-central-1", "no AWS credentials. Fix: aws configure"),
        ("(ExpiredToken) the token included in the request is expired", "eu-central-1", "have expired. Fix: aws sso"),
        ("The config profile (nba) could not be found", "eu-central-1", "no AWS credentials. Fix: aws configure"),
        ("Instance ID i-1 could not be found", "eu-central-1", "inventory/aws_ec2.yml: Instance ID i-1 could not be"),
        ("(AuthFailure) AWS was not able to validate", "eu-central-1", "AWS refuses the credentials"),
        ("(AuthFailure) AWS was not able to validate", "eu-central-1", "is eu-central-1 switched on"),
        ("(OptInRequired) You are not subscribed", "eu-central-1", "enable-region --region-name eu-central-1"),
        ("(RequestLimitExceeded) Request limit exceeded.", "eu-central-1", "too much at once"),
        (
            "(UnauthorizedOperation) You are not",
            "eu-central-1",
            "lack a right ((UnauthorizedOperation) You",
        ),
        ("X is not authorized to perform: rds:CreateDBInstance", "eu-central-1", "rds:CreateDBInstance). Fix: give"),
        ("(VcpuLimitExceeded) You have requested", "eu-central-1", "may not have more of this in eu-central-1"),
        ("(InstanceQuotaExceeded) DB", "eu-central-1", "ask for more under Service Quotas"),
        ("(InsufficientDBInstanceCapacity) DB", "eu-central-1", "free now"),
        ("(DependencyViolation) resource sg-1 has a dependent object", "eu-central-1", "something else still uses it"),
        ("Could not connect to the endpoint URL", "eu-central-1", "cannot be reached in region eu-central-1"),
        ("Could not connect to the endpoint URL", "eu-east-1", "no region eu-east-1. Fix: set `regions` in it to one"),
        ("something else", "eu-central-1", "inventory/aws_ec2.yml: something else"),
    ],
)
def test_words_of_aws(said: str, region: str, words: str) -> None:
    assert words in explained(said, "inventory/aws_ec2.yml", [region], ["eu-central-1", "us-east-1"])


def test_no_region_at_all() -> None:
    assert "no AWS region is set" in explained("You must specify a region.", "aws_ec2.yml", [], ["us-east-1"])


def test_the_words_of_each_failed_item_are_said_once() -> None:
    item = {"msg": "VcpuLimitExceeded: no", "failed": True}
    result = {"msg": "One or more items failed", "results": [{"msg": "made"}, item, item]}
    said = FILTERS.aws_error_text(result, "M", "r")
    assert said.startswith("M: the account may not have more of this in r (VcpuLimitExceeded: no). Fix: ")


# --- host keys ---

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7mO0d9dB0H0Fq1yN3v0vV6v7Hn5m5w3cV6xg0VYw3S"
CONSOLE = f"""[   12.1] cloud-init[512]: -----BEGIN SSH HOST KEY KEYS-----
{KEY} root@ip-10-10-0-5
-----END SSH HOST KEY KEYS-----
debian login:"""


def test_the_keys_are_those_between_the_marks() -> None:
    assert KEYS.keys_in(CONSOLE) == [KEY]
    assert KEYS.keys_in(CONSOLE.partition("-----END")[0]) == []
    assert KEYS.keys_in(f"{KEY} evil@example.com\n") == []


def test_a_console_that_shows_nothing_yet_is_asked_again() -> None:
    texts = iter(["", "[    0.0] Linux", CONSOLE])
    pauses: list[float] = []
    assert KEYS.await_keys(lambda: next(texts), 60, pauses.append) == [KEY]
    assert len(pauses) == 2


def test_waiting_ends() -> None:
    assert KEYS.await_keys(lambda: "", 0, lambda _: None) == []


def test_what_is_pinned_is_known_by_the_instance() -> None:
    assert KEYS.pinned(f"# edited manually\ni-1 {KEY}\n\ni-2 {KEY}\n") == {"i-1", "i-2"}


# --- the master password that RDS keeps ---


def test_a_secret_that_is_being_made_is_asked_for_again() -> None:
    states: list[dict[str, Any]] = [
        {},
        {"MasterUserSecret": {"SecretStatus": "creating"}},
        {"MasterUserSecret": {"SecretStatus": "active"}},
    ]
    pauses: list[float] = []
    assert PASSWORDS.await_secret(iter(states).__next__, 60, pauses.append) is True
    assert len(pauses) == 2
    assert PASSWORDS.await_secret(dict, 0, pauses.append) is False


# --- the inventory ---


def test_a_database_is_found_by_its_tags() -> None:
    database = {"TagList": [{"Key": "Project", "Value": "nba"}, {"Key": "Environment", "Value": "dev"}]}
    assert DATABASES.carries(database, {"Project": "nba", "Environment": "dev"})
    assert not DATABASES.carries(database, {"Project": "nba", "Environment": "prod"})
    assert not DATABASES.carries({}, {"Project": "nba"})


def test_the_inventory_looks_where_the_machines_are() -> None:
    source = yaml_at("inventory/aws/aws_ec2.yml")
    regions = {yaml_at(f"group_vars/{environment}/vars.yml")["region"] for environment in ENVIRONMENTS}
    project = yaml_at("group_vars/all/vars.yml")["project"]
    assert DATABASES.difference(source, regions, project) == ""
    assert DATABASES.difference(source, {"eu-north-1", *regions}, project) == "regions: [eu-north-1, eu-west-1]"
    assert DATABASES.difference(source, regions, "shop") == '"tag:Project": shop'
