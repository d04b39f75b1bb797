"""A release is started, gets the public requests and is watched."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.releases import (
    APPLICATION,
    Clock,
    ReleaseError,
    Releases,
    Slot,
    Systemd,
    configure,
    deploy,
    gate,
    live_and_problems,
    put,
    replace_link,
    runtimes,
    said,
    stand_in,
)


def test_releases_alternate_between_the_slots(host: Any, systemd: Systemd) -> None:
    for number, slot in enumerate(["blue", "green", "blue"]):
        put(host, f"r{number}")
        deploy(host, f"r{number}")
        assert (host.releases.live.name, *live_and_problems(host)) == (slot, f"r{number}", [])
        assert host.releases.idle.service not in systemd.active


def test_a_release_that_cannot_start_changes_nothing(host: Any, systemd: Systemd) -> None:
    put(host, "good")
    deploy(host, "good")
    put(host, "bad")
    systemd.broken.add("bad")
    with pytest.raises(ReleaseError, match="what was live before still is") as refusal:
        deploy(host, "bad")
    assert "No module named" in str(refusal.value)
    assert (*live_and_problems(host), host.releases.state("bad")["state"]) == ("good", [], "failed")


def test_a_release_that_never_gets_ready_is_refused(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    systemd.log = "GET /health/ready 503\n"
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (503, '{"reason": "database"}'))
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 4)
    with pytest.raises(ReleaseError, match=r"not ready after 1 s: GET /health/ready .*answered 503: .*database"):
        deploy(host, "r1")
    assert systemd.active == systemd.enabled == set()
    assert host.releases.live is None


@pytest.fixture
def links(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """Keep which slots got the public requests, and what would come back at boot when they did."""
    kept: list[tuple[str, set[str]]] = []

    def replace(link: Path, target: Path) -> None:
        if link == host.config.root / "live":
            kept.append((target.name, set(systemd.enabled)))
        replace_link(link, target)

    stand_in(monkeypatch, replace_link, replace)
    return kept


def test_a_release_that_gets_the_public_requests_comes_back_at_boot(host: Any, links: Any) -> None:
    put(host, "r1")
    deploy(host, "r1")
    assert links == [("blue", {"nba@blue.service", "nba@blue.socket"})]


def test_a_release_that_never_gets_ready_never_gets_a_public_request(
    host: Any, systemd: Systemd, links: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.log = ""
    put(host, "good")
    deploy(host, "good")
    links.clear()
    put(host, "bad")
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (503, ""))
    with pytest.raises(ReleaseError, match="not ready after 1 s"):
        deploy(host, "bad")
    assert (links, host.releases.live.release) == ([], "good")


def test_another_release_that_answers_is_refused(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (200, '{"release": "r0"}'))
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 4)
    with pytest.raises(ReleaseError, match=r"/\.waffle/version names the release r0"):
        deploy(host, "r1")


def test_every_worker_has_to_answer(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    monkeypatch.setattr(gate, "workers_of", lambda _: {"11", "12"})
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (200, '{"release": "r1", "worker": 11}'))
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 4)
    with pytest.raises(ReleaseError, match=r"not ready after 1 s: 1 worker\(s\) never answered"):
        deploy(host, "r1")


def test_a_release_that_is_not_here_is_named(host: Any, systemd: Systemd) -> None:
    with pytest.raises(ReleaseError, match="r9 is not on this host; `nba-release list`"):
        deploy(host, "r9")


def test_a_bad_public_answer_switches_back(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    seen: list[str] = []

    def watch(_gate: Any, release: str, seconds: float) -> None:
        seen.append(host.releases.live.release)
        raise ReleaseError("answered 502")

    monkeypatch.setattr(gate.Gate, "watch", watch)
    with pytest.raises(ReleaseError, match="switched back to old: answered 502"):
        deploy(host, "new")
    assert seen == ["new"]
    assert (*live_and_problems(host), host.releases.state("new")["state"]) == ("old", [], "failed")


@pytest.fixture
def public(host: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Return what the public address answers, the last of it for ever; `old` is live and `new` can be."""
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    waits = {"watch_seconds": 5, "drain_seconds": 20}
    configure(host, public_url="http://nba.example.com", **waits)
    answers = [said("new")]

    def ask(_: Any, path: str, *rest: Any) -> tuple[int, str]:
        if path == APPLICATION["ready_path"]:
            return 200, "ready"
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(gate, "ask", ask)
    return answers


@pytest.mark.parametrize(("failures", "refused"), [(3, False), (1000, True)])
def test_a_health_path_that_fails_on_the_public_address_switches_back(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, failures: int, refused: bool
) -> None:
    """As if nginx could not reach it; one answer that fails may be the database's."""
    answers = iter([(200, "ready")] * 4 + [(500, "oops")] * failures)

    def ask(_: Any, path: str, *rest: Any) -> tuple[int, str]:
        return next(answers, (200, "ready")) if path == APPLICATION["ready_path"] else said("new")

    monkeypatch.setattr(gate, "ask", ask)
    if refused:
        words = "to old: GET http://nba.example.com/health/ready: answered 500: oops"
        with pytest.raises(ReleaseError, match=words):
            deploy(host, "new")
    else:
        deploy(host, "new")
    assert host.releases.live.release == ("old" if refused else "new")


