"""No request is lost while a release is switched, refused or taken back, and every fault ends well.

Probes send to both hosts of prod all the time. Where something must be lost, the test's docstring says what and why.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.hosts.conftest import PROD, Probing, Watch
from tests.hosts.probe import Sample
from tests.hosts.world import UNPROVEN, Run, World, await_true

pytestmark = pytest.mark.lab
# Edited code was never on dev; and what an interrupted run left behind may still hold the lock.
OPTIONS = ("-l", "prod", *UNPROVEN, "-e", "app_lock_wait_seconds=90")
DEPLOY = ("playbooks/deploy.yml", *OPTIONS)
# As a person gives it again after an interruption, who waits for no lock.
DEPLOY_AGAIN = ("playbooks/deploy.yml", "-l", "prod", *UNPROVEN)
ROLLBACK = ("playbooks/rollback.yml", *OPTIONS)
CONVERGE = ("site.yml", *OPTIONS)
NOTHING_CHANGED = dict.fromkeys(PROD, 0)
MAIN = "app/nba/main.py"
HEALTH = "app/nba/health.py"
REVISION = "app/migrations/versions/20990101_0002_test.py"
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.String(50), nullable=True))
    {more}


def downgrade() -> None:
    op.drop_column("users", "nickname")
"""
DROP_COLUMN = "ALTER TABLE users DROP COLUMN nickname"
# What `nba-release stamp` does after somebody repaired the schema.
SETTLE = "DROP TABLE waffle_iron_migration"
FORGET_REVISION = "UPDATE alembic_version SET version_num = '0001'"
RECOVERY_SECONDS = 6.0
REBOOT_SECONDS = 30.0
# Requests per second for each host where a process is killed under them: enough that some are always under way.
BUSY = 150


def live(here: World) -> str:
    """Return the release of prod, after asserting that all its hosts and their public addresses have the same."""
    status = {host: here.status(host) for host in PROD}
    assert [status[host]["problems"] for host in PROD] == [[], []]
    public: list[str] = [here.get(host, "/api/version").json()["release"] for host in PROD]
    assert len({*public, *(status[host]["live"] for host in PROD)}) == 1, (public, status)
    return public[0]


def ends_well(here: World) -> str:
    """Run the same command again: it ends well on one release everywhere, and a further run has nothing to do."""
    again = here.ansible(*DEPLOY).succeeded()
    release = live(here)
    if again.changed() != NOTHING_CHANGED:
        assert here.ansible(*DEPLOY).succeeded().changed() == NOTHING_CHANGED
    return release


def new_code(comment: str) -> Callable[[str], str]:
    """Return an edit that makes another release of the same behaviour."""
    return lambda text: f"{text}# {comment}\n"


@pytest.fixture(scope="module", autouse=True)
def base(here: World, converged: object) -> Iterator[None]:
    """Begin and end with prod on the release of the checkout."""
    here.ansible(*DEPLOY).succeeded()
    yield
    here.ansible(*DEPLOY).succeeded()


# --- what is done on purpose ---


def test_deploy_rollback_setting_and_migration(here: World, probing: Probing) -> None:
    before, nginx = live(here), processes_of_nginx(here)
    with here.edited(MAIN, new_code("another version"), commit=True):
        with probing("deploy"):
            here.ansible(*DEPLOY).succeeded()
        assert live(here) != before
        with probing("rollback"):
            here.ansible(*ROLLBACK).succeeded()
        assert live(here) == before
    with probing("changed setting, and back by a rollback"):
        setting = ("log_level: INFO", "log_level: WARNING")
        with here.edited("group_vars/prod/vars.yml", lambda text: text.replace(*setting)):
            here.ansible(*DEPLOY).succeeded()
        assert live(here) != before
        here.ansible(*ROLLBACK).succeeded()
    assert live(here) == before
    # The switch is a rename, and no reload: nginx goes on with the processes that it had.
    assert processes_of_nginx(here) == nginx
    try:
        with here.added(REVISION, MIGRATION.format(more="")), probing("deploy with a migration"):
            here.ansible(*DEPLOY).succeeded()
        assert [here.get(host, "/api/version").json()["schema"] for host in PROD] == ["0002", "0002"]
    finally:
        here.sql("nba_prod", f"{FORGET_REVISION}; {DROP_COLUMN}")
    assert ends_well(here) == before


