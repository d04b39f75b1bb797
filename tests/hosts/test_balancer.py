"""Several hosts behind a load balancer: a lab of its own, in which HAProxy on a further host stands for an ALB.

No request is lost while hosts leave and join, and all but one serve at any time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import yaml

from tests.hosts.conftest import REPORTS, Watch, probe_hosts
from tests.hosts.test_zero_loss import HEALTH, MAIN, REFUSES_ITSELF, new_code
from tests.hosts.world import UNPROVEN, World, world

pytestmark = [pytest.mark.lab, pytest.mark.long]
PROXY = "bare1"
FIRST = ("prod1", "prod2", "prod3")
LAST = "prod4"
ALL = (*FIRST, LAST)
BACKEND = "nba-prod"
CONFIGURATION = """
global
    stats socket /run/haproxy/admin.sock mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 5s
frontend web
    bind :80
    default_backend {backend}
backend {backend}
    balance roundrobin
    option httpchk
    http-check send meth GET uri /api/health/ready ver HTTP/1.1 hdr Host {backend}
{servers}
"""
# Writes what HAProxy says of each server, ten times a second.
SAMPLER = """
import csv, json, socket, time
while True:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect("/run/haproxy/admin.sock")
        stream.sendall(b"show stat\\n")
        text = stream.makefile().read().lstrip("# ")
    rows = csv.DictReader(text.splitlines())
    print(json.dumps({row["svname"]: row["status"] for row in rows if row["svname"].startswith("prod")}), flush=True)
    time.sleep(0.1)
"""
TELL = """
import socket, sys
with socket.socket(socket.AF_UNIX) as stream:
    stream.connect("/run/haproxy/admin.sock")
    stream.sendall(sys.argv[1].encode())
