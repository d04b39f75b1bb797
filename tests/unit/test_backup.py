"""The program that backs up and restores a database, with the client's programs played by shell scripts."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import moto
import pytest

from tests.support import module_at

program = module_at("roles/app/files/backup.py")
program_of_databases: Any = sys.modules["database"]

DUMP = "CREATE TABLE users (id INT);\n-- Dump completed on 2026-01-01 00:00:00\n"
CLIENT = """#!/bin/sh
echo "mariadb $*" >>"$PLAY/argv"
case "$*" in
    *"SELECT DATABASE()") echo shop ;;
    *"SHOW DATABASES") cat "$PLAY/databases" ;;
    *collation_database) printf 'utf8mb4\\tutf8mb4_bin\\n' ;;
    *"SELECT VERSION()") echo 9.7.4 ;;
    *--database=shop-restore*table_type*) cat "$PLAY/restored" ;;
    *table_type*) cat "$PLAY/objects" ;;
    *ordinal_position*) cat "$PLAY/columns" ;;
    *data_length*) echo 1048576 ;;
    *version_num*) echo 0001 ;;
    *waffle_iron_migration*) cat "$PLAY/pinned" ;;
    *--unbuffered*) test ! -s "$PLAY/turn" || { cat "$PLAY/turn"; cat >/dev/null; } ;;
    *--database=*) cat >>"$PLAY/loaded"; test ! -e "$PLAY/refuse" || { echo "ERROR 1064 at line 1: no" >&2; exit 1; } ;;
    *) cat >>"$PLAY/ran" ;;
esac
"""
DUMPER = """#!/bin/sh
echo "mariadb-dump $*" >>"$PLAY/argv"
echo "Warning: mariadb-dump: unknown variable 'loose-x'" >&2
cat "$PLAY/dump"
test ! -e "$PLAY/dump-fails" || { echo "mariadb-dump: Got error 1045: Access denied" >&2; exit 2; }
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    play = tmp_path / "play"
    play.mkdir()
    for name, text in (("mariadb", CLIENT), ("mariadb-dump", DUMPER)):
        (play / name).write_text(text)
        (play / name).chmod(0o755)
    for name in ("objects", "restored"):
        (play / name).write_text("TABLE\talembic_version\nTABLE\tus`ers\nVIEW\tnames\n")
    for name, text in (("databases", "shop\n"), ("columns", ""), ("turn", "1\n")):
        (play / name).write_text(text)
    (play / "dump").write_text(DUMP)
    monkeypatch.setenv("PLAY", str(play))
    monkeypatch.setenv("PATH", f"{play}:/usr/bin:/bin")
    return play


@pytest.fixture
def backups(play: Path, tmp_path: Path) -> Iterator[Any]:
    release = tmp_path / "srv/releases/r1"
    release.mkdir(parents=True)
    (tmp_path / "srv/state").mkdir()
    (release / ".mysql.cnf").write_text('[client]\npassword = "hunter2"\n')
    yield program.Backups(program.Config("shop", tmp_path / "srv", tmp_path / "backups", 2))
    program_of_databases.named.cache_clear()


def files(backups: Any) -> set[str]:
    return {path.name for path in backups.config.folder.iterdir()} - {".lock"}


def test_a_backup_is_whole_private_and_named_by_time_and_revision(backups: Any, play: Path) -> None:
    name = backups.create(None)
    assert program.NAME.fullmatch(name) and name.endswith("Z-0001.sql.gz")
    path = backups.config.folder / name
    assert gzip.decompress(path.read_bytes()).decode() == DUMP
    assert path.stat().st_mode & 0o777 == 0o600
    assert backups.config.folder.stat().st_mode & 0o777 == 0o700
    assert files(backups) == {name}
    assert backups.listing() == [f"{name}  0.0 MiB"]
    called = (play / "argv").read_text()
    assert "--single-transaction" in called and "/r1/.mysql.cnf" in called and "hunter2" not in called


