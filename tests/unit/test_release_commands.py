"""The commands of the program, and its records."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.releases import (
    NOTHING_PLANNED,
    Abandoned,
    Clock,
    DeployRequest,
    Lead,
    Receipts,
    Records,
    ReleaseError,
    Run,
    Systemd,
    brought,
    deploy,
    put,
    release,
    runtimes,
    sent,
)


def test_a_release_that_cannot_be_prepared_is_recorded(
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(Records, "keep", lambda _, receipt: kept.append(receipt))
    put(host, "old")
    deploy(host, "old")
    stream = sent("r1", digest="0" * 64, env="API_KEY=artefact\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(ReleaseError, match="digest differs") as refusal:
        release.dispatch(host, release.parser().parse_args(["prepare", "r1", "--by", "alice"]))
    (receipt,) = kept
    assert refusal.value.answer["receipt"] == receipt, "the control node keeps it, too"
    facts = [receipt[key] for key in ("kind", "outcome", "release", "before", "by", "commit")]
    assert facts == ["deploy", "failed", "r1", "old", "alice", "c0ffee"]
    assert "********" in receipt["error"] and "its digest differs" in receipt["error"]


def test_the_preparation_is_a_step_of_the_first_run_after_it(  # noqa: PLR0917
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, clock: Clock, monkeypatch: Any
) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(Records, "keep", lambda _, receipt: kept.append(receipt))
    monkeypatch.setattr(runtimes.Venv, "make", lambda *_: clock.sleep(40))
    monkeypatch.setattr(runtimes.Venv, "changes", lambda *_: [])
    host.preparation.prepare("r1", brought(host, "r1"))
    for kind in ("migrate", "deploy", "deploy"):
        deploy(host, "r1")
        host.receipts.write({"kind": kind, "release": "r1", "before": "", "by": "me", "began": time.time() - 5})
    before, first, second = kept
    assert "prepare" not in {step["step"] for step in before["steps"]}, "it was not this run's"
    assert first["steps"][0] == {"step": "prepare", "seconds": 40}
    assert 45 <= first["seconds"] < 50 and host.releases.state("r1")["seconds"] == second["seconds"] < 10
    assert "prepare" not in {step["step"] for step in second["steps"]}


@pytest.mark.parametrize(("found", "words"), [({}, "notes"), ({"error": "refused"}, "error")])
def test_a_receipt_that_cannot_be_kept_hides_nothing(
    host: Any, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], words: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Receipts, "write", refuse)
    receipt: dict[str, Any] = dict(found)
    host.receipts.keep(receipt)
    told = "its receipt could not be kept on the host: No space left on device"
    assert receipt == ({"notes": [told]} if words == "notes" else {"error": f"refused\n{told}"})


def test_a_release_that_is_sent_along_is_prepared_before_the_run_begins(
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Lead(host, monkeypatch)
    monkeypatch.setattr(Records, "keep", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sent("bad", digest="0" * 64)))
    with pytest.raises(ReleaseError, match="digest differs"):
        lead.run("activate", "bad", "--prepare", "--by", "alice")
    assert (lead.said, host.releases.ids()) == ([], [])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sent("r1")))
    assert lead.run("activate", "r1", "--prepare", "--by", "alice")["phase"] == "done"
    assert (lead.said, host.releases.ids()) == (["deploy of r1 by alice", "follow"], ["r1"])


def test_who_left_while_a_release_was_prepared_gets_no_more_than_that(
    host: Any, accounts: dict[str, int], installed: list[str], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Lead(host, monkeypatch)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=sent("r1")))
    read, write = os.pipe()
    os.close(read)
    # Closed only after it has failed once more to write what it holds.
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with pytest.raises(ReleaseError, match="prepared and no more"):
            lead.run("activate", "r1", "--prepare", "--by", "alice")
    assert (lead.said, host.releases.ids()) == ([], ["r1"])


def test_a_run_of_somebody_else_is_not_taken_back(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="theirs", by="bob", request="deploy of theirs by bob", began=0)
    answer = lead.run("go-back", "old", "--refused", "ours", "--by", "alice")
    assert (answer["changed"], lead.said) == (False, [])
    assert answer["running"].startswith("deploy of theirs by bob")


def test_ones_own_run_is_taken_back(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="ours", by="alice")
    answer = lead.run("go-back", "old", "--refused", "ours", "--by", "alice")
    assert (answer["live"], answer["receipt"]) == ("old", {"outcome": "?"})
    assert lead.said == ["abandon", "follow"]


@pytest.mark.parametrize("had_ended", [False, True])
def test_what_could_not_be_taken_back_is_said(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, had_ended: bool
) -> None:
    put(host, "old")
    deploy(host, "old")
    lead = Lead(host, monkeypatch, token="t1", release="ours", by="alice", ended=had_ended)
    lead.followed.update(receipt={"outcome": "failed"}, error="the schema is at 0001")
    command = ("go-back", "old", "--refused", "ours", "--by", "alice")
    if had_ended:
        assert lead.run(*command)["live"] == "old", "its own refusal was told when it ended"
        return
    with pytest.raises(ReleaseError, match="the schema is at 0001") as caught:
        lead.run(*command)
    assert caught.value.answer["live"] == "old"


def test_a_host_that_had_switched_in_an_earlier_run_goes_back(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "ours"):
        put(host, name)
        deploy(host, name)
    lead = Lead(host, monkeypatch)
    assert lead.run("go-back", "old", "--refused", "ours", "--by", "alice")["live"] == "ours", "the run is played"
    assert lead.said == ["rollback of old by alice", "follow"]
    lead.followed.update(error="it does not start")
    with pytest.raises(ReleaseError, match="it does not start") as caught:
        lead.run("go-back", "old", "--refused", "ours", "--by", "alice")
    assert caught.value.answer["live"] == "ours"


@pytest.mark.parametrize(("until", "said"), [("done", ["deploy of r1 by alice", "follow"]), ("switched", [])])
def test_what_went_down_after_its_switch_is_asked_to_come_to_its_end(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, until: str, said: list[str]
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    host.releases.update_state("r1", state="prepared")
    lead = Lead(host, monkeypatch)
    assert "unfinished" not in lead.run("activate", "r1", "--by", "alice", "--until", until)
    assert lead.said == said


@pytest.mark.parametrize(
    ("release", "until", "at_work", "is_told"),
    [
        pytest.param("r1", "done", False, True, id="the live release"),
        pytest.param("r2", "done", False, False, id="what is not"),
        pytest.param("r1", "ready", False, False, id="what does not end yet"),
        pytest.param("r1", "done", True, False, id="what another run may change"),
    ],
)
def test_an_end_that_fails_refuses_nothing_that_is_live(  # noqa: PLR0917
    host: Any,
    systemd: Systemd,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    until: str,
    at_work: bool,
    is_told: bool,
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    lead = Lead(host, monkeypatch, request="deploy of r1 by alice")
    lead.followed.update(error="it is not ready")
    looks = iter([True, at_work])
    monkeypatch.setattr(Run, "active", lambda _: next(looks))
    command = ("activate", release, "--by", "alice", "--until", until)
    if is_told:
        assert lead.run(*command)["unfinished"] == "it is not ready"
        return
    with pytest.raises(ReleaseError, match="it is not ready"):
        lead.run(*command)


def test_what_was_torn_after_its_switch_is_brought_to_its_end(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    host.releases.idle.enable()
    host.releases.update_state("new", state="prepared")
    ends = host.inspection.incomplete_steps(host.releases.live)
    assert ends == [
        "nba@blue.service still runs or is enabled, though it is not live",
        "the live release new is not recorded as a good one",
        "the release old was made live last, and new is live",
    ]
    with pytest.raises(Abandoned):
        deploy(host, "new", "switched")
    assert host.inspection.incomplete_steps(host.releases.live) == ends, "who is told to go back ends nothing"
    deploy(host, "new")
    assert (
        host.releases.live.release,
        host.inspection.incomplete_steps(host.releases.live),
        host.releases.good()[0],
    ) == ("new", [], "new")


def test_what_was_torn_and_is_not_ready_is_not_called_good(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    host.releases.update_state("r1", state="prepared")
    systemd.active.clear()
    systemd.broken.add("r1")
    with pytest.raises(ReleaseError, match="its main process ended"):
        deploy(host, "r1")
    assert (host.releases.live.release, host.releases.state("r1")["state"]) == ("r1", "prepared")


def test_a_run_says_what_was_live_when_it_began(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "old")
    deploy(host, "old")
    monkeypatch.setattr(Records, "keep", lambda *_: None)
    monkeypatch.setattr(Run, "folder", property(lambda _: host.config.root / "run"))
    for name, before in (("new", "old"), ("newer", "new")):
        put(host, name)
        command = ["--in-unit", "activate", name, "--by", "me", "--token", "t1"]
        assert release.in_unit(host, release.parser().parse_args(command)) == 0
        assert release.finished(host.activation.progress())["before"] == before


def test_a_live_release_needs_no_run(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "r1")
    deploy(host, "r1")
    lead = Lead(host, monkeypatch)
    assert lead.run("activate", "r1", "--by", "alice") == {"changed": False, "release": "r1", "phase": "done"}
    assert lead.said == []


def test_no_answer_and_no_error_shows_a_secret(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a release's own code prints, of a migration or of `exec`, is shown by the control node and a pipeline."""
    for name in ("r1", "r2"):
        (put(host, name) / ".env").write_text(f"API_TOKEN=token-of-{name}\n")
    monkeypatch.setattr(release, "Host", lambda config: host)

    def fail(*_: Any) -> None:
        raise ReleaseError("RuntimeError: token-of-r1, token-of-r2")

    plan = {
        **NOTHING_PLANNED,
        "stops": [],
        "pending": [{"revision": "1", "message": "for token-of-r2", "statements": []}],
    }
    monkeypatch.setattr(type(host.releases), "execute", fail)
    monkeypatch.setattr(type(host.schema), "plan", lambda *_: plan)
    for words, code in ((["exec", "r1", "false"], 1), (["plan", "r1"], 0)):
        monkeypatch.setattr(release.sys, "argv", ["nba-release", *words])
        assert release.main() == code
        printed = "".join(capsys.readouterr())
        assert "token" not in printed and "********" in printed, printed


def test_a_receipt_shows_no_secret_of_a_migration(host: Any, systemd: Systemd) -> None:
    (put(host, "r1") / ".env").write_text("API_TOKEN=token-of-r1\n")
    receipt = host.receipts.begin(DeployRequest("deploy", "r1", "me"))
    host.log.migration = {"plan": ["INSERT INTO keys VALUES ('token-of-r1')"], "backup": None}
    host.receipts.keep(receipt)
    assert receipt["migration"] == {"plan": ["INSERT INTO keys VALUES ('********')"], "backup": None}
