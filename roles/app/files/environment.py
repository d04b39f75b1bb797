"""The settings of a release, read from the `.env` that the filter `dotenv` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SETTINGS, MIGRATION_SETTINGS = ".env", ".env.migrate"
STAND_INS = {"${:-$}": "$", r"${:-\}": "\\", r"\'": "'"}
STAND_IN = re.compile("|".join(re.escape(text) for text in STAND_INS))


def dotenv_values(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of a `.env` that the filter `dotenv` wrote: the reverse of plugins/filter/waffle.py."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if value[:1] == "'":
            value = STAND_IN.sub(lambda found: STAND_INS[found[0]], value[1:-1])
        yield key, value


def settings_of(folder: Path, migration: bool = False) -> dict[str, str]:
    """Return the settings of the release in ``folder``, by name; with ``migration`` those of its migration account.

    Raises:
        OSError: they cannot be read.
    """
    values = dict(dotenv_values((folder / SETTINGS).read_text()))
    if migration and (folder / MIGRATION_SETTINGS).exists():
        values.update(dotenv_values((folder / MIGRATION_SETTINGS).read_text()))
    return values
