"""The sum of the connections: when it fits the server, and which number is to be changed where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import module_at, yaml_at

module = module_at("roles/app/files/connections.py")
waffle = module_at("plugins/filter/waffle.py")
KEYS = yaml_at("roles/app/defaults/main.yml")["app_pool_settings"]


def pool(size: int = 10, overflow: int = 2, recycle: int = 280) -> Any:
    return module.Pool(KEYS, size, overflow, recycle)


def refused(pool: Any, server: Any, workers: int) -> list[str]:
    with pytest.raises(module.ReleaseError) as caught:
        module.fit(pool, server, workers)
    head, *findings = str(caught.value).splitlines()
    assert head == "the connections do not fit the database server, so nothing was started:"
    return findings


def test_two_slots_on_all_hosts_just_fit() -> None:
    assert module.fit(pool(), module.Server(154, 28800, 10), 6)["needed"] == 144


def test_one_too_many_names_each_number_that_could_be_changed() -> None:
    (finding,) = refused(pool(), module.Server(153, 28800, 10), 6)
    assert finding == (
        "  - 6 workers on all hosts x 2 slots during a switch x (10 + 2) = 144 connections; the server takes 153 "
        "(max_connections), 10 of them kept for others (app_connection_reserve). Either set DATABASE_POOL_SIZE to 9 or "
        "less, or max_connections to 154 or more"
    )
    # And what it says is enough, is.
    module.fit(pool(size=9), module.Server(153, 28800, 10), 6)
    module.fit(pool(), module.Server(154, 28800, 10), 6)


def test_where_no_pool_is_small_enough_there_are_too_many_workers() -> None:
    (finding,) = refused(pool(), module.Server(30, 28800, 10), 8)
    assert "Either lower app_workers_max, or max_connections to 202 or more" in finding


@pytest.mark.parametrize(("seconds", "fits"), [(281, True), (280, False), (60, False)])
def test_a_connection_is_replaced_before_the_server_closes_it(seconds: int, fits: bool) -> None:
    server = module.Server(1000, seconds, 10)
    if fits:
        assert module.fit(pool(), server, 1)["checked"]
        return
    (finding,) = refused(pool(), server, 1)
    assert f"set DATABASE_POOL_RECYCLE_SECONDS to {seconds - 10} or less, or wait_timeout to 290 or more" in finding
    module.fit(pool(recycle=seconds - 10), server, 1)


def test_both_at_once() -> None:
    assert len(refused(pool(), module.Server(20, 20, 10), 6)) == 2


def test_the_pool_is_that_of_the_release(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "DATABASE_PASSWORD='${:-$}x'\nDATABASE_POOL_OVERFLOW=2\nDATABASE_POOL_RECYCLE_SECONDS=280\nDATABASE_POOL_SIZE=5\n"
    )
    assert module.Pool.of(tmp_path, KEYS) == pool(size=5)
    assert module.Pool.of(tmp_path, {**KEYS, "size": "POOL"}) is None
    assert module.Pool.of(tmp_path, {}) is None
    (tmp_path / ".env").write_text("DATABASE_POOL_SIZE=many\n")
    assert module.Pool.of(tmp_path, KEYS) is None


def test_the_server_is_asked_by_the_release_s_own_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Database, "ask", lambda database, statement: [["151", "28800"]])
    assert module.Server.ask(Path("/r/.mysql.cnf"), 10) == module.Server(151, 28800, 10)

    def silent(database: Any, statement: str) -> None:
        raise module.BackupError("the database does not answer: gone")

    monkeypatch.setattr(module.Database, "ask", silent)
    with pytest.raises(module.ReleaseError, match="does not answer"):
        module.Server.ask(Path("/r/.mysql.cnf"), 10)


# --- signing in ---

PARTS = {"host": "DB_HOST", "port": "DB_PORT", "user": "DB_USER", "password": "DB_PASSWORD", "name": "DB_DATABASE"}
SETTINGS = {
    "DB_HOST": "db.example",
    "DB_PORT": "3307",
    "DB_USER": "shop",
    "DB_PASSWORD": "p\\'ss",
    "DB_DATABASE": "shop",
}
CLIENT = """#!/bin/sh
echo "$*" >"$PLAY/argv"
for option; do case $option in --defaults-file=*) cat "${option#*=}" >"$PLAY/options" ;; esac; done
test ! -s "$PLAY/error" || { echo "Warning: old" >&2; cat "$PLAY/error" >&2; exit 1; }
echo 1
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mariadb").write_text(CLIENT)
    (tmp_path / "mariadb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PLAY", str(tmp_path))
    return tmp_path


