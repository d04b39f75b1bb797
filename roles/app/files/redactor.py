"""Removes secrets from text that a person reads. The plugins of the control node import it, too (plugins/lib)."""

from __future__ import annotations

import json
from urllib.parse import quote

MASK = "********"
# Shorter ones would hide half of a text, and preflight refuses them.
SHORTEST_SECRET = 6


def forms_of(secret: str) -> set[str]:
    """Return a secret in each form in which a log or an error shows it."""
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
    }


class Redactor:
    """Knows secrets, and removes them from text."""

    def __init__(self) -> None:
        self._forms: set[str] = set()

    def add(self, secret: str) -> None:
        """Remove a secret from all text from now on; one that is too short to be a secret is ignored."""
        if len(secret) >= SHORTEST_SECRET:
            self._forms |= forms_of(secret)

    def redact(self, text: str) -> str:
        """Return the text without the secrets."""
        for form in sorted(self._forms, key=len, reverse=True):  # a longer one may hold a shorter one
            text = text.replace(form, MASK)
        return text
