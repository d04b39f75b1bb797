"""A snapshot before each deploy, by the hook that docs/aws.md has, on a database of moto's."""

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
# roles/app includes the hook in such a place: as root, on every host of the run.
PLAY = """
- name: Deploy
  hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Before the migration
      ansible.builtin.include_tasks: "{{ checkout }}/hooks/before_migrate.yml"
"""
HOSTS = "all: {children: {dev: {hosts: {dev1: , dev2: }}}, vars: {ansible_become_exe: nobody-calls-this}}\n"
Deploy = Callable[[bool], subprocess.CompletedProcess[str]]


@pytest.fixture
def deploy(cloud: Cloud) -> Deploy:
    """Return what runs the documented hook, on an empty account; it is told whether the environment is protected."""
    cloud.prepare()
    root = cloud.project.root
    section = (ROOT / "docs/aws.md").read_text().partition("## A snapshot before each deploy")[2]
    (root / "hooks").mkdir(exist_ok=True)
    (root / "hooks/before_migrate.yml").write_text(section.partition("```yaml\n")[2].partition("```")[0])
    (root / "playbooks/hook.yml").write_text(PLAY)
    (root / "inventory/test/hosts.yml").write_text(HOSTS)

    def run(protected: bool) -> subprocess.CompletedProcess[str]:
        play = ("ansible-playbook", "-i", "inventory/test", "playbooks/hook.yml", "-l", "dev")
        return cloud.noted("snapshot", *play, "-e", json.dumps({"deletion_protection": protected}))

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

    assert deploy(False).returncode == 0
    assert len(snapshots(cloud)) == KEPT + 1

    done = deploy(True)
    assert done.returncode == 0, done.stdout
    *kept, new, last = snapshots(cloud)
    assert kept == old[1:]
    assert new.startswith("nba-dev-before-20") and new > old[-1]
    assert last == "nba-dev-final-20240101-000000"

    done = cloud.play("snapshot", "-l", "dev", "-e", "aws_snapshot_keep=1")
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
    done = deploy(True)
    assert done.returncode == 2
    assert "Take a snapshot: " in done.stdout
    assert "nba-dev" in done.stdout
