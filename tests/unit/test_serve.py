"""What systemd starts for a release that has a virtual environment (roles/app/files/serve.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, module_at

program = module_at("roles/app/files/serve.py")
CONFIG = {"name": "nba", "workers_max": 4, "request_timeout_seconds": 30, "graceful_timeout_seconds": 20}
LAUNCHER = str(ROOT / "roles/app/files/server/launch.py")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a release that the slot points to, in whose folder systemd starts the program as its account."""
    folder = tmp_path / "r1"
    folder.mkdir()
    stated = {"module": "club.main:app", "folder": "src", "root_path": "/api", "preload_modules": ["json", "email"]}
    (folder / "release.json").write_text(json.dumps({"release": "r1", "application": stated}))
    (folder / ".env").write_text("PASSWORD='it\\'s ${:-$}5'\nPATH=/tmp\nUSER=club\n")
    (folder / ".env.migrate").write_text("PASSWORD=another\n")
    (tmp_path / "release").symlink_to("r1")
    monkeypatch.chdir(tmp_path / "release")
    monkeypatch.setattr(program.os, "geteuid", lambda: 1000)
    return folder


@pytest.mark.parametrize(("cpus", "workers"), [(1, 2), (2, 3), (3, 4), (16, 4)])
def test_workers_follow_the_cpus_up_to_the_ceiling(monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int) -> None:
    monkeypatch.setattr(program.os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert program.workers(4) == workers
    assert program.workers(1) == 1


def test_it_becomes_the_server_of_the_release_that_the_slot_points_to_now(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(program.os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("USER", "nba-blue")
    program.serve(CONFIG, "blue")
    ((path, words, variables),) = started
    python = str(release / ".venv/bin/python")
    assert path == python
    options = ["--folder=src", "--release=r1", "--root-path=/api", "--preload=json,email"]
    options += [f"--workers={program.workers(4)}", "--timeout=30", "--graceful-timeout=20"]
    assert words == [python, "-I", "-u", LAUNCHER, *options, "club.main:app"]
    wanted = {"PASSWORD": "it's $5", "USER": "club", "LISTEN_FDS": "1", "PYTHONUNBUFFERED": "1"}
    assert variables.items() >= wanted.items()
    assert variables["PATH"] == f"{release}/.venv/bin:/usr/bin:/bin", "no setting takes its place"


def test_it_says_why_it_cannot(release: Path) -> None:
    words = program.serve(CONFIG, "blue")
    assert words == f"nba@blue.service cannot start {release}/.venv/bin/python: No such file or directory"
    (release / ".env").unlink()
    assert program.serve(CONFIG, "blue") == f"nba@blue.service cannot start {release}/.env: No such file or directory"


def test_a_release_of_an_older_version_is_named(release: Path) -> None:
    (release / "release.json").write_text('{"release": "r1"}')
    words = program.serve(CONFIG, "blue")
    assert "cannot start: release r1 was made by an older version of Waffle Iron" in words
    assert "Fix: deploy its commit again" in words


def test_it_is_never_root_s(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.os, "geteuid", lambda: 0)
    monkeypatch.setattr(program.os, "execve", lambda path, *_: pytest.fail(f"it started {path}"))
    assert "nba@blue.service would run as root" in program.serve(CONFIG, "blue")


def test_a_command_in_a_container_has_the_settings_as_variables(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter: Any = module_at("roles/app/files/environment.py")
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(exporter.os, "execvpe", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(exporter.sys, "argv", ["environment.py", "python", "-m", "club.seed"])
    monkeypatch.setenv("PATH", "/venv/bin")
    exporter.main()
    ((path, words, variables),) = started
    assert (path, words) == ("python", ["python", "-m", "club.seed"])
    assert variables.items() >= {"PASSWORD": "another", "PATH": "/venv/bin", "USER": "club"}.items()
    assert "another" not in os.environ.values()
