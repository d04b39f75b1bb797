"""What systemd starts for a release that has a virtual environment (roles/app/files/serve.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import module_at

program = module_at("roles/app/files/serve.py")
CONFIG = {"name": "nba", "serve_command": ["gunicorn", "--workers={workers}"], "workers_max": 4}


@pytest.mark.parametrize(("cpus", "workers"), [(1, 2), (2, 3), (3, 4), (16, 4)])
def test_workers_follow_the_cpus_up_to_the_ceiling(monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int) -> None:
    monkeypatch.setattr(program.os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert program.workers(4) == workers
    assert program.workers(1) == 1


def test_it_becomes_the_server_of_the_release_that_the_slot_points_to_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(program.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(program.os, "execv", lambda path, words: started.append((path, words)))
    (tmp_path / "r1").mkdir()
    (tmp_path / "release").symlink_to("r1")
    monkeypatch.chdir(tmp_path / "release")
    program.serve(CONFIG, "blue")
    server = f"{tmp_path}/r1/.venv/bin/gunicorn"
    assert started == [(server, [server, f"--workers={program.workers(4)}"])]


def test_it_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program.os, "geteuid", lambda: 1000)
    words = program.serve(CONFIG, "blue")
    assert words == f"nba@blue.service cannot start {tmp_path}/.venv/bin/gunicorn: No such file or directory"


def test_it_is_never_root_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program.os, "geteuid", lambda: 0)
    monkeypatch.setattr(program.os, "execv", lambda path, words: pytest.fail(f"it started {path}"))
    assert "nba@blue.service would run as root" in program.serve(CONFIG, "blue")
