"""The action plugin that runs the release program of a host, with the connection played."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from tests.support import module_at

plugin = module_at("plugins/action/release.py")
PROGRAM = "/usr/local/sbin/nba-release"


class Connection:
    """What a run asks of the host, and what the host answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0, out: str = "", err: str = "") -> None:
        self.commands: list[str] = []
        self.inputs: list[bytes] = []
        self.answer = {"rc": code, "stdout": out, "stderr": err}
        monkeypatch.setattr(plugin.ActionModule, "_low_level_execute_command", lambda _, *a, **b: self.read(*a, **b))
        monkeypatch.setattr(plugin, "who", lambda: "alice@laptop")

    def take(self, text: str) -> dict[str, Any]:
        self.commands.append(text)
        return self.answer

    def read(self, text: str, in_data: bytes) -> dict[str, Any]:
        self.inputs.append(in_data)
        return self.take(text)

    def run(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        task = SimpleNamespace(args={"program": PROGRAM, **arguments}, check_mode=check, async_val=0, action="release")
        module = plugin.ActionModule.__new__(plugin.ActionModule)
        module._task = task
        result: dict[str, Any] = module.run(task_vars={"inventory_hostname": "prod1"})
        return result


@pytest.fixture(autouse=True)
def _without_the_base_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin.HostAction, "run", lambda self, tmp=None, task_vars=None: {})


def test_the_answer_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, out='{"live": "r1", "problems": []}\n')
    assert host.run(command=["status"]) == {"changed": False, "live": "r1", "problems": []}
    assert host.commands == [f"{PROGRAM} status"]


def test_the_program_is_told_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, out='{"changed": false}')
    assert host.run(command=["activate", "r 1", "--wait", 5])["changed"] is False
    assert host.commands == [f"{PROGRAM} activate 'r 1' --wait 5 --by alice@laptop"]


def test_text_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, out="r1 says hello\n")
    assert host.run(command=["exec"]) == {"changed": True, "stdout": "r1 says hello\n"}


def test_nothing_to_say_is_a_change_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Connection(monkeypatch).run(command=["prepare", "r1"]) == {"changed": True}


def test_an_answer_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnsibleActionFail, match="`status` gave no answer: no line of JSON"):
        Connection(monkeypatch, out="[]").run(command=["status"])
    with pytest.raises(AnsibleActionFail, match=r"`status` gave a wrong answer: .* got `int` - at `\$.live`"):
        Connection(monkeypatch, out='{"live": 1}').run(command=["status"])


def test_a_refusal_has_the_programs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Connection(monkeypatch, 1, err="release r1 was refused\n").run(command=["activate", "r1"])
    assert (result["failed"], result["rc"], result["refused"]) == (True, 1, "release r1 was refused")
    assert result["msg"] == result["refused"]


def test_a_deferred_failure_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Connection(monkeypatch, 1, err="release r1 was refused\n").run(
        command=["activate", "r1"], defer_failure=True
    )
    assert (result["failed"], result["refused"]) == (False, "release r1 was refused")


