"""The measurements. Each compares within one run, since machines differ; each returns rows of the table."""

from __future__ import annotations

import json
import re
import resource
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.bench import contenders
from tests.bench.load import Rates, Target, alternate
from tests.bench.report import Row
from tests.hosts.probe import FORGET, Probe, report
from tests.hosts.world import CHECKOUT, Run, World, await_true

MANUAL = Path(__file__).with_name("manual.sh")
BARE_RUNS = 2
AGAIN_RUNS = 3
DEPLOYS = 3
HOSTS = (1, 2, 4, 8)
HOST_RUNS = 2
RIVALS = {"/users": list(contenders.PORTS), "/": ["tutorial"]}
ANSISTRANO = "12.8 s Ansistrano, with a restart, on another machine"
PICTURE = CHECKOUT / "docs/deploy.svg"
PROMOTED = ("-e", "promotion_override=measured")  # what is deployed here never was on dev
MEMORY_FLAG = "/run/bench-memory"
MEMORY_SAMPLER = """
import glob, json, os, re, sys, time
while os.path.exists(sys.argv[1]):
    slots = {}
    for path in glob.glob("/proc/[0-9]*"):
        try:
            slot = re.search(r"nba@(\\w+)[.]service", open(path + "/cgroup").read())
            if slot:
                pss = re.search(r"^Pss: +([0-9]+) kB", open(path + "/smaps_rollup").read(), re.M)
                slots[slot[1]] = slots.get(slot[1], 0) + int(pss[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    print(json.dumps(slots), flush=True)
    time.sleep(0.1)
"""
DATABASE = "DROP DATABASE IF EXISTS {0}; DROP USER IF EXISTS {1}, {2}, {3};"
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


def work_of_control_node() -> float:
    """Return the processor seconds of the programs that were run here and have ended; what hosts did is not in them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
        """Take plain passwords: quoting is tested elsewhere, and a manual installation would have to quote as well."""
        for account in ("", "migration_"):
            self.here.set_secret("dev", f"vault_database_{account}password", secrets.token_hex(16))
        text = (self.here.root / "group_vars/dev/vars.yml").read_text()
        # What Ansible resolves from `project`, which is the sample's here.
        self.values = yaml.safe_load(text.replace("{{ database_prefix }}", "nba"))
        self.values |= self.here.secrets("dev")

    @property
    def inventory(self) -> dict[str, Any]:
        """Return the lab's inventory."""
        text = (self.here.root / f".lab/{self.here.name}/inventory.json").read_text()
        found: dict[str, Any] = json.loads(text)
        return found

    def ansible(self, *arguments: str, environment: str = "dev", **extra: str) -> Run:
        """Run `ansible-playbook` with connections of its own: those to a host before its reset are dead."""
        controls = str(self.folder / f"c{self.connections}")
        # All of the load comes from one address.
        arguments = (*arguments, "-e", "nginx_client_requests_per_second=0")
        run = self.here.ansible(*arguments, "-l", environment, ANSIBLE_SSH_CONTROL_PATH_DIR=controls, **extra)
        return run.succeeded()

    def pace(self) -> float:
        """Return the seconds that Ansible takes to start; where they differ, the seconds of two runs do not compare.

        A loop of arithmetic would not do: it stays in the processor's own memory, and most of a deploy does not.
        """
        command = ["ansible", "--version"]
        environment = self.here.environment
        return seconds_of(lambda: subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True))

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
        accounts = ("database_user", "database_migration_user", "database_reader_user")
        names = [self.values[key] for key in ("database_name", *accounts)]
        self.here.execute("db1", "mysql", "-e", DATABASE.format(*names))

    def renew(self) -> None:
        """Boot the lab anew, with one host of dev alone: hosts of prod that a part has added stay otherwise."""
        self.here.lab("down")
        self.here.lab("up")
        for environment in ("dev", "prod"):
            self.here.create_master_account(environment)
        self.connections += 1
        self.converged = False

    def dotenv(self) -> str:
        """Return the `.env` that one would write manually."""
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

    def install_manually(self) -> None:
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
            ["sh", MANUAL, files, *options, login],
            cwd=self.here.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{MANUAL.name}:\n{done.stdout}{done.stderr}"
        assert len(self.here.get("dev1", "/api/users").json()) == 2


