"""Removes secrets from text that a person reads. Plugins of the control node import it, too (plugins/plugin_utils)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
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


class Redactor:
    """Knows secrets, and removes them from text."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._longest_first: list[str] = []

    def add(self, secret: str) -> None:
        """Remove a secret from all text from now on; one that is too short to be a secret is ignored."""
        if len(secret) >= SHORTEST_SECRET:
            self._forms |= forms_of(secret)
            # A longer one may hold a shorter one.
            self._longest_first = sorted(self._forms, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """Return the text without the secrets."""
        for form in self._longest_first:
            text = text.replace(form, MASK)
        return text
