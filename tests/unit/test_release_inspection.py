"""What is found on a host: the live release, what is wrong with it, and its repair."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.unit.releases import Progress, ReleaseError, Systemd, deploy, put, replace_link, serve


def test_a_bare_host(host: Any, systemd: Systemd) -> None:
    status = host.inspection.status()
    assert status.pop("problems") == ["no release is live"]
    nothing = {"live": "", "slot": "", "damaged": False, "running": "", "releases": []}
    assert status == {**nothing, "settings": {}, "workers": serve.workers(host.config.workers_max)}


def test_a_live_and_healthy_release(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    status = host.inspection.status()
    assert (status["live"], status["slot"], status["problems"]) == ("r1", "blue", [])
    assert [(release["id"], release["state"]) for release in status["releases"]] == [("r1", "good")]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.active.clear(), "nba@blue.service is inactive"),
        (lambda s: s.enabled.remove("nba@blue.service"), "nba@blue.service is disabled, not enabled"),
        (lambda s: s.enabled.remove("nba@blue.socket"), "nba@blue.socket is disabled, not enabled"),
        (lambda s: s.changed.add("nba@blue.service"), "was changed since systemd read it"),
        (lambda s: s.answers.update(blue="r0"), "r0 answers where r1 is live"),
        (lambda s: s.answers.update(blue=""), "nothing answers where r1 is live"),
        (lambda s: s.active.add("nba@green.service"), "nba@green.service still runs"),
        (lambda s: s.enabled.add("nba@green.service"), "nba@green.service still runs or is enabled"),
        (lambda s: (s.root / "slots/blue/socket").unlink(), "the socket of nba@blue.socket is gone"),
    ],
)
def test_problems_are_found_and_repaired(host: Any, systemd: Systemd, damage: Any, words: str) -> None:
    put(host, "r1")
    deploy(host, "r1")
    damage(systemd)
    (problem,) = host.inspection.problems()
    assert words in problem
    if "socket of" in words:  # the socket unit of a real systemd would make it again
        (systemd.root / "slots/blue/socket").symlink_to("anywhere")
    host.repair.live_slot(Progress())
    assert host.inspection.problems() == []


def test_a_live_release_that_is_gone_is_a_problem(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    shutil.rmtree(host.releases.folder("r1"))
    assert host.inspection.problems() == ["the live slot blue points to a release that is not there: r1"]


def test_a_repair_that_fails_says_so(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    systemd.active.clear()
    systemd.broken.add("r1")
    with pytest.raises(ReleaseError, match="main process ended"):
        host.repair.live_slot(Progress())


def test_the_releases_are_listed_with_what_is_known_of_them(host: Any) -> None:
    known = {"by": "alice@laptop", "commit": "c0ffee1234567890", "subject": "Add teams", "schema": "0002_teams"}
    put(host, "r1", state="good", at=1767323045, seconds=9.84, **known)
    put(host, "r2", state="failed", at=1767409506, commit="decade0987654321", subject="Add a typo")
    put(host, "r3", state="good", at=1767495967, seconds=104.31, **{**known, "subject": "Repair teams"})
    replace_link(host.releases.slot("blue").folder / "release", host.releases.folder("r3"))
    replace_link(host.config.root / "live", host.releases.slot("blue").folder)
    assert host.inspection.listing() == [
        "r3  live        2026-01-04 03:06:07  0002_teams    104.3 s  alice@laptop          c0ffee12  Repair teams",
        "r2  failed      2026-01-03 03:05:06  -               0.0 s  -                     decade09  Add a typo",
        "r1  good        2026-01-02 03:04:05  0002_teams      9.8 s  alice@laptop          c0ffee12  Add teams",
    ]
