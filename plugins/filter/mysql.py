"""Filters: the accounts of a database, as MySQL will keep their passwords, and what they are granted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.ansible.mysql.plugins.module_utils.implementations.mysql.hash import mysql_sha256_password_hash

SALT_CHARACTERS = 20  # what caching_sha2_password takes


def salted(accounts: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return accounts (``name``, ``password``, more) with ``salt`` and ``hash``, that of caching_sha2_password.

    MySQL salts at random, so an unchanged password could not be told from a changed one. Here the salt follows from
    ``key``, a secret of the environment, and the name: equal input gives an equal hash.
    """
    found = []
    for account in accounts:
        salt = hashlib.sha256(f"{key}{account['name']}".encode()).hexdigest()[:SALT_CHARACTERS]
        hashed = mysql_sha256_password_hash(password=account["password"], salt=salt)
        found.append({**account, "salt": salt, "hash": hashed})
    return found


def database_pattern(name: str) -> str:
    """Return what a grant calls a database: unless they are escaped, `_` is any character there, and `%` any number."""
    return re.sub(r"([_%])", r"\\\1", name)


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Any]:
        """Return names and functions of the filters."""
        return {"salted": salted, "database_pattern": database_pattern}