def test_a_host_that_cannot_be_reached_while_it_is_changed_stays_in_the_play(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks that revert a deploy ask it again."""
    host = Connection(monkeypatch)

    def unreachable(text: str) -> dict[str, Any]:
        raise AnsibleConnectionFailure("no route to host")

    monkeypatch.setattr(host, "take", unreachable)
    with pytest.raises(AnsibleConnectionFailure):
        host.run(command=["status"])
    for deferred in (False, True):
        result = host.run(command=["activate", "r1"], defer_failure=deferred)
        assert result["host_unreachable"] and result["refused"] == "could not be reached: no route to host"
        assert result["failed"] is not deferred


def test_a_bare_host_is_no_failure_where_one_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, 127, err="sh: 1: nba-release: not found")
    assert host.run(command=["status"], default={"live": ""}) == {"changed": False, "live": ""}
    assert host.run(command=["status"])["failed"]


def test_a_dry_run_reads_and_does_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, out='{"live": "r1"}')
    assert host.run(check=True, command=["status"]) == {"changed": False, "live": "r1"}
    assert host.run(check=True, command=["activate", "r2"]) == {"changed": True, "msg": "would run: activate r2"}
    assert host.commands == [f"{PROGRAM} status"]


def test_a_dry_run_calls_what_would_be_repaired_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, out='{"live": "r1", "problems": ["it is off"]}')
    assert host.run(check=True, command=["status"])["changed"] is True
    assert host.run(command=["status"])["changed"] is False


def test_a_dry_run_goes_on_where_the_program_is_what_would_be_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch, code=1, err="SyntaxError")
    answer = host.run(check=True, command=["status"], default={"live": "", "problems": []})
    assert (answer["changed"], answer["unasked"], answer["live"]) == (True, True, "")
    assert answer["problems"] == ["cannot be asked: SyntaxError"]
    assert host.run(command=["status"], default={"live": ""})["failed"] is True


def test_a_file_follows_what_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "0f.tar").write_bytes(b"\x1f\n\x00")
    host = Connection(monkeypatch)
    host.run(command=["prepare", "r1"], upload=str(tmp_path / "0f.tar"), input={".env": "A=1\n"})
    words, _, file = host.inputs[0].partition(b"\n")
    assert (json.loads(words), file) == ({"files": {".env": "A=1\n"}, "bytes": 3}, b"\x1f\n\x00")
    assert host.commands == [f"{PROGRAM} prepare r1 --by alice@laptop"]


def test_what_is_secret_is_read_and_in_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Connection(monkeypatch)
    result = host.run(command=["prepare", "r1"], input={".env": "A='é'\n"})
    assert [json.loads(words) for words in host.inputs] == [{".env": "A='é'\n"}]
    assert host.commands == [f"{PROGRAM} prepare r1 --by alice@laptop"]
    assert result == {"changed": True}


@pytest.mark.parametrize("code", [0, 1])
def test_the_receipt_is_kept_also_of_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    monkeypatch.setattr(plugin.time, "time", lambda: 1_000_000.5)
    receipt = {"outcome": "good", "release": "r1", "began": 17.5}
    host = Connection(monkeypatch, code, out=json.dumps({"receipt": receipt}), err="refused")
    kept = Path(host.run(command=["activate", "r1"], receipts=str(tmp_path / "receipts"))["receipt"])
    assert kept == tmp_path / "receipts/prod1/1000000-r1.json"
    assert json.loads(kept.read_text()) == receipt


def test_what_a_receipt_notes_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    receipt = {"release": "r1", "began": 1.0, "notes": ["r1 is live, but the old one still runs"]}
    told: list[str] = []
    host = Connection(monkeypatch, out=json.dumps({"receipt": receipt}))
    monkeypatch.setattr(plugin.ActionModule, "_display", SimpleNamespace(warning=told.append), raising=False)
    host.run(command=["activate", "r1"], receipts=str(tmp_path))
    assert told == ["prod1: r1 is live, but the old one still runs"]


@pytest.mark.parametrize("code", [0, 1])
def test_what_a_migration_was_going_to_do_is_shown_whatever_became_of_it(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    plan = ["release r1", "0002: Shorten", "    ALTER TABLE t DROP a;", "    WARNING: drops a column"]
    host = Connection(monkeypatch, code, out=json.dumps({"receipt": {"began": 1.0, "migration": {"plan": plan}}}))
    told: list[str] = []
    display = SimpleNamespace(display=told.append, warning=lambda text: told.append(f"[WARNING]: {text}"))
    monkeypatch.setattr(plugin.ActionModule, "_display", display, raising=False)
    host.run(command=["activate", "r1"])
    assert told == [*(f"prod1: {line}" for line in plan[:3]), "[WARNING]: prod1: the migration drops a column"]


def test_a_pipeline_names_the_person_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin.socket, "gethostname", lambda: "runner")
    monkeypatch.setenv("GITHUB_ACTOR", "bob")
    assert plugin.who() == "bob@runner"


@pytest.mark.parametrize("command", ["list", "plan --text", "exec"])
def test_text_for_people_is_shown(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    told: list[str] = []
    monkeypatch.setattr(plugin.ActionModule, "_display", SimpleNamespace(display=told.append), raising=False)
    host = Connection(monkeypatch, out="r1  live\nr2  good\n")
    assert host.run(command=command.split())["stdout"] == "r1  live\nr2  good\n"
    assert told == ([] if command == "exec" else ["prod1: r1  live", "prod1: r2  good"])
