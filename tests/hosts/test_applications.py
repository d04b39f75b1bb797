"""Applications that know nothing of Waffle Iron, in a clone that a user made: deployed as docs/applications.md has it.

A lab of its own with a host for dev and one for prod. The second application comes while the first one is served.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts.probe import Probe
from tests.hosts.websocket import WebSocket
from tests.hosts.world import AWKWARD, CHECKOUT, World, await_true, world

pytestmark = pytest.mark.lab
HOSTS = {"dev1": "dev", "prod1": "prod"}
ALL = ("-e", "all_environments=true")
WIRING = "group_vars/all/vars.yml"


@dataclass(frozen=True)
class App:
    """An application under tests/apps, and what its user writes beside its name and repository."""

    name: str
    folder: str
    path: str
    """Answers 200."""
    source: str
    """A file of it, for another release of the same behaviour."""
    names: bool = False
    """True if it answers to the names of its environment alone."""
    values: str = ""

    def host(self, host: str) -> str:
        """Return the name that an environment answers to; empty for any."""
        return f"{self.name}.{HOSTS[host]}.test" if self.names else ""

    def headers(self, host: str) -> dict[str, str]:
        """Return the headers of a request."""
        return {"Host": self.host(host)} if self.names else {}


TUTORIAL = App(
    "players",
    "tutorial",
    "/players",
    "main.py",
    values="app_schema_command: [tables.sql]\ndatabase_require_tls: false\n",
)
TEAM = App(
    "club",
    "team",
    "/api/v1/members/",
    "src/club/main.py",
    names=True,
    values='app_settings: {ALLOWED_HOSTS: "{{ server_names }}"}\n',
)
SMALL = App("clock", "small", "/", "app.py")


@dataclass(frozen=True)
class Clone:
    """A user's clone with one application, which is live on dev and prod."""

    here: World
    app: App
    repository: Path
    outputs: tuple[str, ...] = ()

    def commit(self, subject: str) -> None:
        """Commit what was changed in the application's repository."""
        git(self.repository, "commit", "--quiet", "--all", "--message", subject)

    def live(self, host: str) -> str:
        """Return the release that is live on a host, after asserting that it has no problem."""
        status = json.loads(self.here.execute(host, f"/usr/local/sbin/{self.app.name}-release", "status"))
        assert status["problems"] == []
        return str(status["live"])

    def journal(self, host: str) -> str:
        """Return what the application's slots logged."""
        return self.here.execute(
            host, "journalctl", "-o", "cat", "-t", f"{self.app.name}-blue", "-t", f"{self.app.name}-green"
        )


def git(folder: Path, *arguments: str) -> None:
    """Run Git in a folder."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a clone without an application of its own yet, and its lab."""
    with world(tmp_path_factory.mktemp("clone"), "apps", "--prod-hosts", "1") as made:
        for environment in HOSTS.values():
            # PyMySQL encodes a password as Latin-1, and MySQL expects UTF-8: ASCII is the same in both.
            for name in ("vault_database_password", "vault_database_migration_password"):
                made.set_secret(environment, name, f"{AWKWARD.replace('é', 'e')} {environment} {name}")
        yield made


