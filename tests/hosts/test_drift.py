"""All that the roles manage is damaged: drift.yml names it, site.yml repairs it, and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.hosts.conftest import PROD, Converged, Summary
from tests.hosts.mutations import DAMAGE, ROUNDS, STATES, Mutation, managed, of_files
from tests.hosts.world import UNPROVEN, Run, World

pytestmark = [pytest.mark.lab, pytest.mark.long]
DRIFT = 3
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMineMineMineMineMineMineMineMineMineMineMine ada"
LOGINS = ("-e", json.dumps({"login_accounts": [{"name": "ada", "keys": [KEY], "sudo": True}]}))
TOGETHER = ("-l", "prod", *LOGINS, *UNPROVEN)
# Accounts, folders and holds that no role knows.
TIDY = """
userdel --remove ada
sed -i "s/^nba:x:[0-9]*:/nba:x:{number}:/" /etc/passwd
rm -rf /root/aside-* /root/version
touch /root/folders
sort -r /root/folders | while read -r folder; do test ! -d "$folder" || rmdir --ignore-fail-on-non-empty "$folder"; done
rm /root/folders
apt-mark unhold default-mysql-client >/dev/null
"""


@pytest.fixture
def with_a_login(here: World, converged: Converged) -> Iterator[None]:
    """Give prod a login account, and take it away again, with what the damage leaves that is no drift."""
    numbers = {host: here.shell(host, "id -u nba").strip() for host in PROD}
    try:
        here.ansible("site.yml", *TOGETHER).succeeded()
        yield
    finally:
        for host in PROD:
            here.shell(host, TIDY.format(number=numbers[host]))
        here.ansible("site.yml", "-l", "prod", *UNPROVEN).succeeded()


def look(here: World, *extra: str) -> tuple[Run, list[dict[str, Any]]]:
    """Run drift.yml and return what it said, and its records."""
    report = here.root / ".drift.json"
    run = here.ansible("playbooks/drift.yml", *TOGETHER, *extra, "-e", f"drift_json={report}")
    return run, json.loads(report.read_text())["drift"] if report.exists() else []


def states(here: World, host: str, paths: list[str]) -> dict[str, Any]:
    """Return what stands at each path."""
    found: dict[str, Any] = json.loads(here.execute(host, "python3", "-c", STATES, *paths))
    return found


def do(here: World, host: str, mutations: list[Mutation]) -> None:
    """Damage a host; every script must have worked."""
    scripts = [f"(set -e; {one.script}) >/dev/null || echo 'did not work: {one.what} {one.kind}'" for one in mutations]
    said = here.shell(host, "\n".join([*scripts, "echo done"]), check=False)
    assert said == "done\n", said
    for one in mutations:
        if one.sql:
            here.sql("nba_prod", one.sql)


def names(mutation: Mutation, host: str, records: list[dict[str, Any]]) -> bool:
    """Return True if a record names what was damaged."""
    return any(
        record["host"] == host
        and (mutation.what in record["resource"] or mutation.what == record["task"])
        and mutation.task in record["task"]
        for record in records
    )


@dataclass(frozen=True)
class Outcome:
    """How many things were damaged in a round, those that were not named, and those that were not repaired."""

    total: int
    missed: list[str]
    left: list[str]


def one_round(here: World, number: int, poetry: str) -> Outcome:
    """Damage both hosts, look, repair, and see that nothing is left to do."""
    paths = [path for path, _ in managed(poetry)]
    before = {host: states(here, host, paths) for host in PROD}
    damaged = {host: [*DAMAGE[index, number], *of_files(poetry, index, number)] for index, host in enumerate(PROD)}
    for host in PROD:
        do(here, host, damaged[host])
    hurt = {host: states(here, host, paths) for host in PROD}
    run, records = look(here)
    assert run.code == DRIFT, run.output[-6000:]
    assert {host: states(here, host, paths) for host in PROD} == hurt, "drift.yml changed something"
    here.ansible("site.yml", *TOGETHER).succeeded()
    again = here.ansible("site.yml", *TOGETHER).succeeded()
    assert again.changes() == [], f"round {number + 1}"
    missed: list[str] = []
    left: list[str] = []
    for host in PROD:
        after = states(here, host, paths)
        scripts = [f"({one.restored}) >/dev/null 2>&1 && echo well || echo bad" for one in damaged[host]]
        well = here.shell(host, "\n".join(scripts)).split()
        for one, said in zip(damaged[host], well, strict=True):
            where = f"round {number + 1}, {host}: {one.what} ({one.kind})"
            was, now = before[host].get(one.what), after.get(one.what)
            missed += [] if names(one, host, records) else [where]
            left += [] if was == now and said == "well" else [f"{where}: {was} -> {now}"]
    return Outcome(sum(map(len, damaged.values())), missed, left)


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.long) for number in range(1, ROUNDS))])
def test_what_people_change_is_named_and_repaired(
    here: World, with_a_login: None, summary: Summary, number: int
) -> None:
    poetry = here.shell("prod1", "ls -d /opt/poetry-*").strip()
    run, records = look(here)
    assert (run.code, records) == (0, []), run.output[-3000:]
    found = one_round(here, number, poetry)
    caught, repaired = found.total - len(found.missed), found.total - len(found.left)
    summary(f"what people change, round {number}", f"{caught} of {found.total} caught, {repaired} repaired")
    assert not found.missed and not found.left, "\n".join(["not named:", *found.missed, "not repaired:", *found.left])
