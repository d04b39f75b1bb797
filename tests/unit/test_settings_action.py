"""The check of the application's settings on the control node: what it refuses, and in which words."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from tests.support import module_at

action = module_at("plugins/action/settings.py")
NAME = {"type": "string", "minLength": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["ENVIRONMENT", "DATABASE_HOST", "DATABASE_NAME", "DATABASE_USER", "DATABASE_PASSWORD"],
    "properties": {
        "ENVIRONMENT": NAME,
        "DATABASE_HOST": {"type": "string", "pattern": "^[A-Za-z0-9._:-]+$"},
        "DATABASE_PORT": {"type": "integer", "minimum": 1, "maximum": 65535},
        "DATABASE_NAME": NAME,
        "DATABASE_USER": {**NAME, "maxLength": 32},
        "DATABASE_PASSWORD": NAME,
        "DATABASE_TLS_CA": {"type": "string"},
        "DATABASE_POOL_SIZE": {"type": "integer", "minimum": 1, "maximum": 100},
        "CORS_ORIGINS": {
            "type": "array",
            "items": {"type": "string", "pattern": "^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$"},
        },
        "DOCS_ENABLED": {"type": "boolean"},
        "LOG_LEVEL": {"type": "string", "enum": ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]},
    },
}
GOOD = {
    "ENVIRONMENT": "dev",
    "DATABASE_HOST": "db.example.com",
    "DATABASE_NAME": "nba",
    "DATABASE_USER": "nba",
    "DATABASE_PASSWORD": "Geheimnis!",
}


def found(**changes: str | None) -> list[tuple[str, str]]:
    texts = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return list(action.findings(SCHEMA, texts))


def test_good_settings() -> None:
    assert found() == []
    full = {"DATABASE_PORT": "3306", "DOCS_ENABLED": "off", "CORS_ORIGINS": "https://a.example, http://b:80"}
    assert found(**full, LOG_LEVEL="INFO", DATABASE_TLS_CA="") == []
    assert found(CORS_ORIGINS='["https://a.example"]') == found(CORS_ORIGINS="") == []


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("DATABASE_PORT", "abc", "should be of the type integer"),
        ("DATABASE_PORT", "", "should be of the type integer"),
        ("DATABASE_PORT", "70000", "should be 65535 or less"),
        ("DATABASE_POOL_SIZE", "0", "should be 1 or more"),
        ("DATABASE_POOL_SIZE", "5.5", "should be of the type integer"),
        ("DATABSE_PORT", "3306", "unknown setting; did you mean DATABASE_PORT?"),
        ("QUITE_ELSE", "Geheimnis!", "unknown setting"),
        ("DATABASE_HOST", "a b", "should match ^[A-Za-z0-9._:-]+$"),
        ("DATABASE_USER", "x" * 33, "should have 32 or fewer characters"),
        ("DATABASE_PASSWORD", "", "should have 1 or more characters"),
        ("DATABASE_PASSWORD", None, "is missing"),
        ("DOCS_ENABLED", "maybe", "should be of the type boolean"),
        ("CORS_ORIGINS", "https://a.example,*", "item 2 should match ^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$"),
        ("CORS_ORIGINS", "[1,", "should be of the type array"),
        ("LOG_LEVEL", "LOUD", "should be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ],
)
def test_one_finding_for_one_mistake(key: str, text: str | None, words: str) -> None:
    assert found(**{key: text}) == [(key, words)]


def test_all_findings_at_once() -> None:
    mistakes = {"DATABASE_PORT": "x", "DATABASE_NAME": None, "DATABASE_HOST": None, "ELSE": "y", "DOCS_ENABLED": "z"}
    assert sorted(key for key, _ in found(**mistakes)) == sorted(mistakes)


def test_a_schema_that_somebody_else_wrote() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "$defs": {"Level": {"enum": ["low", "high"], "type": "string"}},
        "properties": {
            "LEVEL": {"$ref": "#/$defs/Level"},
            "LIMIT": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
            "RATIO": {"type": "number"},
            "MAP": {"type": "object", "additionalProperties": {"type": "integer"}},
            "FREE": {},
        },
        "minProperties": 1,
    }
    good = {"LEVEL": "low", "LIMIT": "3", "RATIO": "0.5", "MAP": '{"a": 1}', "FREE": "Geheimnis!", "OTHER": "x"}
    assert list(action.findings(schema, good)) == []
    assert list(action.findings(schema, {"LIMIT": ""})) == []
    bad = {"LEVEL": "Geheimnis!", "LIMIT": "0", "RATIO": "half", "MAP": '{"a": "b"}'}
    refused = dict(action.findings(schema, bad))
    assert set(refused) == set(bad)
    assert refused["LEVEL"] == "should be one of low, high"
    assert refused["LIMIT"] == "should be 1 or more"
    assert "Geheimnis!" not in str(refused)
    assert list(action.findings(schema, {})) == [("all", "do not satisfy the schema's minProperties")]
    with pytest.raises(AnsibleActionFail, match="is not a JSON Schema"):
        list(action.findings({"type": "nonsense"}, {}))


def archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "artefact.tar"
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_the_schema_comes_with_the_artefact(tmp_path: Path) -> None:
    assert action.schema_in(archive(tmp_path, {"settings.schema.json": json.dumps(SCHEMA)})) == SCHEMA
    assert action.schema_in(archive(tmp_path, {"poetry.lock": ""})) is None
    for text in ("{", "[]", ""):
        with pytest.raises(AnsibleActionFail, match="not a JSON object"):
            action.schema_in(archive(tmp_path, {"settings.schema.json": text}))


@pytest.mark.parametrize("value", ["Geheimnis!" * 9, "3 Geheimnisse", "[Geheimnis", ""])
def test_no_finding_shows_a_value(value: str) -> None:
    said: Any = found(**dict.fromkeys(SCHEMA["properties"], value))
    assert "Geheimnis" not in str(said)
