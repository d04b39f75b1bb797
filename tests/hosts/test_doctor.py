"""The doctor on hosts: each thing is broken once, and is named first. Several hosts are broken at a time."""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import batched
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.hosts.conftest import Converged
from tests.hosts.world import Run, World, await_true

pytestmark = [pytest.mark.lab, pytest.mark.long]
HOSTS = ("dev1", "bare1", "prod1", "prod2")
SLOT = "slot=$(basename $(readlink /srv/nba/live)); "
RELEASE = "/srv/nba/live/release"


@dataclass(frozen=True)
class Damage:
    """What is done to a host and undone again, both as shell scripts, and what the doctor says of it first.

    ``also`` is what it may say besides, since it is true, too.
    """

    name: str
    do: str
    undo: str
    says: str
    also: str = ""


def in_file(path: str, expression: str) -> tuple[str, str]:
    """Return scripts that edit a file with sed, and put it back as it was, whatever kind of file it is."""
    kept = f"{path}.doctor-kept"
    do = f"mv {path} {kept} && cp -p {kept} {path}.new && sed -i '{expression}' {path}.new && mv {path}.new {path}"
    return do, f"mv {kept} {path}"


HOLD_LOCK = (
    "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(600)"
)
SMALL = "mount -t tmpfs -o size=64m{} none /var/backups"
SITE = "/etc/nginx/sites-available/nba.conf"