@pytest.fixture(
    scope="module", params=[TUTORIAL, TEAM, pytest.param(SMALL, marks=pytest.mark.long)], ids=lambda app: app.name
)
def clone(lab: World, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Return the clone with the application, which one run brought to each environment."""
    app: App = request.param
    repository = tmp_path_factory.mktemp(app.name) / app.name
    shutil.copytree(CHECKOUT / "tests/apps" / app.folder, repository, ignore=shutil.ignore_patterns("__pycache__"))
    git(repository, "init", "--quiet")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "What the user has")
    # As a user's clone is: the wiring of the sample, before the command below.
    for path in (WIRING, "group_vars/dev/vars.yml", "group_vars/prod/vars.yml"):
        shutil.copy2(CHECKOUT / path, lab.root / path)
    subprocess.run([sys.executable, "scripts/new-app", app.name, str(repository)], cwd=lab.root, check=True)
    wiring = lab.root / WIRING
    for line in app.values.splitlines():
        text, count = re.subn(f"^{line.partition(':')[0]}: .*$", line, wiring.read_text(), flags=re.MULTILINE)
        wiring.write_text(text if count else f"{text}{line}\n")
    for environment in HOSTS.values():
        values = lab.root / f"group_vars/{environment}/vars.yml"
        text = values.read_text().replace('preview_domain: ""', f"preview_domain: {environment}.test")
        text = text.replace("request_timeout_seconds: 30", "request_timeout_seconds: 12")
        text = text.replace("request_body_limit: 1m", "request_body_limit: 20m")
        if app.names:
            text = text.replace('server_names: ["_"]', f"server_names: [{app.name}.{environment}.test]")
        values.write_text(text)
    lab.git("commit", "--quiet", "--all", "--allow-empty", "--message", f"Deploy {app.name}")
    made = Clone(lab, app, repository)
    runs = [lab.ansible("site.yml", "-l", environment).succeeded().output for environment in ("dev", "prod")]
    return dataclasses.replace(made, outputs=tuple(runs))


def test_it_answers_on_dev_and_prod_and_a_second_run_changes_nothing(clone: Clone) -> None:
    for host in HOSTS:
        answer = clone.here.get(host, clone.app.path, **clone.app.headers(host))
        assert answer.status == 200, answer
        # What is asked on the release's socket is nobody's business outside.
        assert clone.here.get(host, "/.waffle/version", **clone.app.headers(host)).status == 404
    again = clone.here.ansible("site.yml", *ALL).succeeded()
    assert again.changed() == dict.fromkeys(HOSTS, 0), again.changes()


def test_deploy_and_rollback_lose_no_request(clone: Clone) -> None:
    source, app = clone.repository / clone.app.source, clone.app
    before = {host: clone.live(host) for host in HOSTS}
    source.write_text(f"{source.read_text()}\n# another version\n")
    clone.commit("Another version")
    kinds = {"GET kept": ("GET", app.path, True), "GET new": ("GET", app.path, False)}
    probes = [Probe(clone.here.address(host), 30, kinds, app.host(host)) for host in HOSTS]
    for probe in probes:
        probe.__enter__()
    try:
        await_true(lambda: all(len(probe.samples) > 20 for probe in probes), 30, "the probes are answered")
        for environment in ("dev", "prod"):
            clone.here.ansible("playbooks/deploy.yml", "-l", environment).succeeded()
        after = {host: clone.live(host) for host in HOSTS}
        assert not set(before.values()) & set(after.values())
        for environment in ("dev", "prod"):
            clone.here.ansible("playbooks/rollback.yml", "-l", environment).succeeded()
        assert {host: clone.live(host) for host in HOSTS} == before
    finally:
        for probe in probes:
            probe.stop()
        git(clone.repository, "revert", "--no-edit", "HEAD")
    assert [probe.failed for probe in probes] == [[], []]


def test_every_screen_is_right(clone: Clone) -> None:
    here, app = clone.here, clone.app
    for playbook in ("parity", "drift", "doctor", "status"):
        run = here.ansible(f"playbooks/{playbook}.yml", *(() if playbook == "parity" else ALL))
        # The applications of before are left on the hosts, and the report names them.
        is_left = playbook == "drift" and "an application of another project" in run.output
        expected = 3 if is_left and app is not TUTORIAL else 0
        assert run.code == expected, (playbook, run.output[-4000:])
    for environment in HOSTS.values():
        here.ansible("playbooks/smoke.yml", "-l", environment).succeeded()
    plan = here.ansible("playbooks/plan.yml", "-l", "dev").succeeded()
    assert clone.live("dev1") in plan.output


def test_a_pull_request_gets_a_preview(clone: Clone) -> None:
    preview = ("playbooks/preview.yml", "-l", "dev", "-e", "preview=pr-1")
    named = {"Host": "pr-1.dev.test"}
    try:
        clone.here.ansible(*preview).succeeded()
        assert clone.here.get("dev1", clone.app.path, **named).status == 200
        assert clone.here.ansible(*preview).succeeded().changed() == {"dev1": 0}
    finally:
        clone.here.ansible(*preview, "-e", "preview_state=absent").succeeded()
    assert clone.here.shell("dev1", f"ls -d /srv/{clone.app.name}-* 2>/dev/null || :") == ""
    assert clone.here.get("dev1", clone.app.path, **clone.app.headers("dev1")).status == 200


# --- what the server and nginx give to any application ---


ONLY_TEAM = pytest.mark.parametrize("clone", [TEAM], indirect=True, ids=[TEAM.name])
API = "/api/v1"
TIMEOUT_SECONDS = 12


def ask(
    clone: Clone, path: str, method: str = "GET", body: object = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Return the answer of dev."""
    answer = clone.here.get("dev1", path, method, body, **clone.app.headers("dev1"), **headers)
    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.text


@ONLY_TEAM
def test_an_exception_is_in_the_journal_with_the_request_that_raised_it(clone: Clone) -> None:
    request = f"crash-{time.time_ns()}"
    assert ask(clone, f"{API}/crash", X_Request_ID=request)[0] == 500
    await_true(lambda: request in clone.journal("dev1"), 5, "the exception is in the journal")
    text = clone.journal("dev1")
    assert "RuntimeError: the desk fell over" in text and "desk.py" in text
    # Once, with the request that raised it right behind.
    assert text.count(request) == 1
    assert text.count("RuntimeError: the desk fell over") == text.count("request crash-")


@ONLY_TEAM
def test_what_it_prints_is_in_the_journal_at_once(clone: Clone) -> None:
    assert ask(clone, f"{API}/say?text=hello-journal", "POST")[0] == 204
    await_true(lambda: "hello-journal" in clone.journal("dev1"), 3, "it is in the journal")


@ONLY_TEAM
def test_it_knows_its_client_its_address_and_its_own_version(clone: Clone) -> None:
    gateway = clone.here.address("dev1").rpartition(".")[0] + ".1"
    seen = json.loads(ask(clone, f"{API}/client", X_Forwarded_For="192.0.2.9", X_Forwarded_Proto="https")[2])
    assert seen == {"host": gateway, "url": f"http://{clone.app.host('dev1')}{API}/client"}
    assert json.loads(ask(clone, f"{API}/about")[2]) == {"name": "club", "version": "2.4.1"}
    status, headers, _ = ask(clone, f"{API}/members")
    assert (status, headers["location"]) == (307, f"http://{clone.app.host('dev1')}{API}/members/")
    status, headers, text = ask(clone, f"{API}/docs")
    assert status == 200 and f"{API}/openapi.json" in text
    assert "content-security-policy" not in headers
    assert json.loads(ask(clone, f"{API}/openapi.json")[2])["info"]["title"] == "Club"


@ONLY_TEAM
@pytest.mark.long
def test_it_knows_its_client_behind_a_load_balancer(clone: Clone) -> None:
    gateway = clone.here.address("dev1").rpartition(".")[0] + ".1"
    web = ("playbooks/web.yml", "-l", "dev")
    claims = {"X_Forwarded_For": "192.0.2.9", "X_Forwarded_Proto": "https"}
    trusts = ("trusted_proxies: []", f"trusted_proxies: [{gateway}/32]")
    try:
        with clone.here.edited("group_vars/dev/vars.yml", lambda text: text.replace(*trusts)):
            clone.here.ansible(*web).succeeded()
            seen = json.loads(ask(clone, f"{API}/client", **claims)[2])
            _, headers, _ = ask(clone, f"{API}/members", **claims)
    finally:
        clone.here.ansible(*web).succeeded()
    assert seen == {"host": "192.0.2.9", "url": f"https://{clone.app.host('dev1')}{API}/client"}
    assert headers["location"] == f"https://{clone.app.host('dev1')}{API}/members/"


@ONLY_TEAM
def test_cookies_and_uploads_within_the_limits_pass_and_others_get_one_status(clone: Clone) -> None:
    status, headers, _ = ask(clone, f"{API}/session", "POST")
    assert status == 204 and len(headers["set-cookie"]) > 4500
    cookies = "; ".join(f"session-{number}={str(number) * 4500}" for number in range(2))
    assert json.loads(ask(clone, f"{API}/session", Cookie=cookies)[2]) == {"session-0": 4500, "session-1": 4500}
    assert ask(clone, f"{API}/session", Cookie=f"a={'a' * 40_000}")[0] == 400
    assert ask(clone, f"{API}/client?q={'a' * 4200}")[0] == 200
    assert ask(clone, f"{API}/client?q={'a' * 40_000}")[0] == 414
    boundary = "part"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
    body += b"x" * (15 << 20) + f"\r\n--{boundary}--\r\n".encode()
    assert json.loads(upload(clone, boundary, body)[1])["size"] == 15 << 20
    assert upload(clone, boundary, body + b"x" * (6 << 20))[0] == 413


def upload(clone: Clone, boundary: str, body: bytes) -> tuple[int, str]:
    """Return status and body of an upload to dev."""
    connection = http.client.HTTPConnection(clone.here.address("dev1"), timeout=60)
    headers = {"Host": clone.app.host("dev1"), "Content-Type": f"multipart/form-data; boundary={boundary}"}
    try:
        connection.request("POST", f"{API}/files", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (BrokenPipeError, ConnectionResetError):
        # nginx answers before it has read all of it, which a client may see first.
        return 413, ""
    finally:
        connection.close()


@ONLY_TEAM
def test_a_request_that_takes_too_long_is_executed_once_and_answered_once(clone: Clone) -> None:
    begin, name = time.monotonic(), f"at-{time.time_ns()}"
    assert ask(clone, f"{API}/slow?seconds={TIMEOUT_SECONDS + 3}&name={name}")[0] == 504
    assert time.monotonic() - begin < TIMEOUT_SECONDS + 3
    assert clone.journal("dev1").count(f"slow {name} begins") == 1


@ONLY_TEAM
def test_events_arrive_as_they_are_sent(clone: Clone) -> None:
    connection = http.client.HTTPConnection(clone.here.address("dev1"), timeout=30)
    connection.request("GET", f"{API}/events?count=3&seconds=1", headers=clone.app.headers("dev1"))
    begin, answer = time.monotonic(), connection.getresponse()
    assert answer.readline() == b"id: 0\n" and time.monotonic() - begin < 0.9
    assert b"id: 2" in answer.read()
    connection.close()


@ONLY_TEAM
def test_a_deploy_ends_what_runs_in_the_old_release(clone: Clone) -> None:
    """A socket that is in use outlives the limit of requests; a task after an answer comes to its end."""
    address, name = clone.here.address("dev1"), clone.app.host("dev1")
    chat = WebSocket(address, f"{API}/chat", name)
    begin, received = time.monotonic(), []
    while time.monotonic() - begin < TIMEOUT_SECONDS + 2:
        chat.send("still here")
        received.append(chat.receive())
        time.sleep(1)
    assert set(received) == {"still here"} and not chat.closed
    member = json.loads(ask(clone, f"{API}/members/", "POST", {"name": "Ada"})[2])["id"]
    source = clone.repository / clone.app.source
    source.write_text(f"{source.read_text()}\n# a version after letters\n")
    clone.commit("A version after letters")
    listener = threading.Thread(target=chat.receive)
    listener.start()
    deploy = clone.here.start_ansible("playbooks/deploy.yml", "-l", "dev")
    await_true(lambda: "start " in clone.here.shell("dev1", "journalctl -o cat -u club-release -n 40"), 60, "it starts")
    assert ask(clone, f"{API}/members/{member}/letters", "POST", {"text": "Dear"})[0] == 202
    output, _ = deploy.communicate(timeout=300)
    assert deploy.returncode == 0, output[-4000:]
    listener.join(30)
    assert chat.closed in (1001, 1012), chat.closed
    written = f"letter to member {member} written"
    await_true(lambda: written in clone.journal("dev1"), 20, "the letter is written")
    assert json.loads(ask(clone, f"{API}/members/{member}/letters")[2]) == {"count": 1}
    clone.here.ansible("playbooks/rollback.yml", "-l", "dev").succeeded()
    git(clone.repository, "revert", "--no-edit", "HEAD")


@ONLY_TEAM
@pytest.mark.parametrize(
    ("variable", "value", "said", "fix"),
    [
        ("app_ready_path", "/nowhere", "answered 404", "app_ready_path"),
        ("app_module", "club.main:other", "has no attribute 'other'", "app_module"),
        ("app_settings", '{ALLOWED_HOSTS: ["other.example.com"]}', "answered 400", "ALLOWED_HOSTS"),
        (
            "app_settings",
            '{ALLOWED_HOSTS: "{{ server_names }}", HTTPS_REDIRECT: true}',
            "answered 307",
            "public_scheme",
        ),
    ],
    ids=["404", "module", "400", "307"],
)
def test_the_gate_says_what_it_saw(clone: Clone, variable: str, value: str, said: str, fix: str) -> None:
    before = clone.live("dev1")
    run = clone.here.ansible("playbooks/deploy.yml", "-l", "dev", "-e", f"{{{variable}: {value}}}")
    output = " ".join(run.output.split())
    assert run.code != 0 and said in output and fix in output, output[-4000:]
    assert "did not answer" not in output and "not ready after" not in output
    assert clone.live("dev1") == before
