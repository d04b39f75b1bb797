"""Filters for the role `aws`: what is there by its host's name, what a change would destroy, and what a month costs."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.waffle.iron.plugins.plugin_utils.aws_errors import explained

# A row of the price table: | `name` | 7.59 | ... |
PRICE = re.compile(r"^\|\s*`([^`]+)`\s*\|\s*([0-9.]+)\s*\|", re.MULTILINE)
DATED = re.compile(r"<!-- prices (\S+) (\d{4}-\d{2}) -->")
# RDS refuses these in the master password, and more than 41 characters.
REFUSED_IN_PASSWORDS = frozenset("/@\" '")
# The value of network_cidr that stands for the network which AWS makes with an account.
DEFAULT_NETWORK = "default"
# What the modules call the name of a thing; an instance has key_name, too.
NAMES = ("instance_id", "db_instance_identifier", "named", "key_name")


def aws_by_host(instances: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return instances, as ``ec2_instance_info`` describes them, by the name in their tag ``Host``."""
    return {str(instance["tags"].get("Host", instance["instance_id"])): instance for instance in instances}


def aws_foreign(things: Iterable[Mapping[str, Any]], tags: Mapping[str, str]) -> list[str]:
    """Return the names of resources without these tags: databases, key pairs, instances, ``named_resources``."""
    # dict(): Ansible's own mappings have items that cannot be compared.
    foreign = [thing for thing in things if not dict(tags).items() <= dict(thing["tags"]).items()]
    return [str(next(thing[name] for name in NAMES if name in thing)) for thing in foreign]


def aws_error_text(result: Mapping[str, Any], what: str, region: str) -> str:
    """Return why a task failed, by its result, and the next command; ``what`` it was stands before."""
    items = [each for each in result.get("results", []) if each.get("failed")] or [result]
    return explained("; ".join(dict.fromkeys(str(each.get("msg", each)) for each in items)), what, [region])


