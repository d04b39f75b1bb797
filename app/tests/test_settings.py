"""The settings: what is accepted, what is refused, and that no value is ever shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nba.settings import Settings, SettingsError, load, schema
from tests.conftest import APP, NOWHERE, quote, run, write_env

AWKWARD = "p@$$w\"o'rd #1 \\ ${HOME} %d é"
same_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def findings(**changes: Any) -> list[str]:
    write_env(Path(".env"), {**NOWHERE, **changes})
    with pytest.raises(SettingsError) as caught:
        load()
    return caught.value.findings


def test_defaults(directory: Path) -> None:
    write_env(directory / ".env", {**NOWHERE, "DATABASE_PORT": "3306"})
    loaded = load()
    assert (loaded.docs_enabled, loaded.cors_origins, loaded.database_tls_ca) == (True, (), "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"DATABASE_PORT": "abc"}, "DATABASE_PORT: should be a valid integer"),
        ({"DATABASE_PORT": "70000"}, "DATABASE_PORT: should be less than or equal to 65535"),
        ({"DATABASE_PORT": ""}, "DATABASE_PORT: should be a valid integer"),
        ({"DATABSE_HOST": "x"}, "DATABSE_HOST: unknown setting; did you mean DATABASE_HOST?"),
        ({"QUITE_ELSE": "x"}, "QUITE_ELSE: unknown setting"),
        ({"DATABASE_HOST": ""}, "DATABASE_HOST: should match pattern '^[A-Za-z0-9._:-]+$'"),
        ({"DATABASE_USER": ""}, "DATABASE_USER: should have at least 1 character"),
        ({"DATABASE_PASSWORD": ""}, "DATABASE_PASSWORD: should have at least 1 item after validation, not 0"),
        (
            {"DATABASE_TLS_CA": "/nowhere/ca.pem"},
            "DATABASE_TLS_CA: should be a readable file of CA certificates in PEM form",
        ),
        (
            {"CORS_ORIGINS": "*"},
            "CORS_ORIGINS: should hold origins such as https://shop.example:8443, without a path",
        ),
        ({"CORS_ORIGINS": "[1,"}, "CORS_ORIGINS: should be a valid JSON list or comma separated"),
        ({"DOCS_ENABLED": "maybe"}, "DOCS_ENABLED: should be a valid boolean"),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL: should be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
    ],
)
def test_one_finding_for_one_mistake(changes: dict[str, Any], expected: str) -> None:
    assert findings(**changes) == [expected]


def test_all_findings_at_once(directory: Path) -> None:
    (directory / ".env").write_text("DATABASE_PORT=x\nENVIRONMENT=dev\n")
    with pytest.raises(SettingsError) as caught:
        load()
    assert caught.value.findings == [
        "DATABASE_HOST: is missing",
        "DATABASE_PORT: should be a valid integer",
        "DATABASE_NAME: is missing",
        "DATABASE_USER: is missing",
        "DATABASE_PASSWORD: is missing",
    ]


def test_no_file_and_not_text(directory: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist in this directory"):
        load()
    (directory / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        load()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        ("https://a.example", ("https://a.example",)),
        (" https://a.example , http://localhost:5500 ", ("https://a.example", "http://localhost:5500")),
        ('["https://a.example"]', ("https://a.example",)),
    ],
)
def test_cors_origins(directory: Path, value: str, expected: tuple[str, ...]) -> None:
    write_env(directory / ".env", {**NOWHERE, "CORS_ORIGINS": value})
    assert load().cors_origins == expected


def test_the_environment_wins(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_env(directory / ".env", NOWHERE)
    monkeypatch.setenv("DATABASE_PORT", "3307")
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example")
    assert load().database_port == 3307
    assert load().cors_origins == ("https://a.example",)


@same_directory
@given(password=st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=60))
@example(password=AWKWARD)
@example(password="\\'$${X}\\")
def test_any_printable_password_survives(directory: Path, password: str) -> None:
    write_env(directory / ".env", {**NOWHERE, "DATABASE_PASSWORD": password})
    assert load().database_password.get_secret_value() == password


@same_directory
@given(secret=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=12), wrong=st.text(max_size=8))
def test_no_value_in_any_error(directory: Path, secret: str, wrong: str) -> None:
    secret = f"s3cr3t{secret}"
    text = f"DATABASE_PASSWORD={quote(secret)}\nDATABASE_HOST={quote(secret)}\nDATABASE_PORT={quote(wrong)}\n"
    text += f"DATABASE_TLS_CA={quote(secret)}\nCORS_ORIGINS={quote(secret)}\nUNKNOWN_KEY={quote(secret)}\n"
    (directory / ".env").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(caught.value.__cause__)


def test_the_command(directory: Path) -> None:
    write_env(directory / ".env", NOWHERE)
    good = run(directory, "nba.settings")
    assert (good.returncode, good.stdout, good.stderr) == (0, "settings ok: 7 keys\n", "")
    write_env(directory / ".env", {**NOWHERE, "DATABASE_PORT": "abc"})
    bad = run(directory, "nba.settings")
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", "DATABASE_PORT: should be a valid integer\n")
    # A server that imports the application says the same.
    imported = run(directory, "nba.main")
    assert (imported.returncode, imported.stderr) == (1, bad.stderr)


def test_the_schema(directory: Path) -> None:
    printed = json.loads(run(directory, "nba.settings", "--schema").stdout)
    by_key = {item["key"]: item for item in printed}
    assert set(by_key) == {name.upper() for name in Settings.model_fields}
    assert all(set(item) == {"key", "type", "required", "default", "secret", "description"} for item in printed)
    assert all(item["description"] for item in printed)
    assert {item["type"] for item in printed} == {"string", "integer", "boolean", "list"}
    assert [item["key"] for item in printed if item["secret"]] == ["DATABASE_PASSWORD"]
    required = {item["key"] for item in printed if item["required"]}
    assert required == {"ENVIRONMENT", "DATABASE_HOST", "DATABASE_NAME", "DATABASE_USER", "DATABASE_PASSWORD"}


def test_the_file_for_programs_that_check_settings_elsewhere_is_current(directory: Path) -> None:
    printed = run(directory, "nba.settings", "--json-schema").stdout
    assert printed == (APP / "settings.schema.json").read_text(), "python -m nba.settings --json-schema writes it"
    known = json.loads(printed)
    assert list(known["properties"]) == [item["key"] for item in schema()]
    assert known["required"] == [item["key"] for item in schema() if item["required"]]
    assert known["additionalProperties"] is False


def test_the_example_is_complete_and_valid(directory: Path) -> None:
    text = (APP / ".env.example").read_text()
    (directory / ".env").write_text(text)
    assert load().environment == "laptop"
    keys = [line.split("=")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert keys == [item["key"] for item in schema()]