def processes_of_nginx(here: World) -> dict[str, str]:
    """Return the process ids of nginx on each host."""
    return {host: here.execute(host, "pgrep", "nginx") for host in PROD}


@pytest.mark.long
def test_changed_password_of_the_database(here: World, probing: Probing) -> None:
    """What runs logs in with the former password, and so does what comes back, until that password is discarded."""
    former, changed = here.secrets("prod")["vault_database_password"], "Another-word-1"
    before = ends_well(here)
    try:
        here.set_secret("prod", "vault_database_password", changed)
        with probing("changed password of the database", rate=BUSY):
            here.ansible(*CONVERGE).succeeded()
        assert live(here) != before
        with probing("rollback to the former password"):
            here.ansible(*ROLLBACK).succeeded()
        assert live(here) == before
        assert logs_in(here, former) and logs_in(here, changed)
        again = here.ansible(*CONVERGE).succeeded()
        assert not [change for change in again.changes() if "mysql_client" in change]
        here.ansible("playbooks/database.yml", *OPTIONS, "-e", "discard_former_passwords=true").succeeded()
        assert logs_in(here, changed) and not logs_in(here, former)
        assert live(here) != before
    finally:
        here.set_secret("prod", "vault_database_password", former)
        here.ansible(*CONVERGE).succeeded()
    assert live(here) == before


LOG_IN = """
import sys, pymysql
tls = {"ca": "/etc/ssl/certs/ca-certificates.crt"}
try:
    pymysql.connect(host="db1.waffle.lab", user="nba_prod", password=sys.stdin.buffer.read(), ssl=tls).close()
    print("welcome")
except pymysql.err.OperationalError as error:
    print(error.args[0])
"""
ACCESS_DENIED = "1045"


def logs_in(here: World, password: str) -> bool:
    """Return True if the application's account can log in with a password."""
    said = here.lab("exec", "prod1", "--", "python3", "-c", LOG_IN, stdin=password).strip()
    assert said in ("welcome", ACCESS_DENIED), said
    return said == "welcome"


SLOW_SECONDS = 24  # almost what a request may take (request_timeout_seconds in group_vars)
SLOW = f"""
import asyncio
from pathlib import Path

@app.get("/slow")
async def slow() -> str:
    await asyncio.sleep({SLOW_SECONDS})
    return Path.cwd().name
"""


@pytest.mark.long
def test_slow_requests_outlive_their_release(here: World, probing: Probing) -> None:
    """What was asked before the switch is answered long after it, by the release that was asked."""

    def ask() -> tuple[float, float, int, str]:
        begin = time.monotonic()
        answer = here.get("prod1", "/api/slow")
        return begin, time.monotonic(), answer.status, answer.text.strip('"')

    with here.edited(MAIN, lambda text: text + SLOW, commit=True):
        here.ansible(*DEPLOY).succeeded()
        old = live(here)
        with (
            here.edited(MAIN, new_code("beside slow requests"), commit=True),
            probing("deploy beside slow requests") as watch,
            ThreadPoolExecutor(100) as pool,
            deploying(here) as running,
        ):
            asked = []
            while running.process.poll() is None:
                asked.append(pool.submit(ask))
                with suppress(subprocess.TimeoutExpired):
                    running.process.wait(timeout=1)
        assert running.process.returncode == 0, "".join(running.lines)[-6000:]
        new = live(here)
    answers = [one.result() for one in asked]
    assert {status for _, _, status, _ in answers} == {200}
    (switched,) = [at for at, what in watch.probes["prod1"].marks if what == "switch"]
    assert {release for begin, end, _, release in answers if begin < switched - 1 < switched + 1 < end} == {old}
    assert answers[-1][3] == new
    ends_well(here)