def aws_value_findings(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the values that the environment's machines are to be made from."""
    return list(_value_findings(values))


def _value_findings(values: Mapping[str, Any]) -> Iterator[str]:
    # A third of a second: Ansible loads these filters in each run.
    from botocore.session import Session  # noqa: PLC0415

    known = Session().get_available_regions("ec2")
    if values["region"] not in known:
        yield f"region: {values['region']!r} is none of AWS's, such as eu-west-1"
    if values["image"] not in values["images"]:
        yield f"machine_image: {values['image']!r} is none of {', '.join(values['images'])}"
    try:
        network = ipaddress.ip_network(values["network"]) if values["network"] != DEFAULT_NETWORK else None
        if network and not (network.is_private and 16 <= network.prefixlen <= 24):
            yield f"network_cidr: {network} must be a private network between /16 and /24"
    except ValueError as error:
        yield f"network_cidr: {error}"
    for source in values["ssh_sources"]:
        try:
            if "/" not in source:  # AWS takes an address alone for no network at all
                raise ValueError(f"{source!r} has no length")
            if ipaddress.IPv4Network(source).prefixlen == 0:
                yield f"ssh_sources: {source} is the whole world. Name your own address, such as 203.0.113.7/32"
        except ValueError as error:
            yield f"ssh_sources: {error}. Name your own address, such as 203.0.113.7/32"
    password = str(values["password"])
    if len(password) > 41 or REFUSED_IN_PASSWORDS & set(password):
        yield (
            "database_master_password: RDS takes at most 41 characters, without / @ \" ' and space. "
            f"Change it: ansible-vault edit group_vars/{values['environment']}/vault.yml"
        )


def aws_refusals(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return what cannot be done to the machines that are there without replacing or emptying one of them.

    Arguments:
        wanted: ``network``, ``image``, ``disk`` (GiB), ``hosts`` (names), ``database_version`` and
            ``database_disk`` (GiB), ``managed_password`` (whether RDS keeps the master's), ``name`` (of what has
            one), ``environment``, ``region``, ``tags``.
        found: ``networks`` (with the environment's tags), ``default_subnets`` (the account's), ``instances``,
            ``databases`` and ``keys`` as the modules describe them, ``named`` (what else is known by its name),
            ``private_key`` (whether the file is there).
    """
    return list(_refusals(wanted, found))


def _refusals(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    yield from _network_refusals(wanted, found)
    yield from _instance_refusals(wanted, found["instances"])
    yield from _database_refusals(wanted, found["databases"])
    for name in aws_foreign(found["named"], wanted["tags"]):
        yield f"{name}: is there without this environment's tags, so it is somebody else's. Rename project"
    for key in found["keys"]:
        if not found["private_key"]:
            yield (
                f"key pair {key['key_name']}: is in the account, and its private key {wanted['private_key']} is not on "
                "this machine. Fix: copy it from the machine that created it"
            )


def _network_refusals(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for network in found["networks"]:
        if network["cidr_block"] != wanted["network"]:
            yield (
                f"network_cidr: the network is {network['cidr_block']}, and a network cannot be renumbered: every "
                f"machine in it would be replaced by one in {wanted['network']}"
            )
    if len(found["networks"]) > 1:
        yield "network: there are two with this environment's tags. Fix: remove the one that is not used"
    homes = {network["vpc_id"] for network in found["networks"]}
    if wanted["network"] == DEFAULT_NETWORK:
        homes |= {subnet["vpc_id"] for subnet in found["default_subnets"]}
        if len(found["default_subnets"]) < 2:  # RDS and a load balancer want two zones each
            region = wanted["region"]
            yield (
                f"network_cidr: {region} has no default VPC with subnets in two zones. Fix: aws ec2 "
                f"create-default-vpc --region {region} (if it exists: aws ec2 create-default-subnet "
                f"--availability-zone {region}a); or set a network of its own, such as 10.10.0.0/16, in "
                f"group_vars/{wanted['environment']}/vars.yml"
            )
    ours = [each for each in found["databases"] if not aws_foreign([each], wanted["tags"])]
    places = {name: instance["vpc_id"] for name, instance in aws_by_host(found["instances"]).items()}
    places |= {each["db_instance_identifier"]: each["db_subnet_group"]["vpc_id"] for each in ours}
    for name, place in places.items():
        if place not in homes:
            yield (
                f"network_cidr: {name} stands in {place}, which is not the network {wanted['network']}, and no machine "
                "can be moved: it would be replaced by an empty one"
            )


def _instance_refusals(wanted: Mapping[str, Any], instances: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    hosts = aws_by_host(instances)
    if len(hosts) != len(instances):
        yield "instances: two have the same tag Host. Terminate the one that is not used, or change its tags"
    for name, instance in hosts.items():
        image = instance["tags"].get("Image", wanted["image"])
        if image != wanted["image"]:
            yield (
                f"machine_image: {name} runs {image}, and another image means another machine: {name} would be "
                f"replaced by an empty one with {wanted['image']}"
            )
        disk = int(instance["tags"].get("DiskGigabytes", wanted["disk"]))
        if disk != wanted["disk"]:
            yield (
                f"disk_gigabytes: the disk of {name} has {disk}. It is not resized from here: a disk cannot shrink, "
                "and to grow takes a step on the host as well (docs/aws.md, Disks)"
            )
        if name not in wanted["hosts"]:
            yield (
                f"host_count: {name} is there and would be one too many. Fix: set host_count again, or terminate it "
                "yourself (docs/aws.md, Fewer hosts)"
            )


def _database_refusals(wanted: Mapping[str, Any], databases: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for database in databases:
        name = database["db_instance_identifier"]
        if aws_foreign([database], wanted["tags"]):
            yield f"database {name}: is there without this environment's tags, so it is somebody else's. Rename project"
            continue
        version = str(database["engine_version"])
        if not same_version(version, wanted["database_version"]):
            yield (
                f"database_version: {name} runs {version}. An upgrade to {wanted['database_version']} is not undone by "
                "anything but a backup: do it yourself (docs/aws.md, Another MySQL)"
            )
        if database["allocated_storage"] > wanted["database_disk"]:
            yield (
                f"database_gigabytes: {name} has {database['allocated_storage']}, and RDS storage cannot shrink: it "
                f"would be replaced by a new one with {wanted['database_disk']}"
            )
        if not database["storage_encrypted"]:
            yield f"database {name}: is not encrypted, and that cannot be changed: it would be replaced"
        if database.get("master_user_secret") and not wanted["managed_password"]:
            yield (
                f"database_master_password: RDS keeps that of {name}, and it is not the vault's. Empty the vault's, or "
                "take it over from RDS first (docs/aws.md, The master password)"
            )


def same_version(version: str, wanted: str) -> bool:
    """Return True if a server's version, such as 8.4.5, is the wanted one, such as 8.4: AWS applies minor updates."""
    return version == wanted or version.startswith(f"{wanted}.")


def aws_kept_version(databases: Sequence[Mapping[str, Any]], wanted: str) -> str:
    """Return the version to ask for: that of the database which is there, else the wanted one."""
    return str(databases[0]["engine_version"]) if databases else wanted


def aws_subnets(
    network: str, zones: Iterable[Mapping[str, Any]], subnets: Iterable[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return two parts of a network, each in a zone of its own (``zone`` and ``cidr``).

    They are sixteenths, so that there is room for more. One that is there stays in its zone.

    Arguments:
        network: the whole of it.
        zones: those that can be used, as ``aws_az_info`` describes them.
        subnets: those that are there, as ``ec2_vpc_subnet_info`` describes them.
    """
    parts = [str(part) for part in itertools.islice(ipaddress.ip_network(network).subnets(prefixlen_diff=4), 2)]
    there = {str(subnet["cidr_block"]): str(subnet["availability_zone"]) for subnet in subnets}
    taken = {there[part] for part in parts if part in there}
    free = iter(sorted({str(zone["zone_name"]) for zone in zones} - taken))
    found = {part: there.get(part) or next(free, "") for part in parts}
    if not all(found.values()):
        raise AnsibleFilterError("the region has no two zones, which RDS and a load balancer want: set another region")
    return [{"zone": zone, "cidr": part} for part, zone in found.items()]


def aws_monthly_cost(table: str, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines with what each item costs in a month, and their sum.

    Arguments:
        table: text of a document with the mark ``<!-- prices REGION YYYY-MM -->`` and rows ``| `name` | dollars |``.
        items: ``name`` of a row, ``count`` of units, and ``text`` for whom it is about.

    Raises:
        AnsibleFilterError: the document holds no prices.
    """
    dated = DATED.search(table)
    if dated is None:
        raise AnsibleFilterError("no mark `<!-- prices REGION YYYY-MM -->` in the document with the prices")
    prices = {name: float(price) for name, price in PRICE.findall(table)}
    lines, total, unknown = [], 0.0, []
    for item in items:
        count = float(item["count"])
        if not count:
            continue
        if item["name"] not in prices:
            unknown.append(str(item["name"]))
            continue
        cost = count * prices[item["name"]]
        total += cost
        lines.append(f"{cost:9.2f}  {item['text']}: {count:g} x {item['name']}")
    region, date = dated.groups()
    lines.append(
        f"{total:9.2f}  US dollars a month, by the list prices of {region} in {date}; without traffic and taxes"
    )
    lines += [f"        ?  {name}: is not in the table of docs/aws.md" for name in unknown]
    return lines


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "aws_by_host": aws_by_host,
            "aws_foreign": aws_foreign,
            "aws_error_text": aws_error_text,
            "aws_kept_version": aws_kept_version,
            "aws_monthly_cost": aws_monthly_cost,
            "aws_refusals": aws_refusals,
            "aws_subnets": aws_subnets,
            "aws_value_findings": aws_value_findings,
        }
