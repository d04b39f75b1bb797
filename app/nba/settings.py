"""What the application can be told: variables of the environment, and `.env`.

`python -m nba.settings` checks the `.env` of the current directory and never prints a value;
`python -m nba.settings --schema` prints every key with its type, default and meaning as JSON;
`python -m nba.settings --json-schema` prints `settings.schema.json`, by which other programs check settings.
"""

from __future__ import annotations

import difflib
import json
import re
import ssl
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, WithJsonSchema
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_FILE = ".env"
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")
ORIGINS = {"type": "array", "items": {"type": "string", "pattern": f"^{ORIGIN.pattern}$"}}


class SettingsError(Exception):
    """The settings are unusable; `findings` has a line for each reason, none of which holds a value."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


def _origins(value: Any) -> Any:
    """Accept `https://a.example, https://b.example` and the same as a JSON list."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except ValueError:
                raise ValueError("should be a valid JSON list or comma separated") from None
        else:
            value = [item.strip() for item in text.split(",") if item.strip()]
    # No "*": without a login, any web page that a colleague opens could write through their browser.
    if not isinstance(value, list | tuple) or not all(
        isinstance(item, str) and ORIGIN.fullmatch(item) for item in value
    ):
        raise ValueError("should hold origins such as https://shop.example:8443, without a path")
    return value


def _ca_bundle(path: str) -> str:
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except (OSError, ValueError):
            raise ValueError("should be a readable file of CA certificates in PEM form") from None
    return path


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    """Every setting of the application; the environment wins over `.env`.

    Raises:
        ValidationError: a setting is missing, unknown or has a bad value.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        extra="forbid",
        hide_input_in_errors=True,
        frozen=True,
        validate_default=False,
    )

    environment: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,31}$",
        description="Which environment this is, as people call it: dev, prod, laptop. Only shown, never decided on.",
    )
    database_host: str = Field(pattern=r"^[A-Za-z0-9._:-]+$", description="Host name or address of the MySQL server.")
    database_port: int = Field(3306, ge=1, le=65535, description="TCP port of the MySQL server.")
    database_name: str = Field(
        pattern=r"^[A-Za-z0-9_$-]{1,64}$", description="Database (schema) that holds the tables."
    )
    database_user: str = Field(
        min_length=1, max_length=32, description="Database account; it needs data rights only, not schema rights."
    )
    database_password: SecretStr = Field(min_length=1, description="Password of the database account.")
    database_tls_ca: Annotated[str, AfterValidator(_ca_bundle)] = Field(
        "",
        description="File of CA certificates (PEM) that the server's certificate and host name are verified"
        " against; empty: no TLS.",
    )
    database_pool_size: int = Field(
        5, ge=1, le=100, description="Connections that each worker process keeps, and requests that use them at a time."
    )
    database_pool_overflow: int = Field(
        2, ge=0, le=100, description="Connections beyond these, for health checks while all of the pool are busy."
    )
    database_pool_recycle_seconds: int = Field(
        1800, ge=10, le=86400, description="Age at which a connection is replaced; below the server's wait_timeout."
    )
    database_connect_timeout_seconds: int = Field(
        3, ge=1, le=60, description="How long to wait for a new connection, or for a free one of the pool."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins), WithJsonSchema(ORIGINS)] = Field(
        (),
        description="Origins whose pages may call the API from a browser, comma separated"
        " (https://a.example,http://localhost:5500); empty: none.",
    )
    docs_enabled: bool = Field(True, description="Serve /docs and /openapi.json.")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = Field(
        "INFO", description="Least severe level that is logged: INFO: failed and slow requests; DEBUG: all."
    )


def load() -> Settings:
    """Return the settings of the environment and of the current directory.

    Raises:
        SettingsError: with every finding; none of them holds a value.
    """
    try:
        return Settings()
    except UnicodeDecodeError:
        raise SettingsError([f"{ENV_FILE}: is not UTF-8 text"]) from None
    except ValidationError as error:
        # Sorted out from the parts of the error that cannot hold input; str(error) is never used.
        details = error.errors(include_url=False, include_input=False)
        findings = [_finding(str(item["loc"][0]).upper(), item["type"], item["msg"]) for item in details]
    if not Path(ENV_FILE).exists():
        findings.append(f"{ENV_FILE}: does not exist in this directory; copy .env.example to begin")
    raise SettingsError(findings)


def load_or_exit() -> Settings:
    """Return the settings, or write the findings to standard error and exit the process."""
    try:
        return load()
    except SettingsError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _finding(key: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        known = [name.upper() for name in Settings.model_fields]
        close = difflib.get_close_matches(key, known, n=1)
        return f"{key}: unknown setting" + (f"; did you mean {close[0]}?" if close else "")
    if kind == "missing":
        return f"{key}: is missing"
    for prefix in ("Value error, ", "Input ", "String ", "Value "):
        message = message.removeprefix(prefix)
    return f"{key}: {message.split(', unable')[0]}"


def schema() -> list[dict[str, Any]]:
    """Describe every setting: key, type, required, default, secret, description."""
    properties = Settings.model_json_schema()["properties"]
    return [
        {
            "key": name.upper(),
            "type": {"array": "list"}.get(properties[name]["type"], properties[name]["type"]),
            "required": field.is_required(),
            "default": None if field.is_required() else field.default,
            "secret": field.annotation is SecretStr,
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `.env` may hold, with its keys as they stand there."""
    made = Settings.model_json_schema()
    properties = {
        name.upper(): {word: value for word, value in found.items() if word != "title"}
        for name, found in made["properties"].items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "python -m nba.settings --json-schema >settings.schema.json",
        "type": "object",
        "additionalProperties": False,
        "required": [name.upper() for name in made["required"]],
        "properties": properties,
    }


def main(arguments: list[str]) -> None:
    """Check `.env`, or print what it may hold as JSON.

    Raises:
        SystemExit: 1 with the findings on standard error, 2 on an unknown argument.
    """
    if arguments == ["--schema"]:
        print(json.dumps(schema(), indent=2))
    elif arguments == ["--json-schema"]:
        print(json.dumps(json_schema(), indent=2))
    elif arguments:
        print("usage: python -m nba.settings [--schema|--json-schema]", file=sys.stderr)
        raise SystemExit(2)
    else:
        settings = load_or_exit()
        print(f"settings ok: {len(settings.model_fields_set)} keys")


if __name__ == "__main__":
    main(sys.argv[1:])
