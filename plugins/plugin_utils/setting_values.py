"""The text that stands for a setting's value in `.env`, for all who write it or compare with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

# What an address of a database cannot do without.
LOGIN = ("host", "user", "password", "name")
# The drivers that take the file of an authority from an address; the asynchronous ones take a context of TLS alone.
TAKE_AUTHORITY = ("mysql+pymysql", "mysql+mysqldb", "mysql+mysqlconnector")


def as_text(value: object) -> str:
    """Return a value as `.env` has it: a list or mapping as JSON, a boolean in lower case.

    pydantic reads a field of either kind from JSON, and programs compare with `true` more often than with `True`.
    """
    if isinstance(value, bool | Mapping) or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        return json.dumps(plain(value), ensure_ascii=False, default=str)
    return str(value)


def plain(value: object) -> Any:
    """Return a value without Ansible's own lists and mappings, whose items are templated when they are read."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def wiring(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the values of a variable that holds settings, not yet templated: they name where each comes from.

    A template that chooses between other variables (`{{ own if this else those }}`) stands for all that these hold.
    """
    raw = variables.get(name) or {}
    if isinstance(raw, Mapping):
        return {str(key): value for key, value in raw.items()}
    found: dict[str, Any] = {}
    for word in re.findall(r"\w+", str(raw)):
        if word != name and isinstance(variables.get(word), Mapping):
            found.update(variables[word])
    return found


def exported(names: Mapping[str, str], scheme: str, values: Mapping[str, object]) -> dict[str, str]:
    """Return the settings of the way to the database.

    Args:
        names: the setting of each part.
        scheme: what an address begins with.
        values: host, port, user, password, name and tls_ca; one that is not given is not exported.
    """
    given = {part: str(value) for part, value in values.items()}
    found = {name: given[part] for part, name in names.items() if part in given}
    if "url" in names and all(part in given for part in LOGIN):
        found[names["url"]] = address(scheme, given, by_address="tls_ca" not in names)
    return found


def address(scheme: str, given: Mapping[str, str], *, by_address: bool) -> str:
    """Return the address of a database; `by_address` if nothing else names the file of its authority."""
    login = f"{quote(given['user'], safe='')}:{quote(given['password'], safe='')}"
    host = f"[{given['host']}]" if ":" in given["host"] else given["host"]
    authority = given.get("tls_ca", "") if by_address and scheme in TAKE_AUTHORITY else ""
    query = f"?ssl_ca={quote(authority, safe='/')}" if authority else ""
    return f"{scheme}://{login}@{host}:{given.get('port') or 3306}/{quote(given['name'], safe='')}{query}"
