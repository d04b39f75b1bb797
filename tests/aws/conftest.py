"""A copy of the project, and moto's server in the place of AWS, through the same modules, plugins and boto3."""

from __future__ import annotations

import base64
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.contract.conftest import AUTHOR, Project, pristine
from tests.support import ROOT, free_port

__all__ = ["pristine"]
REGION = "eu-west-1"
PLENTY = 900.0  # a machine that does other things as well
# Route 53 names its actions by methods and paths.
ROUTE53 = {
    "ListHostedZones": re.compile(r"GET /[\d-]+/hostedzone"),
    "GetHostedZone": re.compile(r"GET /[\d-]+/hostedzone/\w+"),
    "ListResourceRecordSets": re.compile(r"GET /[\d-]+/hostedzone/\w+/rrset"),
    "ChangeResourceRecordSets": re.compile(r"POST /[\d-]+/hostedzone/\w+/rrset"),
    "GetChange": re.compile(r"GET /[\d-]+/change/\w+"),
}
APPLICATION = """
from fastapi import FastAPI

app = FastAPI()


@app.get("/health/ready")
def ready() -> str:
    return "yes"
"""
DATE = re.compile(r"20\d{6}")
# The owners are the publishers' real accounts; moto's own list stops at Ubuntu 16.04.
IMAGES = [
    ("ami-0deb00000000013a2", "136693071363", "debian-13-amd64-20251006-2257", "/dev/xvda"),
    ("ami-0deb00000000013a1", "136693071363", "debian-13-amd64-20250814-2204", "/dev/xvda"),
    ("ami-0deb00000000013b1", "136693071363", "debian-13-arm64-20251006-2257", "/dev/xvda"),
    (
        "ami-0abc00000000024a1",
        "099720109477",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20251001",
        "/dev/sda1",
    ),
    ("ami-0bad00000000013a1", "999999999999", "debian-13-amd64-20991231-9999", "/dev/xvda"),
]


def image(identity: str, owner: str, name: str, device: str) -> dict[str, Any]:
    """Return an image as moto reads it."""
    return {
        "ami_id": identity,
        "state": "available",
        "public": True,
        "owner_id": owner,
        "image_location": f"{owner}/{name}",
        "name": name,
        "description": name,
        "architecture": "arm64" if "arm64" in name else "x86_64",
        "image_type": "machine",
        "platform": None,
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "root_device_type": "ebs",
        "root_device_name": device,
        "sriov": "simple",
        "creation_date": datetime.strptime(DATE.findall(name)[-1], "%Y%m%d").strftime("%Y-%m-%dT00:00:00.000Z"),
    }


@dataclass
class Cloud:
    """moto's server, and the copy of the project that works on it."""

    url: str
    project: Project
    recording: Path
    # The actions of AWS that each playbook, or the inventory, has asked for, as a policy names them.
    called: dict[str, set[str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str) -> Any:
        """Return boto3's client."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Return the environment of a user with credentials; a change to None takes a variable away."""
        inherited = {name: value for name, value in self.project.environment().items() if not name.startswith("AWS_")}
        settings: dict[str, str | None] = {**inherited, **self.settings, **changes}
        return {name: value for name, value in settings.items() if value is not None}

    def run(self, *command: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, with the environment of a user who has credentials."""
        return subprocess.run(
            command,
            cwd=self.project.root,
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLENTY,
            check=False,
        )

    def play(self, name: str, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a playbook on the account. moto forgets what gp3 volumes of RDS can do, so they are gp2 here."""
        gp2 = ("-e", "aws_database_storage_type=gp2")
        command = ("ansible-playbook", "-i", "inventory/account", f"playbooks/{name}.yml", *gp2, *arguments)
        return self.noted(name, *command, **changes)

    def noted(self, name: str, *command: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, and note under a name what it asked of AWS."""
        self.ask("recorder/reset-recording", b"")
        done = self.run(*command, **changes)
        self.called.setdefault(name, set()).update(actions(self.recording.read_text()))
        return done

    def denied(self, name: str) -> set[str]:
        """Return what a playbook, or the inventory, has asked for, and its policy in docs does not allow."""
        policy = json.loads((ROOT / f"docs/policies/{name}.json").read_text())
        allowed = [
            action
            for statement in policy["Statement"]
            for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
        ]
        asked = self.called[name]
        assert len(asked) > 2
        return {action for action in asked if not any(fnmatch.fnmatchcase(action, each) for each in allowed)}

    def ask(self, path: str, data: bytes | None = None) -> bytes:
        """Send a request to moto's own interface."""
        with urllib.request.urlopen(f"{self.url}/moto-api/{path}", data=data, timeout=30) as answer:  # noqa: S310
            content: bytes = answer.read()
        return content

    def instances(self) -> list[dict[str, Any]]:
        """Return the instances that are not terminated."""
        found = self.client("ec2").describe_instances()["Reservations"]
        every = [instance for reservation in found for instance in reservation["Instances"]]
        return [instance for instance in every if instance["State"]["Name"] != "terminated"]

    def prepare(self) -> None:
        """Empty the account."""
        self.ask("reset", b"")


def actions(recording: str) -> Iterator[str]:
    """Yield the actions in what moto recorded, as a policy names them: SERVICE:Action."""
    for line in recording.splitlines():
        entry = json.loads(line)
        headers = {name.lower(): value for name, value in entry["headers"].items()}
        signed = re.search(r"Credential=[^/]+/[^/]+/[^/]+/([^/]+)/", headers.get("authorization", ""))
        body = base64.b64decode(entry["body"]).decode(errors="replace") if entry["body_encoded"] else ""
        # In the body, or in a header (secretsmanager.GetSecretValue).
        action = urllib.parse.parse_qs(body).get("Action") or headers.get("x-amz-target", "").split(".")[1:]
        if signed and action:
            yield f"{signed[1]}:{action[0]}"
        elif signed and signed[1] == "route53":
            path = urllib.parse.urlparse(entry["url"]).path.rstrip("/")
            yield next(
                f"route53:{name}" for name, known in ROUTE53.items() if known.fullmatch(f"{entry['method']} {path}")
            )


@pytest.fixture(scope="session")
def cloud(pristine: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Return an empty account."""
    folder = tmp_path_factory.mktemp("aws")
    project = Project(folder / "waffle")
    shutil.copytree(pristine.root, project.root, symlinks=True)
    for name in ("account", "aws"):
        shutil.copytree(ROOT / "inventory" / name, project.root / "inventory" / name, symlinks=True)
    # A load balancer asks for the path that the application has.
    (project.root / "app/nba/main.py").write_text(APPLICATION)
    assert project.run("git", *AUTHOR, "commit", "--quiet", "--all", "--message", "health").returncode == 0
    (project.root / "docs").mkdir()
    shutil.copy(ROOT / "docs/aws.md", project.root / "docs")
    images = folder / "images.json"
    images.write_text(json.dumps([image(*entry) for entry in IMAGES]))
    port = free_port()
    with (folder / "moto.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.aws.server", str(port)],
            # What is recorded says which rights the playbooks need.
            env={
                **os.environ,
                "MOTO_ENABLE_RECORDING": "true",
                "MOTO_RECORDER_FILEPATH": str(folder / "recording"),
                "MOTO_AMIS_PATH": str(images),
                "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
            },
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            found = Cloud(f"http://127.0.0.1:{port}", project, folder / "recording")
            await_server(found, server)
            found.prepare()
            yield found
        finally:
            server.terminate()
            server.wait(timeout=30)


def await_server(cloud: Cloud, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + PLENTY
    while True:
        try:
            cloud.ask("data.json")
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "moto's server ended"
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.2)
