"""A snapshot before a migration, as roles/app includes it on the host that migrates, on a database of moto's."""

from __future__ import annotations

import fnmatch
import json
import subprocess
from collections.abc import Callable

import pytest

from tests.aws.conftest import Cloud
from tests.support import ROOT

pytestmark = pytest.mark.aws
KEPT = 3
# roles/app includes it in such a place: as root, on the first host.
PLAY = """
- name: Deploy
  hosts: dev1
  become: true
  gather_facts: false
  tasks:
    - name: Before the schema changes
      ansible.builtin.include_tasks: "{{ app_before_schema_change }}"
      when: app_before_schema_change | length > 0
"""
# As inventory/aws finds them.
HOSTS = """
all:
  children:
    dev:
      hosts: {dev1: , dev2: }
      vars: {ansible_become_exe: nobody-calls-this, database_instance: nba-dev}
"""
Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def deploy(cloud: Cloud) -> Deploy:
    """Return what runs the play on an empty account; it is told other values of variables than `KEPT` snapshots."""
    cloud.prepare()
    root = cloud.project.root
    (root / "playbooks/changes_schema.yml").write_text(PLAY)
    (root / "inventory/test/hosts.yml").write_text(HOSTS)

    def run(**values: object) -> subprocess.CompletedProcess[str]:
        play = ("ansible-playbook", "-i", "inventory/test", "playbooks/changes_schema.yml", "-l", "dev")
        return cloud.noted("snapshot", *play, "-e", json.dumps({"database_snapshots": KEPT, **values}))

    return run


def snapshots(cloud: Cloud) -> list[str]:
    """Return the names of the snapshots that somebody took."""
    found = cloud.client("rds").describe_db_snapshots()["DBSnapshots"]
    return sorted(each["DBSnapshotIdentifier"] for each in found if each["SnapshotType"] == "manual")


def test_the_newest_snapshots_are_kept(cloud: Cloud, deploy: Deploy) -> None:
    rds = cloud.client("rds")
    size = {"Engine": "mysql", "DBInstanceClass": "db.t4g.micro", "AllocatedStorage": 20}
    rds.create_db_instance(DBInstanceIdentifier="nba-dev", MasterUsername="a", MasterUserPassword="secret-ab", **size)
    old = [f"nba-dev-before-2025010{day}-000000" for day in range(1, KEPT + 1)]
    for name in (*old, "nba-dev-final-20240101-000000"):
        rds.create_db_snapshot(DBInstanceIdentifier="nba-dev", DBSnapshotIdentifier=name)

    for asked_for_none in ({"database_snapshots": 0}, {"skip_backup": True}):
        assert deploy(**asked_for_none).returncode == 0
        assert len(snapshots(cloud)) == KEPT + 1

    done = deploy()
    assert done.returncode == 0, done.stdout
    *kept, new, last = snapshots(cloud)
    assert kept == old[1:]
    assert new.startswith("nba-dev-before-20") and new > old[-1]
    assert last == "nba-dev-final-20240101-000000"

    # Manually, also if dev takes none by itself: the newest one is kept.
    done = cloud.play("snapshot", "-l", "dev")
    assert done.returncode == 0, done.stdout
    assert len(snapshots(cloud)) == 2

    policy = json.loads((ROOT / "docs/policies/snapshot.json").read_text())
    allowed = [action for statement in policy["Statement"] for action in statement["Action"]]
    refused = {
        action for action in cloud.called["snapshot"] if not any(fnmatch.fnmatchcase(action, each) for each in allowed)
    }
    assert refused == set()


def test_no_snapshot_means_no_migration(cloud: Cloud, deploy: Deploy) -> None:
    cloud.prepare()
    done = deploy()
    assert done.returncode == 2
    assert "Take a snapshot: " in done.stdout
    assert "nba-dev" in done.stdout
