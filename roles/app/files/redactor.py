"""Removes secrets from text that a person reads. Plugins and modules import it, too (module_utils)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "********"
# Shorter ones would hide half of a text, and preflight refuses them.
SHORTEST_SECRET = 6
DOTENV = str.maketrans({"\\": r"${:-\}", "$": "${:-$}", "'": r"\'"})
SQL = str.maketrans({"\\": r"\\", "'": r"\'", '"': r"\""})
# How programs write a text into a line of theirs, without the quotes around it.
ENCODINGS: tuple[Callable[[str], str], ...] = (
    # Python's repr, which takes the quotes that the text has not; of bytes, too.
    lambda text: repr('"' + text)[2:-1],
    lambda text: repr("'" + text)[2:-1],
    lambda text: repr(b'"' + text.encode(errors="surrogatepass"))[3:-1],
    lambda text: repr(b"'" + text.encode(errors="surrogatepass"))[3:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    # A URL's path, password (SQLAlchemy), query and form.
    lambda text: quote(text, safe="", errors="surrogatepass"),
    lambda text: quote(text, safe=" +", errors="surrogatepass"),
    lambda text: quote(text, errors="surrogatepass"),
    lambda text: quote_plus(text, errors="surrogatepass"),
    # A shell's word: shlex and Ansible, bash, `printf %q`.
    lambda text: text.replace("'", "'\"'\"'"),
    lambda text: text.replace("'", r"'\''"),
    lambda text: re.sub(r"([\s'\"\\|&;()<>!{}*\[\]?^$`,])", r"\\\1", text),
    # plugins/filter/waffle.py; SQL, with and without backslashes; a page.
    lambda text: text.translate(DOTENV),
    lambda text: text.translate(SQL),
    lambda text: text.replace("'", "''"),
    escape,
)


def forms_of(secret: str) -> set[str]:
    """Return a secret in each form in which a log or an error shows it: one program may quote what another did."""
    forms = {secret}
    for _ in range(2):
        forms |= {encode(form) for form in forms for encode in ENCODINGS}
    return forms


def secrets_in(content: str) -> set[str]:
    """Return what a program may show of a secret text: the whole, a line of it, or a value of its JSON."""
    found = {content, *map(str.strip, content.splitlines())}
    try:
        values = list(texts_in(json.loads(content)))
    except (ValueError, RecursionError):
        return found
    return found.union(values, *(value.splitlines() for value in values))


def texts_in(value: Any) -> Iterator[str]:
    """Yield each text of a JSON value; the keys of objects are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


class Redactor:
    """Knows secrets, and removes them from text."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._longest_first: list[str] = []

    def add(self, secret: str) -> None:
        """Remove a secret from all text from now on; one that is too short to be a secret is ignored."""
        if len(secret) >= SHORTEST_SECRET and secret not in self._forms:
            self._forms |= forms_of(secret)
            # A longer one may hold a shorter one.
            self._longest_first = sorted(self._forms, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """Return the text without the secrets."""
        for form in self._longest_first:
            text = text.replace(form, MASK)
        return text

    def redact_all(self, value: Any) -> Any:
        """Return a JSON value with all of its texts redacted."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, dict):
            return {key: self.redact_all(part) for key, part in value.items()}
        return [self.redact_all(part) for part in value] if isinstance(value, list) else value