def bare(bench: Bench) -> list[Row]:
    """From a bare host to one that answers: site.yml against the same done manually."""
    ours, hand = [], []
    for _ in range(BARE_RUNS):
        bench.reset()
        hand.append(seconds_of(bench.install_manually))
        say(f"  manually:  {hand[-1]:.1f} s")
        bench.reset()
        ours.append(seconds_of(partial(bench.ansible, "site.yml")))
        assert bench.here.get("dev1", "/api/users").status == 200
        bench.converged = True
        say(f"  site.yml: {ours[-1]:.1f} s")
    ratio = statistics.median(ours) / statistics.median(hand)
    what = f"bare host to answering, {BARE_RUNS} each"
    return [Row(what, spread(ours), f"{spread(hand)} manually", f"{ratio:.2f} x", "at most 2.5 x", ratio <= 2.5)]


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
    """Requests per second: the service, and the tutorial's program."""
    bench.converge()
    with contenders.installed(bench.here, bench.dotenv()):
        return [row for path, names in RIVALS.items() for row in rates_rows(bench.here.address("dev1"), path, names)]


def rates_rows(address: str, path: str, names: list[str]) -> list[Row]:
    """Return the rows of one path: the service beside its rivals, and those beside each other."""
    say(f"requests per second: {path}")
    rivals = {name: Target(f"http://{address}{path}", contenders.server_name(name)) for name in names}
    found = alternate({"ours": Target(f"http://{address}/api{path}", address)} | rivals)
    for name, rates in found.items():
        say(f"  {name}: {[round(rate) for rate in rates.rounds]}, {rates.failed} failed")
    rows = [rates_row(f"`GET {path}` through nginx", found, "ours", "tutorial")]
    if path == "/users":
        ratio = found["ours"].median / found["tutorial"].median
        met = ratio >= 6 and not any(rates.failed for rates in found.values())
        rows[-1] = replace(rows[-1], target="at least 6 x", met=met)
        rows.append(rates_row("the same, authorities read once", found, "ours", "tls-once"))
    return rows


def rates_row(what: str, found: dict[str, Rates], ours: str, other: str) -> Row:
    """Return a row that compares two contenders."""
    first, second = found[ours], found[other]
    return Row(what, rate_text(first), f"{rate_text(second)} tutorial", f"{first.median / second.median:.2f} x")


def rate_text(rates: Rates) -> str:
    """Return the median rate, and what failed, if anything did."""
    return f"{rates.median:,.0f}/s" + (f" (**{rates.failed} failed**)" if rates.failed else "")


@contextmanager
def new_code(bench: Bench) -> Iterator[None]:
    """Commit a change that leaves the lock file alone; it is a new one each time."""
    edit = partial("{1}# {0}.\n".format, secrets.token_hex(8))
    with bench.here.edited("app/nba/main.py", edit, commit=True):
        yield


def released(bench: Bench, playbook: str, environment: str = "dev") -> float:
    """Return the seconds from command to finished of a deploy or a rollback, after seeing another release answer."""
    host = f"{environment}1"
    before = bench.here.get(host, "/api/version").json()["release"]
    begin = time.monotonic()
    bench.ansible(f"playbooks/{playbook}.yml", *PROMOTED, environment=environment)
    taken = time.monotonic() - begin
    assert bench.here.get(host, "/api/version").json()["release"] != before
    say(f"{playbook} on {environment}: {taken:.1f} s")
    return taken


@contextmanager
def probed(bench: Bench, rate: float = 60) -> Iterator[Probe]:
    """Send requests to dev1 while the block runs; the rows that they wrote are removed afterwards."""
    with Probe(bench.here.address("dev1"), rate) as probe:
        await_true(lambda: len(probe.samples) > 50, 30, "the probe is answered")
        try:
            yield probe
        finally:
            probe.stop()
    probe.gone = probe.missing()
    bench.here.sql(bench.values["database_name"], FORGET)


