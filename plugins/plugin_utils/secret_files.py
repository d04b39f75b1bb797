"""Secret files of a release (`app_files`): their names, and the variables that name them to the application."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from ansible_collections.waffle.iron.plugins.module_utils.environment import FILES, variable_of

NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
# Each line is looked for in what hosts print, so a file is no place for data.
MOST_BYTES = 64 << 10


def findings(files: Mapping[str, object], settings: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the name of a file and what is wrong with it, without its content.

    Args:
        files: content by name.
        settings: the names of the application's settings.
    """
    taken: dict[str, str] = {}
    for name, content in files.items():
        if not NAME.fullmatch(name):
            yield name, "is no name: a letter first, then letters, digits, '.', '_' and '-'. Fix: another name"
            continue
        variable = variable_of(name)
        if not isinstance(content, str) or not content:
            yield name, "holds no text. Fix: the text of a vault's variable; for what is binary, its base64"
        elif "\0" in content or any("\ud800" <= character <= "\udfff" for character in content):
            yield name, "holds what is no text in UTF-8. Fix: its base64"
        elif len(content.encode()) > MOST_BYTES:
            yield name, f"has more than {MOST_BYTES >> 10} KiB. Fix: what is no secret belongs into the application"
        if variable in settings:
            yield name, f"its variable {variable} is a setting, too. Fix: rename the file, or remove the setting"
        elif other := taken.get(variable):
            yield name, f"its variable {variable} is that of {other}, too. Fix: rename one of them"
        taken[variable] = name


def placed(files: Mapping[str, str]) -> dict[str, str]:
    """Return the contents by their paths in a release."""
    return {f"{FILES}/{name}": content for name, content in files.items()}


def by_variable(files: Mapping[str, str]) -> dict[str, str]:
    """Return the contents by the variables that name the files."""
    return {variable_of(name): content for name, content in files.items()}
