"""Jobs of the workflows on lab hosts, step by step as GitHub runs them: each on a machine with nothing on it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.hosts.world import SECONDS_FOR_A_RUN, World
from tests.support import yaml_at
from tests.workflows import needed, text, value

REPOSITORY = "example/waffle-iron"
ACTOR = "octocat"
# Whose secrets an environment on GitHub has.
SECRETS = {"dev": "dev", "preview": "dev", "prod-plan": "prod", "prod": "prod"}
# Of what GitHub knows, this is asked: what main is, and which commit a run brought to its end.
GH = """#!/bin/sh
echo "$@" >>{log}
case "$*" in *commits/main*|"run list"*) git -C {origin} rev-parse HEAD ;; esac
"""


@dataclass
class Runner:
    """The repository on GitHub, what its jobs keep for each other, and the machines that they ran on."""

    here: World
    folder: Path
    known: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    machines: list[Machine] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Clone the copy, with an inventory written manually that says where the lab's hosts are and names no key."""
        subprocess.run(["git", "clone", "--quiet", self.here.root, self.origin], check=True)
        local = self.here.root / ".lab" / self.here.name
        lab = json.loads((local / "inventory.json").read_text())
        hosts = {name: {key: lab["_meta"]["hostvars"][name][key] for key in ("ansible_host", "ansible_user")}
                 for group in ("dev", "prod") for name in lab[group]["hosts"]}  # fmt: skip
        folder = self.origin / "inventory/hand"
        folder.mkdir()
        (folder / "group_vars").symlink_to("../../group_vars")
        children = {group: {"hosts": {name: hosts[name] for name in lab[group]["hosts"]}} for group in ("dev", "prod")}
        inventory = {"all": {"vars": lab["all"]["vars"], "children": children}}
        # In the lab's order: what is done once is done on the first host.
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
        for environment in ("dev", "prod"):
            vault = f"group_vars/{environment}/vault.yml"
            (self.origin / vault).write_bytes((self.here.root / vault).read_bytes())
            self.git("add", "--force", vault)
        self.edit("group_vars/dev/vars.yml", 'preview_domain: ""', "preview_domain: dev.test", "Make it the pipeline's")
        program = self.folder / "bin/gh"
        program.parent.mkdir()
        program.write_text(GH.format(log=self.folder / "gh", origin=self.origin))
        program.chmod(0o755)
        key = (local / "id_ed25519").read_text()
        self.known = {
            "vars": {"PIPELINE": "on", "INVENTORY": "inventory/hand", "AWS_ROLE": "",
                     "KNOWN_HOSTS": (local / "known_hosts").read_text()},
            "secrets": {"SSH_KEY": key, "PROMOTE_FROM_SSH_KEY": key},
        }  # fmt: skip

    @property
    def origin(self) -> Path:
        """Return the repository that jobs check out."""
        return self.folder / "origin"

    def git(self, *arguments: str) -> str:
        """Run Git in the repository."""
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        return subprocess.check_output(["git", *identity, *arguments], cwd=self.origin, text=True).strip()

    def edit(self, path: str, old: str, new: str, subject: str) -> None:
        """Push a commit to main."""
        target = self.origin / path
        assert old in target.read_text()
        target.write_text(target.read_text().replace(old, new))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)

    def run(self, workflow: str, job: str, event: dict[str, Any] | None = None, **contexts: dict[str, str]) -> Machine:
        """Run a job that an event starts, push where none is given; return the machine that it ran on."""
        described = yaml_at(f".github/workflows/{workflow}.yml")
        steps = described["jobs"][job]
        github = {
            "event_name": "pull_request" if event else "workflow_dispatch" if "inputs" in contexts else "push",
            "event": event or {}, "repository": REPOSITORY, "sha": self.git("rev-parse", "HEAD"), "run_attempt": "1",
            "token": "x", "actor": ACTOR,
        }  # fmt: skip
        known = {**self.known, "github": github, "steps": {}, **contexts}
        known["needs"] = {name: self.outputs[name] for name in needed(steps) if name in self.outputs}
        assert value(steps.get("if", "always()"), known), f"{job} is left out"
        if environment := steps.get("environment"):
            name = text(environment["name"] if isinstance(environment, dict) else environment, known)
            password = (self.here.root / ".vault" / SECRETS[name]).read_text()
            known["secrets"] = {**self.known["secrets"], "VAULT_PASSWORD": password}
        machine = Machine(self, job, known, {**described.get("env", {}), **steps.get("env", {})})
        self.machines.append(machine)
        for step in steps["steps"]:
            if value(step.get("if", "always()"), known):
                machine.step(step)
        outputs = {name: text(wanted, known) for name, wanted in steps.get("outputs", {}).items()}
        self.outputs[job] = {"outputs": outputs, "result": "success"}
        return machine

    def tidy(self) -> None:
        """Remove the machines."""
        for machine in self.machines:
            shutil.rmtree(machine.home, ignore_errors=True)


