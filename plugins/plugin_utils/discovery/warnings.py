"""What an application does that works on a laptop and not on hosts: each with its line, and what to do instead."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.entry import at_start
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.settings import Setting
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source, name_of, served, text_of

LOCAL = {"localhost", "127.0.0.1", "::1"}
PASSWORDS = {"password", "passwd"}
ENGINES = {"create_engine", "create_async_engine"}
OWN_MIGRATION = (
    "leave it to the deploy, which migrates once for all workers and hosts, with an account that may change tables: "
    "the service's account may not, so the release would not start"
)


def warnings(source: Source, files: Iterable[str], settings: Iterable[Setting]) -> Iterator[str]:
    """Yield a warning for each such line of the files; no value of a secret is in it."""
    names = [setting.name for setting in settings]
    for path in files:
        tree = source.tree(path)
        for node in served(tree):
            line = f"{path}:{getattr(node, 'lineno', 0)}"
            for word, value in given(node):
                if word == "host" and value in LOCAL:
                    yield f'{line} has host="{value}": read {best(names, "HOST")} instead'
                elif word in PASSWORDS and value:
                    yield f"{line} has a password: read {best(names, 'PASSWORD')} instead, and change that password"
            if isinstance(node, ast.Call):
                yield from (f"{line} {words}" for words in warnings_of_call(node))
        for statement in at_start(tree.body):
            called = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(called, ast.Call) and name_of(called.func) == "uvicorn.run":
                yield (
                    f"{path}:{statement.lineno} starts a server when it is imported, and the import never ends: put it "
                    'below `if __name__ == "__main__":`'
                )


def given(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield name and text of what a call or a dict is given in clear; a server's own address is none of them."""
    if isinstance(node, ast.Call) and name_of(node.func).rpartition(".")[2] != "run":
        yield from ((word.arg or "", text_of(word.value)) for word in node.keywords)
    elif isinstance(node, ast.Dict):
        yield from ((text_of(key), text_of(value)) for key, value in zip(node.keys, node.values, strict=True))


def best(names: list[str], part: str) -> str:
    """Return the setting whose name has a part, or one that would be usual."""
    return next((name for name in names if part in name and "ALLOWED" not in name), f"DB_{part} from the environment")


def warnings_of_call(node: ast.Call) -> Iterator[str]:
    """Yield what is wrong with a call."""
    called = name_of(node.func)
    last = called.rpartition(".")[2]
    first = text_of(node.args[0]) if node.args else ""
    if last in ENGINES and "://" in first and not first.startswith("sqlite"):
        yield "has the database's address: read it from the environment instead"
    handed = {name_of(argument).rpartition(".")[2] for argument in node.args}
    if last == "create_all" or "create_all" in handed:
        yield (
            "creates tables at start (create_all). Fix: remove that and write a migration (`alembic init alembic`), "
            f"{OWN_MIGRATION}"
        )
    if called.endswith("command.upgrade") or (mentions(node, "alembic") and mentions(node, "upgrade")):
        yield f"runs Alembic at start. Fix: remove that: {OWN_MIGRATION}"


def mentions(node: ast.Call, word: str) -> bool:
    """Return True if a command that a call runs has a word."""
    if name_of(node.func).partition(".")[0] not in ("os", "subprocess", "asyncio"):
        return False
    return any(word in text_of(part).split() for part in ast.walk(node))
