"""Text from a host, made safe to show. Needs the standard library alone: scripts of a runner import it, too."""

from __future__ import annotations

import re
from typing import Any

# Those that Ansible writes: none that hides text, as black on black does.
COLOUR = re.compile(r"\x1b\[(?:0|0;3[1-7]|1;3[0-7])m")
# Escape sequences as a whole, then what else steers a terminal or hides text: control characters (line break and tab
# stay), and Unicode's separators, directions, invisible characters and halves of characters.
UNSAFE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    r"\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
MARKDOWN = re.compile(r"[\\`*\[\]<|]")


def printable(text: str, colours: bool = False) -> str:
    """Return a text without control characters and terminal escapes; line breaks, tabs and, if wanted, colours stay."""
    plain = text.replace("\r\n", "\n")
    return UNSAFE.sub(lambda found: found[0] if colours and COLOUR.fullmatch(found[0]) else "", plain)


def one_line(text: str) -> str:
    """Return a printable text on one line."""
    return " ".join(printable(text).split())


def cleaned(value: Any) -> Any:
    """Return a JSON value with all of its texts printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): cleaned(part) for key, part in value.items()}
    return [cleaned(part) for part in value] if isinstance(value, list) else value


def in_markdown(text: str) -> str:
    """Return a text on one line in which Markdown and HTML have nothing to interpret."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", one_line(text))


def as_code(text: str) -> str:
    """Return a text as a span of code in Markdown."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def fence_for(text: str) -> str:
    """Return the fence of a block of code that the text cannot end by itself."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
