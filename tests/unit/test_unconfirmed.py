"""A switch that is not confirmed is reverted, whatever ends the run, and a confirmed one stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.releases import (
    DeployRequest,
    Lead,
    Progress,
    Records,
    ReleaseError,
    Run,
    Schema,
    SchemaChange,
    Slot,
    Systemd,
    activate,
    deploy,
    live_and_problems,
    put,
    release,
    replace_link,
    stand_in,
)

SWITCHED = ("switched", "confirmed")


class Killed(BaseException):
    """The end of a process: nothing of it handles that."""


class KilledAt(Progress):
    """A run that is killed at the end of a phase."""

    def checkpoint(self, phase: str, patient: bool = False) -> None:
        self.phases.append(phase)
        if phase == self.stop:
            raise Killed


def killed(host: Any, name: str, phase: str, change: Any = None) -> None:
    with pytest.raises(Killed):
        activate(host, DeployRequest("deploy", name, "me"), KilledAt(phase), change or SchemaChange())


def reverted(host: Any, at_boot: bool = False) -> str:
    """Revert the switch that is recorded, and return its release; nothing if there is none."""
    switch = host.releases.unconfirmed.read()
    if not switch:
        return ""
    host.deployment.revert(switch, at_boot)
    return str(switch.release)


@pytest.mark.parametrize("at_boot", [False, True])
def test_a_killed_run_goes_back_to_the_release_of_before(host: Any, systemd: Systemd, at_boot: bool) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    killed(host, "new", "switched")
    assert host.releases.live.release == "new"
    named = "the switch to new was not confirmed, and could not be undone: journalctl -u nba-release -u nba-revert"
    assert named in host.inspection.problems()
    assert reverted(host, at_boot) == "new"
    assert live_and_problems(host) == ("old", [])
    assert reverted(host, at_boot) == ""
    deploy(host, "new")
    assert live_and_problems(host) == ("new", [])


def test_a_first_release_that_was_not_confirmed_leaves_nothing_live(host: Any, systemd: Systemd) -> None:
    put(host, "first")
    killed(host, "first", "switched")
    assert reverted(host) == "first"
    assert (host.releases.live, systemd.active, systemd.enabled) == (None, set(), set())


def test_a_confirmed_release_stays(host: Any, systemd: Systemd) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    killed(host, "new", "confirmed")
    assert (reverted(host), host.releases.live.release) == ("", "new")


@pytest.mark.parametrize("phase", ["downgraded", "switched"])
def test_the_schema_comes_forward_again_with_the_release(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    seen = list[Any]()
    monkeypatch.setattr(Schema, "downgrade", lambda *_: {})
    monkeypatch.setattr(
        Schema, "change", lambda schema, command, backup: seen.append((schema.release, command, backup))
    )
    killed(host, "old", phase, SchemaChange(downgrade="0001"))
    assert reverted(host) == "old"
    assert seen == [("new", ["upgrade"], False)]
    assert live_and_problems(host) == ("new", [])


def test_what_could_not_be_reverted_is_reverted_by_the_next_run(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    killed(host, "new", "switched")
    monkeypatch.setattr(Run, "folder", property(lambda _: host.config.root / "run"))
    kept = list[Any]()
    monkeypatch.setattr(Records, "keep", lambda _, receipt: kept.append((receipt["kind"], receipt["outcome"])))
    with monkeypatch.context() as patch:
        patch.setattr(Slot, "stop", lambda _: (_ for _ in ()).throw(ReleaseError("does not stop")))
        with pytest.raises(ReleaseError, match="does not stop"):
            release.revert(host, at_boot=True)
    lead = Lead(host, monkeypatch)
    lead.run("activate", "new", "--by", "me")
    assert lead.said == ["deploy of new by me", "follow"], "a live release that is not confirmed needs a run"
    command = ["--in-unit", "activate", "new", "--by", "me", "--token", "t1"]
    assert release.in_unit(host, release.parser().parse_args(command)) == 0
    assert live_and_problems(host) == ("new", [])
    assert kept == [("revert", "failed"), ("revert", "taken back"), ("deploy", "good")]


@pytest.mark.parametrize("phase", SWITCHED)
def test_a_switch_is_confirmed_by_whoever_began_it(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="new", by="alice", phase=phase)
    monkeypatch.setattr(Run, "go_on", lambda _, until: lead.say(until, None))
    assert lead.run("confirm", "new", "--by", "alice", "--check")["phase"] == phase
    assert lead.said == []
    lead.run("confirm", "new", "--by", "alice")
    assert lead.said == ["confirmed", "follow"]


def test_what_was_live_before_the_run_needs_no_confirmation(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    assert Lead(host, monkeypatch).run("confirm", "r1") == {"changed": False, "release": "r1", "phase": "done"}


@pytest.mark.parametrize(
    ("progress", "active", "words"),
    [
        ({}, False, "new is no longer live here: the host went down after the switch"),
        ({"release": "new", "by": "alice", "error": "nobody told it"}, False, "no longer live here: nobody told it"),
        ({"release": "new", "by": "bob", "phase": "switched", "error": "theirs"}, True, "the host went down"),
        ({"release": "new", "by": "alice", "phase": "ready"}, True, "the host went down"),
    ],
)
def test_a_release_that_was_reverted_is_not_confirmed(  # noqa: PLR0917
    host: Any,
    systemd: Systemd,
    monkeypatch: pytest.MonkeyPatch,
    progress: dict[str, Any],
    active: bool,
    words: str,
) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, **progress)
    lead.at_work = active
    with pytest.raises(ReleaseError, match=words):
        lead.run("confirm", "new", "--by", "alice")


def test_the_record_is_on_disk_before_the_link_changes(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    seen = list[Any]()

    def replaced(link: Path, target: Path) -> None:
        if link.name == "live":
            seen.append(json.loads((host.config.root / "state/unconfirmed.json").read_text()))
        replace_link(link, target)

    stand_in(monkeypatch, replace_link, replaced)
    deploy(host, "new")
    assert seen == [{"release": "new", "slot": "green", "previous": "blue", "schema_of": ""}]