def test_changed_configuration_of_nginx(here: World, probing: Probing) -> None:
    limit = ("request_body_limit: 1m", "request_body_limit: 2m")
    with probing("nginx change, there and back"):
        with here.edited("group_vars/prod/vars.yml", lambda text: text.replace(*limit)):
            assert here.ansible("playbooks/web.yml", *OPTIONS).succeeded().changed() != NOTHING_CHANGED
            assert "client_max_body_size 2m;" in here.execute("prod2", "cat", "/etc/nginx/nginx.conf")
        here.ansible("playbooks/web.yml", *OPTIONS).succeeded()


# --- processes that die ---


def test_killed_workers(here: World, probing: Probing) -> None:
    """A request that a worker has in hand dies with it: nginx sends a GET again, and must not send a POST again.

    So only a POST that was under way when its worker was killed may be lost: at most one for each of the two clients
    that write, for each kill.
    """
    with probing("workers killed, one after the other", lossy=True, rate=BUSY) as watch:
        kills = []
        for worker in workers(here, "prod1"):
            before = watch.mark("kill")
            here.execute("prod1", "kill", "-KILL", worker)
            kills.append((before, time.monotonic()))
            await_true(partial(was_replaced, here, "prod1", worker), 20, "the worker is replaced")
    for sample in failures(watch):
        assert sample.kind.startswith("POST"), sample
        assert any(sample.at <= after and before <= sample.at + sample.seconds for before, after in kills), sample
    assert len(failures(watch, "prod1")) <= 2 * len(kills)
    assert not failures(watch, "prod2")
    assert ends_well(here)


def test_restarted_service(here: World, probing: Probing) -> None:
    """The socket unit keeps connections until the service is back; requests under way are answered before it stops."""
    unit = f"nba@{here.status('prod1')['slot']}.service"
    with probing("service restarted", rate=BUSY) as watch:
        for _ in range(3):
            watch.mark("restart")
            here.execute("prod1", "systemctl", "restart", unit)
    assert ends_well(here)


def workers(here: World, host: str) -> list[str]:
    """Return the process ids of the server's workers."""
    unit = f"nba@{here.status(host)['slot']}.service"
    main = here.execute(host, "systemctl", "show", "-P", "MainPID", unit).strip()
    return here.shell(host, f"cat /proc/{main}/task/{main}/children", check=False).split()


def was_replaced(here: World, host: str, worker: str) -> bool:
    """Return True if a worker is gone and the server has several others."""
    found = workers(here, host)
    return len(found) > 1 and worker not in found


def failures(watch: Watch, *hosts: str) -> list[Sample]:
    """Return the failed requests to some hosts, or to all."""
    return [sample for host in hosts or PROD for sample in watch.probes[host].failed]


# --- releases that must not go live ---


BY_HOST = "import socket, time\nif socket.gethostname() == 'prod1':\n    time.sleep(3600)\n"
UNHEALTHY = "raise RuntimeError('unhealthy on purpose')"


@dataclass(frozen=True)
class Bad:
    """A release that must be refused: the file that is changed, how, and what the message must say."""

    path: str
    edit: Callable[[str], str]
    says: tuple[str, ...]