# One for each host at a time; those next to each other do not meet.
DAMAGES = [
    Damage(
        "disk",
        f"{SMALL.format('')} && {{ dd if=/dev/zero of=/var/backups/full bs=1M 2>/dev/null || :; }}",
        "umount /var/backups",
        "host: the file system of /var/backups is full: 0 MiB are free",
    ),
    Damage(
        "inodes",
        f"{SMALL.format(',nr_inodes=40').replace('64m', '256m')} && cd /var/backups && touch $(seq 39)",
        "cd / && umount /var/backups",
        "host: the file system of /var/backups has no room for more files: 100% of its inodes",
    ),
    Damage(
        "memory",
        "sed 's/^MemAvailable:.*/MemAvailable: 20480 kB/' /proc/meminfo >/run/meminfo && "
        "mount --bind /run/meminfo /proc/meminfo",
        "umount /proc/meminfo",
        "host: 20 MiB of ",
    ),
    Damage(
        "apt lock",
        f'systemd-run --quiet --unit=doctor-lock python3 -c "{HOLD_LOCK}"',
        "systemctl stop doctor-lock",
        "host: apt is locked by python3 (process ",
    ),
    Damage(
        "system", *in_file("/etc/os-release", 's/^VERSION_ID=.*/VERSION_ID="11"/'), "host: this host runs debian 11"
    ),
    Damage(
        "units",
        "systemd-run --quiet --unit=doctor-failed false",
        "systemctl reset-failed doctor-failed",
        "host: systemd has failed units: doctor-failed.service",
    ),
    Damage(
        "not converged",
        "mv /usr/local/sbin/nba-release /usr/local/sbin/nba-release.kept",
        "mv /usr/local/sbin/nba-release.kept /usr/local/sbin/nba-release",
        "application: not converged yet",
    ),
    Damage(
        "nginx stopped",
        "systemctl stop nginx",
        "systemctl start nginx",
        "nginx: nginx is inactive",
    ),
    Damage(
        "name of the database",
        "sed '/waffle.lab/d' /etc/hosts >/run/hosts && mount --bind /run/hosts /etc/hosts",
        "umount /etc/hosts",
        "database: the name db1.waffle.lab does not resolve on this host",
    ),
    Damage(
        "TLS",
        "sed '/END CERT/q' /etc/ssl/certs/ca-certificates.crt >/run/one.crt && "
        "mount --bind /run/one.crt /etc/ssl/certs/ca-certificates.crt",
        "umount /etc/ssl/certs/ca-certificates.crt",
        "database: TLS with db1.waffle.lab:3306 failed: ",
    ),
    Damage(
        "no such database",
        in_file(f"$(realpath {RELEASE})/.env", "s/^DATABASE_NAME=.*/DATABASE_NAME=nba_gone/")[0],
        in_file(f"$(realpath {RELEASE})/.env", "")[1] + " && nba-release repair",
        "database: db1.waffle.lab:3306 has no database nba_gone (MySQL's error 1049)",
        "application: ",
    ),
    Damage(
        "port of the database",
        in_file(f"$(realpath {RELEASE})/.env", "s/^DATABASE_PORT=.*/DATABASE_PORT=3305/")[0],
        in_file(f"$(realpath {RELEASE})/.env", "")[1] + " && nba-release repair",
        "database: nobody answers on db1.waffle.lab:3305: ",
        "application: ",
    ),
    Damage(
        "service masked",
        SLOT + "systemctl mask --quiet --now nba@$slot.service",
        SLOT + "systemctl unmask --quiet nba@$slot.service && nba-release repair",
        "application: nba@*.service is masked, so nothing can start it",
    ),
    Damage(
        "socket gone",
        SLOT + "rm /run/nba/$slot.sock",
        "nba-release repair",
        "application: the service runs, and its socket /run/nba/",
    ),
    Damage(
        "workers stopped",
        SLOT + "systemctl kill --signal=STOP nba@$slot.service",
        SLOT + "systemctl kill --signal=CONT nba@$slot.service",
        "application: the service runs, and does not answer on its socket: timed out",
    ),
    Damage(
        "another release",
        SLOT + "r=$(realpath /srv/nba/live/release) && cp -a $r $r-other && "
        "ln -sfn $r-other /srv/nba/slots/$slot/release",
        SLOT + "r=$(realpath /srv/nba/live/release) && ln -sfn ${r%-other} /srv/nba/slots/$slot/release && rm -r $r",
        "application: *-* answers where *-*-other is live",
    ),
    Damage(
        "configuration of nginx",
        "echo 'nonsense on;' >/etc/nginx/conf.d/doctor.conf",
        "rm /etc/nginx/conf.d/doctor.conf",
        'nginx: nginx refuses its configuration: unknown directive "nonsense" in /etc/nginx/conf.d/doctor.conf:1',
    ),
    Damage(
        "port taken",
        "systemctl stop nginx && systemd-run --quiet --unit=doctor-squatter python3 -m http.server 80",
        "systemctl stop doctor-squatter && systemctl start nginx",
        "nginx: nginx is inactive: its port 80 is taken by python3",
    ),
    Damage(
        "front end closed",
        f"chmod 0700 {RELEASE}/frontend",
        f"chmod 0755 {RELEASE}/frontend",
        "nginx: nginx cannot serve the front end: www-data may not enter /srv/nba/releases/",
    ),
    Damage(
        "upstream",
        f"{in_file(SITE, 's#server unix:[^ ]*#server unix:/run/nba/nowhere.sock#')[0]} && systemctl reload nginx",
        f"{in_file(SITE, '')[1]} && systemctl reload nginx",
        "nginx: nginx does not reach the application (/.waffle/version answers 502",
    ),
]


def findings_of(run: Run) -> dict[str, list[str]]:
    """Return the report of each host, in lines."""
    found = {}
    for host, text in re.findall(r"^ok: \[(\S+)\] => ?\n    msg: \|-\n((?:        .*\n)+)", run.output, re.M):
        found[host] = [line.strip() for line in text.splitlines()]
    return found


def causes(lines: list[str]) -> list[str]:
    """Return what a report names as causes."""
    return [line.partition(". ")[2] for line in lines if re.match(r"\d+\. ", line)]


def doctor(here: World, *limit: str) -> Run:
    return here.ansible("playbooks/doctor.yml", *limit)


