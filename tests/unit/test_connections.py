"""The sum of the connections: when it fits the server, and which number is to be changed where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import module_at, yaml_at

module = module_at("roles/app/files/connections.py")
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
