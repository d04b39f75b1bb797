"""The jobs of deploy.yml and drift.yml on lab hosts, step by step as GitHub runs them: from a push to prod and back."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hosts.conftest import Converged
from tests.hosts.world import SECONDS_FOR_A_RUN, World
from tests.support import yaml_at

pytestmark = pytest.mark.lab
EXPRESSION = re.compile(r"\$\{\{ (.+?) \}\}")
SUBJECT = "Greet in another way"


@dataclass
class Runner:
    """A runner's checkout, which has no secrets of its own, and what the expressions of a workflow stand for."""

    here: World
    root: Path
    values: dict[str, str] = field(default_factory=dict)

    def git(self, *arguments: str) -> str:
        """Run Git in the checkout."""
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        return subprocess.check_output(["git", *identity, *arguments], cwd=self.root, text=True).strip()

    def evaluated(self, settings: dict[str, Any]) -> dict[str, str]:
        """Return variables with what their expressions stand for; an unknown one is an error."""
        return {name: EXPRESSION.sub(lambda found: self.values[found[1]], str(text)) for name, text in settings.items()}

    def run(self, workflow: str, job: str, *steps: str) -> str:
        """Run the commands of a job, all of them or the steps of these names; return its summary."""
        known = yaml_at(f".github/workflows/{workflow}.yml")
        environment = known["jobs"][job]["environment"]
        secrets = environment["name"] if isinstance(environment, dict) else environment
        place = self.evaluated({"": secrets})[""].partition("-")[0]
        self.values["secrets.VAULT_PASSWORD"] = (self.here.root / ".vault" / place).read_text()
        summary, output = self.root.parent / "summary", self.root.parent / "output"
        summary.write_text("")
        for step in known["jobs"][job]["steps"]:
            if step.get("run", "make setup") == "make setup" or (steps and step["name"] not in steps):
                continue
            output.write_text("")
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]],
                cwd=self.root,
                env={
                    **self.here.environment,
                    **self.evaluated({**known["env"], **known["jobs"][job].get("env", {}), **step.get("env", {})}),
                    "GITHUB_STEP_SUMMARY": str(summary),
                    "GITHUB_OUTPUT": str(output),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS_FOR_A_RUN,
                check=False,
            )
            self.here.runs.append(done.stdout)
            assert done.returncode == 0, f"{job}, {step['name']}:\n{done.stdout[-6000:]}"
            for name, value in re.findall(r"^(\w+)=(.*)$", output.read_text(), flags=re.MULTILINE):
                self.values[f"needs.{job}.outputs.{name}"] = value
        return summary.read_text()


@pytest.fixture
def runner(here: World, converged: Converged, tmp_path: Path) -> Iterator[Runner]:
    """Return a clone whose inventory, written by hand, says where the lab's hosts are and names no key."""
    root = tmp_path / "job"
    subprocess.run(["git", "clone", "--quiet", here.root, root], check=True)
    local = here.root / ".lab" / here.name
    known = json.loads((local / "inventory.json").read_text())
    found = {name: {key: known["_meta"]["hostvars"][name][key] for key in ("ansible_host", "ansible_user")}
             for group in ("dev", "prod") for name in known[group]["hosts"]}  # fmt: skip
    folder = root / "inventory/hand"
    folder.mkdir()
    (folder / "group_vars").symlink_to("../../group_vars")
    children = {group: {"hosts": {name: found[name] for name in known[group]["hosts"]}} for group in ("dev", "prod")}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": known["all"]["vars"], "children": children}}))
    made = Runner(here, root)
    for environment in ("dev", "prod"):
        vault = f"group_vars/{environment}/vault.yml"
        (root / vault).write_bytes((here.root / vault).read_bytes())
        made.git("add", "--force", vault)
    application = root / "app/nba/application.py"
    application.write_text(application.read_text().replace('"MySQL"', '"Pipeline"'))
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message", SUBJECT)
    key = (local / "id_ed25519").read_text()
    made.values = {
        "vars.INVENTORY || 'inventory/aws'": "inventory/hand",
        "vars.KNOWN_HOSTS": (local / "known_hosts").read_text(),
        "secrets.SSH_KEY": key,
        "secrets.PROMOTE_FROM_SSH_KEY": key,
        "needs.dev.outputs.frontend": "",
        "inputs.environment": "prod",
        "inputs.release": "",
        "inputs.schema": "stop",
        "matrix.environment": "dev",
        "matrix.secrets": "dev",
    }
    try:
        yield made
    finally:
        for environment in ("dev", "prod"):
            here.ansible("playbooks/deploy.yml", "-l", environment).succeeded()


def greetings(here: World) -> dict[str, str]:
    """Return what each host says to `GET /`."""
    return {host: here.get(host, "/api/").json()["Hello"] for host in ("dev1", "bare1", "prod1", "prod2")}


def test_a_push_goes_to_dev_and_approved_to_prod_and_back(here: World, runner: Runner) -> None:
    runner.run("deploy", "dev")
    assert greetings(here) == {"dev1": "Pipeline", "bare1": "Pipeline", "prod1": "MySQL", "prod2": "MySQL"}
    assert here.get("dev1", "/api/version").json()["artefact"] == runner.values["needs.dev.outputs.artefact"]

    assert SUBJECT in runner.run("deploy", "plan")
    assert greetings(here)["prod1"] == "MySQL"
    runner.run("deploy", "prod")
    assert set(greetings(here).values()) == {"Pipeline"}
    assert here.get("prod1", "/api/version").json()["artefact"] == runner.values["needs.dev.outputs.artefact"]
    assert list((runner.root / ".receipts").rglob("*.json"))

    runner.run("deploy", "rollback")
    assert greetings(here) == {"dev1": "Pipeline", "bare1": "Pipeline", "prod1": "MySQL", "prod2": "MySQL"}
    runner.run("drift", "look", "Look")
    assert json.loads((runner.root / "drift-dev.json").read_text())["drift"] == []
    assert not [name for name in (".vault", ".access") if (runner.root / name).is_symlink()]