def named_first(run: Run, expected: dict[str, str], also: dict[str, str] | None = None) -> dict[str, list[str]]:
    """Check that each host's only cause, with a next command, is the expected one, and return the reports.

    ``also`` has what a host's report may name besides.
    """
    assert run.code == 2, run.output[-6000:]
    reports = findings_of(run)
    for host, words in expected.items():
        found = causes(reports[host])
        besides = (also or {}).get(host, "")
        assert len(found) == 1 or (besides and all(one.startswith(besides) for one in found[1:])), (host, reports[host])
        assert fnmatchcase(found[0], f"{words}*"), (host, found)
        assert reports[host][1].startswith("next: "), reports[host]
    return reports


def everywhere(here: World, scripts: dict[str, str]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: here.shell(*item), scripts.items()))


@contextmanager
def damaged(here: World, damages: dict[str, Damage]) -> Iterator[None]:
    """Break hosts for a while."""
    try:
        everywhere(here, {host: damage.do for host, damage in damages.items()})
        yield
    finally:
        everywhere(here, {host: f"{{ {damage.undo}; }} >/dev/null" for host, damage in damages.items()})


def test_a_healthy_host_is_said_to_be_well(here: World, converged: Converged) -> None:
    reports = findings_of(doctor(here).succeeded())
    assert set(reports) == set(HOSTS)
    for host, lines in reports.items():
        assert lines[0] == "all is well", host
        for area in ("ssh", "host", "database", "application", "nginx", "certificate"):
            assert any(line.startswith(f"{area}: ") for line in lines), (host, area)


@pytest.mark.parametrize(
    "batch", list(batched(DAMAGES, len(HOSTS))), ids=lambda batch: ", ".join(one.name for one in batch)
)
def test_what_is_broken_on_a_host_is_named_first(here: World, converged: Converged, batch: tuple[Damage, ...]) -> None:
    damages = dict(zip(HOSTS, batch, strict=False))
    with ExitStack() as stack:
        if any(one.name == "no such database" for one in batch):
            # The account may use it, and it is not there.
            here.sql("mysql", "GRANT SELECT, INSERT, UPDATE, DELETE ON nba_gone.* TO nba_dev, nba_prod")
            stack.callback(here.sql, "mysql", "REVOKE ALL ON nba_gone.* FROM nba_dev, nba_prod")
        stack.enter_context(damaged(here, damages))
        says = {host: damage.says for host, damage in damages.items()}
        named_first(doctor(here), says, {host: damage.also for host, damage in damages.items()})


def test_accounts_of_the_database(here: World, converged: Converged) -> None:
    """A wrong password on dev, a missing right on prod."""
    digest = here.sql("mysql", "SELECT HEX(authentication_string) FROM user WHERE user = 'nba_dev'").strip()
    try:
        here.sql("mysql", "ALTER USER nba_dev IDENTIFIED BY 'another password'")
        here.sql("mysql", r"REVOKE INSERT ON `nba\_prod`.* FROM nba_prod")
        password = "database: db1.waffle.lab:3306 refuses the password of account nba_dev (MySQL's error 1045)"
        grant = "database: account nba_prod lacks rights in nba_prod: INSERT missing"
        named_first(doctor(here), {"dev1": password, "bare1": password, "prod1": grant, "prod2": grant})
    finally:
        here.sql("mysql", f"ALTER USER nba_dev IDENTIFIED WITH caching_sha2_password AS 0x{digest}")
        here.sql("mysql", r"GRANT INSERT ON `nba\_prod`.* TO nba_prod")


def test_schemas(here: World, converged: Converged) -> None:
    """Dev's is of newer code, prod's of older one."""
    known = {
        name: here.sql(name, "SELECT version_num FROM alembic_version").strip() for name in ("nba_dev", "nba_prod")
    }
    try:
        here.sql("nba_dev", "UPDATE alembic_version SET version_num = 'ffff'")
        here.sql("nba_prod", "DELETE FROM alembic_version")
        newer = (
            "database: the schema does not fit the live release: the database is at revision ffff, which this release"
        )
        older = f"database: the database is at revision none, and the live release wants {known['nba_prod']}"
        named_first(doctor(here), {"dev1": newer, "bare1": newer, "prod1": older, "prod2": older})
    finally:
        for database, revision in known.items():
            insert = f"INSERT INTO alembic_version VALUES ('{revision}')"  # noqa: S608 (it was there before)
            here.sql(database, "DELETE FROM alembic_version")
            here.sql(database, insert)


