"""What one client, one worker or a release that somebody took over can do to the service, and what not."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.probe import FORGET, Probe
from tests.hosts.world import World, await_true

pytestmark = pytest.mark.lab
HOST = "dev1"
HOSTS = (HOST, "bare1")  # Debian 13 and 12, whose systemd are five years of releases apart
# Variables of a shell on a host: the live slot, its unit, main process, control group and account.
LIVE = """
slot=$(basename $(readlink /srv/nba/live)); unit=nba@$slot.service; main=$(systemctl show -P MainPID $unit)
group=/sys/fs/cgroup$(systemctl show -P ControlGroup $unit)
other=$(test $slot = blue && echo green || echo blue)
as() { account=$1; shift; setpriv --reuid $account --regid nba --init-groups "$@"; }
"""
# Longer than any request of a test waits.
PARTIAL = b"POST /api/users HTTP/1.1\r\nHost: dev1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"


def status(here: World, path: str) -> int:
    """Return the status that a path is answered with; 0 if it is not."""
    try:
        return here.get(HOST, path).status
    except OSError:
        return 0


@pytest.mark.parametrize("host", HOSTS)
def test_the_live_release_can_neither_signal_what_comes_nor_read_its_settings(
    here: World, converged: Converged, host: str
) -> None:
    said = here.shell(
        host,
        f"""{LIVE}
        mkdir -p /srv/nba/releases/.other && echo secret >/srv/nba/releases/.other/.env
        chgrp -R nba /srv/nba/releases/.other && chmod 640 /srv/nba/releases/.other/.env
        setpriv --reuid nba-$other --regid nba --init-groups sleep 60 >/dev/null &
        until test "$(ps -o user= -p $!)" = nba-$other; do sleep 0.1; done
        as nba-$slot kill -KILL $! 2>/dev/null; echo signal: $?
        kill $!
        inside() {{ nsenter --mount --target $main setpriv --reuid nba-$slot --regid nba --init-groups "$@"; }}
        inside cat /srv/nba/releases/.other/.env 2>/dev/null; echo read: $?
        inside ls /srv/nba/releases | wc -l
        inside test -r /srv/nba/slots/$slot/release/.env; echo own: $?
        rm -r /srv/nba/releases/.other
        """,
    )
    assert said.split("\n") == ["signal: 1", "read: 1", "1", "own: 0", ""]


@pytest.mark.parametrize("host", HOSTS)
def test_a_worker_cannot_pose_as_the_main_process(here: World, converged: Converged, host: str) -> None:
    """systemd would watch that one, and stop the service when it ends."""
    before, after = here.shell(
        host,
        f"""{LIVE}
        echo $main
        sh -c "echo \\$\\$ >$group/cgroup.procs
               NOTIFY_SOCKET=/run/systemd/notify exec setpriv --reuid nba-$slot --regid nba --init-groups \\
                   systemd-notify MAINPID=\\$\\$"
        systemctl show -P MainPID $unit
        """,
    ).split()
    assert before == after


@pytest.mark.parametrize("host", HOSTS)
def test_the_application_reaches_neither_the_metadata_nor_ssh(here: World, converged: Converged, host: str) -> None:
    address = here.address("prod1")
    said = here.shell(
        host,
        f"""
        reaches() {{ "$@" timeout 5 bash -c ": </dev/tcp/$place" 2>/dev/null && echo "$place"; }}
        for place in 169.254.169.254/80 {address}/22 {address}/80; do
            for account in nba-blue nba-green nba nba-migrate; do
                reaches setpriv --reuid $account --regid $(id -g $account) --init-groups
            done
        done
        place={address}/22; reaches env
        """,
    )
    assert said.split() == [f"{address}/80"] * 4 + [f"{address}/22"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_worker_killed_for_memory_does_not_stop_the_slot(here: World, converged: Converged, host: str) -> None:
    """Lab hosts have no memory controller: the mark of systemd-oomd, which the same policy answers, stands for it."""
    before, after, state = here.shell(
        host,
        f"""{LIVE}
        echo $main
        told() {{ journalctl --quiet --unit $unit --grep "systemd-oomd killed" | wc -l; }}
        known=$(told)
        python3 -c 'import os, sys
for name in ("user.oomd_kill", "user.oomd_ooms"):
    known = os.getxattr(sys.argv[1], name) if name in os.listxattr(sys.argv[1]) else b"0"
    os.setxattr(sys.argv[1], name, str(int(known) + 1).encode())