def deploy(bench: Bench) -> list[Row]:
    """New code with the same lock file, one host: how long without load, and how long and what is lost under load."""
    bench.converge()
    quiet, loaded, probes = [], [], []
    for _ in range(DEPLOYS):
        with new_code(bench):
            quiet.append(released(bench, "deploy"))
        with new_code(bench), probed(bench) as probe:
            loaded.append(released(bench, "deploy"))
        probes.append(probe)
    median = statistics.median(quiet)
    return [
        Row(f"deploy of new code, {DEPLOYS} deploys", spread(quiet), ANSISTRANO, "", "at most 10 s", median <= 10),
        probe_row(f"the same under load, {DEPLOYS} deploys", loaded, probes),
    ]


def probe_row(what: str, taken: list[float], probes: list[Probe]) -> Row:
    """Return the row of deploys or rollbacks under load."""
    found = report(what, probes, sum(len(probe.gone) for probe in probes))
    failed = sum(found.failed.values())
    result = (
        f"{failed} of {found.sent:,} requests failed, {found.missing} of {found.written:,} writes missing, "
        f"p99 {found.p99:.0f} ms, longest {found.max:.0f} ms"
    )
    return Row(what, spread(taken), "", result, "none fails or is missing", not failed and not found.missing)


def rollback(bench: Bench) -> list[Row]:
    """Back to the release before, and back again: each is a rollback."""
    bench.converge()
    with new_code(bench):
        released(bench, "deploy")
        taken = [released(bench, "rollback") for _ in range(DEPLOYS)]
    met = statistics.median(taken) <= 6
    return [Row(f"rollback, {DEPLOYS} rollbacks", spread(taken), "", "", "at most 6 s", met)]


def two(bench: Bench) -> list[Row]:
    """The same deploy on one host (dev) and on two (prod), in turn; with as many workers each."""
    bench.converge()
    workers = partial(re.compile(r"^workers_max: .*$", re.M).sub, f"workers_max: {bench.values['workers_max']}")
    one, both = [], []
    with bench.here.edited("group_vars/prod/vars.yml", workers, commit=True):
        say("prod, with two hosts")
        bench.here.lab("up", "--prod-hosts", "2")
        bench.ansible("site.yml", *PROMOTED, environment="prod")
        for _ in range(DEPLOYS):
            with new_code(bench):
                one.append(released(bench, "deploy"))
                both.append(released(bench, "deploy", "prod"))
        assert len({bench.here.status(host)["live"] for host in ("prod1", "prod2")}) == 1
    ratio = statistics.median(both) / statistics.median(one)
    what = f"deploy of new code on two hosts, {DEPLOYS} each"
    return [Row(what, spread(both), f"{spread(one)} on one", f"{ratio:.2f} x", "at most 1.4 x", ratio <= 1.4)]


