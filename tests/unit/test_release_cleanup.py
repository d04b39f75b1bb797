"""Old releases are removed, and commands run in a release."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.releases import (
    CONFIG,
    Clock,
    Config,
    Host,
    Progress,
    ReleaseError,
    Releases,
    Slot,
    Systemd,
    alive,
    configure,
    deploy,
    gate,
    live_and_problems,
    put,
    replace_link,
    runtimes,
    short_folder,
    slots,
)


def test_clean_up_keeps_what_is_needed_and_nothing_else(host: Any, systemd: Systemd) -> None:
    """Two good ones and one that was just prepared are kept; failed, forgotten and old ones go, with their venvs."""
    put(host, "oldest", "v-old", state="good", at=1)
    put(host, "older", "v-old", state="good", at=2)
    put(host, "newer", "v-new", state="good", at=3)
    put(host, "failed", "v-failed", state="failed", at=9)
    put(host, "unfinished", "v-unfinished", state="prepared", at=8)
    put(host, "live", "v-live", state="good", at=5)
    put(host, "another-runs", "v-another", state="prepared", at=time.time())
    (host.config.root / "venvs/v-orphan").mkdir()
    (host.config.root / "releases/.torn.partial").mkdir()
    deploy(host, "live")
    assert sorted(host.releases.ids()) == ["another-runs", "live", "newer"]
    assert sorted(path.name for path in (host.config.root / "venvs").iterdir()) == ["v-another", "v-live", "v-new"]
    states = sorted(path.name for path in (host.config.root / "state").glob("*.json"))
    assert states == ["another-runs.json", "live.json", "newer.json"]
    assert not (host.config.root / "releases/.torn.partial").exists()


def test_clean_up_keeps_what_another_run_has_just_made(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "good", state="good", at=1)

    @contextlib.contextmanager
    def when_the_other_has_ended(*_: Any) -> Iterator[None]:
        put(host, "another-runs", "v-another", state="prepared", at=time.time())
        yield

    monkeypatch.setattr(Releases, "lock", when_the_other_has_ended)
    host.releases.clean_up()
    assert sorted(host.releases.ids()) == ["another-runs", "good"]
    assert (host.config.root / "venvs/v-another").is_dir()


def test_failed_releases_do_not_push_out_good_ones(host: Any) -> None:
    put(host, "good", state="good", at=1)
    for number in range(5):
        put(host, f"failed{number}", state="failed", at=10 + number)
    host.releases.clean_up()
    assert host.releases.ids() == ["good"]


@pytest.mark.parametrize("keep", [0, 1])
def test_there_is_always_a_way_back(host: Any, systemd: Systemd, keep: int) -> None:
    configure(host, keep_releases=keep)
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    host.repair.live_slot(Progress(), renewed=True)
    assert {host.releases.slot(name).release for name in ("blue", "green")} == {"new"}
    assert host.releases.ids() == ["new", "old"]


def test_what_a_slot_points_to_stays_whatever_its_age(host: Any) -> None:
    put(host, "ancient", "v1", state="failed", at=0)
    put(host, "idle", "v2", state="good", at=1)
    for number in range(3):
        put(host, f"new{number}", "v3", state="good", at=10 + number)
    replace_link(host.releases.slot("blue").folder / "release", host.releases.folder("ancient"))
    replace_link(host.releases.slot("green").folder / "release", host.releases.folder("idle"))
    replace_link(host.config.root / "live", host.releases.slot("blue").folder)
    host.releases.clean_up()
    assert sorted(host.releases.ids()) == ["ancient", "idle", "new1", "new2"]
    assert sorted(path.name for path in (host.config.root / "venvs").iterdir()) == ["v1", "v2", "v3"]


def test_asks_over_a_unix_socket() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/version" else 503)
            self.end_headers()
            self.wfile.write(b'{"release": "r1"}')

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "socket"

    with short_folder() as folder:
        path = f"{folder}/s"
        with socketserver.UnixStreamServer(path, Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            connection = slots.UnixConnection(path, 5)
            assert slots.ask(connection, "/version") == (200, '{"release": "r1"}')
            assert slots.ask(slots.UnixConnection(path, 5), "/health/ready")[0] == 503
            server.shutdown()
        status, reason = slots.ask(slots.UnixConnection(path, 5), "/version")
    assert status == 0
    assert reason.startswith(("ConnectionRefusedError", "ConnectionResetError"))


def test_a_start_is_waited_for_until_it_answers(host: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0, 503, 200])
    monkeypatch.setattr(gate, "alive", alive)
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (next(answers), ""))
    host.probe("blue", os.getpid())
    assert list(answers) == []


def test_nobody_waits_for_a_process_that_ended_or_never_answers(
    host: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (503, ""))
    monkeypatch.setattr(gate, "alive", alive)
    with subprocess.Popen(["true"]) as ended:
        pass
    with pytest.raises(ReleaseError, match="main process ended"):
        host.probe("blue", ended.pid)
    with pytest.raises(ReleaseError, match=r"did not answer within 1 s \(503: an empty body\)\. Fix"):
        host.probe("blue", os.getpid())
    workers = itertools.count()
    monkeypatch.setattr(gate, "workers_of", lambda main: {str(next(workers))})
    with pytest.raises(ReleaseError, match=r"did not answer within 1 s .*; \d+ worker\(s\) died"):
        host.probe("blue", os.getpid())


def test_commands_of_a_release_run_under_the_service_s_account(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    users: list[str] = []

    def run_in(venv: Any, folder: Path, user: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        users.append(user)
        return subprocess.CompletedProcess(command, 1 if "fail" in command else 0, "out\n", "err\n")

    monkeypatch.setattr(runtimes.Venv, "run", run_in)
    assert host.releases.execute("r1", ["python", "-m", "nba.seed"]) == "out\nerr"
    assert users == ["nba"]
    with pytest.raises(ReleaseError, match=r"`fail` in release r1 exited with status 1:\nout\nerr"):
        host.releases.execute("r1", ["fail"])


def test_a_release_whose_worker_dies_soon_after_its_start_is_refused(
    root: Path, tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "release.json").write_text(json.dumps({**CONFIG, "root": str(root), "settle_seconds": 5}))
    monkeypatch.setattr(slots, "CONFIG", tmp_path / "release.json")
    host = Host(Config.load())
    put(host, "first")
    deploy(host, "first")
    put(host, "second")
    workers = iter([set(), {"1", "2"}, {"1", "2"}, {"1", "3"}])
    monkeypatch.setattr(gate, "workers_of", lambda _: next(workers))
    with pytest.raises(ReleaseError, match="a worker died soon after"):
        deploy(host, "second")
    assert (*live_and_problems(host), host.releases.state("second")["state"]) == ("first", [], "failed")


def test_a_release_that_ends_as_soon_as_it_is_ready_does_not_last(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "first")
    deploy(host, "first")
    put(host, "second")
    configure(host, settle_seconds=5)
    settle = gate.Gate.settle

    def end_and_settle(gate: Any) -> None:
        systemd.active.discard(gate.slot.service)
        settle(gate)

    monkeypatch.setattr(gate.Gate, "settle", end_and_settle)
    with pytest.raises(ReleaseError, match="a worker died soon after"):
        deploy(host, "second")
    assert host.releases.live.release == "first"


def test_a_process_is_alive_as_long_as_it_is_there() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert slots.alive(str(process.pid))
    assert not slots.alive(str(process.pid))
    assert not slots.alive("0")
