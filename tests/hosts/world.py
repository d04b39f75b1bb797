"""A private copy of the checkout with a lab of its own: what the host tests act on.

The user's checkout, vaults and lab stay untouched. The copy is a Git repository with one clean commit, so tests may
change files, commit them and deploy the result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from tests.support import Unsafe, vault_secrets, vault_text

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS_FOR_A_RUN = 900
# For tests that bring code straight to prod, because they are about something else.
UNPROVEN = ("-e", 'promotion_override="this test is not about promotion"')
# Every kind of character that broke .env, Alembic's ini, SQL, a URL or a template in comparable tools.
AWKWARD = r"""p@$$w"o'rd #1 \ ${HOME} %d é {{ {% {#"""


@dataclass(frozen=True)
class Run:
    """A finished run of ansible-playbook."""

    code: int
    output: str

    def changed(self) -> dict[str, int]:
        """Return the number of changed tasks for each host in the recap."""
        recap = self.output.rsplit("PLAY RECAP", 1)[-1]
        return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", recap, re.M)}

    def changes(self) -> list[str]:
        """Return the tasks that changed a host, as ``task: host``, in the order of the run."""
        found, task = [], ""
        for line in self.output.splitlines():
            if named := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
                task = named[1]
            elif changed := re.match(r"changed: \[(\S+?)(?: -> .+)?\]", line):
                found.append(f"{task}: {changed[1]}")
        return found

    def succeeded(self) -> Run:
        """Return this run, after asserting that it ended well."""
        assert self.code == 0, self.output[-6000:]
        return self