def test_the_option_file_is_that_of_the_release_prepared_last(backups: Any, play: Path, tmp_path: Path) -> None:
    newer = tmp_path / "srv/releases/r2/.mysql.cnf"
    newer.parent.mkdir()
    newer.write_text("[client]\n")
    backups.create(None)
    assert str(newer) in (play / "argv").read_text()


def test_without_an_option_file_it_says_what_to_set(backups: Any, tmp_path: Path) -> None:
    (tmp_path / "srv/releases/r1/.mysql.cnf").unlink()
    with pytest.raises(program.BackupError, match="app_backup_connection"):
        backups.create(None)


def test_an_empty_database_needs_no_backup(backups: Any, play: Path) -> None:
    (play / "objects").write_text("")
    assert backups.create(None) is None
    assert files(backups) == set()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda play: (play / "dump").write_text(DUMP.replace("-- Dump completed", "")), "cut off"),
        (lambda play: (play / "dump").write_text(""), "cut off"),
        (lambda play: (play / "dump-fails").touch(), "the dump failed: mariadb-dump: Got error 1045: Access denied"),
    ],
)
def test_a_dump_that_is_not_whole_never_counts(
    backups: Any, play: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(play)
    with pytest.raises(program.BackupError, match=f"^.*{reason}"):
        backups.create(None)
    assert files(backups) == set()


def test_the_newest_are_kept_and_what_a_killed_run_left_is_removed(backups: Any) -> None:
    backups.config.folder.mkdir()
    old = [f"2026010{day}T000000.000Z-0001.sql.gz" for day in range(1, 4)]
    for name in (*old, ".20260101T000000.000Z-0001.sql.gz.partial", "mine.txt"):
        (backups.config.folder / name).touch()
    name = backups.create(None)
    assert files(backups) == {name, old[-1], "mine.txt"}


def test_a_backup_stays_also_where_the_clock_was_ahead_when_others_were_made(backups: Any) -> None:
    backups.config.folder.mkdir()
    ahead = [f"2099010{day}T000000.000Z-0001.sql.gz" for day in range(1, 4)]
    for name in ahead:
        (backups.config.folder / name).touch()
    name = backups.create(None)
    assert files(backups) == {name, *ahead[1:]}


def test_the_backup_from_before_an_interrupted_migration_stays(backups: Any, play: Path) -> None:
    backups.config.folder.mkdir()
    old = [f"2026010{day}T000000.000Z-0001.sql.gz" for day in range(1, 4)]
    for name in old:
        (backups.config.folder / name).touch()
    for file in ("objects", "restored"):
        (play / file).write_text("TABLE\twaffle_iron_migration\n")
    (play / "pinned").write_text(f"{old[0]}\n")
    name = backups.create(None)
    assert files(backups) == {name, old[-1], old[0]}
    for file in ("objects", "restored"):
        (play / file).write_text("TABLE\tusers\n")
    decided = backups.create(None)
    assert files(backups) == {name, decided}


def test_a_full_disk_is_seen_before_the_dump(backups: Any, play: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    with pytest.raises(program.BackupError, match=r"may need 64 MiB.*where 64 MiB are free.*app_keep_backups"):
        backups.create(None)
    assert "mariadb-dump" not in (play / "argv").read_text()


def test_two_at_once_are_one_too_many(backups: Any) -> None:
    backups.create(None)
    with (backups.config.folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(program.BackupError, match="another backup or restore runs"):
            backups.create(None)


def test_a_restore_loads_the_backup_beside_what_is_there_and_exchanges_the_tables_at_once(
    backups: Any, play: Path
) -> None:
    name = backups.create(None)
    before = backups.restore(name)
    assert backups.names() == [before, name]
    # To see that each of the two loads, and to take the place of what is there.
    assert (play / "loaded").read_text().count(DUMP) == 3
    exchange = (play / "ran").read_text()
    lock = (
        "LOCK TABLES `shop`.`alembic_version` WRITE, `shop`.`us``ers` WRITE, "
        "`shop-restore`.`alembic_version` WRITE, `shop-restore`.`us``ers` WRITE;\n"
    )
    rename = (
        "RENAME TABLE `shop`.`alembic_version` TO `shop-replaced`.`alembic_version`, "
        "`shop`.`us``ers` TO `shop-replaced`.`us``ers`, `shop-restore`.`alembic_version` TO `shop`.`alembic_version`, "
        "`shop-restore`.`us``ers` TO `shop`.`us``ers`;\n"
    )
    assert f"{lock}UNLOCK TABLES;\nDROP VIEW IF EXISTS `shop`.`names`;\n{lock}{rename}UNLOCK TABLES;\n" in exchange


def test_mariadb_renames_nothing_that_is_locked(backups: Any, play: Path) -> None:
    client = play / "mariadb"
    client.write_text(client.read_text().replace("echo 9.7.4", "echo 11.8.9-MariaDB-log"))
    backups.restore(backups.create(None))
    assert "WRITE;\nUNLOCK TABLES;\nRENAME TABLE" in (play / "ran").read_text()


def test_a_restore_removes_no_backup(backups: Any) -> None:
    oldest = backups.create(None)
    backups.create(None)
    backups.restore(oldest)
    assert len(backups.names()) == 3 and oldest in backups.names()


@pytest.mark.parametrize("cut", [0, 1, 30, -1, -9])
def test_a_damaged_backup_is_refused_before_anything_is_dropped(backups: Any, play: Path, cut: int) -> None:
    name = backups.create(None)
    path = backups.config.folder / name
    path.write_bytes(path.read_bytes()[:cut])
    ran = (play / "ran").read_text()
    with pytest.raises(program.BackupError, match="is damaged"):
        backups.restore(name)
    assert (play / "ran").read_text() == ran


@pytest.mark.parametrize("name", ["nonsense", "../../etc/passwd", "20260101T000000.000Z-0001.sql.gz", ".lock"])
def test_an_unknown_backup_is_refused_with_those_that_there_are(backups: Any, play: Path, name: str) -> None:
    there = backups.create(None)
    ran = (play / "ran").read_text()
    with pytest.raises(program.BackupError, match=f"is not a backup on this host; there are:\n  {there}"):
        backups.restore(name)
    assert (play / "ran").read_text() == ran


def test_a_backup_that_does_not_load_is_none(backups: Any, play: Path) -> None:
    (play / "refuse").touch()
    with pytest.raises(program.BackupError, match="was not kept, as it could not be restored: ERROR 1064"):
        backups.create(None)
    assert files(backups) == set()
    assert (play / "ran").read_text().endswith("DROP DATABASE IF EXISTS `shop-restore`;\n")


def test_a_backup_that_lacks_something_is_none(backups: Any, play: Path) -> None:
    (play / "objects").write_text("TABLE\tusers\nTRIGGER\tkept\nEVENT\tover\nBROKEN VIEW\told\n")
    (play / "restored").write_text("TABLE\tusers\n")
    with pytest.raises(
        program.BackupError, match=r"these would not be restored: BROKEN VIEW old, TRIGGER kept\. Fix: "
    ):
        backups.create(None)
    assert files(backups) == set()


def test_a_broken_view_keeps_nobody_from_going_back(backups: Any, play: Path) -> None:
    name = backups.create(None)
    (play / "objects").write_text("TABLE\tusers\nBROKEN VIEW\told\n")
    (play / "restored").write_text("TABLE\tusers\n")
    backups.restore(name)
    assert "--ignore-table=shop.old shop\n" in (play / "argv").read_text()
    assert "DROP VIEW IF EXISTS `shop`.`old`;\n" in (play / "ran").read_text()


def test_after_an_interrupted_restore_no_backup_is_made(backups: Any, play: Path) -> None:
    (play / "databases").write_text("shop\nshop-replaced\n")
    with pytest.raises(program.BackupError, match=r"was interrupted.*in `shop-replaced`.*playbooks/restore.yml"):
        backups.create(None)
    assert files(backups) == set()


@pytest.mark.parametrize(
    ("answer", "reason"), [("0\n", "another run holds the lock shop-backup"), ("", "no reason given")]
)
def test_a_backup_waits_for_its_turn(backups: Any, play: Path, answer: str, reason: str) -> None:
    (play / "turn").write_text(answer)
    with pytest.raises(program.BackupError, match=f"a backup cannot begin: {reason}"):
        backups.create(None)


def test_a_generated_column_gets_no_value_of_its_own(backups: Any, play: Path) -> None:
    """MariaDB's dump of a table of MySQL has one, and MySQL refuses it."""
    (play / "columns").write_text("sums\t0\nsums\t1\nsums\t0\nusers\t0\n")
    rows = (
        "INSERT INTO `sums` VALUES\n(1,'a),(\\\\\\'b',0x00),\n(-2.5,NULL,'');\nINSERT INTO `users` VALUES\n('),(');\n"
    )
    (play / "dump").write_text(rows + DUMP)
    name = backups.create(None)
    text = gzip.decompress((backups.config.folder / name).read_bytes()).decode()
    assert text == (
        "INSERT INTO `sums` VALUES\n(1,DEFAULT,0x00),\n(-2.5,DEFAULT,'');\nINSERT INTO `users` VALUES\n('),(');\n"
        + DUMP
    )


PROGRAMS = """\
INSERT INTO `users` VALUES ('/*!50013 DEFINER=`a`@`b` SQL SECURITY DEFINER */');
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER `t` BEFORE INSERT ON `x` FOR EACH ROW BEGIN
CREATE DEFINER=`kept`@`%` PROCEDURE is text of a trigger;
END */;;
DELIMITER ;
DELIMITER ;;
/*!50003 SET time_zone             = 'SYSTEM' */ ;;
/*!50106 CREATE*/ /*!50117 DEFINER=`a``@b`@`%`*/ /*!50106 EVENT `on` ON SCHEDULE EVERY 9 DAY ON COMPLETION PRESERVE \
ENABLE COMMENT 'ON COMPLETION PRESERVE ENABLE' DO SELECT 1 */ ;;
/*!50106 CREATE*/ /*!50106 EVENT `off` ON SCHEDULE EVERY 9 DAY ON COMPLETION NOT PRESERVE DISABLE ON SLAVE DO DO 1 */ ;;
DELIMITER ;;
CREATE DEFINER=`root`@`localhost` FUNCTION `f`() RETURNS int
BEGIN RETURN 1; END ;;
DELIMITER ;
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013 DEFINER=`role`@`` SQL SECURITY INVOKER */
/*!50001 VIEW `v` AS select 'DEFINER=`a`@`b`' AS `c` */;
"""


def loaded(text: str, events: dict[bytes, bytes], state: str = "") -> str:
    return b"".join(program_of_databases.portable(io.BytesIO(text.encode()), events, state)).decode()


def test_what_a_dump_creates_gets_the_account_that_loads_it_as_its_definer() -> None:
    text = loaded(PROGRAMS, {})
    changed = [line for line in text.splitlines() if line not in PROGRAMS.splitlines()]
    assert changed == [
        "/*!50003 CREATE*/ /*!50017 */ /*!50003 TRIGGER `t` BEFORE INSERT ON `x` FOR EACH ROW BEGIN",
        "/*!50106 CREATE*/ /*!50117 */ /*!50106 EVENT `on` ON SCHEDULE EVERY 9 DAY ON COMPLETION PRESERVE "
        "ENABLE COMMENT 'ON COMPLETION PRESERVE ENABLE' DO SELECT 1 */ ;;",
        "CREATE FUNCTION `f`() RETURNS int",
        "/*!50013 SQL SECURITY INVOKER */",
    ]


def test_no_event_runs_in_the_scratch_database_and_each_gets_its_state_back() -> None:
    events: dict[bytes, bytes] = {}
    scratch = loaded(PROGRAMS, events, "DISABLE")
    assert scratch.count(" PRESERVE DISABLE") == 2 and " ON SLAVE" not in scratch
    assert events == {b"on": b"ENABLE", b"off": b"DISABLE ON SLAVE"}
    assert loaded(scratch, events) == loaded(PROGRAMS, {})


@pytest.fixture
def away(backups: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the backups with a bucket, on a service that plays S3 within this process."""
    for name, value in (("ACCESS_KEY_ID", "it"), ("SECRET_ACCESS_KEY", "plays"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = program.Bucket("shop-backups", "shop/prod/", "eu-west-1", "")
    with moto.mock_aws():
        where = {"LocationConstraint": "eu-west-1"}
        boto3.client("s3").create_bucket(Bucket=bucket.name, CreateBucketConfiguration=where)
        yield program.Backups(dataclasses.replace(backups.config, bucket=bucket))


def test_a_copy_goes_to_the_bucket_and_comes_back_to_a_host_without_it(away: Any, play: Path) -> None:
    name = away.create(None)
    found = boto3.client("s3").list_objects_v2(Bucket="shop-backups")["Contents"]
    assert [item["Key"] for item in found] == [f"shop/prod/{name}"]
    assert away.listing() == [f"{name}  0.0 MiB"]
    (away.config.folder / name).unlink()
    assert away.listing() == [f"{name}  0.0 MiB  s3://shop-backups/shop/prod/"]
    away.restore(name)
    assert (play / "loaded").read_text().endswith(DUMP)
    assert (away.config.folder / name).stat().st_mode & 0o777 == 0o600
    assert not list(away.config.folder.glob(".*.partial"))


def test_what_else_is_in_the_bucket_is_no_backup(away: Any) -> None:
    boto3.client("s3").put_object(Bucket="shop-backups", Key="shop/prod/notes.txt", Body=b"mine")
    assert away.listing() == []
    with pytest.raises(program.BackupError, match="is not a backup"):
        away.restore("notes.txt")


def test_a_bucket_that_takes_no_copy_stops_what_comes_after_and_keeps_the_backup(away: Any) -> None:
    gone = dataclasses.replace(away.config, bucket=dataclasses.replace(away.config.bucket, name="not-mine"))
    with pytest.raises(program.BackupError, match=r"is on this host alone: cannot write s3://not-mine/.*NoSuchBucket"):
        program.Backups(gone).create(None)
    assert len(away.names()) == 1


def test_a_host_without_boto3_says_how_to_get_it(away: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["bucket"], "boto3", None)
    with pytest.raises(program.BackupError, match=r"python3-boto3: ansible-playbook playbooks/base.yml -l ENV"):
        away.create(None)


def test_an_error_says_how_to_fix_it() -> None:
    text = "ERROR 1044 (42000) at line 1: Access denied for user 'm'@'%' to database 'shop-restore'"
    assert program_of_databases.complaint(text).startswith(
        f"{text}\nFix: ansible-playbook playbooks/database.yml -l ENV"
    )


def test_an_error_of_the_client_shows_no_people_s_data() -> None:
    text = "Warning: unknown\nERROR 1062 (23000) at line 9: Duplicate entry 'o'neil@example.com' for key 'users.email'"
    assert (
        program_of_databases.complaint(text)
        == "ERROR 1062 (23000) at line 9: Duplicate entry '...' for key 'users.email'"
    )


def test_the_command_line(
    backups: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"name": "shop", "root": str(tmp_path / "srv"), "folder": str(tmp_path / "backups"), "keep": 2}
    config["bucket"] = {"name": "", "prefix": "", "region": "", "endpoint": ""}
    (tmp_path / "backup.json").write_text(json.dumps(config))
    monkeypatch.setattr(program, "CONFIG", tmp_path / "backup.json")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(program.sys, "argv", ["backup", *arguments])
        return program.main(), *capsys.readouterr()

    code, out, _ = call("create", "--option-file", str(tmp_path / "srv/releases/r1/.mysql.cnf"))
    name = json.loads(out)["backup"]
    assert (code, call("list")[1]) == (0, f"{name}  0.0 MiB\n")
    code, out, _ = call("restore", name)
    assert code == 0 and json.loads(out)["restored"] == name
    code, out, error = call("restore", "nonsense")
    assert (code, out) == (1, "") and error.startswith("nonsense is not a backup on this host")