HOLD = """
touch /run/doctor-hold
systemd-run --quiet --unit=doctor-hold sh -c '{
    echo "SET @before = @@GLOBAL.max_connections; SET GLOBAL max_connections = 1;"
    while [ -e /run/doctor-hold ]; do sleep 0.2; done
    echo "SET GLOBAL max_connections = @before;"
} | mysql --unbuffered'
"""


def test_too_many_connections(here: World, converged: Converged) -> None:
    # One session changes it and changes it back: while it lasts, not even root gets another one.
    here.shell("db1", HOLD)
    try:
        await_true(
            lambda: "1040" in here.shell("db1", "mysql -e 'SELECT 1' 2>&1", check=False), 20, "the server is full"
        )
        run = doctor(here)
    finally:
        here.shell("db1", "rm /run/doctor-hold")
        await_true(lambda: here.shell("db1", "mysql -e 'SELECT 1'", check=False), 20, "the server takes connections")
    words = "database: db1.waffle.lab:3306 has no connection left for this host (MySQL's error 1040)"
    named_first(run, dict.fromkeys(HOSTS, words))


def test_what_follows_from_a_cause_is_no_cause_of_its_own(here: World, converged: Converged) -> None:
    here.lab("database", "stop")
    try:
        reports = named_first(doctor(here), dict.fromkeys(HOSTS, "database: nobody answers on db1.waffle.lab:3306"))
    finally:
        here.lab("database", "start")
    for host in HOSTS:
        assert any("follows from it: application: /health/ready answers 503" in line for line in reports[host]), host
        await_true(partial(is_ready, here, host), 20, f"{host} is ready again")


def is_ready(here: World, host: str) -> bool:
    return here.get(host, "/api/health/ready").status == 200


