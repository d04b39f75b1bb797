"""A host without ssh: the connection that docs/aws.md names, with a terminal of this machine as the session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.aws.conftest import REGION, Cloud
from tests.support import ROOT

pytestmark = pytest.mark.aws
BUCKET = "nba-sessions"
# What the session manager plugin of AWS is to Ansible: a program with a terminal on the instance.
PLUGIN = """#!{python}
import json, pty, sys
session = json.loads(sys.argv[1])
open({told!r}, "w").write(session["SessionId"])
print("\\nStarting session with SessionId: " + session["SessionId"], flush=True)
pty.spawn(["sh"])
"""


def documented() -> dict[str, Any]:
    """Return the variables that docs/aws.md says to set."""
    section = (ROOT / "docs/aws.md").read_text().partition("### Without ssh")[2]
    found: dict[str, Any] = yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])
    return found


def test_a_host_is_reached_without_ssh(cloud: Cloud, tmp_path: Path) -> None:
    cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    told = tmp_path / "told"
    program = tmp_path / "session-manager-plugin"
    program.write_text(PLUGIN.format(python=sys.executable, told=str(told)))
    program.chmod(0o755)
    # What aws_ec2 says of a host, the documented variables, and what moto needs.
    values = {
        "instance_id": "i-0123456789abcdef0",
        "placement": {"region": REGION},
        **documented(),
        "ansible_aws_ssm_bucket_name": BUCKET,
        "ansible_aws_ssm_plugin": str(program),
        "ansible_aws_ssm_s3_addressing_style": "path",
        "ansible_python_interpreter": sys.executable,
        "ansible_remote_tmp": str(tmp_path / "remote"),
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": {"dev1": values}}}))
    written = tmp_path / "written"
    copy = ("-m", "ansible.builtin.copy", "-a", f"content=hello dest={written}")
    done = cloud.run("ansible", "-i", str(inventory), "dev1", *copy)
    assert done.returncode == 0, done.stdout
    assert written.read_text() == "hello"
    assert told.read_text() == "session-i-0123456789abcdef0"
    # What went through the bucket does not stay there.
    assert "Contents" not in cloud.client("s3").list_objects_v2(Bucket=BUCKET)
