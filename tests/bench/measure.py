"""The measurements. Each compares within one run, since machines differ; each returns rows of the table."""

from __future__ import annotations

import json
import re
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.bench import contenders
from tests.bench.load import Rates, SteadyLoad, alternate
from tests.bench.report import Row
from tests.hosts.world import Run, World

BY_HAND = Path(__file__).with_name("by_hand.sh")
BARE_RUNS = 2
AGAIN_RUNS = 3
DEPLOYS = 3
DATABASE = "DROP DATABASE IF EXISTS {0}; DROP USER IF EXISTS {1}, {2};"
ACCOUNTS = """
CREATE DATABASE {0} CHARACTER SET utf8mb4;
CREATE USER {1} IDENTIFIED BY '{3}' REQUIRE SSL;
CREATE USER {2} IDENTIFIED BY '{4}' REQUIRE SSL;
GRANT SELECT, INSERT, UPDATE, DELETE ON {0}.* TO {1};
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES ON {0}.* TO {2};
"""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def spread(values: list[float]) -> str:
    """Return the median and the range of some seconds."""
    return f"{statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


@dataclass
class Bench:
    """The lab with the host dev1, and what the measurements share."""

    here: World
    folder: Path
    converged: bool = False
    connections: int = 0
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Take plain passwords: quoting is tested elsewhere, and by hand it would be a matter of its own."""
        for account in ("", "migration_"):
            self.here.set_secret("dev", f"vault_database_{account}password", secrets.token_hex(16))
        self.values = yaml.safe_load((self.here.root / "group_vars/dev/vars.yml").read_text())
        self.values |= self.here.secrets("dev")

    @property
    def inventory(self) -> dict[str, Any]:
        """Return the lab's inventory."""
        text = (self.here.root / f".lab/{self.here.name}/inventory.json").read_text()
        found: dict[str, Any] = json.loads(text)
        return found

    def ansible(self, *arguments: str, **extra: str) -> Run:
        """Run `ansible-playbook` on dev with connections of its own: those to a host before its reset are dead."""
        controls = str(self.folder / f"c{self.connections}")
        return self.here.ansible(*arguments, "-l", "dev", ANSIBLE_SSH_CONTROL_PATH_DIR=controls, **extra).succeeded()

    def converge(self) -> None:
        """Take dev1 to the wanted state unless it is there."""
        if not self.converged:
            say("site.yml on the bare host")
            self.ansible("site.yml")
            self.converged = True

    def reset(self) -> None:
        """Make a bare host of dev1, and an empty server of the database."""
        say("a bare host")
        self.here.lab("reset", "dev1")
        self.connections += 1
        self.converged = False
        names = [self.values[key] for key in ("database_name", "database_user", "database_migration_user")]
        self.here.execute("db1", "mysql", "-e", DATABASE.format(*names))

    def dotenv(self) -> str:
        """Return the `.env` that one would write by hand."""
        every = self.inventory["all"]["vars"]
        known = {
            "ENVIRONMENT": "dev",
            "DATABASE_HOST": every["database_host"],
            "DATABASE_PORT": every["database_port"],
            "DATABASE_NAME": self.values["database_name"],
            "DATABASE_USER": self.values["database_user"],
            "DATABASE_PASSWORD": self.values["vault_database_password"],
            "DATABASE_TLS_CA": self.values["database_tls_ca"],
        }
        return "".join(f"{key}={value}\n" for key, value in known.items())

    def by_hand(self) -> None:
        """Take a bare dev1 to an answering service with the shell script."""
        files, values, host = self.folder / "files", self.values, self.inventory["_meta"]["hostvars"]["dev1"]
        files.mkdir(mode=0o700, exist_ok=True)
        every = self.inventory["all"]["vars"]
        user, password = values["database_migration_user"], values["vault_database_migration_password"]
        names = [values[key] for key in ("database_name", "database_user", "database_migration_user")]
        master = (values["database_master_user"], values["vault_database_master_password"])
        for name, content in {
            ".env": self.dotenv(),
            ".env.migrate": f"DATABASE_USER={user}\nDATABASE_PASSWORD={password}\n",
            "accounts.sql": ACCOUNTS.format(*names, values["vault_database_password"], password),
            "master.cnf": f'[client]\nhost={every["database_host"]}\nuser={master[0]}\npassword="{master[1]}"\n',
            "index_url": every["python_index_url"],
        }.items():
            (files / name).write_text(content)
        login = f"{host['ansible_user']}@{host['ansible_host']}"
        options = ["-i", host["ansible_ssh_private_key_file"], *host["ansible_ssh_common_args"].split()]
        done = subprocess.run(
            ["sh", BY_HAND, files, *options, login],
            cwd=self.here.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{BY_HAND.name}:\n{done.stdout}{done.stderr}"
        assert len(self.here.get("dev1", "/api/users").json()) == 2


def bare(bench: Bench) -> list[Row]:
    """From a bare host to one that answers: site.yml against the same by hand."""
    ours, hand = [], []
    for _ in range(BARE_RUNS):
        bench.reset()
        hand.append(seconds_of(bench.by_hand))
        say(f"  by hand: {hand[-1]:.1f} s")
        bench.reset()
        ours.append(seconds_of(partial(bench.ansible, "site.yml")))
        assert bench.here.get("dev1", "/api/users").status == 200
        bench.converged = True
        say(f"  site.yml: {ours[-1]:.1f} s")
    ratio = statistics.median(ours) / statistics.median(hand)
    what = f"bare host to answering, {BARE_RUNS} each"
    return [Row(what, spread(ours), f"{spread(hand)} by hand", f"{ratio:.2f} x", "at most 2.5 x", ratio <= 2.5)]


def again(bench: Bench) -> list[Row]:
    """A second run of site.yml, on one host."""
    bench.converge()
    taken = []
    for _ in range(AGAIN_RUNS):
        begin = time.monotonic()
        run = bench.ansible("site.yml")
        taken.append(time.monotonic() - begin)
        say(f"site.yml again: {taken[-1]:.1f} s")
        assert run.changed() == {"dev1": 0}, run.output
    loud = bench.ansible("site.yml", "-vvv").output
    address = re.escape(bench.here.address("dev1"))
    calls = len(re.findall(rf"^<{address}> SSH: EXEC ", loud, re.M))
    tasks = re.search(r"^dev1\s+: ok=(\d+)", loud, re.M)
    result = f"{tasks[1] if tasks else '?'} tasks, {calls} calls on the host"
    met = statistics.median(taken) <= 20
    return [Row(f"second run of `site.yml`, {AGAIN_RUNS} runs", spread(taken), "", result, "at most 20 s", met)]


def requests(bench: Bench) -> list[Row]:
    """Requests per second: the service, the tutorial's program, and the two worker classes of gunicorn."""
    bench.converge()
    contenders.install(bench.here, bench.dotenv())
    address = bench.here.address("dev1")
    rows = []
    for path, names in (("/users", list(contenders.PORTS)), ("/", ["tutorial", "asgi", "uvicorn"])):
        say(f"requests per second: {path}")
        ports = {name: contenders.public_port(name) for name in names}
        urls = {"ours": f"http://{address}/api{path}"}
        found = alternate(urls | {name: f"http://{address}:{port}{path}" for name, port in ports.items()})
        for name, rates in found.items():
            say(f"  {name}: {[round(rate) for rate in rates.rounds]}, {rates.failed} failed")
        rows.append(rates_row(f"`GET {path}` through nginx", found, "ours", "tutorial"))
        if path == "/users":
            ratio = found["ours"].median / found["tutorial"].median
            met = ratio >= 6 and not any(rates.failed for rates in found.values())
            rows[-1] = replace(rows[-1], target="at least 6 x", met=met)
            rows.append(rates_row("the same, authorities read once", found, "ours", "tls-once"))
        rows.append(rates_row(f"`GET {path}`, `gunicorn -k asgi`", found, "asgi", "uvicorn"))
    return rows


def rates_row(what: str, found: dict[str, Rates], ours: str, other: str) -> Row:
    """Return a row that compares two contenders."""
    first, second = found[ours], found[other]
    label = {"tutorial": "tutorial", "tls-once": "tutorial", "uvicorn": "`-k UvicornWorker`"}[other]
    return Row(what, rate_text(first), f"{rate_text(second)} {label}", f"{first.median / second.median:.2f} x")


def rate_text(rates: Rates) -> str:
    """Return the median rate, and what failed, if anything did."""
    return f"{rates.median:,.0f}/s" + (f" (**{rates.failed} failed**)" if rates.failed else "")


def deploy(bench: Bench) -> list[Row]:
    """New code with the same lock file, under load: how long, and what it loses."""
    bench.converge()
    taken, total, failed = [], 0, 0
    for number in range(DEPLOYS):
        before = bench.here.get("dev1", "/api/version").json()["release"]
        edit = partial("{1}# Deploy {0}.\n".format, number)
        with (
            bench.here.edited("app/nba/main.py", edit, commit=True),
            SteadyLoad(bench.here.address("dev1"), "/api/users") as load,
        ):
            taken.append(seconds_of(partial(bench.ansible, "playbooks/app.yml")))
        assert bench.here.get("dev1", "/api/version").json()["release"] != before
        total, failed = total + load.total, failed + load.failed
        say(f"deploy: {taken[-1]:.1f} s, {load.failed} of {load.total} requests failed")
    lost = f"{failed} of {total:,} requests failed"
    return [
        Row(f"deploy of new code under load, {DEPLOYS} deploys", spread(taken), "", lost, "none fails", failed == 0)
    ]


PARTS = {"bare": bare, "again": again, "requests": requests, "deploy": deploy}
