"""The text that stands for a setting's value in `.env`, for all who write it or compare with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


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
