"""The way to the database as a release's settings have it, by the names that the release states for its application."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def application_of(release: Path | str) -> dict[str, Any]:
    """Return what a release states about its application; nothing for one of an older version."""
    try:
        stated = json.loads(Path(release, "release.json").read_text()).get("application")
    except (OSError, ValueError, AttributeError):
        return {}
    return stated if isinstance(stated, dict) else {}


def way_to_database(names: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return host, port, user, password, name and tls_ca, as far as settings have them.

    Args:
        names: the setting of each part, or of one address (url).
        settings: values by name.
    """
    found = in_address(settings.get(names.get("url", ""), ""))
    return {**found, **{part: settings[name] for part, name in names.items() if part != "url" and name in settings}}


def in_address(address: str) -> dict[str, str]:
    """Return the parts of the way that an address has."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return {}
    told = {
        "host": parts.hostname or "",
        "port": str(port or ""),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "name": unquote(parts.path.lstrip("/")),
        "tls_ca": parse_qs(parts.query).get("ssl_ca", [""])[0],
    }
    return {part: value for part, value in told.items() if value}
