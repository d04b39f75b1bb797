"""A bare host becomes a service, and a second run has nothing to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import AWKWARD, UNPROVEN, World, await_true

pytestmark = pytest.mark.lab
HOSTS = {"dev1": "dev", "bare1": "dev", "prod1": "prod", "prod2": "prod"}
UNCHANGED = {"prod1": 0, "prod2": 0}
OWNER = "/etc/waffle-iron/environment"
LISTENS = "ss -Hltn 'sport = :9000'"


def test_the_preview_of_a_bare_host_ends_well_and_names_what_it_would_do(converged: Converged) -> None:
    preview = converged.preview.succeeded()
    assert preview.changed()["dev1"] > 5
    assert "/etc/nginx/nginx.conf" in preview.output


def test_a_deploy_in_check_mode_does_so_too(converged: Converged) -> None:
    assert converged.deploy.succeeded().changed()["dev1"] > 1


def test_a_deploy_brings_an_account_that_is_new(here: World, converged: Converged) -> None:
    """The host was converged by a version without it."""
    here.shell("dev1", "userdel nba-build && rm /etc/systemd/system/nba@.service")
    here.ansible("playbooks/deploy.yml", "-l", "dev").succeeded()
    assert here.shell("dev1", "id -u nba-build").strip().isdecimal()
    gid = here.shell("dev1", "id -g nba-build").strip()
    rules = here.shell("dev1", "nft list table inet nba")
    assert gid in rules or "nba-build" in rules
    assert set(here.ansible("playbooks/deploy.yml", "-l", "dev").succeeded().changed().values()) == {0}


def test_dev_alone_leaves_prod_as_it_was(converged: Converged) -> None:
    converged.dev.succeeded()
    assert "nba" not in converged.prod_after_dev
    assert "nginx" not in converged.prod_after_dev


def test_both_environments_answer(here: World, converged: Converged) -> None:
    converged.prod.succeeded()
    for host, environment in HOSTS.items():
        assert here.get(host, "/api/").text == '{"Hello":"MySQL"}'
        version = here.get(host, "/api/version").json()
        assert version["environment"] == environment
        assert version["release"] == here.status(host)["live"]
        assert version["schema"]
        assert here.get(host, "/api/health/ready").status == 200
        assert "<html" in here.get(host, "/").text


def in_prod_as_well(here: World, tmp_path: Path, host: str) -> tuple[str, ...]:
    """Return options that have a host of dev in prod, under another name."""
    known = json.loads((here.root / ".lab" / here.name / "inventory.json").read_text())["_meta"]["hostvars"]
    (tmp_path / "mistake.json").write_text(json.dumps({"prod": {"hosts": {"mistake1": known[host]}}}))
    return "-i", "inventory/lab", "-i", str(tmp_path / "mistake.json"), "-l", "mistake1"


def test_a_host_of_dev_is_refused_by_a_run_for_prod(here: World, converged: Converged, tmp_path: Path) -> None:
    for host, environment in HOSTS.items():
        assert here.execute(host, "cat", OWNER) == f"{environment}\n"
    run = here.ansible("site.yml", *in_prod_as_well(here, tmp_path, "dev1"))
    assert run.code == 2 and run.changed() == {"mistake1": 0}
    assert "mistake1 was refused, and no host was changed: its environment is dev" in " ".join(run.output.split())


@pytest.mark.long
def test_a_host_is_taken_over_and_given_back(here: World, converged: Converged, tmp_path: Path) -> None:
    taken = ("playbooks/base.yml", *in_prod_as_well(here, tmp_path, "dev1"), "-e", "take_over=dev")
    here.ansible(*taken).succeeded()
    assert here.execute("dev1", "cat", OWNER) == "prod\n"
    assert here.ansible(*taken).succeeded().changed() == {"mistake1": 0}
    assert "-e take_over=prod" in here.ansible("playbooks/deploy.yml", "-l", "dev1").output
    here.ansible("site.yml", "-l", "dev1", "-e", "take_over=prod").succeeded()
    assert here.ansible("site.yml", "-l", "dev1").succeeded().changed() == {"dev1": 0}


def test_values_make_the_difference(here: World, converged: Converged) -> None:
    assert [user["name"] for user in here.get("dev1", "/api/users").json()] == ["Alice", "Bob"]
    assert here.get("prod1", "/api/users").json() == []
    assert here.get("dev1", "/api/docs").status == 200
    assert here.get("prod1", "/api/docs").status == 404
    laptop = {"Origin": "http://localhost:5173"}
    assert here.get("dev1", "/api/users", **laptop).headers["access-control-allow-origin"] == laptop["Origin"]
    assert "access-control-allow-origin" not in here.get("prod1", "/api/users", **laptop).headers


def test_a_user_is_created_changed_and_removed_through_nginx(here: World, converged: Converged) -> None:
    made = here.get("prod1", "/api/users", "POST", {"name": "Carol", "email": "carol@example.com"})
    assert made.status == 201
    user = f"/api/users/{made.json()['id']}"
    assert here.get("prod1", "/api/users", "POST", {"name": "Eve", "email": "carol@example.com"}).status == 409
    assert here.get("prod1", "/api/users", "POST", {"name": "", "email": "x"}).status == 422
    assert here.get("prod1", user, "PUT", {"name": "Carla", "email": "carla@example.com"}).json()["name"] == "Carla"
    assert here.get("prod1", user, "DELETE").status == 204
    assert here.get("prod1", user).status == 404


def test_a_second_run_changes_nothing_and_restarts_nothing(here: World, converged: Converged) -> None:
    begun = "systemctl show -P MainPID nginx.service nba@blue.service nba@green.service"
    before = {host: here.shell(host, begun) for host in HOSTS}
    again = here.ansible("site.yml", "-e", "all_environments=true", "--diff").succeeded()
    assert again.changed() == dict.fromkeys(HOSTS, 0)
    assert {host: here.shell(host, begun) for host in HOSTS} == before


def test_a_preview_of_a_converged_host_shows_no_change(here: World, converged: Converged) -> None:
    preview = here.ansible("site.yml", "-l", "prod", "--check", "--diff").succeeded()
    assert preview.changed() == UNCHANGED


@pytest.mark.long
def test_each_playbook_runs_by_itself_with_the_same_values(here: World, converged: Converged) -> None:
    for name in ("preflight", "base", "database", "web", "app"):
        alone = here.ansible(f"playbooks/{name}.yml", "-l", "prod").succeeded()
        assert alone.changed() == UNCHANGED, name


def test_the_accounts_can_do_what_they_must_and_no_more(here: World, converged: Converged) -> None:
    client = "mysql --defaults-extra-file=/root/probe.cnf -N -e"
    for account, secret, allowed, refused in (
        (
            "nba_dev",
            "vault_database_password",
            "SELECT count(*) FROM nba_dev.users",
            "DROP TABLE nba_dev.users",
        ),
        ("nba_dev", "vault_database_password", "SELECT 1", "SELECT count(*) FROM nba_prod.users"),
        (
            "nba_dev_migrate",
            "vault_database_migration_password",
            "CREATE TABLE nba_dev.probe (id int); DROP TABLE nba_dev.probe",
            "CREATE DATABASE other",
        ),
        *(
            ("nba_dev_read", "vault_database_reader_password", "SELECT count(*) FROM nba_dev.users", change)
            for change in (
                "INSERT INTO nba_dev.users SELECT * FROM nba_dev.users",
                "UPDATE nba_dev.users SET id = id",
                "DELETE FROM nba_dev.users",
                "CREATE TABLE nba_dev.probe (id int)",
                "SELECT count(*) FROM nba_prod.users",
            )
        ),
    ):
        password = here.secrets("dev")[secret].replace("\\", "\\\\").replace('"', '\\"')
        options = f'[client]\nhost=db1.waffle.lab\nuser={account}\npassword="{password}"\n'
        here.write("dev1", "/root/probe.cnf", options)
        try:
            here.shell("dev1", f'{client} "{allowed}"')
            assert "denied" in here.shell("dev1", f'{client} "{refused}" 2>&1', check=False), (
                account,
                refused,
            )
        finally:
            here.execute("dev1", "rm", "/root/probe.cnf")
    assert AWKWARD in here.secrets("dev")["vault_database_password"]


def test_running_requests_have_their_time_before_systemd_ends_the_service(here: World, converged: Converged) -> None:
    for host in HOSTS:
        config = json.loads(here.execute(host, "cat", "/usr/local/lib/nba/release.json"))
        limit = config["graceful_timeout_seconds"]
        unit = f"nba@{here.status(host)['slot']}.service"
        stop = here.shell(host, f"systemctl cat {unit} | sed -n 's/^TimeoutStopSec=//p'")
        assert float(stop) >= float(limit) + 5 > 5


def test_the_service_is_closed_in(here: World, converged: Converged) -> None:
    for host in HOSTS:
        slot = here.status(host)["slot"]
        score = here.execute(host, "systemd-analyze", "security", "--no-pager", f"nba@{slot}.service")
        assert float(score.rsplit(":", 1)[1].split()[0]) <= 1.5
        assert here.shell(host, f"stat -c '%a %U:%G' /run/nba/{slot}.sock").split() == ["660", "root:www-data"]
        assert here.shell(host, "stat -c '%a %U:%G' /srv/nba/live/release/.env").split() == [
            "640",
            "root:nba",
        ]
        assert "nologin" in here.execute(host, "getent", "passwd", "nba")
        user = ["runuser", "-u", "nba", "--", "cat", "/srv/nba/live/release/.env.migrate"]
        assert "denied" in here.shell(host, f"{' '.join(user)} 2>&1", check=False)
        listening = here.execute(host, "ss", "-Hltn")
        assert {line.split()[3].rsplit(":", 1)[1] for line in listening.splitlines()} == {"22", "80"}


def test_a_port_that_nobody_opened_is_closed(here: World, converged: Converged) -> None:
    here.execute("dev1", "systemd-run", "--unit=listener", "--collect", "python3", "-m", "http.server", "9000")
    try:
        await_true(lambda: here.shell("dev1", LISTENS) != "", 30, "it listens")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((here.address("dev1"), 9000), timeout=3).close()
        assert here.get("dev1", "/api/health/ready").status == 200
    finally:
        here.execute("dev1", "systemctl", "stop", "listener")


def test_a_firewall_that_would_lock_everybody_out_is_refused(here: World, converged: Converged) -> None:
    refused = here.ansible("playbooks/base.yml", "-l", "dev", "-e", '{"base_firewall_ports": [80]}')
    assert refused.code != 0 and "lacks 22, the port of ssh" in refused.output
    assert set(refused.changed().values()) == {0}


def test_nginx_says_what_it_should_and_nothing_more(here: World, converged: Converged) -> None:
    page = here.get("prod1", "/")
    assert page.headers["Server"] == "nginx"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Cache-Control"] == "no-cache"
    # nginx makes the ETag of time and size: without the release's own time, a changed page could look unchanged.
    assert "1970" not in page.headers["Last-Modified"]
    assert here.get("prod1", "/assets/gone.0123456789.js").status == 404
    assert here.get("prod1", "/.env").status == 404
    assert here.get("prod1", "/api").headers["Location"].endswith("/api/")
    assert here.get("prod1", "/api/version", X_Request_ID="abcdef-123456").headers["x-request-id"] == "abcdef-123456"
    too_large = here.get("prod1", "/api/users", "POST", {"name": "x" * 2_000_000})
    assert too_large.status == 413


def test_under_a_name_that_is_nobody_s_only_the_health_is_answered(here: World, converged: Converged) -> None:
    """A load balancer asks each host by its address."""
    named = ("-e", json.dumps({"server_names": ["nba.example.com"]}))
    here.ansible("playbooks/web.yml", "-l", "prod", *named).succeeded()
    try:
        assert here.get("prod1", "/api/health/ready", Host="10.1.2.3").status == 200
        for path in ("/", "/api/", "/api/version", "/api/health/live", "/api/health/ready/"):
            assert here.get("prod1", path, Host="10.1.2.3").status == 421, path
        assert here.get("prod1", "/api/health/ready", Host="nba.example.com").status == 200
        assert here.get("prod1", "/", Host="nba.example.com").status == 200
    finally:
        here.ansible("playbooks/web.yml", "-l", "prod").succeeded()


def test_a_configuration_that_nginx_refuses_never_replaces_the_running_one(here: World, converged: Converged) -> None:
    before = here.shell("prod1", "cat /etc/nginx/nginx.conf /etc/nginx/sites-available/nba.conf")
    refused = here.ansible("playbooks/web.yml", "-l", "prod", "-e", "nginx_client_max_body_size=1q")
    assert refused.code != 0
    assert "nginx -t" in refused.output and "put back" in refused.output
    assert here.shell("prod1", "cat /etc/nginx/nginx.conf /etc/nginx/sites-available/nba.conf") == before
    assert here.get("prod1", "/api/").status == 200


def test_settings_that_the_application_refuses_are_never_switched_to(here: World, converged: Converged) -> None:
    live = here.get("prod1", "/api/version").json()["release"]
    with here.edited("group_vars/all/sample.yml", lambda text: text.replace("  LOG_LEVEL:", "  LOG_LEVLE:")):
        refused = here.ansible("playbooks/app.yml", "-l", "prod")
    assert refused.code != 0
    assert "LOG_LEVLE" in refused.output and "nothing was changed on any host" in refused.output
    # What its schema does not tell, the application itself does, on the host.
    field = "    log_level: "
    with here.edited(
        "app/nba/settings.py", lambda text: text.replace(field, f"    new_setting: str\n{field}"), commit=True
    ):
        refused = here.ansible("playbooks/app.yml", "-l", "prod", *UNPROVEN)
    assert refused.code != 0
    assert "NEW_SETTING" in refused.output and "nothing was switched" in refused.output
    assert here.get("prod1", "/api/version").json()["release"] == live


@pytest.mark.long
def test_a_changed_setting_is_a_new_release(here: World, converged: Converged) -> None:
    before = here.get("prod1", "/api/version").json()["release"]
    with here.edited("group_vars/prod/vars.yml", lambda text: text.replace("log_level: INFO", "log_level: WARNING")):
        here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
        changed = here.get("prod1", "/api/version").json()["release"]
        assert changed != before
        assert "LOG_LEVEL=WARNING" in here.execute("prod1", "cat", "/srv/nba/live/release/.env")
    here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
    assert here.get("prod1", "/api/version").json()["release"] == before


@pytest.mark.long
def test_a_rollback_goes_to_the_good_release_before(here: World, converged: Converged) -> None:
    first = here.get("prod1", "/api/version").json()["release"]
    with here.edited("app/nba/__init__.py", lambda text: text + "# a new version\n", commit=True):
        here.ansible("playbooks/app.yml", "-l", "prod", *UNPROVEN).succeeded()
        second = here.get("prod1", "/api/version").json()["release"]
        assert second != first
        listed = here.ansible("playbooks/releases.yml", "-l", "prod").succeeded().output
        assert first in listed and second in listed
        here.ansible("playbooks/rollback.yml", "-l", "prod").succeeded()
        assert here.get("prod1", "/api/version").json()["release"] == first
        unknown = here.ansible("playbooks/rollback.yml", "-l", "prod", "-e", "release=nonsense")
        assert unknown.code != 0 and "good ones here" in unknown.output
        here.ansible("playbooks/rollback.yml", "-l", "prod", "-e", f"release={second}").succeeded()
        assert here.get("prod1", "/api/version").json()["release"] == second
    here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
    assert here.get("prod1", "/api/version").json()["artefact"]


@pytest.mark.long
def test_a_release_that_crashes_at_import_is_refused_and_the_old_one_serves(here: World, converged: Converged) -> None:
    before = here.get("prod1", "/api/version").json()["release"]
    with here.edited("app/nba/main.py", lambda text: text + "raise RuntimeError('broken on purpose')\n", commit=True):
        refused = here.ansible("playbooks/app.yml", "-l", "prod", *UNPROVEN)
        assert refused.code != 0
        assert "broken on purpose" in refused.output and "what was live before still is" in refused.output
        assert here.get("prod1", "/api/version").json()["release"] == before
    again = here.ansible("playbooks/app.yml", "-l", "prod").succeeded()
    assert again.changed()["prod1"] == 0
    assert here.status("prod1")["problems"] == []


@pytest.mark.long
def test_a_host_that_refuses_keeps_every_host_on_the_old_release(here: World, converged: Converged) -> None:
    before = {host: here.status(host)["live"] for host in ("dev1", "bare1")}

    def refused_with(code: str, broken: str = "true", repaired: str = "true") -> str:
        here.shell("bare1", broken)
        try:
            with here.edited("app/nba/main.py", lambda text: text + code, commit=True):
                run = here.ansible("playbooks/deploy.yml", "-l", "dev")
        finally:
            here.shell("bare1", repaired)
        assert run.code != 0
        assert "is live on no host" in run.output
        assert {host: here.status(host)["live"] for host in before} == before
        assert {host: here.get(host, "/api/version").json()["release"] for host in before} == before
        assert here.status("dev1")["problems"] == []
        return run.output

    assert "bare1: release" in refused_with("import socket\nassert socket.gethostname() != 'bare1'\n")
    # Its public address is away, so this host cannot switch; the other one has, and goes back.
    refused_with("# for all or none\n", "systemctl stop nginx", "systemctl start nginx")
    here.ansible("playbooks/deploy.yml", "-l", "dev").succeeded()


def test_the_service_comes_back_when_it_dies(here: World, converged: Converged) -> None:
    unit = f"nba@{here.status('dev1')['slot']}.service"
    before = here.execute("dev1", "systemctl", "show", "-P", "MainPID", unit)
    here.execute("dev1", "systemctl", "kill", "--signal=SIGKILL", unit)
    await_true(
        lambda: here.execute("dev1", "systemctl", "show", "-P", "MainPID", unit) not in (before, "0\n"),
        30,
        "restarted",
    )
    await_true(lambda: here.get("dev1", "/api/health/ready").status == 200, 30, "ready again")


def test_a_reboot_brings_the_same_release_back(here: World, converged: Converged) -> None:
    release = here.get("prod1", "/api/version").json()["release"]
    boot = here.execute("prod1", "cat", "/proc/1/stat").split()[21]
    here.shell("prod1", "systemctl reboot", check=False)
    await_true(lambda: rebooted(here, "prod1", boot), 60, "prod1 is up again")
    await_true(lambda: answers(here, "prod1"), 60, "prod1 answers again")
    assert here.get("prod1", "/api/version").json()["release"] == release
    assert here.status("prod1")["problems"] == []


def rebooted(here: World, host: str, boot: str) -> bool:
    now = here.shell(host, "cat /proc/1/stat", check=False).split()
    return len(now) > 21 and now[21] != boot


def answers(here: World, host: str) -> bool:
    try:
        return here.get(host, "/api/health/ready").status == 200
    except OSError:
        return False


def test_a_role_works_alone_in_somebody_elses_playbook(here: World, converged: Converged) -> None:
    playbook = here.root / "somebody.yml"
    playbook.write_text(
        "- hosts: bare1\n  become: true\n  roles:\n"
        "    - {role: nginx, nginx_site: other, nginx_document_root: /var/www/html}\n"
    )
    try:
        here.ansible("somebody.yml", "--check", "--diff").succeeded()
    finally:
        playbook.unlink()


# No connection begins but to the database, and the package lists are older than a run takes them for.
CUT_OFF = """
nft -f - <<END
table inet cut_off {
    chain output {
        type filter hook output priority filter;
        oifname != lo tcp flags & (syn | ack) == syn tcp dport != 3306 reject with tcp reset
    }
}
END
touch -d '2 days ago' /var/lib/apt/lists /var/lib/apt/periodic/update-success-stamp
"""


@contextmanager
def no_mirror(here: World, host: str) -> Iterator[None]:
    """Keep a host from every mirror of packages for a while."""
    here.shell(host, CUT_OFF)
    try:
        yield
    finally:
        here.shell(host, "nft delete table inet cut_off")


def test_no_mirror_is_needed_when_nothing_is_missing(here: World, converged: Converged) -> None:
    with no_mirror(here, "dev1"):
        assert here.ansible("site.yml", "-l", "dev1").succeeded().changed() == {"dev1": 0}


@pytest.mark.long
def test_a_mirror_that_is_down_is_named_when_something_is_missing(here: World, converged: Converged) -> None:
    with no_mirror(here, "dev1"):
        packages = here.ansible("playbooks/base.yml", "-l", "dev1", "-e", '{"base_extra_packages": ["hello"]}')
        here.shell("dev1", "rm /opt/poetry-*/.complete")
        poetry = here.ansible("playbooks/base.yml", "-l", "dev1", "--tags", "python")
    here.ansible("site.yml", "-l", "dev1").succeeded()
    for run in (packages, poetry):
        assert run.code == 2 and "onnection refused" in run.output, run.output


@pytest.mark.long
def test_a_held_apt_lock_is_waited_for(here: World, converged: Converged) -> None:
    here.shell("prod1", "DEBIAN_FRONTEND=noninteractive apt-get purge -y -q systemd-timesyncd")
    here.execute("prod1", "systemd-run", "--unit=apt-busy", "flock", "/var/lib/dpkg/lock-frontend", "sleep", "8")
    await_true(lambda: "active" in here.execute("prod1", "systemctl", "is-active", "apt-busy"), 10, "the lock is held")
    repaired = here.ansible("playbooks/base.yml", "-l", "prod").succeeded()
    assert repaired.changed()["prod1"] >= 1
    assert here.ansible("playbooks/base.yml", "-l", "prod").succeeded().changed() == UNCHANGED