BAD = {
    "crashes at import": Bad(
        MAIN, lambda text: text + "raise RuntimeError('on purpose')\n", ("still is: RuntimeError: on purpose",)
    ),
    "crashes after 2 s": Bad(
        HEALTH,
        lambda text: text + "import threading\nthreading.Timer(2, os._exit, [1]).start()\n",
        (r"worker(\(s\))? died|main process ended",),
    ),
    # Both take as long as the role allows, so they share a run.
    "hangs at start on prod1, answers 500 on prod2": Bad(
        HEALTH,
        lambda text: text.replace("    _, reason = await _schema(request)\n", f"    {UNHEALTHY}\n") + BY_HOST,
        (
            "prod1: release .* the server did not answer within 30 s",
            "prod2: release .*GET /health/ready .*answered 500",
        ),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_release(here: World, probing: Probing, name: str) -> None:
    bad, before = BAD[name], live(here)
    with probing(f"release {name}") as watch:
        with here.edited(bad.path, bad.edit, commit=True):
            refused = here.ansible(*DEPLOY)
        assert refused.code != 0
        for said in bad.says:
            assert re.search(said, refused.output), (said, refused.output[-6000:])
        assert live(here) == before
        assert never_switched(here, watch)
        assert ends_well(here) == before


def never_switched(here: World, watch: Watch) -> bool:
    """Return True if no host gave a request to another release: none answered, and the last run has no such step."""
    assert not [mark for probe in watch.probes.values() for mark in probe.marks if mark[1] == "switch"]
    newest = "cat /srv/nba/state/receipts/$(ls -t /srv/nba/state/receipts | head -n 1)"
    steps = [step["step"] for host in PROD for step in json.loads(here.shell(host, newest))["steps"]]
    assert any(step.startswith("start ") for step in steps), steps
    return "switch" not in steps


def test_migration_that_fails_half_way(here: World, probing: Probing) -> None:
    """MySQL commits each DDL statement: the first one stays, and the old code serves on with it."""
    before = live(here)
    try:
        with probing("migration fails half-way"):
            with here.added(REVISION, MIGRATION.format(more='op.execute("ALTER TABLE nowhere ADD COLUMN x INT")')):
                refused = here.ansible(*DEPLOY)
            assert refused.code != 0
            assert "nowhere" in refused.output
            assert live(here) == before
            assert "nickname" in here.sql("nba_prod", "SHOW COLUMNS FROM users")
            assert ends_well(here) == before
    finally:
        here.sql("nba_prod", f"{DROP_COLUMN}; {SETTLE}")


# --- the control node dies ---


@dataclass
class Running:
    """A run of ansible-playbook that can be watched and killed."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def await_task(self, name: str) -> None:
        """Wait until a task of this name begins."""
        await_true(lambda: self.process.poll() is not None or self.began(name), 120, f"the task {name}")
        assert self.process.poll() is None, f"the run ended without a task {name}:\n{''.join(self.lines)[-6000:]}"

    def began(self, name: str) -> bool:
        """Return True if a task has begun."""
        return any(line.startswith(f"TASK [app : {name}]") for line in self.lines)

    def end(self) -> Run:
        """Wait until the run ends by itself; return it."""
        await_true(lambda: self.process.poll() is not None, 120, "the run gives up")
        self._reader.join()
        return Run(self.process.returncode, "".join(self.lines))

    def kill(self, number: signal.Signals) -> Run:
        """Send a signal to everything that a terminal would send it to, until the run ends; return it.

        A Ctrl-C that comes while Ansible starts a task's process lets that task end, and a person presses it again.
        """
        await_true(partial(self._ends, number), 60, f"the run ends after {number.name}")
        return self.end()

    def _ends(self, number: signal.Signals) -> bool:
        try:
            os.killpg(self.process.pid, number)
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return False
        return True


@contextmanager
def deploying(here: World, *options: str, command: tuple[str, ...] = DEPLOY) -> Iterator[Running]:
    """Start a deploy, or another command; whatever happens, it is over at the end."""
    with here.start_ansible(*command, *options) as process:
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                running.kill(signal.SIGKILL)
            here.runs.append("".join(running.lines))


def await_switch(here: World, slots: dict[str, str]) -> None:
    """Wait until hosts have left the slots that were live, asked on the hosts themselves."""
    for host, slot in slots.items():
        unchanged = f'[ "$(readlink /srv/nba/live)" = /srv/nba/slots/{slot} ]'
        here.shell(host, f"n=0; while {unchanged}; do n=$((n + 1)); [ $n -lt 3000 ] || exit 1; sleep 0.02; done")


# The task with which a step begins; what happens after it is seen on the hosts.
STEPS = {
    "prepare": "Prepare the release",
    "migrate": "Migrate the database",
    "start": "Start the release",
    "switch": "",
    "after the switch": "",
}


CONFIRM_SECONDS = 8


@contextmanager
def interrupted(here: World, watch: Watch, step: str, number: signal.Signals) -> Iterator[None]:
    """Begin a deploy, and end its control node at a step; what is done meanwhile comes before the run is collected."""
    slots = {host: here.status(host)["slot"] for host in PROD}
    # One host after the other, so that there is a time between the switches. JSON, as key=value would be text.
    with deploying(here, "-e", json.dumps({"app_rolling_batch": 1, "app_confirm_seconds": CONFIRM_SECONDS})) as running:
        if STEPS[step]:
            running.await_task(STEPS[step])
        else:
            await_switch(here, slots if step == "after the switch" else {PROD[0]: slots[PROD[0]]})
        watch.mark(number.name)
        assert running.kill(number).code != 0
        yield


@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(number, step, marks=[] if step in usual else pytest.mark.long)
        for number, usual in ((signal.SIGINT, ("start", "switch")), (signal.SIGKILL, ("prepare", "migrate")))
        for step in STEPS
    ],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
def test_interrupted_control_node(here: World, probing: Probing, number: signal.Signals, step: str) -> None:
    """Ctrl-C, and a control node that is gone at once: the same command, given again at once, takes over."""
    before, case = live(here), f"{number.name} at the step {step}"
    with here.edited(MAIN, new_code(case), commit=True), probing(case) as watch:
        with interrupted(here, watch, step, number):
            pass
        here.ansible(*DEPLOY_AGAIN).succeeded()
        assert live(here) != before
        if number == signal.SIGKILL:
            assert here.ansible(*DEPLOY).succeeded().changed() == NOTHING_CHANGED


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=[] if step in ("switch", "after the switch") else pytest.mark.long)
        for step in STEPS
        if step != "prepare"
    ],
)
def test_no_host_is_left_on_another_release_by_a_control_node_that_is_gone(
    here: World, probing: Probing, step: str
) -> None:
    """Without a further command, all hosts are on the release of before: none was confirmed."""
    before, case = live(here), f"control node lost at the step {step}"
    with here.edited(MAIN, new_code(case), commit=True), probing(case) as watch:
        with interrupted(here, watch, step, signal.SIGKILL):
            apart = step != "switch" or here.status(PROD[0])["live"] != here.status(PROD[1])["live"]
        begun = time.monotonic()
        for host in PROD:
            await_true(partial(nothing_at_work, here, host), 60, f"{host} has reverted by itself")
        # It waits that long for each batch; then it drains and stops what it had started.
        assert time.monotonic() - begun < len(PROD) * CONFIRM_SECONDS + 10
        assert live(here) == before
        assert apart, "the second host switched, though nobody was left to tell it to"
        here.ansible(*DEPLOY).succeeded()
        assert live(here) != before


@pytest.mark.long
def test_interrupted_while_it_migrates(here: World, probing: Probing) -> None:
    """Nobody is left to hear of it, and the host brings the migration to its end; the same command goes on there."""
    before, slow = ends_well(here), 'op.execute("DO SLEEP(4)")'
    try:
        with here.added(REVISION, MIGRATION.format(more=slow)), probing("SIGKILL while it migrates"):
            with deploying(here) as running:
                begun = partial(here.sql, "nba_prod", "SHOW COLUMNS FROM users")
                await_true(lambda: "nickname" in begun(), 120, "the first statement is committed")
                assert here.sql("nba_prod", "SELECT version_num FROM alembic_version").split()[-1] == "0001"
                assert running.kill(signal.SIGKILL).code != 0
            here.ansible(*DEPLOY_AGAIN).succeeded()
            assert live(here) != before
            assert [here.get(host, "/api/version").json()["schema"] for host in PROD] == ["0002", "0002"]
            assert here.ansible(*DEPLOY).succeeded().changed() == NOTHING_CHANGED
    finally:
        here.sql("nba_prod", f"{FORGET_REVISION}; {DROP_COLUMN}")
    assert ends_well(here) == before


@pytest.mark.long
def test_interrupted_rollback_is_finished_and_not_taken_back(here: World, probing: Probing) -> None:
    """The hosts have ended it by themselves when the same command comes again: no way forward to what was left."""
    before = ends_well(here)
    with here.edited(MAIN, new_code("left by a rollback"), commit=True):
        here.ansible(*DEPLOY).succeeded()
        slots = {host: here.status(host)["slot"] for host in PROD}
        with probing("rollback interrupted, and once more"):
            with deploying(here, "-e", '{"app_confirm_seconds": 15}', command=ROLLBACK) as running:
                await_switch(here, slots)
                assert running.kill(signal.SIGKILL).code != 0
            for host in PROD:
                await_true(partial(nothing_at_work, here, host), 60, f"{host} has ended it by itself")
            assert live(here) == before
            assert here.ansible(*ROLLBACK).succeeded().changed() == NOTHING_CHANGED
        assert live(here) == before
        # What was heard to its end is over: the next one goes to what was live before.
        here.ansible(*ROLLBACK).succeeded()
        assert live(here) != before
    assert ends_well(here) == before


def nothing_at_work(here: World, host: str) -> bool:
    """Return True if no run holds the lock of a host."""
    return not here.status(host)["running"]


# --- hosts, disks and the database fail ---


@pytest.mark.parametrize("step", ["start", pytest.param("after the switch", marks=pytest.mark.long)])
def test_host_rebooted_in_the_middle(here: World, probing: Probing, step: str) -> None:
    """A host that reboots answers nobody until it is up again, within `REBOOT_SECONDS`; the other one loses nothing."""
    before, slot = live(here), here.status("prod2")["slot"]
    with (
        here.edited(MAIN, new_code(f"rebooted at the step {step}"), commit=True),
        probing(f"host rebooted at the step {step}", lossy=True) as watch,
    ):
        boot = boot_time(here, "prod2")
        with deploying(here) as running:
            if STEPS[step]:
                running.await_task(STEPS[step])
            else:
                await_switch(here, {"prod2": slot})
            moment = watch.mark("reboot")
            here.shell("prod2", "systemctl reboot", check=False)
            await_true(lambda: boot_time(here, "prod2") not in ("", boot), 60, "prod2 boots")
            ended = running.end()
        await_true(lambda: answering(here, "prod2"), 60, "prod2 answers again")
        if ended.code == 0:
            assert live(here) != before, "it was up in time to be asked once more, and went on"
        else:
            assert "is live on no host" in ended.output, ended.output[-6000:]
            # It reverts at boot, before nginx starts, and the other one is told to.
            assert live(here) == before
        assert ends_well(here) != before
    assert not failures(watch, "prod1"), failures(watch, "prod1")[:5]
    for sample in failures(watch, "prod2"):
        assert moment - 1 <= sample.at + sample.seconds and sample.at <= moment + REBOOT_SECONDS, sample


def boot_time(here: World, host: str) -> str:
    """Return when the host's first process started, in clock ticks; nothing while there is none."""
    found = here.shell(host, "cat /proc/1/stat", check=False).split()
    return found[21] if len(found) > 21 else ""


def answering(here: World, host: str) -> str:
    """Return the release that a host's public address answers with; nothing where none does."""
    try:
        answer = here.get(host, "/api/version")
    except OSError:
        return ""
    return str(answer.json()["release"]) if answer.status == 200 else ""


INODES = 12  # enough for what Ansible brings, too few for what is in the archive
SMALL_DISK = """
set -eu
mkdir /run/small
mount -t tmpfs -o mode=0755 small /run/small
cp -a /srv/nba/. /run/small
mount -o remount,nr_inodes=$(($(df --output=iused /run/small | tail -n 1) + {inodes})) /run/small
mount --bind /run/small /srv/nba
"""
LARGE_DISK = """
while mountpoint -q /srv/nba; do umount --lazy /srv/nba || exit 1; done
while mountpoint -q /run/small; do umount --lazy /run/small || exit 1; done
rmdir /run/small
"""


@contextmanager
def small_disk(here: World, host: str) -> Iterator[None]:
    """Put the releases of a host on a disk that is full after some further files."""
    try:
        here.shell(host, SMALL_DISK.format(inodes=INODES))
        yield
    finally:
        here.shell(host, LARGE_DISK)


def test_full_disk_while_unpacking(here: World, probing: Probing) -> None:
    before, listing = live(here), ("prod1", "ls", "-A", "/srv/nba/releases", "/srv/nba/venvs")
    with here.edited(MAIN, new_code("on a full disk"), commit=True), probing("disk full while unpacking"):
        with small_disk(here, "prod1"):
            there = here.execute(*listing)
            refused = here.ansible(*DEPLOY)
            assert refused.code != 0
            assert "No space left on device" in refused.output, refused.output[-6000:]
            assert here.execute(*listing) == there
        assert live(here) == before
        assert ends_well(here) != before


OUTAGE_SECONDS = 20.0


@contextmanager
def database_stopped(here: World) -> Iterator[None]:
    """Shut the server down for a while: connections are refused."""
    here.lab("database", "stop")
    try:
        yield
    finally:
        here.lab("database", "start")


@contextmanager
def database_frozen(here: World) -> Iterator[None]:
    """Stop the server's process for a while: connections are made, and nothing is answered."""
    server = here.execute(
        "db1", "systemctl", "list-units", "--plain", "--no-legend", "mysql.service", "mariadb.service"
    )
    unit = server.split()[0]
    here.execute("db1", "systemctl", "kill", "--signal=STOP", unit)
    try:
        yield
    finally:
        here.execute("db1", "systemctl", "kill", "--signal=CONT", unit)


@pytest.mark.parametrize("gone", [database_stopped, pytest.param(database_frozen, marks=pytest.mark.long)])
def test_database_gone(here: World, probing: Probing, gone: Callable[[World], AbstractContextManager[None]]) -> None:
    """Without the database nothing can be served: each failure is a 503 with a reason, and they end by themselves."""
    with probing(f"{gone.__name__.replace('_', ' ')} for {OUTAGE_SECONDS:.0f} s", lossy=True) as watch:
        with gone(here):
            begin = watch.mark("database gone")
            threading.Event().wait(OUTAGE_SECONDS)
        back = watch.mark("database back")
        for host in PROD:
            await_true(partial(is_ready, here, host), 30, f"{host} is ready")
        sent = {host: len(watch.probes[host].samples) for host in PROD}
        await_true(lambda: all(len(watch.probes[host].samples) > sent[host] + 100 for host in PROD), 30, "it goes on")
    failed = failures(watch)
    assert any(begin < sample.at < back for sample in failed)
    assert {sample.status for sample in failed} == {503}
    assert all(json.loads(sample.reason)["reason"] for sample in failed)
    assert max(sample.at + sample.seconds for sample in failed) - back < RECOVERY_SECONDS
    assert ends_well(here)


def is_ready(here: World, host: str) -> bool:
    """Return True if a host can serve."""
    return here.get(host, "/api/health/ready").status == 200


# --- two hosts end on one release ---


@pytest.mark.long
def test_one_host_refuses_to_start(here: World, probing: Probing) -> None:
    before = live(here)
    idle = "green" if here.status("prod2")["slot"] == "blue" else "blue"
    with here.edited(MAIN, new_code("refused by one host"), commit=True), probing("one host cannot start it") as watch:
        # No socket can be made where a folder is.
        here.shell("prod2", f"rm -f /run/nba/{idle}.sock && mkdir /run/nba/{idle}.sock")
        try:
            refused = here.ansible(*DEPLOY)
        finally:
            here.shell("prod2", f"rmdir /run/nba/{idle}.sock")
        assert refused.code != 0
        assert "prod2: release" in refused.output
        assert live(here) == before
        assert never_switched(here, watch)
        assert ends_well(here) != before


# What root's own look at the public address gets on one host, and nobody else.
REFUSES_ITSELF = """
    import socket
    if socket.gethostname() == "prod2" and request.headers.get("x-real-ip") == "127.0.0.1":
        raise RuntimeError("refused on purpose")
"""


@contextmanager
def hooked(here: World, tasks: str) -> Iterator[None]:
    """Give hosts a hook before they switch."""
    hook = here.root / "hooks/before_switch.yml"
    hook.parent.mkdir()
    hook.write_text(tasks)
    try:
        yield
    finally:
        hook.unlink()
        hook.parent.rmdir()


OBJECTS = "- name: Object\n  ansible.builtin.fail: {msg: not today}\n  when: inventory_hostname == 'prod2'\n"
GOES_DOWN = """
- name: Go down
  ansible.builtin.command: sh -c "systemctl reboot; exec sleep 60"
  changed_when: true
  when: inventory_hostname == 'prod2'
"""


@pytest.mark.long
def test_a_hook_that_fails_on_one_host_takes_the_release_back_on_all(here: World, probing: Probing) -> None:
    before = ends_well(here)
    with here.edited(MAIN, new_code("refused by a hook"), commit=True), hooked(here, OBJECTS):
        with probing("hook fails on one host") as watch:
            refused = here.ansible(*DEPLOY)
        assert refused.code != 0
        assert "prod2: the task `Object` failed: not today" in refused.output, refused.output[-6000:]
        assert live(here) == before
        assert never_switched(here, watch)
    assert ends_well(here) == before


@pytest.mark.long
def test_nobody_switches_without_a_host_that_goes_down_in_a_hook(here: World, probing: Probing) -> None:
    """Ansible leaves such a host out of the run; its peers would go on."""
    before, case = ends_well(here), "host rebooted in a hook"
    with here.edited(MAIN, new_code(case), commit=True), probing(case, lossy=True) as watch:
        boot = boot_time(here, "prod2")
        with hooked(here, GOES_DOWN):
            ended = here.ansible(*DEPLOY)
        assert ended.code != 0 and "prod2: left the run, see above" in ended.output, ended.output[-6000:]
        await_true(lambda: boot_time(here, "prod2") not in ("", boot), 60, "prod2 boots")
        await_true(lambda: answering(here, "prod2"), 60, "prod2 answers again")
        assert live(here) == before
        assert ends_well(here) != before
    assert not failures(watch, "prod1"), failures(watch, "prod1")[:5]


def test_one_host_fails_at_the_switch(here: World, probing: Probing) -> None:
    before, line = live(here), "    _, reason = await _schema(request)\n"
    with probing("one host fails at the switch"):
        with here.edited(HEALTH, lambda text: text.replace(line, REFUSES_ITSELF + line), commit=True):
            refused = here.ansible(*DEPLOY)
        assert refused.code != 0
        assert re.search("prod2: .*answered 500", refused.output, re.S), refused.output[-6000:]
        assert live(here) == before
        ends_well(here)
