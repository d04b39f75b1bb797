"""Releases as containers under systemd, on one host of dev: the same gates, the same switch, and no request is lost.

No registry need be reached: the base image is the host's own system. A lab host has no controllers of control groups:
the limits of memory and processes, which the units set for either kind of release, are not tried here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts.conftest import Converged, Summary
from tests.hosts.probe import FORGET, Probe
from tests.hosts.world import World, await_true

pytestmark = [pytest.mark.lab, pytest.mark.long]
HOST = "dev1"
BASE = "localhost/system:lab"
APP = ("playbooks/app.yml", "-l", HOST)
MAIN = "app/nba/main.py"
# The machine's disk is an overlay already, on which there can be no other.
STORAGE = "mkdir -p /var/lib/containers && mount -t tmpfs -o mode=700 tmpfs /var/lib/containers"
IMPORT = f"""
tar -C / -c --one-file-system --exclude=usr/share/doc --exclude=usr/share/man --exclude=usr/share/locale \
  bin lib lib64 sbin usr etc var/lib/dpkg | podman import - {BASE}
"""
# What parity.yml compares, and a purge of packages might leave; which slot is live does not count.
PACKAGES = "dpkg-query -W -f '${Package}\\n'"
TRACES = f"""
{PACKAGES}
find /etc /usr/local /opt -path '*/__pycache__' -prune -o ! -name '*@blue.*' ! -name '*@green.*' -print
"""
FORGET_RELEASES = """
cd /srv/nba
for facts in $(grep -l '"runtime": "container"' releases/*/release.json); do
    id=$(basename "$(dirname "$facts")")
    rm -rf "releases/$id" "state/$id.json" "state/releases-$id.files"
done
rm -f images/*
"""
TIDY = """
podman system reset --force
apt-get purge --yes {packages}
umount /var/lib/containers
find /etc/systemd/user -xtype l -delete
rm -rf /var/lib/containers /var/lib/cni /etc/cni
"""


@pytest.fixture
def containers(here: World, converged: Converged) -> Iterator[None]:
    """Run releases as containers, and leave the host as it was before, with the release that it had."""
    before, packages = set(here.shell(HOST, TRACES).splitlines()), set(here.shell(HOST, PACKAGES).split())
    here.shell(HOST, STORAGE)
    try:
        with here.edited(
            "group_vars/all/vars.yml",
            lambda text: text.replace("app_runtime: venv", "app_runtime: container").replace(
                'app_image_base: ""', f"app_image_base: {BASE}"
            ),
        ):
            yield
    finally:
        here.ansible(*APP).succeeded()
        here.shell(HOST, FORGET_RELEASES)
        # Not by --auto-remove, which leaves what some other package recommends.
        brought = set(here.shell(HOST, PACKAGES).split()) - packages
        here.shell(HOST, TIDY.format(packages=" ".join(sorted(brought))))
        assert set(here.shell(HOST, TRACES).splitlines()) ^ before == set()
        assert here.status(HOST)["problems"] == []


@contextmanager
def probed(here: World, summary: Summary, case: str) -> Iterator[Probe]:
    """Send requests all the time; no request may fail, and no acknowledged write be lost."""
    with Probe(here.address(HOST), 30) as probe:
        await_true(lambda: len(probe.samples) > 20, 30, "the probe is answered")
        yield probe
        probe.stop()
    assert (probe.failed, probe.missing()) == ([], [])
    here.sql("nba_dev", FORGET)
    summary(case, f"{len(probe.samples)} requests, {len(probe.failed)} failed")


def live(here: World) -> str:
    """Return the release that answers, after asserting that all is well with it."""
    status = here.status(HOST)
    assert status["problems"] == []
    assert here.get(HOST, "/api/version").json()["release"] == status["live"]
    return str(status["live"])


def podman(here: World, *arguments: str) -> str:
    return here.execute(HOST, "podman", *arguments)


def test_releases_are_containers_and_virtual_environments_again(
    here: World, containers: None, summary: Summary
) -> None:
    venv = live(here)
    with probed(here, summary, "releases that are containers") as probe:
        # The role brings podman. Without its base an image cannot be built, and nothing is switched.
        refused = here.ansible(*APP)
        assert refused.code != 0 and "app_image_base in group_vars/all/vars.yml" in refused.output
        assert live(here) == venv

        here.shell(HOST, IMPORT)
        here.ansible(*APP).succeeded()
        first = live(here)
        assert first != venv
        look_at_the_container(here, first)
        assert here.ansible(*APP).succeeded().changed() == {HOST: 0}

        with here.edited(MAIN, lambda text: f"{text}# another version\n", commit=True):
            here.ansible(*APP).succeeded()
            second = live(here)
        here.ansible("playbooks/rollback.yml", "-l", HOST).succeeded()
        assert live(here) == first != second

        with here.edited(MAIN, lambda text: f"{text}raise RuntimeError('on purpose')\n", commit=True):
            failed = here.ansible(*APP)
            assert failed.code != 0 and "RuntimeError: on purpose" in failed.output
        assert live(here) == first

        # Somebody took the image away from under the release.
        image = podman(here, "container", "inspect", "--format={{.ImageName}}", container(here)).strip()
        podman(here, "image", "untag", image)
        assert here.status(HOST)["problems"] == [f"the image of {first}: {image} is gone"]
        here.ansible(*APP).succeeded()
        assert live(here) == first

        # Somebody took away what runs it.
        here.shell(HOST, "dpkg --remove --force-depends crun")
        assert here.ansible(*APP).succeeded().changed()[HOST] > 0
        assert here.shell(HOST, "command -v crun") != ""
        assert live(here) == first

        # Back to the other kind, by nothing but the release.
        here.ansible("playbooks/rollback.yml", "-l", HOST, "-e", f"release={venv}").succeeded()
        assert live(here) == venv
        assert here.shell(HOST, "podman ps --quiet; ls /usr/local/lib/systemd/system") == ""
    assert sum(name == "switch" for _, name in probe.marks) == 4


def container(here: World) -> str:
    """Return the name of the live container."""
    return f"nba-{here.status(HOST)['slot']}"


def look_at_the_container(here: World, release: str) -> None:
    """Check that it may do no more than it has to, that no secret is in it, and that the journal has its lines."""
    found = json.loads(podman(here, "container", "inspect", container(here)))[0]
    process = here.shell(HOST, f"cat /proc/{found['State']['Pid']}/status /proc/{found['State']['Pid']}/cgroup")
    slot = here.status(HOST)["slot"]
    number = here.execute(HOST, "id", "-u", f"nba-{slot}").strip()
    assert re.search(rf"^Uid:\t{number}\t{number}\t{number}\t{number}$", process, re.M)
    assert re.search(r"^CapEff:\t0+$", process, re.M) and re.search(r"^NoNewPrivs:\t1$", process, re.M)
    assert process.strip().endswith(f"/nba@{slot}.service"), "it is in the unit's own control group"
    assert found["HostConfig"]["ReadonlyRootfs"]
    password = here.secrets("dev")["vault_database_password"]
    images = podman(here, "image", "inspect", found["ImageName"])
    assert password not in json.dumps(found, ensure_ascii=False) + images
    labels, version = json.loads(images)[0]["Labels"], here.get(HOST, "/api/version").json()
    assert labels["io.waffle-iron.lock"] == version["lock"]
    assert labels["org.opencontainers.image.revision"] == version["commit"]
    # The Containerfile writes the kind of digest before it, a host's own label has none.
    assert labels["io.waffle-iron.artefact"].removeprefix("sha256:") == version["artefact"]
    logged = here.execute(HOST, "journalctl", "--output=cat", "-n", "50", "-t", f"nba-{slot}").splitlines()
    assert any(
        json.loads(line)["message"].startswith(f"started release {release}") for line in logged if line[:1] == "{"
    )
