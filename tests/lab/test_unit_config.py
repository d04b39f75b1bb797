"""Names, addresses and settings of a lab: no host is needed."""

import pytest

from lab.config import HostSpec, Lab, host_octet, parse_host
from lab.errors import LabError


def test_defaults() -> None:
    lab = Lab.from_environment({})
    assert (lab.name, str(lab.network)) == ("lab", "10.203.0.0/24")
    assert (lab.bridge, lab.gateway) == ("waffle-lab", "10.203.0.1")
    assert [(spec.name, lab.address(spec.name), spec.group) for spec in lab.default_hosts()] == [
        ("db1", "10.203.0.10", None),
        ("dev1", "10.203.0.11", "dev"),
        ("prod1", "10.203.0.21", "prod"),
    ]


def test_the_test_lab_has_its_own_subnet() -> None:
    assert Lab.from_environment({"LAB_NAME": "test"}).address("prod2") == "10.203.1.22"


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"LAB_NAME": "Lab"}, "LAB_NAME"),
        ({"LAB_NAME": "ninechars"}, "LAB_NAME"),
        ({"LAB_NAME": "../x"}, "LAB_NAME"),
        ({"LAB_NAME": "other"}, "LAB_SUBNET"),
        ({"LAB_SUBNET": "10.1.2.3/24"}, "LAB_SUBNET"),
        ({"LAB_SUBNET": "10.1.0.0/16"}, "LAB_SUBNET"),
        ({"LAB_SUBNET": "8.8.8.0/24"}, "LAB_SUBNET"),
        ({"LAB_RELEASE": "buster"}, "LAB_RELEASE"),
        ({"PROD_HOSTS": "many"}, "PROD_HOSTS"),
    ],
)
def test_a_wrong_setting_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(LabError, match=named):
        Lab.from_environment(environ)


@pytest.mark.parametrize("name", ["eightchr", "a"])
@pytest.mark.parametrize("host", ["db1", "prod9", "bare99"])
def test_interface_names_fit_the_kernel(name: str, host: str) -> None:
    lab = Lab.from_environment({"LAB_NAME": name, "LAB_SUBNET": "10.9.9.0/24"})
    assert len(lab.bridge) <= 15
    assert len(lab.veth(host)) <= 15


def test_no_two_hosts_share_an_address() -> None:
    names = ["db1", *(f"{kind}{number}" for kind in ("dev", "prod") for number in range(1, 10))]
    names += [f"bare{number}" for number in range(1, 100)]
    assert len({host_octet(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["db2", "web1", "prod10", "dev0", "dev", "dev01", "bare100", "dev1;x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="no host can be called"):
        host_octet(name)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("bare1", HostSpec("bare1", "trixie", "ungrouped")),
        ("bare1:bookworm", HostSpec("bare1", "bookworm", "ungrouped")),
        ("bare1:bookworm:dev", HostSpec("bare1", "bookworm", "dev")),
        ("prod2", HostSpec("prod2", "trixie", "prod")),
    ],
)
def test_host_option(text: str, spec: HostSpec) -> None:
    assert parse_host(text, "trixie") == spec


@pytest.mark.parametrize("text", ["bare1:buster", "bare1::no-such", "db1", ""])
def test_wrong_host_option(text: str) -> None:
    with pytest.raises(LabError):
        parse_host(text, "trixie")


def test_logins_are_those_of_the_cloud_images() -> None:
    assert HostSpec("dev1", "trixie", "dev").login == "admin"
    assert HostSpec("dev1", "noble", "dev").login == "ubuntu"
