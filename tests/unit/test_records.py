"""What is kept of each run: nothing is lost, nothing is secret, and a proof is a proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import AWKWARD, module_at

program = module_at("roles/app/files/records.py")
waffle = module_at("plugins/filter/waffle.py")
PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Zl", "Zp", "Cs")), max_size=40)


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,10}", fullmatch=True), PRINTABLE))
def test_reads_what_the_filter_wrote(settings: dict[str, str]) -> None:
    assert dict(program.dotenv_values(waffle.dotenv(settings))) == settings


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    settings = {"DATABASE_PASSWORD": AWKWARD, "API_TOKEN": "tok-12345", "LOG_LEVEL": "INFO-INFO", "SHORT_KEY": "abc"}
    (folder / ".env").write_text(waffle.dotenv(settings))
    (folder / ".env.migrate").write_text(waffle.dotenv({"DATABASE_PASSWORD": "another/secret"}))
    return folder


def test_the_secrets_of_both_files_are_redacted_and_other_settings_are_not(release: Path) -> None:
    redactor = program.release_redactor(release)
    for secret in (AWKWARD, "tok-12345", "another/secret"):
        text = redactor.redact(f"could not connect with {secret} at INFO-INFO, abc")
        assert text == "could not connect with ******** at INFO-INFO, abc"
    assert "rd #1" not in redactor.redact((release / ".env").read_text())


def test_the_password_in_a_url_is_redacted_by_itself(tmp_path: Path) -> None:
    text = waffle.dotenv(
        {"BROKER_URL": "amqp://nba:p%40ss%2Fword-1@queue.example.com:5671/nba", "API_URL": "http://a:1"}
    )
    (tmp_path / ".env").write_text(text)
    redactor = program.release_redactor(tmp_path)
    for word in ("p@ss/word-1", "p%40ss%2Fword-1"):
        assert redactor.redact(f"refused {word}, http://a:1 queue") == "refused ********, ******** queue"


def test_a_release_without_settings_redacts_nothing(tmp_path: Path) -> None:
    assert program.release_redactor(tmp_path).redact("text") == "text"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(program.Records, "log", property(lambda records: tmp_path / "log/releases.log"))
    return program.Records("nba", tmp_path)


def receipt(release: str, outcome: str = "good", began: float = 1_000_000, **facts: Any) -> dict[str, Any]:
    return {
        "release": release,
        "outcome": outcome,
        "began": began,
        "kind": "deploy",
        "artefact": f"d-{release}",
        **facts,
    }


def test_each_run_has_a_receipt_and_a_line(records: Any) -> None:
    records.keep(receipt("r1", by="alice@laptop", settings={"A": "0f"}))
    records.keep(receipt("r2", "failed", 1_000_060, error="refused:\nlong log"))
    kept = sorted(path.name for path in records.receipts.iterdir())
    assert kept == ["19700112T134640Z-r1.json", "19700112T134740Z-r2.json"]
    assert json.loads((records.receipts / kept[0]).read_text())["settings"] == {"A": "0f"}
    first, second = records.entries()
    assert (first["by"], first["outcome"], "settings" in first) == ("alice@laptop", "good", False)
    assert (second["outcome"], second["error"]) == ("failed", "refused:")
    assert records.log.stat().st_mode & 0o777 == 0o640


def test_old_receipts_go_and_the_log_stays(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "RECEIPTS_KEPT", 2)
    for number in range(4):
        records.keep(receipt(f"r{number}", began=1_000_000 + number))
    assert sorted(path.name[-7:-5] for path in records.receipts.iterdir()) == ["r2", "r3"]
    assert len(list(records.entries())) == 4


def test_what_was_good_is_proven_also_when_it_is_gone(records: Any) -> None:
    records.keep(receipt("r1"))
    records.keep(receipt("r2", "failed"))
    assert records.proof("d-r1", []) == {"proven": True, "release": "r1", "at": 1_000_000}
    assert records.proof("d-r2", []) == {"proven": False}
    assert records.proof("d-r3", []) == {"proven": False}


def test_a_migration_proves_nothing_of_the_release_that_brought_it(records: Any) -> None:
    records.keep({**receipt("r1"), "kind": "migrate"})
    assert records.proof("d-r1", []) == {"proven": False}
    records.keep({**receipt("r1"), "kind": "rollback"})
    assert records.proof("d-r1", [])["proven"]


def test_a_release_that_is_here_and_good_is_proven(records: Any) -> None:
    known = [("r1", {"artefact": "d1", "state": "prepared"}), ("r2", {"artefact": "d2", "state": "good", "at": 5})]
    assert records.proof("d1", known) == {"proven": False}
    assert records.proof("d2", known) == {"proven": True, "release": "r2", "at": 5}


def test_changed_settings_are_named() -> None:
    assert program.settings_changed({"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "9", "D": "4"}) == ["B", "C", "D"]


def test_a_value_of_a_secret_file_s_json_is_redacted_by_itself(tmp_path: Path) -> None:
    key = {"client_secret": "SuperSecret123", "keys": [{"private_key": "-----BEGIN\nMIIEvQIBADAN\n"}], "port": 12345678}
    (tmp_path / ".files").mkdir()
    (tmp_path / ".files/account.json").write_text(json.dumps(key))
    redactor = program.release_redactor(tmp_path)
    assert (
        redactor.redact("bad key MIIEvQIBADAN of SuperSecret123 at 12345678")
        == "bad key ******** of ******** at 12345678"
    )
    assert redactor.redact_all({"a": ["x SuperSecret123", 1, None]}) == {"a": ["x ********", 1, None]}


def test_the_secrets_of_several_releases_are_redacted(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".env").write_text(f"API_TOKEN=token-of-{name}\n")
    redactor = program.release_redactor(tmp_path / "one", tmp_path / "two", tmp_path / "gone")
    assert redactor.redact("token-of-one token-of-two") == "******** ********"