class Machine:
    """A machine for one job: a home without a cache, and a checkout without secrets."""

    def __init__(self, runner: Runner, job: str, known: dict[str, Any], variables: dict[str, str]) -> None:
        self.runner, self.job, self.known, self.variables = runner, job, known, variables
        # A socket's path is short, and ssh puts one below its home.
        self.home = Path(tempfile.mkdtemp(prefix="job-"))
        self.root = self.home / "checkout"
        self.summary = ""

    def step(self, step: dict[str, Any]) -> None:
        """Do a step."""
        action = str(step.get("uses", "")).partition("@")[0]
        given = {name: text(wanted, self.known) for name, wanted in step.get("with", {}).items()}
        if not action:
            if step["run"] != "make setup":  # the tests have one control environment for all
                self.command(step)
        elif action == "actions/checkout":
            subprocess.run(["git", "clone", "--quiet", self.runner.origin, self.root], check=True)
            subprocess.run(["git", "checkout", "--quiet", given.get("ref", "HEAD")], cwd=self.root, check=True)
        elif action == "actions/upload-artifact":
            self.upload(self.place(given["path"]), self.runner.folder / "artifacts" / given["name"], given)
        elif action == "actions/download-artifact":
            shutil.copytree(
                self.runner.folder / "artifacts" / given["name"], self.place(given["path"]), dirs_exist_ok=True
            )
        else:
            raise AssertionError(f"{action}: nobody has said what it does")

    def place(self, path: str) -> Path:
        """Return a path as an action takes it."""
        return self.home / path.removeprefix("~/") if path.startswith("~/") else self.root / path

    def upload(self, path: Path, kept: Path, given: dict[str, str]) -> None:
        """Keep what a path names, which may be a folder or have wildcards."""
        found = list(path.parent.glob(path.name))
        assert found or given.get("if-no-files-found") == "ignore", f"{path}: nothing is there"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for each in found:
            if each.is_dir():
                shutil.copytree(each, kept, dirs_exist_ok=True)
            else:
                shutil.copy2(each, kept)

    def command(self, step: dict[str, Any]) -> None:
        """Run a step's command, and take what it writes for later steps."""
        summary, output = self.home / "summary", self.home / "output"
        summary.write_text("")
        output.write_text("")
        environment = self.runner.here.environment
        variables = {**self.variables, **step.get("env", {})}
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=self.root,
            env={
                **environment,
                **{name: text(wanted, self.known) for name, wanted in variables.items()},
                "HOME": str(self.home),
                "PATH": f"{self.runner.folder}/bin:{environment['PATH']}",
                "GITHUB_ACTOR": ACTOR,
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
        self.runner.here.runs.append(done.stdout)
        assert done.returncode == 0, f"{self.job}, {step['name']}:\n{done.stdout[-6000:]}"
        self.summary += summary.read_text()
        outputs = dict(re.findall(r"^(\w+)=(.*)$", output.read_text(), flags=re.MULTILINE))
        self.known["steps"][step.get("id")] = {"outputs": outputs}

    def receipts(self, host: str) -> list[dict[str, Any]]:
        """Return what is kept of a host's receipts."""
        (kept,) = self.runner.folder.glob(f"artifacts/receipts-{self.job}-*")
        return [json.loads(path.read_text()) for path in sorted(kept.glob(f"{host}/*.json"))]
