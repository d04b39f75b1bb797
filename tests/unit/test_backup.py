"""The program that backs up and restores a database, with the client's programs played by shell scripts."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
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

DUMP = "CREATE TABLE users (id INT);\n-- Dump completed on 2026-01-01 00:00:00\n"
CLIENT = """#!/bin/sh
echo "mariadb $*" >>"$PLAY/argv"
case "$*" in
    *"SELECT DATABASE()") echo shop ;;
    *table_type*) cat "$PLAY/objects" ;;
    *data_length*) echo 1048576 ;;
    *version_num*) echo 0001 ;;
    *waffle_iron_migration*) cat "$PLAY/pinned" ;;
    *) cat >>"$PLAY/loaded"; test ! -e "$PLAY/refuse" || { echo "ERROR 1064 at line 1: no" >&2; exit 1; } ;;
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
    (play / "objects").write_text("BASE TABLE\talembic_version\nBASE TABLE\tus`ers\nVIEW\tnames\n")
    (play / "dump").write_text(DUMP)
    monkeypatch.setenv("PLAY", str(play))
    monkeypatch.setenv("PATH", f"{play}:/usr/bin:/bin")
    return play


@pytest.fixture
def backups(play: Path, tmp_path: Path) -> Any:
    release = tmp_path / "srv/releases/r1"
    release.mkdir(parents=True)
    (tmp_path / "srv/state").mkdir()
    (release / ".mysql.cnf").write_text('[client]\npassword = "hunter2"\n')
    return program.Backups(program.Config("shop", tmp_path / "srv", tmp_path / "backups", 2))


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
    (play / "objects").write_text("BASE TABLE\twaffle_iron_migration\n")
    (play / "pinned").write_text(f"{old[0]}\n")
    name = backups.create(None)
    assert files(backups) == {name, old[-1], old[0]}
    (play / "objects").write_text("BASE TABLE\tusers\n")
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


def test_a_restore_keeps_what_was_there_and_drops_it_first(backups: Any, play: Path) -> None:
    name = backups.create(None)
    before = backups.restore(name)
    assert backups.names() == [before, name]
    drops, loaded = (play / "loaded").read_text().split("DROP TABLE IF EXISTS `us``ers`;\n")
    assert drops.endswith("DROP VIEW IF EXISTS `names`;\nDROP TABLE IF EXISTS `alembic_version`;\n")
    assert loaded == DUMP


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
    with pytest.raises(program.BackupError, match="is damaged"):
        backups.restore(name)
    assert not (play / "loaded").exists()


@pytest.mark.parametrize("name", ["nonsense", "../../etc/passwd", "20260101T000000.000Z-0001.sql.gz", ".lock"])
def test_an_unknown_backup_is_refused_with_those_that_there_are(backups: Any, play: Path, name: str) -> None:
    there = backups.create(None)
    with pytest.raises(program.BackupError, match=f"is not a backup on this host; there are:\n  {there}"):
        backups.restore(name)
    assert not (play / "loaded").exists()


def test_a_restore_that_fails_names_the_backup_of_what_was_there(backups: Any, play: Path) -> None:
    name = backups.create(None)
    (play / "refuse").touch()
    with pytest.raises(program.BackupError, match="ERROR 1064") as refusal:
        backups.restore(name)
    assert f"shop-backup restore {backups.names()[0]}" in str(refusal.value)
    assert backups.names()[0] != name


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


def test_an_error_of_the_client_shows_no_people_s_data() -> None:
    text = "Warning: unknown\nERROR 1062 (23000) at line 9: Duplicate entry 'o'neil@example.com' for key 'users.email'"
    assert program.complaint(text) == "ERROR 1062 (23000) at line 9: Duplicate entry '...' for key 'users.email'"


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