def hosts(bench: Bench) -> list[Row]:
    """What each further host of prod adds to a run that changes nothing, to a deploy and to parity (with dev1)."""
    again, work, deployed, compared = (
        "second run of `site.yml`",
        "the same, processor time of the control node",
        "deploy of new code",
        "`parity.yml`, and dev's",
    )
    taken: dict[str, list[float]] = {name: [] for name in (again, work, deployed, compared)}
    few = {"workers_max": 2, "database_pool_size": 2, "database_pool_overflow": 0}  # eight hosts' fit the server

    def smaller(text: str) -> str:
        for name, value in few.items():
            text = re.sub(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.M)
        return text

    windows: dict[int, float] = {}
    bench.renew()
    with bench.here.edited("group_vars/prod/vars.yml", smaller, commit=True):
        bench.ansible("site.yml")  # hosts are in parity where they have the same code
        for count in HOSTS:
            say(f"prod, with {count} hosts")
            bench.here.lab("up", "--prod-hosts", str(count))
            bench.ansible("site.yml", *PROMOTED, environment="prod")
            found: dict[str, list[float]] = {name: [] for name in taken}
            for _ in range(HOST_RUNS):
                before = work_of_control_node()
                found[again].append(seconds_of(partial(bench.ansible, "site.yml", environment="prod")))
                found[work].append(work_of_control_node() - before)
                parity = partial(bench.ansible, "playbooks/parity.yml", environment="dev:prod")
                found[compared].append(seconds_of(parity))
            for _ in range(HOST_RUNS):
                with new_code(bench):
                    found[deployed].append(released(bench, "deploy", "prod"))
                windows[count] = max(windows.get(count, 0.0), confirmation_window(bench, count))
            for name, values in found.items():
                taken[name].append(statistics.median(values))
                say(f"  {name}: {spread(values)}")
    several = {count: window for count, window in windows.items() if count > 1}
    window = Row(
        f"first to last confirmation on {', '.join(map(str, several))} hosts, longest of {HOST_RUNS}",
        ", ".join(f"{seconds * 1000:.0f} ms" for seconds in several.values()),
        "",
        "in which a lost control node can leave hosts on two releases",
    )
    return [window] + [
        Row(
            f"{name} on {', '.join(map(str, HOSTS))} hosts, {HOST_RUNS} each",
            ", ".join(f"{value:.1f} s" for value in values),
            "",
            f"{statistics.linear_regression(HOSTS, values).slope:.1f} s for each further host",
        )
        for name, values in taken.items()
    ]


def confirmation_window(bench: Bench, count: int) -> float:
    """Return the seconds between the first and the last host's confirmation in the last deploy of prod."""
    newest = "journalctl --unit=nba-release.service --output=json --output-fields=MESSAGE --grep='^confirm$' -n 1"
    lines = [bench.here.shell(f"prod{number}", newest) for number in range(1, count + 1)]
    moments = [int(json.loads(line)["__REALTIME_TIMESTAMP"]) / 1e6 for line in lines]
    return max(moments) - min(moments)


def memory(bench: Bench) -> list[Row]:
    """Memory of the services (PSS) while a release is switched: at most one slot more than before."""
    bench.converge()
    host, here = "dev1", bench.here
    here.write(host, MEMORY_FLAG, "")
    with ThreadPoolExecutor() as pool:
        sampling = pool.submit(here.execute, host, "python3", "-c", MEMORY_SAMPLER, MEMORY_FLAG)
        try:
            with new_code(bench):
                released(bench, "deploy")
        finally:
            here.execute(host, "rm", MEMORY_FLAG)
        samples: list[dict[str, int]] = [json.loads(line) for line in sampling.result().splitlines()]
    # A slot is what one took alone, before or after; the new one has answered fewer requests than the old one.
    alone = max(sum(sample.values()) for sample in samples if len(sample) == 1)
    peak = max(sum(sample.values()) for sample in samples)
    assert any(len(sample) == 2 for sample in samples), "no moment with both slots was seen"
    return [
        Row(
            "memory of the services during a deploy (PSS)",
            f"{peak >> 20} MiB at most",
            f"{alone >> 20} MiB, one slot",
            f"{(peak - alone) / alone:.2f} slots more",
            "at most one slot more",
            peak <= 2 * alone,
        )
    ]


def plot(bench: Bench) -> list[Row]:
    """Draw docs/deploy.svg: a deploy and a rollback, as clients see them."""
    from tests.bench.plot import draw  # its library is there for `make bench` alone

    bench.converge()
    with new_code(bench), probed(bench, rate=30) as probe:
        taken = []
        for name in ("deploy", "rollback"):
            probe.mark(name)
            taken.append(released(bench, name))
        probe.mark("end")
    draw(probe, PICTURE)
    say(f"wrote {PICTURE}")
    return [probe_row("the deploy and the rollback of the picture", taken, [probe])]


PARTS = {
    "bare": bare,
    "again": again,
    "requests": requests,
    "deploy": deploy,
    "rollback": rollback,
    "memory": memory,
    "plot": plot,
    "two": two,
    "hosts": hosts,
}