def test_every_worker_has_to_answer_on_the_public_address(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "workers_of", lambda _: {"11", "12"})
    monkeypatch.setattr(gate.Gate, "await_ready", lambda *_: None)
    public[:] = [said("new", worker=11)]
    silent = r"to old: 1 worker\(s\) of nba@green\.service never answered on http://nba\.example\.com"
    with pytest.raises(ReleaseError, match=silent):
        deploy(host, "new")
    # Longer than it is watched, and not yet too long.
    public[:] = [said("new", worker=11)] * 55 + [said("new", worker=12)]
    deploy(host, "new")
    assert host.releases.live.release == "new"


def test_a_public_answer_that_turns_bad_while_it_is_watched_switches_back(
    host: Any, public: list[tuple[int, str]]
) -> None:
    public[:] = [said("new")] * 45 + [(502, "Bad Gateway")]
    with pytest.raises(ReleaseError, match=r"to old: .* answered 502 \(Bad Gateway\), not release new"):
        deploy(host, "new")
    assert (*live_and_problems(host), host.releases.state("new")["state"]) == ("old", [], "failed")


def test_a_fault_of_the_host_while_it_is_watched_switches_back(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(gate.Gate, "watch", refuse)
    for state, left in (("prepared", "failed"), ("good", "good")):
        host.releases.update_state("new", state=state, turn=0)
        with pytest.raises(ReleaseError, match="switched back to old: Too many open files"):
            deploy(host, "new")
        assert (*live_and_problems(host), host.releases.state("new")["state"]) == ("old", [], left)


def test_a_release_that_dies_while_it_is_watched_switches_back(
    host: Any, systemd: Systemd, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_and_die(*_: Any) -> tuple[int, str]:
        systemd.active.discard("nba@green.service")
        return said("new")

    monkeypatch.setattr(gate, "ask", answer_and_die)
    for state in ("prepared", "good"):
        host.releases.update_state("new", state=state, turn=0)
        with pytest.raises(ReleaseError, match=r"to old: nba@green\.service died after the switch"):
            deploy(host, "new")
        assert (*live_and_problems(host), host.releases.state("new")["state"]) == ("old", [], "failed")


@pytest.mark.parametrize(
    ("what", "whose", "words"),
    [(Slot, "main", "Too many open files"), (Releases, "state", r"http.* answered 502")],
)
def test_what_cannot_be_asked_who_is_to_blame_is_undone_all_the_same(  # noqa: PLR0917
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, what: Any, whose: str, words: str
) -> None:
    ask, was_switched = getattr(what, whose), False

    def refuse_once_switched(*arguments: Any) -> Any:
        nonlocal was_switched
        was_switched = was_switched or host.releases.live.name == "green"
        if was_switched:
            raise OSError("Too many open files")
        return ask(*arguments)

    public[:] = [(502, "Bad Gateway")]
    monkeypatch.setattr(what, whose, refuse_once_switched)
    host.releases.update_state("new", state="good", turn=0)
    with pytest.raises(ReleaseError, match=f"switched back to old: {words}"):
        deploy(host, "new")
    assert (*live_and_problems(host), host.releases.state("new")["state"]) == ("old", [], "good")


def test_requests_go_back_before_a_release_is_asked_whether_it_is_to_blame(
    host: Any, public: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[str] = []

    def hang(slot: Any) -> str:
        lives.append(host.releases.live.release)
        return ""

    monkeypatch.setattr(gate.Gate, "await_ready", lambda *_: None)
    monkeypatch.setattr(Slot, "answering", hang)
    public[:] = [(502, "Bad Gateway")]
    host.releases.update_state("new", state="good", turn=0)
    with pytest.raises(ReleaseError, match="switched back to old"):
        deploy(host, "new")
    assert (lives, host.releases.state("new")["state"]) == (["old"], "failed")


@pytest.mark.parametrize(("answers", "left"), [("new", "blue"), ("old", "green")])
def test_a_slot_that_is_left_has_the_time_to_answer_what_it_was_asked(  # noqa: PLR0917
    host: Any, public: list[tuple[int, str]], clock: Clock, monkeypatch: pytest.MonkeyPatch, answers: str, left: str
) -> None:
    public[:] = [said(answers)]
    stopped: list[tuple[str, float]] = []
    monkeypatch.setattr(Slot, "stop", lambda slot: stopped.append((slot.name, round(clock.now, 3))))
    with contextlib.suppress(ReleaseError):
        deploy(host, "new")
    # Since the switch: the seconds of the watch are among them.
    assert stopped == [(left, 20)]
    assert host.releases.live.release == answers


def test_a_log_that_cannot_be_read_keeps_nothing_from_being_undone(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")

    def fail(words: str) -> Any:
        def refuse(*_: Any) -> None:
            raise ReleaseError(words)

        return refuse

    monkeypatch.setattr(gate.Gate, "watch", fail("answered 502"))
    monkeypatch.setattr(Slot, "journal", fail("no journal"))
    with pytest.raises(ReleaseError, match=r"to old: answered 502\nits log cannot be read: no journal"):
        deploy(host, "new")
    assert live_and_problems(host) == ("old", [])


@pytest.mark.parametrize("state", ["prepared", "failed", "good"])
def test_what_a_release_runs_in_is_made_again_where_it_is_gone(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    put(host, "r1", state=state)
    made: list[str] = []
    monkeypatch.setattr(runtimes.Venv, "changes", lambda *_: ["it is gone"] if not made else [])
    monkeypatch.setattr(runtimes.Venv, "renew", lambda _, folder, others: made.append(folder.name))
    deploy(host, "r1")
    assert (host.releases.live.release, made) == ("r1", ["r1"])