"""


@dataclass(frozen=True)
class Balanced:
    """The lab with its load balancer."""

    here: World
    inventory: tuple[str, ...]
    probing: Callable[..., AbstractContextManager[Watch]]

    def run(self, playbook: str, *arguments: str) -> tuple[str, ...]:
        """Return the arguments of ansible-playbook for a run on prod."""
        return (playbook, *self.inventory, "-l", "prod", *UNPROVEN, *arguments)

    def members(self) -> dict[str, str]:
        """Return the state of each server, as HAProxy has it."""
        script = SAMPLER.replace("while True", "for _ in (1,)")
        found: dict[str, str] = json.loads(self.here.execute(PROXY, "python3", "-c", script))
        return found

    @contextmanager
    def sampled(self) -> Iterator[list[dict[str, str]]]:
        """Yield a list that is filled, at the end, with the states of all servers meanwhile."""
        samples: list[dict[str, str]] = []
        self.here.write(PROXY, "/run/sampler.py", SAMPLER)
        self.here.shell(
            PROXY, "systemd-run --unit sampler -p StandardOutput=truncate:/run/samples python3 /run/sampler.py"
        )
        try:
            yield samples
        finally:
            self.here.shell(PROXY, "systemctl stop sampler")
            samples += [json.loads(line) for line in self.here.shell(PROXY, "cat /run/samples").splitlines()]

    def live(self) -> dict[str, str]:
        """Return the live release of each host."""
        return {host: str(self.here.status(host)["live"]) for host in self.hosts()}

    def hosts(self) -> list[str]:
        """Return the hosts of prod that are booted."""
        listing = json.loads((self.here.root / f".lab/{self.here.name}/inventory.json").read_text())
        return list(listing["prod"]["hosts"])


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Balanced]:
    """Return three converged hosts of prod behind a load balancer, which knows a fourth that is not there yet."""
    boot = ("--prod-hosts", str(len(FIRST)), "--host", f"{PROXY}:trixie:balancer")
    with world(tmp_path_factory.mktemp("scale"), "scale", *boot) as here:
        inventory = here.root / "balancer.yml"
        where = {"load_balancer_kind": "haproxy", "load_balancer_host": PROXY}
        inventory.write_text(yaml.safe_dump({"prod": {"vars": where}}))
        install_proxy(here)
        reports = request.config.stash[REPORTS]
        made = Balanced(
            here, ("-i", "inventory/lab", "-i", str(inventory)), partial(probe_hosts, here, [PROXY], reports)
        )
        here.ansible(*made.run("site.yml")).succeeded()
        yield made


def install_proxy(here: World) -> None:
    """Run HAProxy with all hosts in maintenance: what gets requests is up to the role."""
    names = here.address("prod1").rpartition(".")[0]
    servers = [f"    server {name} {names}.{20 + int(name[4:])}:80 check inter 500ms disabled" for name in ALL]
    here.shell(PROXY, "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq haproxy")
    here.write(PROXY, "/etc/haproxy/haproxy.cfg", CONFIGURATION.format(backend=BACKEND, servers="\n".join(servers)))
    here.shell(PROXY, "haproxy -c -q -f /etc/haproxy/haproxy.cfg && systemctl restart haproxy")


def test_hosts_get_requests_once_they_serve(balanced: Balanced) -> None:
    assert balanced.members() == {**dict.fromkeys(FIRST, "UP"), LAST: "MAINT"}
    assert balanced.here.get(PROXY, "/").status == 200
    again = balanced.here.ansible(*balanced.run("site.yml")).succeeded()
    assert again.changes() == []


def test_a_host_that_was_left_out_comes_back(balanced: Balanced) -> None:
    """As an interrupted run leaves it."""
    balanced.here.execute(PROXY, "python3", "-c", TELL, f"disable server {BACKEND}/prod2\n")
    assert balanced.members()["prod2"] == "MAINT"
    run = balanced.here.ansible(*balanced.run("playbooks/deploy.yml")).succeeded()
    assert run.changes() == ["balancer : Set the state of the server in HAProxy: prod2"]
    assert balanced.members()["prod2"] == "UP"


def test_a_deploy_takes_one_host_out_after_the_other(balanced: Balanced) -> None:
    before = balanced.live()
    with (
        balanced.here.edited(MAIN, new_code("behind a load balancer"), commit=True),
        balanced.probing("deploy behind a load balancer, 3 hosts"),
        balanced.sampled() as samples,
    ):
        balanced.here.ansible(*balanced.run("playbooks/deploy.yml")).succeeded()
    after = balanced.live()
    assert len(set(after.values())) == 1 and after != before
    assert min(len(FIRST) - len(out(sample)) for sample in samples) == len(FIRST) - 1
    assert set().union(*map(out, samples)) == set(FIRST)
    assert balanced.members() == {**dict.fromkeys(FIRST, "UP"), LAST: "MAINT"}


def out(sample: dict[str, str], hosts: tuple[str, ...] = FIRST) -> set[str]:
    """Return the hosts that get no requests. `UP 1/3` gets some: it has not been checked three times yet."""
    return {host for host in hosts if not sample[host].startswith("UP")}


def test_a_host_that_fails_stops_the_rest_and_all_go_back(balanced: Balanced) -> None:
    before, line = balanced.live(), "    _, reason = await _schema(request)\n"
    with (
        balanced.here.edited(HEALTH, lambda text: text.replace(line, REFUSES_ITSELF + line), commit=True),
        balanced.probing("one of 3 hosts fails behind a load balancer"),
        balanced.sampled() as samples,
    ):
        refused = balanced.here.ansible(*balanced.run("playbooks/deploy.yml"))
    assert refused.code != 0
    assert balanced.live() == before
    assert balanced.members() == {**dict.fromkeys(FIRST, "UP"), LAST: "MAINT"}
    # prod2 is the one that refuses: from then on no other host is taken out.
    taken_out = [out(sample) for sample in samples]
    assert set().union(*taken_out[taken_out.index({"prod2"}) :]) == {"prod2"}


def test_a_new_host_joins_and_a_dead_one_blocks_nobody(balanced: Balanced) -> None:
    here = balanced.here
    here.lab("up", "--prod-hosts", str(len(ALL)))
    with balanced.probing("a fourth host joins"), balanced.sampled() as samples:
        here.ansible(*balanced.run("site.yml")).succeeded()
    assert len(set(balanced.live().values())) == 1
    assert balanced.members() == dict.fromkeys(ALL, "UP")
    # The others change their release meanwhile: what the test before had deployed is in Git no more.
    assert max(len(out(sample)) for sample in samples) <= 1
    # The new one is a host like the others.
    before = balanced.live()
    with (
        here.edited(MAIN, new_code("on all four"), commit=True),
        balanced.probing("deploy behind a load balancer, 4 hosts"),
        balanced.sampled() as samples,
    ):
        here.ansible(*balanced.run("playbooks/deploy.yml")).succeeded()
    after = balanced.live()
    assert set(after) == set(ALL) and len(set(after.values())) == 1
    assert all(after[host] != before[host] for host in ALL)
    taken_out = [out(sample, ALL) for sample in samples]
    assert max(map(len, taken_out)) == 1 and set().union(*taken_out) == set(ALL)
    assert balanced.members() == dict.fromkeys(ALL, "UP")
    # With the sessions, one of which Ansible keeps.
    here.shell(LAST, "systemctl stop ssh.socket ssh.service; pkill sshd", check=False)
    try:
        with here.edited(MAIN, new_code("without the fourth host"), commit=True):
            with balanced.probing("deploy with a host that does not answer"):
                blocked = here.ansible(*balanced.run("playbooks/deploy.yml", "-e", "every_host=true"))
                assert blocked.code != 0 and "Name the release" not in blocked.output
                run = here.ansible(*balanced.run("playbooks/deploy.yml"))
            assert run.code != 0 and re.search(rf"^{LAST} .* unreachable=1 ", run.output, re.MULTILINE)
            live = balanced.live()
            assert len({live[host] for host in FIRST}) == 1 and live[LAST] != live["prod1"]
            here.shell(LAST, "systemctl start ssh.service")
            here.ansible(*balanced.run("playbooks/deploy.yml")).succeeded()
            assert len(set(balanced.live().values())) == 1
    finally:
        here.shell(LAST, "systemctl start ssh.service")