def account(folder: Path, names: dict[str, str], settings: dict[str, str]) -> Any:
    (folder / ".env").write_text(waffle.dotenv(settings))
    return module.Account.of(folder, names)


def test_a_release_signs_in_with_its_own_settings_and_no_password_is_to_be_seen(play: Path) -> None:
    account(play, {**PARTS, "tls_ca": "DB_CA"}, {**SETTINGS, "DB_CA": "/etc/ssl/ca.crt"}).sign_in()
    options = (play / "options").read_text()
    assert 'host = "db.example"\nport = "3307"\nuser = "shop"\npassword = "p\\\\\'ss"' in options
    assert 'ssl-ca = "/etc/ssl/ca.crt"' in options and '[mysql]\ndatabase = "shop"' in options
    assert "p\\" not in (play / "argv").read_text() and "SELECT 1" in (play / "argv").read_text()


def test_a_release_signs_in_by_one_address(play: Path) -> None:
    url = "mysql+aiomysql://club:p%40ss%2F%25@db:3310/club?ssl_ca=/etc/ca.crt&charset=utf8mb4"
    found = account(play, {"url": "DATABASE_URL"}, {"DATABASE_URL": url})
    assert (found.host, found.port, found.user, found.name) == ("db", 3310, "club", "club")
    assert (found.password, found.tls_ca) == ("p@ss/%", "/etc/ca.crt")


def test_without_a_map_or_a_database_nobody_signs_in(play: Path) -> None:
    assert account(play, {}, SETTINGS) is None
    assert account(play, PARTS, {"DB_HOST": ""}) is None


@pytest.mark.parametrize(
    ("error", "settings", "way"),
    [
        ("ERROR 1045 (28000): Access denied for user 'shop'", "DB_USER and DB_PASSWORD", "playbooks/database.yml"),
        ("ERROR 1049 (42000): Unknown database 'shop'", "DB_DATABASE", "playbooks/database.yml"),
        ("ERROR 2005 (HY000): Unknown MySQL server host 'db'", "DB_HOST", "app_settings"),
        ("ERROR 2003 (HY000): Can't connect to MySQL server", "DB_HOST and DB_PORT", "playbooks/doctor.yml"),
        ("ERROR 2026 (HY000): TLS/SSL error: self-signed", "DB_HOST", "authority that signed"),
        ("killed", "DB_HOST and DB_PORT", "playbooks/doctor.yml"),
    ],
)
def test_a_refusal_names_the_settings_and_the_way(play: Path, error: str, settings: str, way: str) -> None:
    (play / "error").write_text(f"{error}\n")
    with pytest.raises(module.ReleaseError) as refused:
        account(play, PARTS, SETTINGS).sign_in()
    text = str(refused.value)
    assert f"by its own settings ({settings}): {error}. " in text and "Fix: " in text and way in text
    assert "Warning" not in text


@pytest.mark.parametrize(
    ("names", "settings", "wrong"),
    [
        (PARTS, {**SETTINGS, "DB_PORT": "one"}, "DB_PORT"),
        ({"url": "DATABASE_URL"}, {"DATABASE_URL": "mysql://a:b@db:x/shop"}, "DATABASE_URL"),
    ],
)
def test_a_setting_that_names_no_database_is_refused_without_its_value(
    play: Path, names: dict[str, str], settings: dict[str, str], wrong: str
) -> None:
    with pytest.raises(module.ReleaseError, match=f"the setting {wrong} does not name a database") as refused:
        account(play, names, settings)
    assert "a:b" not in str(refused.value)