' $group
        # systemd looks when it reaps a process of the unit itself: one whose parent has ended.
        (sh -c "echo \\$\\$ >$group/cgroup.procs; exec setsid sleep 300" &)
        until orphan=$(pgrep -xf "sleep 300"); do sleep 0.1; done
        kill -KILL $orphan
        until test $(told) -gt $known; do sleep 0.1; done
        systemctl show -P MainPID $unit; systemctl show -P SubState $unit
        """,
    ).split()
    assert (after, state) == (before, "running")


def test_nginx_comes_back_when_it_dies(here: World, converged: Converged) -> None:
    before = here.shell(HOST, "cat /run/nginx.pid; kill -KILL $(cat /run/nginx.pid)").strip()
    await_true(lambda: here.shell(HOST, "cat /run/nginx.pid", check=False).strip() not in ("", before), 20, "another")
    await_true(lambda: status(here, "/") == 200, 20, "it answers")


def test_renewed_certificates_are_used_without_a_loss(here: World, converged: Converged) -> None:
    before = here.status(HOST)
    with Probe(here.address(HOST), 30) as probe:
        await_true(lambda: len(probe.samples) > 20, 30, "the probe is answered")
        here.execute(HOST, "update-ca-certificates")
        await_true(lambda: here.status(HOST)["slot"] != before["slot"], 60, "it runs in the other slot")
        await_true(lambda: not here.status(HOST)["running"], 60, "the run has ended")
    after = here.status(HOST)
    assert (after["live"], after["problems"], probe.failed) == (before["live"], [], [])
    last = json.loads(here.execute(HOST, "nba-release", "log").splitlines()[-1])
    assert (last["kind"], last["by"]) == ("repair", "certificates")
    here.sql("nba_dev", FORGET)


@contextmanager
def unfinished(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Begin requests of one client that never end; nginx waits for the rest of their bodies."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((address, 80), timeout=10)) for _ in range(count)]
        for client in clients:
            client.sendall(PARTIAL)
        yield clients


def of_those_answered(clients: list[socket.socket], count: int) -> list[socket.socket]:
    """Return the clients that have an answer if there are as many; nginx takes connections in any order."""
    found = select.select(clients, [], [], 1)[0]
    return found if len(found) == count else []


def test_one_client_takes_no_more_than_its_share(here: World, converged: Converged) -> None:
    with unfinished(here.address(HOST), 110) as clients:
        answered = await_true(lambda: of_those_answered(clients, 10), 10, "ten are answered")
        assert [client.recv(12) for client in answered] == [b"HTTP/1.1 429"] * 10
        assert here.get(HOST, "/api/users").status == 429
        # The health path is, for a client. Another client is not, nor the host's own question.
        await_true(lambda: here.get(HOST, "/api/health/ready").status == 429, 10, "so is the health path")
        asks = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).status)"
        assert here.execute("bare1", "python3", "-c", asks, f"http://{here.address(HOST)}/api/users") == "200\n"
        assert here.execute(HOST, "python3", "-c", asks, "http://127.0.0.1/api/health/ready") == "200\n"
    await_true(lambda: here.get(HOST, "/api/users").status == 200, 10, "its requests have ended")


# More at once than the lowered limit lets through.
OWN_QUESTIONS = """python3 -c 'import urllib.request as r
for _ in range(5): print(r.urlopen("http://127.0.0.1/api/health/ready").status)'"""


def test_one_client_asks_no_more_often_than_it_may(here: World, converged: Converged) -> None:
    """At a rate that the slowest machine exceeds; the rest is as the role has it."""
    files = "/etc/nginx/nginx.conf /etc/nginx/snippets/nba-proxy.conf"
    lower = f"sed -i 's/rate=200r/rate=1r/; s/burst=400/burst=2/' {files}"
    here.shell(HOST, f"tar -cPf /root/nginx.tar {files} && {lower} && nginx -s reload")
    try:
        await_true(lambda: here.get(HOST, "/api/version").status == 429, 10, "it is limited")
        await_true(lambda: here.get(HOST, "/api/health/ready").status == 429, 10, "so is the health path")
        assert here.shell(HOST, OWN_QUESTIONS) == "200\n" * 5
        assert here.get(HOST, "/").status == 200
    finally:
        here.shell(HOST, "tar -xPf /root/nginx.tar && rm /root/nginx.tar && nginx -s reload")
    await_true(lambda: here.get(HOST, "/api/version").status == 200, 10, "it is as it was")


IN_A_SANDBOX = """
import subprocess, sys
sys.path.insert(0, "/usr/local/lib/nba")
from builder import Builder
from slots import Config
done = Builder(Config.load()).run("nba-build.service", "nba-build", [], ("/bin/sh", "-c", sys.argv[1]))
print(done.stdout + done.stderr, end="")
"""


@pytest.mark.parametrize("host", HOSTS)
def test_a_build_writes_no_memory_of_the_host(here: World, converged: Converged, host: str) -> None:
    inside = "echo found >/dev/shm/of-a-build && cat /dev/shm/of-a-build; ls /dev/shm; test -w /dev/null; echo $?"
    said = here.execute(host, "python3", "-c", IN_A_SANDBOX, inside)
    assert said.split("\n")[:3] == ["found", "of-a-build", "0"]
    assert "of-a-build" not in here.shell(host, "ls /dev/shm")
