"""What GitHub makes of the expressions in a workflow, as far as ours use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

EXPRESSION = re.compile(r"\$\{\{ (.+?) \}\}")
TOKEN = re.compile(r"'[^']*'|\|\||&&|==|!=|[!(),]|[\w.*-]+")
OPERATORS = {"||": "or", "&&": "and", "!": "not", "==": "==", "!=": "!=", "(": "(", ")": ")", ",": ","}
FUNCTIONS = ("contains", "always")


def looked_up(name: str, known: Any) -> Any:
    """Return what a name such as ``labels.*.name`` stands for; an event may lack what others of its kind have."""
    found, may_lack = known, name.startswith("github.event.")
    for number, part in enumerate(parts := name.split(".")):
        if part == "*":
            rest = ".".join(parts[number + 1 :])
            return [looked_up(rest, item) for item in found]
        if may_lack and part not in found:
            return None
        found = found[part]
    return found


def value(expression: str, known: Mapping[str, Any]) -> Any:
    """Return the value of an expression; `KeyError` where it names what there is not."""
    words = [
        word if word.startswith("'") or word in FUNCTIONS else OPERATORS.get(word) or f"look({word!r})"
        for word in TOKEN.findall(expression)
    ]
    names = {
        "look": lambda name: looked_up(name, known),
        "contains": lambda items, item: item in items,
        "always": lambda: True,
    }
    return eval(" ".join(words), {"__builtins__": {}}, names)  # noqa: S307


def text(template: Any, known: Mapping[str, Any]) -> str:
    """Return a text with what its expressions stand for."""
    return EXPRESSION.sub(lambda found: str(value(found[1], known) or ""), str(template))


def needed(job: Mapping[str, Any]) -> list[str]:
    """Return the jobs that a job waits for."""
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else list(needs)