def certificate(days: int) -> str:
    """Return a certificate with its key that lasts so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "doctor.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=90)).not_valid_after(
        now + datetime.timedelta(days=days, hours=1)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode() + private.decode()


TLS_SITE = "server { listen 8443 ssl; ssl_certificate /run/doctor.pem; ssl_certificate_key /run/doctor.pem; }\n"


def test_certificates_and_the_clock(here: World, converged: Converged) -> None:
    """A certificate that has expired, and one that soon will; and then a control node whose clock is an hour behind."""
    files = "/run/doctor.pem /etc/nginx/conf.d/doctor.conf"
    try:
        for host, days in (("dev1", -3), ("prod1", 5)):
            here.write(host, "/run/doctor.pem", certificate(days))
            here.write(host, "/etc/nginx/conf.d/doctor.conf", TLS_SITE)
        expired = "certificate: the certificate /run/doctor.pem expired on "
        expires = "certificate: the certificate /run/doctor.pem expires in 5 days"
        named_first(doctor(here, "-l", "dev1,prod1"), {"dev1": expired, "prod1": expires})
    finally:
        everywhere(here, {"dev1": f"rm {files}", "prod1": f"rm {files}"})
    with here.edited("plugins/action/diagnosis.py", lambda text: text.replace("time.time()", "time.time() - 3600")):
        named_first(doctor(here, "-l", "prod1"), {"prod1": "host: its clock is 3[56]?? s ahead"})


def test_the_way_to_a_host(here: World, converged: Converged) -> None:
    """Many names for one host in an inventory of the test's own, each with another mistake in it."""
    folder, local = here.root / "inventory/broken", here.root / ".lab" / here.name
    address = here.address("dev1")
    folder.mkdir()
    key = folder / "key"
    shutil.copy(local / "id_ed25519", key)
    key.chmod(0o644)
    (folder / "group_vars").symlink_to("../../group_vars")
    known = (local / "known_hosts").read_text()
    (folder / "unknown_hosts").write_text("")
    other = next(line for line in known.splitlines() if line.startswith("prod1,")).split(" ", 1)[1]
    (folder / "changed_hosts").write_text(f"{address} {other}\n")
    good = {
        "ansible_host": address,
        "ansible_user": "admin",
        "ansible_ssh_private_key_file": str(local / "id_ed25519"),
        "ansible_ssh_common_args": ssh_options(local / "known_hosts"),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    gone = str(folder / "gone")
    here.shell("dev1", "rm -f /run/wrong && ssh-keygen -q -t ed25519 -N '' -f /run/wrong")
    (folder / "wrong").write_text(here.shell("dev1", "cat /run/wrong && rm /run/wrong /run/wrong.pub"))
    (folder / "wrong").chmod(0o600)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "well": ({}, ""),
        "name": ({"ansible_host": "nowhere.invalid"}, "ssh: the name nowhere.invalid does not resolve"),
        "port": ({"ansible_port": 23}, f"ssh: {address}, port 23: the machine is there, and no ssh server answers"),
        "changed": (
            {"ansible_ssh_common_args": ssh_options(folder / "changed_hosts")},
            f"ssh: {address} shows another host key than the one that is known, SHA256:",
        ),
        "unknown": (
            {"ansible_ssh_common_args": ssh_options(folder / "unknown_hosts")},
            f"ssh: the host key of {address} is not known on this machine",
        ),
        "mode": ({"ansible_ssh_private_key_file": str(key)}, f"ssh: the key {key} can be read by others (mode 0644)"),
        "missing": ({"ansible_ssh_private_key_file": gone}, f"ssh: the key {gone} does not exist"),
        "key": (
            {"ansible_ssh_private_key_file": str(folder / "wrong")},
            f"ssh: {address} refuses admin with {folder}/wrong",
        ),
        "user": ({"ansible_user": "nobody"}, f"ssh: {address} does not let in nobody, and admin with the same key"),
    }
    inventory = {
        "all": {
            "vars": {"database_host": "db1.waffle.lab"},
            "children": {
                "dev": {"hosts": {name: {**good, **wrong} for name, (wrong, _) in cases.items()}},
                "prod": {"hosts": {}},
            },
        }
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    patience = "/etc/ssh/sshd_config.d/00-doctor.conf"
    limit = ("-i", "inventory/broken/hosts.yml", "-l", "dev")
    try:
        # All of them come from one address, which the server would shut out.
        here.shell("dev1", f"echo PerSourcePenalties no >{patience} && systemctl try-reload-or-restart ssh")
        reports = named_first(doctor(here, *limit), {name: words for name, (_, words) in cases.items() if words})
        assert reports["well"][0] == "all is well", reports["well"]
        with sudo_asks(here):
            sudo = f"ssh: admin cannot become root on {address}: sudo asks for a password"
            named_first(doctor(here, *limit[:2], "-l", "well"), {"well": sudo})
    finally:
        here.shell("dev1", f"rm {patience} && systemctl try-reload-or-restart ssh")
        shutil.rmtree(folder)


def ssh_options(known_hosts: object) -> str:
    return f"-o UserKnownHostsFile={known_hosts} -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes"


@contextmanager
def sudo_asks(here: World) -> Iterator[None]:
    """Make sudo ask the login account of a host for a password, for a while."""
    rule = "/etc/sudoers.d/99-doctor"
    try:
        here.shell("dev1", f"umask 337 && echo 'admin ALL=(ALL) PASSWD: ALL' >{rule} && visudo --check --quiet")
        yield
    finally:
        here.shell("dev1", f"rm {rule}")


def test_status_is_one_screen(here: World, converged: Converged) -> None:
    run = here.ansible("playbooks/status.yml").succeeded()
    screen = run.output.split("PLAY RECAP")[0]
    rows = {line.split()[0]: line for line in screen.splitlines() if line.split()[:1] and line.split()[0] in HOSTS}
    for host in HOSTS:
        live = here.status(host)
        assert live["live"] in rows[host], rows[host]
        assert " ready " in rows[host]
        assert re.search(r"\d+ in 15 min +\d+\.\d% +\d+%", rows[host]), rows[host]
        schema = here.get(host, "/api/version").json()["schema"]
        assert schema in rows[host]