@dataclass
class World:
    """The copy, its lab and everything that its runs printed."""

    root: Path
    name: str
    runs: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that every program of this world gets."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ,
            "LAB_NAME": self.name,
            "PATH": path,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }

    def lab(self, *arguments: str, stdin: str = "") -> str:
        """Run ``lab`` and return its output."""
        done = subprocess.run(
            [sys.executable, "-m", "lab", *arguments],
            cwd=self.root,
            env=self.environment,
            input=stdin,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS_FOR_A_RUN,
            check=False,
        )
        assert done.returncode == 0, f"lab {' '.join(arguments)}:\n{done.stdout}"
        return done.stdout

    def ansible(self, *arguments: str, **extra: str) -> Run:
        """Run ``ansible-playbook``; its output is kept for the search for secrets."""
        with self.start_ansible(*arguments, **extra) as process:
            output, _ = process.communicate(timeout=SECONDS_FOR_A_RUN)
        self.runs.append(output)
        return Run(process.returncode, output)

    def start_ansible(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """Start ``ansible-playbook`` in a process group of its own, so that a test can interrupt it."""
        return subprocess.Popen(
            ["ansible-playbook", *arguments],
            cwd=self.root,
            env={**self.environment, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def execute(self, host: str, *command: str, check: bool = True) -> str:
        """Run a command as root inside a host and return its output."""
        done = subprocess.run(
            [sys.executable, "-m", "lab", "exec", host, "--", *command],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{host}: {' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, host: str, script: str, check: bool = True) -> str:
        """Run a shell script as root inside a host and return its output."""
        return self.execute(host, "sh", "-c", script, check=check)

    def write(self, host: str, path: str, content: str) -> None:
        """Write a file that only root may read inside a host; its content appears on no command line."""
        self.lab("exec", host, "--", "sh", "-c", f"umask 077 && cat >{path}", stdin=content)

    def address(self, host: str) -> str:
        """Return a host's address."""
        listing = subprocess.check_output(
            [sys.executable, self.root / "inventory/lab/hosts.py", "--list"], env=self.environment, text=True
        )
        return str(json.loads(listing)["_meta"]["hostvars"][host]["ansible_host"])

    def get(self, host: str, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """Send one request to a host's public address."""
        request = urllib.request.Request(
            f"http://{self.address(host)}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={
                "Content-Type": "application/json",
                **{k.replace("_", "-"): v for k, v in headers.items()},
            },
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
        try:
            with opener.open(request, timeout=30) as answer:
                return Answer(answer.status, dict(answer.headers.items()), answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers.items()), error.read().decode())

    def status(self, host: str) -> dict[str, Any]:
        """Return what a host says of its releases."""
        found: dict[str, Any] = json.loads(self.execute(host, "/usr/local/sbin/nba-release", "status"))
        return found

    def secrets(self, environment: str) -> dict[str, str]:
        """Return the clear values of an environment's vault."""
        vault = self.root / f"group_vars/{environment}/vault.yml"
        return vault_secrets(self._vault(environment).decrypt(vault.read_bytes()))

    def set_secret(self, environment: str, key: str, value: str) -> None:
        """Change one value in an environment's vault."""
        values = {**self.secrets(environment), key: Unsafe(value)}
        encrypted = self._vault(environment).encrypt(vault_text(values), vault_id=environment)
        (self.root / f"group_vars/{environment}/vault.yml").write_bytes(encrypted)

    def _vault(self, environment: str) -> VaultLib:
        secret = VaultSecret((self.root / f".vault/{environment}").read_bytes().strip())
        return VaultLib([(environment, secret)])

    def create_master_account(self, environment: str) -> None:
        """Create what RDS creates with an instance: the master account, with the vault's password."""
        values = yaml.safe_load((self.root / f"group_vars/{environment}/vars.yml").read_text())
        password = self.secrets(environment)["vault_database_master_password"]
        self.lab("database-account", "--user", values["database_master_user"], stdin=password)

    @contextmanager
    def edited(self, path: str, edit: Callable[[str], str], commit: bool = False) -> Iterator[None]:
        """Change a file of the copy for a while."""
        target = self.root / path
        before = target.read_text()
        after = edit(before)
        assert after != before, f"the edit of {path} changed nothing"
        target.write_text(after)
        if commit:
            self.git("commit", "--quiet", "--all", "--message", f"Change {path}")
        try:
            yield
        finally:
            target.write_text(before)
            if commit:
                self.git("commit", "--quiet", "--all", "--message", f"Change {path} back")

    @contextmanager
    def added(self, path: str, content: str) -> Iterator[None]:
        """Commit a further file to the copy for a while."""
        target = self.root / path
        assert not target.exists(), f"{path} is there already"
        target.write_text(content)
        self.git("add", path)
        self.git("commit", "--quiet", "--message", f"Add {path}")
        try:
            yield
        finally:
            self.git("rm", "--quiet", path)
            self.git("commit", "--quiet", "--message", f"Remove {path}")

    def sql(self, database: str, statements: str) -> str:
        """Run statements as root of the database server and return their output."""
        return self.execute("db1", "mysql", "-NBe", statements, database)

    def git(self, *arguments: str) -> str:
        """Run Git in the copy and return its output."""
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        return subprocess.check_output(["git", *identity, *arguments], cwd=self.root, text=True)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.text)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to the test."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follow none."""


def await_true(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true value of a condition; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def copy_checkout(target: Path) -> None:
    """Copy what Git tracks or would track, and commit it there; vaults of the user stay where they are."""
    listing = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, text=True
    )
    for name in filter(None, listing.split("\0")):
        source, copy = CHECKOUT / name, target / name
        if name.endswith("/vault.yml") or not (source.exists() or source.is_symlink()):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.is_symlink():
            copy.unlink()
        shutil.copy2(source, copy, follow_symlinks=False)


@contextmanager
def world(root: Path, name: str, *boot: str) -> Iterator[World]:
    """Make the copy, its vaults and its lab; remove the lab at the end, also after a failure.

    For work on one test: with ``TEST_WORLD=folder`` the copy is in that folder, and it and its lab are kept for the
    next run, which brings the changed files. ``TEST_LAB=name`` and ``LAB_SUBNET`` give it a lab beside others. A
    world of another name than `test` is kept in a folder beside that one.
    """
    kept = os.environ.get("TEST_WORLD")
    if kept:
        root = Path(kept if name == "test" else f"{kept}-{name}")
        root.mkdir(exist_ok=True)
    here = World(root, (os.environ.get("TEST_LAB") if name == "test" else "") or name)
    known = (root / ".git").exists()
    copy_checkout(root)
    here.git("init", "--quiet")
    here.git("add", "--all")
    here.git("commit", "--quiet", "--allow-empty", "--message", "A copy for the tests")
    for environment in () if known else ("dev", "prod"):
        subprocess.run([sys.executable, "scripts/make-secrets", environment], cwd=root, check=True)
        here.set_secret(environment, "vault_database_password", f"{AWKWARD} {environment}")
        here.set_secret(environment, "vault_database_migration_password", f"{environment} {AWKWARD}\\")
    try:
        here.lab("up", *boot)
        for environment in ("dev", "prod"):
            here.create_master_account(environment)
        yield here
    finally:
        if not kept:
            here.lab("down")
