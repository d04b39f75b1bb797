"""The run that changes the live release: its lock, its phases, and what becomes of it when nobody is there any more."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, module_at

program = module_at("roles/app/files/activation.py")
REQUEST = program.DeployRequest("deploy", "r1", "alice@laptop")


class Systemd:
    """Answers for one unit, which is active or not."""

    def __init__(self) -> None:
        self.active = False
        self.started: list[list[str]] = []
        self.looks = 0
        self.ends_after_looks = -1

    def run(self, *command: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        if words[0] == "systemd-run":
            if self.active:
                return subprocess.CompletedProcess(words, 1, "", "Unit nba-release.service was already loaded")
            self.started.append(words)
            self.active = True
            return subprocess.CompletedProcess(words, 0, "", "")
        self.looks += 1
        if self.looks == self.ends_after_looks:
            self.active = False
        return subprocess.CompletedProcess(words, 0, f"ActiveState={'active' if self.active else 'inactive'}\n", "")


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    played = Systemd()
    monkeypatch.setattr(program, "run", played.run)
    monkeypatch.setattr(program, "POLL_SECONDS", 0.001)
    return played


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: Systemd) -> Any:
    """Return the run as it is seen from outside its unit."""
    monkeypatch.setattr(program.Run, "folder", property(lambda run: tmp_path))
    return program.Run("nba", Path("/srv/nba/state/unconfirmed.json"))


def progress(folder: Path, until: str = "done", run: str = "t1", confirm_seconds: float = 5) -> Any:
    return program.Progress(folder, run, REQUEST, until, confirm_seconds)


def test_a_run_that_may_go_all_the_way_waits_for_nobody(tmp_path: Path) -> None:
    within = progress(tmp_path, confirm_seconds=0)
    for phase in program.PHASES[:-1]:
        within.checkpoint(phase)
    assert json.loads((tmp_path / "progress.json").read_text())["phase"] == "confirmed"


def test_an_end_that_nobody_heard_of_is_known(tmp_path: Path, seen: Any, systemd: Systemd) -> None:
    assert seen.unacknowledged("deploy") == "", "nothing was run yet"
    within = progress(tmp_path)
    assert seen.unacknowledged("deploy") == "", "it was killed: whether it did anything, its host sees"
    systemd.active = True
    assert (seen.unacknowledged("deploy"), seen.unacknowledged("rollback")) == ("r1", "")
    within.end()
    systemd.active = False
    assert seen.unacknowledged("deploy") == "r1"
    seen.acknowledge()
    assert seen.unacknowledged("deploy") == ""
    progress(tmp_path, run="t2").end(error="refused")
    assert seen.unacknowledged("deploy") == "", "what failed was undone"
    progress(tmp_path, run="t3").end()
    assert seen.unacknowledged("deploy") == "r1"


def test_a_run_waits_until_it_is_told_to_go_on(tmp_path: Path, seen: Any) -> None:
    within = progress(tmp_path, until="ready")
    within.checkpoint("migrated")
    waiting = threading.Thread(target=within.checkpoint, args=["ready"])
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    seen.go_on("migrated")
    waiting.join(0.05)
    assert waiting.is_alive(), "a word that leads less far does not let it go on"
    seen.go_on("switched")
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_run_that_nobody_leads_ends_by_itself(tmp_path: Path, seen: Any) -> None:
    within = progress(tmp_path, until="ready", confirm_seconds=0)
    with pytest.raises(program.Abandoned, match="nobody told it to go on within 0 s after it was ready"):
        within.checkpoint("ready")


def test_a_switch_that_nobody_confirms_is_undone(tmp_path: Path, seen: Any) -> None:
    with pytest.raises(program.Abandoned, match="nobody told it to go on within 0 s after it was switched"):
        progress(tmp_path, until="switched", confirm_seconds=0).checkpoint("switched")


def test_a_confirmed_run_that_nobody_leads_finishes(tmp_path: Path, seen: Any) -> None:
    within = progress(tmp_path, until="confirmed", confirm_seconds=0)
    within.checkpoint("confirmed", patient=True)
    assert json.loads((tmp_path / "progress.json").read_text())["phase"] == "confirmed"


def test_a_run_that_is_told_to_end_says_why(tmp_path: Path, seen: Any) -> None:
    within = progress(tmp_path, until="ready")
    seen.abandon("prod2 refused it")
    with pytest.raises(program.Abandoned, match=r"^prod2 refused it$"):
        within.checkpoint("ready")
    with pytest.raises(program.Abandoned):
        seen.go_on("done")


def test_the_unit_is_started_with_its_orders(seen: Any, systemd: Systemd) -> None:
    token = seen.begin(REQUEST, ["activate", "r1"], "ready", 0)
    (command,) = systemd.started
    assert command[1] == "--unit=nba-release.service"
    assert "--description=deploy of r1 by alice@laptop" in command
    (reverts,) = (word for word in command if word.startswith("--property=ExecStopPost="))
    assert "[ ! -e /srv/nba/state/unconfirmed.json ] || exec " in reverts and reverts.endswith(" revert'")
    assert command[-4:] == ["activate", "r1", f"--token={token}", "--until=ready"]


def test_a_second_run_is_told_who_holds_the_lock_since_when_and_how_far(
    tmp_path: Path, seen: Any, systemd: Systemd
) -> None:
    within = progress(tmp_path)
    within.say(phase="ready", began=0)
    systemd.active = True
    words = r"lock on this host: deploy of r1 by alice@laptop, since 1970-01-01 00:00:00 UTC, ready\."
    with pytest.raises(program.ReleaseError, match=words):
        seen.begin(program.DeployRequest("deploy", "r2", "bob@desk"), [], "done", 0)


def test_a_second_run_waits_if_that_is_wanted(tmp_path: Path, seen: Any, systemd: Systemd) -> None:
    progress(tmp_path)
    systemd.active, systemd.ends_after_looks = True, 2
    looks = threading.Thread(target=lambda: [systemd.run("systemctl") for _ in range(2)])
    looks.start()
    seen.begin(program.DeployRequest("deploy", "r2", "bob@desk"), [], "done", 10)
    looks.join()
    assert len(systemd.started) == 1


def test_the_same_again_joins_the_run_and_leads_it_on(tmp_path: Path, seen: Any, systemd: Systemd) -> None:
    within = progress(tmp_path, until="ready")
    systemd.active = True
    assert seen.begin(REQUEST, [], "switched", 0) == "t1"
    within.checkpoint("ready")
    assert systemd.started == []


def test_a_run_that_has_just_begun_is_given_time_to_say_what_it_is_for(
    tmp_path: Path, seen: Any, systemd: Systemd
) -> None:
    progress(tmp_path, run="yesterday").end()
    systemd.active = True
    speaks = threading.Timer(0.1, progress, [tmp_path])
    speaks.start()
    assert seen.begin(REQUEST, [], "done", 0) == "t1"
    speaks.join()


def test_the_repair_after_renewed_certificates_is_waited_for(tmp_path: Path, seen: Any, systemd: Systemd) -> None:
    """It was requested by nobody, so nobody can be told to wait for it."""
    program.Progress(tmp_path, "t1", program.DeployRequest("repair", "", "certificates"), "done", 5)
    systemd.active = True

    def end() -> None:
        systemd.active = False

    ends = threading.Timer(0.3, end)
    ends.start()
    seen.begin(REQUEST, ["activate", "r1"], "done", 0)
    ends.join()
    assert len(systemd.started) == 1


def test_a_repair_after_renewed_certificates_that_hangs_is_told(
    tmp_path: Path, seen: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.Progress(tmp_path, "t1", program.DeployRequest("repair", "", "certificates"), "done", 5)
    systemd.active = True
    monkeypatch.setattr(program, "CERTIFICATES_SECONDS", 0.0)
    with pytest.raises(program.ReleaseError, match="holds the lock on this host: repair of the live release by cert"):
        seen.begin(REQUEST, [], "done", 0)


def test_the_unit_that_repairs_names_itself() -> None:
    unit = (ROOT / "roles/app/templates/certificates.service.j2").read_text()
    assert f" --by {program.CERTIFICATES} " in unit


def test_the_same_of_somebody_else_does_not_join(tmp_path: Path, seen: Any, systemd: Systemd) -> None:
    progress(tmp_path)
    systemd.active = True
    with pytest.raises(program.ReleaseError, match="holds the lock"):
        seen.begin(program.DeployRequest("deploy", "r1", "bob@desk"), [], "done", 0)


def test_what_systemd_says_is_told(seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = subprocess.CompletedProcess([], 1, "", "Failed to connect to bus")
    monkeypatch.setattr(program, "run", lambda *_, **__: refusal)
    with pytest.raises(program.ReleaseError, match=r"did not start nba-release.service: Failed to connect to bus"):
        seen.begin(REQUEST, [], "done", 0)


def test_a_run_is_followed_to_a_phase_or_to_its_end(tmp_path: Path, seen: Any, systemd: Systemd) -> None:
    systemd.active = True
    within = progress(tmp_path, until="ready")
    within.say(phase="switched")
    assert seen.follow("t1", "ready")["phase"] == "switched"
    within.end(error="refused")
    assert seen.follow("t1", "done")["error"] == "refused"


def test_a_run_that_was_killed_is_not_waited_for(tmp_path: Path, seen: Any) -> None:
    progress(tmp_path).say(phase="ready")
    with pytest.raises(program.ReleaseError, match="ended without a result; run the same command again"):
        seen.follow("t1")


def test_the_result_of_an_earlier_run_is_not_taken(tmp_path: Path, seen: Any) -> None:
    progress(tmp_path, run="yesterday").end()
    with pytest.raises(program.ReleaseError, match="ended without a result"):
        seen.follow("t1")
