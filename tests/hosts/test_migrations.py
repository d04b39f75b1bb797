"""Migrations: planned, backed up, run once; a failed one can be undone and repaired."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hosts.conftest import PROD, Converged
from tests.hosts.world import AWKWARD, UNPROVEN, Run, World, await_true
from tests.support import module_at

pytestmark = pytest.mark.lab
waffle = module_at("plugins/filter/waffle.py")

PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=40)
VERSIONS = "app/migrations/versions"
DEPLOY = ("playbooks/deploy.yml", "-l", "prod", *UNPROVEN)
ROLLBACK = ("playbooks/rollback.yml", "-l", "prod")
REVISION = '''"""{message}."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down}"
{marks}

def upgrade() -> None:
    """Go on."""
{up}


def downgrade() -> None:
    """Go back."""
{down_body}
'''
ADD_NICK = 'op.add_column("users", sa.Column("nick", sa.String(20), nullable=True))'
DROP_NICK = 'op.drop_column("users", "nick")'
# The second of three statements fails: there is a column of that name.
HALF = [
    ADD_NICK,
    'op.execute("ALTER TABLE users ADD COLUMN name INT")',
    'op.create_index("ix_nick", "users", ["nick"])',
]
# The first two are committed while the third runs.
SLEEPING = [
    """op.execute("UPDATE users SET name = CONCAT(name, '!')")""",
    ADD_NICK,
    'op.execute("DO SLEEP(60)")',
    'op.add_column("users", sa.Column("last", sa.String(20)))',
]
REPAIRED = [
    'if "nick" not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("users")}:',
    f"    {ADD_NICK}",
    HALF[2],
]


@contextmanager
def revision(
    here: World,
    name: str,
    up: list[str],
    *,
    down: str = "0001",
    back: tuple[str, ...] = ("pass",),
    compatible: bool = False,
) -> Iterator[None]:
    """Commit a revision for a while."""
    path = here.root / VERSIONS / f"20260102_{name}.py"
    indent = "    "
    path.write_text(
        REVISION.format(
            message=f"Revision {name}",
            revision=name,
            down=down,
            marks="compatible = True\n" if compatible else "",
            up="\n".join(indent + line for line in up),
            down_body="\n".join(indent + line for line in back),
        )
    )
    here.git("add", VERSIONS)
    here.git("commit", "--quiet", "--message", f"Add revision {name}")
    try:
        yield
    finally:
        here.git("rm", "--quiet", "-f", "--", str(path))
        here.git("commit", "--quiet", "--message", f"Remove revision {name}")


def columns(here: World) -> list[str]:
    """Return the columns of the users of prod."""
    return [line.split("\t")[0] for line in sql(here, "SHOW COLUMNS FROM users").splitlines()]


def sql(here: World, statement: str) -> str:
    """Run a statement as the migration account, with the client's own option file."""
    file = here.shell("prod1", "ls -t /srv/nba/releases/*/.mysql.cnf | head -1").strip()
    return here.execute("prod1", "mysql", f"--defaults-file={file}", "--batch", "-N", "-e", statement)


def version(here: World) -> str:
    """Return the revision that the database of prod is at."""
    return sql(here, "SELECT version_num FROM alembic_version").strip()


def last_receipt(here: World, host: str) -> dict[str, Any]:
    """Return the receipt of a host's last run, as the control node has it."""
    newest = max((here.root / f".receipts/{host}").iterdir(), key=lambda path: path.stat().st_mtime)
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


def words(output: str) -> str:
    """Return an output without Ansible's line breaks."""
    return re.sub(r"\s+", " ", output)


def backups(here: World) -> list[str]:
    """Return the names of the backups on prod1, the newest first."""
    return [line.split()[0] for line in here.execute("prod1", "nba-backup", "list").splitlines()]


def release_in(run: Run) -> str:
    """Return the release that a run of playbooks/migrate.yml was about."""
    found: list[str] = re.findall(r"release ([0-9a-f]{8}-[0-9a-f]{8})", words(run.output))
    return found[0]


@pytest.fixture(scope="module")
def first_revision(here: World, converged: Converged) -> Iterator[None]:
    """Begin with the first revision, and leave a release that fits it."""
    assert version(here) == "0001"
    yield
    here.ansible("playbooks/deploy.yml", "-l", "prod").succeeded()


@pytest.fixture
def prod(here: World, first_revision: None) -> Iterator[World]:
    """Return the world, with no backup on prod1 but the one that this brings the database back with."""
    here.shell("prod1", "rm -f /var/backups/nba/*.sql.gz")
    start = json.loads(here.execute("prod1", "nba-backup", "create"))["backup"]
    yield here
    here.execute("prod1", "nba-backup", "restore", start)
    assert version(here) == "0001"


def test_a_plan_shows_the_sql_and_warns_and_changes_nothing(prod: World) -> None:
    live, before = prod.status("prod1")["live"], backups(prod)
    drop = [
        'op.drop_column("users", "email")',
        'op.add_column("users", sa.Column("age", sa.Integer(), nullable=False))',
    ]
    with revision(prod, "0002", [ADD_NICK], compatible=True), revision(prod, "0003", drop, down="0002"):
        planned = prod.ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN, "-e", "plan=true").succeeded()
    shown = words(planned.output)
    assert "the database is at 0001, this release wants 0003" in shown
    assert "0002: Revision 0002, older code works on it" in shown
    assert "ALTER TABLE users ADD COLUMN nick VARCHAR(20);" in shown
    assert "WARNING: drops a column with all that is in it: ALTER TABLE users DROP COLUMN email" in shown
    assert "WARNING: adds a column that must not be NULL" in shown
    assert "WARNING: 2 statements, and MySQL commits each that changes the schema by itself" in shown
    assert shown.count("WARNING: ") == 3
    assert (version(prod), columns(prod)) == ("0001", ["id", "name", "email"])
    assert (prod.status("prod1")["live"], backups(prod)) == (live, before)


@pytest.mark.long
def test_two_heads_stop_the_deploy(prod: World) -> None:
    live = prod.status("prod1")["live"]
    with revision(prod, "0002a", [ADD_NICK]), revision(prod, "0002b", ["pass"]):
        refused = prod.ansible(*DEPLOY)
    assert refused.code != 0
    assert "2 heads: " in words(refused.output) and "alembic merge" in words(refused.output)
    assert "0002a" in refused.output and "0002b" in refused.output
    assert (version(prod), prod.status("prod1")["live"]) == ("0001", live)


def test_a_backup_comes_before_the_migration_and_brings_everything_back(prod: World) -> None:
    before = set(backups(prod))
    user = prod.get("prod1", "/api/users", "POST", {"name": "Kept é\\'\"", "email": "kept@example.com"}).json()
    with revision(prod, "0002", [ADD_NICK], back=(DROP_NICK,)):
        done = prod.ansible(*DEPLOY).succeeded()
        assert "prod1: ALTER TABLE users ADD COLUMN nick VARCHAR(20);" in words(done.output)
        assert (version(prod), columns(prod)[-1]) == ("0002", "nick")
        # Once for the environment: the other host had nothing to do.
        leader, other = (last_receipt(prod, host) for host in PROD)
        assert [leader["schema_before"], leader["schema"], other["schema"]] == ["0001", "0002", "0002"]
        assert [one["revision"] for one in leader["migration"]["applied"]] == ["0002"] and other["migration"] == {}
        (made,) = set(backups(prod)) - before
        assert re.fullmatch(r"\d{8}T\d{6}\.\d{3}Z-0001\.sql\.gz", made)
        mode = prod.execute("prod1", "stat", "-c", "%a %U:%G", f"/var/backups/nba/{made}", "/var/backups/nba")
        assert mode.splitlines() == ["600 root:root", "700 root:root"]
        assert prod.get("prod1", f"/api/users/{user['id']}", "DELETE").status == 204

        unnamed = prod.ansible("playbooks/restore.yml", "-l", "prod")
        assert unnamed.code != 0 and made in unnamed.output
        assert "ansible-playbook playbooks/restore.yml -l prod -e backup=NAME" in words(unnamed.output)
        prod.shell("prod1", f"head -c 600 /var/backups/nba/{made} >/var/backups/nba/{made.replace('0001', 'cut')}")
        for bad, reason in (("nonsense", "is not a backup"), (made.replace("0001", "cut"), "is damaged")):
            refused = prod.ansible("playbooks/restore.yml", "-l", "prod", "-e", f"backup={bad}")
            assert refused.code != 0 and reason in words(refused.output)
        assert (version(prod), len(backups(prod))) == ("0002", len(before) + 2)

        prod.ansible("playbooks/restore.yml", "-l", "prod", "-e", f"backup={made}").succeeded()
        assert (version(prod), columns(prod)) == ("0001", ["id", "name", "email"])
        assert prod.get("prod1", f"/api/users/{user['id']}").json() == user
        # What was there before the restore is a backup, too.
        assert backups(prod)[0].endswith("-0002.sql.gz")

        count = len(backups(prod))
        skipped = prod.ansible("playbooks/migrate.yml", "-l", "prod", "-e", "skip_backup=true").succeeded()
        assert skipped.changed()["prod1"] >= 1
        assert (version(prod), len(backups(prod))) == ("0002", count)
    prod.execute("prod1", "rm", f"/var/backups/nba/{made.replace('0001', 'cut')}")


def test_what_must_come_before_another_schema_comes_only_there(prod: World, tmp_path: Path) -> None:
    """As a snapshot on RDS does: tests/aws has that."""
    option = guarded(tmp_path)
    live, before = prod.status("prod1")["live"], backups(prod)
    prod.ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN, *option).succeeded()
    with revision(prod, "0002", [ADD_NICK]):
        for playbook in ("deploy", "migrate"):
            refused = prod.ansible(f"playbooks/{playbook}.yml", "-l", "prod", *UNPROVEN, *option)
            assert refused.code != 0 and "no snapshot today" in refused.output
            assert (version(prod), prod.status("prod1")["live"], backups(prod)) == ("0001", live, before)


def guarded(folder: Path) -> tuple[str, str]:
    """Return the option that lets nothing come before another schema."""
    guard = folder / "guard.yml"
    guard.write_text("- name: Guard the database\n  ansible.builtin.fail: {msg: no snapshot today}\n")
    return ("-e", json.dumps({"app_before_schema_change": str(guard)}))


@pytest.mark.long
def test_a_rollback_over_a_migration_keeps_the_schema_or_takes_it_back(prod: World, tmp_path: Path) -> None:
    prod.ansible(*DEPLOY).succeeded()
    before = prod.status("prod1")["live"]
    with revision(prod, "0002", [ADD_NICK], back=(DROP_NICK,), compatible=True):
        prod.ansible(*DEPLOY).succeeded()
        newer = prod.status("prod1")["live"]
        stopped = prod.ansible(*ROLLBACK)
        assert stopped.code != 0 and "-e schema=keep leaves it" in words(stopped.output)
        assert "-e schema=downgrade takes the schema back" in words(stopped.output)
        prod.ansible(*ROLLBACK, "-e", "schema=keep").succeeded()
        assert [prod.status(host)["live"] for host in PROD] == [before, before]
        assert (version(prod), prod.get("prod1", "/api/users").status) == ("0002", 200)
        prod.ansible(*ROLLBACK, "-e", f"release={newer}").succeeded()

        count = len(backups(prod))
        refused = prod.ansible(*ROLLBACK, "-e", "schema=downgrade", *guarded(tmp_path))
        assert refused.code != 0 and "no snapshot today" in refused.output
        assert [prod.status(host)["live"] for host in PROD] == [newer, newer]
        assert (version(prod), len(backups(prod))) == ("0002", count)

        prod.ansible(*ROLLBACK, "-e", "schema=downgrade").succeeded()
        assert [prod.status(host)["live"] for host in PROD] == [before, before]
        assert (version(prod), columns(prod)[-1]) == ("0001", "email")
        assert len(backups(prod)) == count + 1 and backups(prod)[0].endswith("-0002.sql.gz")


@pytest.mark.long
def test_a_schema_that_is_not_marked_is_not_kept(prod: World) -> None:
    prod.ansible(*DEPLOY).succeeded()
    with revision(prod, "0002", [ADD_NICK], back=(DROP_NICK,)):
        prod.ansible(*DEPLOY).succeeded()
        newer = prod.status("prod1")["live"]
        stopped = prod.ansible(*ROLLBACK, "-e", "schema=keep")
        assert stopped.code != 0 and "not marked compatible: 0002" in words(stopped.output)
        assert (version(prod), prod.status("prod1")["live"]) == ("0002", newer)
        prod.ansible(*ROLLBACK, "-e", "schema=downgrade").succeeded()


@contextmanager
def silent(here: World) -> Iterator[None]:
    """Make the application report no schema for a while."""
    path = here.root / "app/nba/health.py"
    whole = path.read_text()
    try:
        for text, subject in (
            (whole.replace("schema_=revision", "schema_=None"), "Hide the schema"),
            (whole, "Show it"),
        ):
            path.write_text(text)
            here.git("commit", "--quiet", "--message", subject, "--", "app/nba/health.py")
            if text != whole:
                yield
    finally:
        path.write_text(whole)


def test_a_rollback_over_a_dropped_column_stops_whatever_the_application_says(prod: World) -> None:
    with silent(prod), revision(prod, "0002", [ADD_NICK], compatible=True):
        prod.ansible(*DEPLOY).succeeded()
        with revision(prod, "0003", [DROP_NICK], down="0002", back=(ADD_NICK,)):
            prod.ansible(*DEPLOY).succeeded()
            newer = prod.status("prod1")["live"]
            assert last_receipt(prod, "prod1")["schema"] == "0003"
            for option in ((), ("-e", "schema=keep")):
                stopped = prod.ansible(*ROLLBACK, *option)
                assert stopped.code != 0 and "ran on schema 0002, and the database has 0003" in words(stopped.output)
                assert "not marked compatible: 0003" in words(stopped.output)
            assert [prod.status(host)["live"] for host in PROD] == [newer, newer]
            prod.ansible(*ROLLBACK, "-e", "schema=downgrade").succeeded()
            assert (version(prod), columns(prod)[-1]) == ("0002", "nick")


@pytest.mark.long
def test_a_revision_that_fails_half_way_leaves_two_ways_out(prod: World) -> None:
    live = prod.status("prod1")["live"]
    with revision(prod, "0002", HALF):
        failed = prod.ansible(*DEPLOY)
        assert failed.code != 0
        report = words(failed.output)
        assert "[WARNING]: prod1: the migration " in report
        assert "revision 0002 (Revision 0002) failed: MySQL's error 1060: Duplicate column name 'name'" in report
        assert "applied, and committed: ALTER TABLE users ADD COLUMN nick VARCHAR(20) failed:" in report
        assert (
            "failed: ALTER TABLE users ADD COLUMN name INT not applied: CREATE INDEX ix_nick ON users (nick)" in report
        )
        assert "alembic_version says: 0001" in report
        made = backups(prod)[0]
        assert f"ansible-playbook playbooks/restore.yml -l ENV -e backup={made}" in report
        assert prod.status("prod1")["live"] == live and prod.get("prod1", "/api/users").status == 200

        again = prod.ansible(*DEPLOY)
        assert again.code != 0 and "No deploy, migration or rollback begins" in words(again.output)
        assert made in words(again.output) and "Duplicate column name 'name'" in words(again.output)
        assert backups(prod)[0] == made

        # Back, as the message says.
        prod.ansible("playbooks/restore.yml", "-l", "prod", "-e", f"backup={made}").succeeded()
        assert (version(prod), columns(prod)) == ("0001", ["id", "name", "email"])
        failed = prod.ansible(*DEPLOY)
        assert failed.code != 0 and columns(prod)[-1] == "nick"
    # Forward: the corrected revision skips what is there, and may run after the stamp.
    prod.execute("prod1", "nba-release", "stamp", release_in(failed), "0001")
    with revision(prod, "0002", REPAIRED):
        prod.ansible(*DEPLOY).succeeded()
    assert (version(prod), prod.get("prod1", "/api/users").status) == ("0002", 200)
    assert "ix_nick" in sql(prod, "SHOW INDEX FROM users")
    assert prod.status("prod1")["live"] != live


@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.long) for how in ("database", "reboot"))]
)
def test_an_interrupted_migration_is_not_run_again(prod: World, how: str) -> None:
    user = prod.get("prod1", "/api/users", "POST", {"name": "Once", "email": "once@example.com"}).json()
    with revision(prod, "0002", SLEEPING):
        with prod.start_ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN) as migrating:
            running = "SELECT 1 FROM information_schema.processlist WHERE info = 'DO SLEEP(60)'"
            await_true(lambda: prod.sql("mysql", running), 300, "the migration sleeps")
            if how == "killed":
                prod.execute("prod1", "systemctl", "kill", "--signal=KILL", "nba-release.service")
            elif how == "reboot":
                prod.shell("prod1", "systemctl reboot --force --force", check=False)
            else:
                prod.lab("database", "stop")
                prod.lab("database", "start")
            migrating.communicate(timeout=300)
        up = partial(prod.shell, "prod1", "systemctl is-system-running --wait", check=False)
        await_true(lambda: up().strip() in ("running", "degraded"), 120, "prod1 is up")
        made = backups(prod)
        again = prod.ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN)
        report = words(again.output)
        assert (migrating.returncode != 0, again.code != 0) == (True, True)
        assert (
            "applied, and committed: UPDATE users SET name = CONCAT(name, '!') ALTER TABLE users ADD COLUMN nick "
            "VARCHAR(20) unknown whether applied: DO SLEEP(60) not applied: "
            "ALTER TABLE users ADD COLUMN last VARCHAR(20)"
        ) in report
        assert f"-e backup={made[0]}" in report and backups(prod) == made
        # Another host knows it, too, and no release comes there that would not even migrate.
        live = prod.status("prod2")["live"]
        other = prod.shell("prod2", f"nba-release migrate {live} 2>&1; nba-release rollback-target 2>&1", check=False)
        assert other.count("was interrupted") + other.count("failed: ") >= 1
        assert prod.get("prod1", f"/api/users/{user['id']}").json()["name"] == "Once!"
        # However many come after it, the backup from before the migration stays.
        prod.shell("prod1", "cp -rp /var/backups/nba /root/kept && for n in 1 2 3 4 5; do nba-backup create; done")
        assert made[0] in backups(prod) and len(backups(prod)) == 6
        prod.shell("prod1", "cp -rp /root/kept/. /var/backups/nba && rm -r /root/kept")
        prod.execute("prod1", "nba-release", "stamp", release_in(again), "0001")
        assert not sql(prod, "SHOW TABLES LIKE 'waffle_iron_migration'")


def test_a_plan_can_be_made_after_the_migration_password_was_changed(prod: World) -> None:
    key = "vault_database_migration_password"
    present = prod.secrets("prod")[key]
    prod.set_secret("prod", key, f"{present}-next")
    try:
        planned = prod.ansible("playbooks/plan.yml", "-l", "prod").succeeded()
    finally:
        prod.set_secret("prod", key, present)
    assert "WOULD STOP" not in planned.output


@pytest.mark.long
def test_what_is_missing_can_be_made_manually_and_said(prod: World) -> None:
    with revision(prod, "0002", HALF, back=(DROP_NICK,)):
        failed = prod.ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN)
        assert failed.code != 0
        assert (version(prod), columns(prod)[-1]) == ("0001", "nick")
        sql(prod, "CREATE INDEX ix_nick ON users (nick)")
        prod.execute("prod1", "nba-release", "stamp", release_in(failed), "0002")
        prod.ansible(*DEPLOY).succeeded()
        assert version(prod) == "0002"


@pytest.mark.long
def test_an_error_does_not_show_people_s_data(prod: World) -> None:
    prod.get("prod1", "/api/users", "POST", {"name": "Doppelgänger", "email": "one@example.com"})
    prod.get("prod1", "/api/users", "POST", {"name": "Doppelgänger", "email": "two@example.com"})
    with revision(prod, "0002", ['op.create_unique_constraint("uq_name", "users", ["name"])']):
        failed = prod.ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN)
    assert failed.code != 0
    assert "Duplicate entry '...' for key 'users.uq_name'" in words(failed.output)
    assert "Doppelg" not in failed.output
    assert "Nothing of revision 0002 was applied" in words(failed.output)


@pytest.mark.long
def test_of_two_migrations_at_once_one_waits_and_has_nothing_to_do(prod: World) -> None:
    with revision(prod, "0002", ['op.execute("DO SLEEP(2)")', ADD_NICK]):
        planned = prod.ansible("playbooks/migrate.yml", "-l", "prod", *UNPROVEN, "-e", "plan=true").succeeded()
    migrate = f"nba-release migrate --no-backup {release_in(planned)} --wait 60 --by"
    both = prod.shell("prod1", f"{migrate} alice & first=$!; {migrate} bob; wait $first")
    applied = [len(json.loads(line)["receipt"]["migration"]["applied"]) for line in both.splitlines()]
    assert sorted(applied) == [0, 1]
    assert version(prod) == "0002"


@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(values=st.lists(PRINTABLE, min_size=150, max_size=150))
def test_any_printable_password_survives_the_option_file(here: World, values: list[str]) -> None:
    values = [AWKWARD, AWKWARD + "\\", '"', "\\", "\\\\n\\s", " # a ", "'", 'a\\"b', *values]
    groups = [f"g{number}" for number in range(len(values))]
    text = "".join(
        waffle.option_file({"user": value}).replace("[client]", f"[{group}]").replace("[mysql]\n", "")
        for group, value in zip(groups, values, strict=True)
    )
    for host in ("prod1", "db1"):  # the client of MariaDB, that of MySQL
        here.write(host, "/root/quoting.cnf", text)
        read = here.execute(host, "my_print_defaults", "--defaults-file=/root/quoting.cnf", *groups)
        assert read.removesuffix("\n").split("\n") == [f"--user={value}" for value in values]
