"""The settings that an application reads: environment variables, fields of pydantic's settings, and `.env.example`."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source, name_of, served, text_of
from dotenv import dotenv_values

EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist")
READERS = {"os.getenv", "getenv", "os.environ.get", "environ.get"}
MAPPINGS = {"os.environ", "environ"}
# Every process has these.
OF_THE_SYSTEM = {"HOME", "PATH", "USER", "LANG", "TZ", "PWD", "PYTHONPATH"}


@dataclass(frozen=True)
class Setting:
    """A setting that the application reads."""

    name: str
    has_default: bool
    place: str
    """File and line; a file alone for one that only `.env.example` names."""


def settings_in(source: Source, files: Iterable[str]) -> list[Setting]:
    """Return what the files read, sorted by name; `.env.example` adds what they do not show."""
    files = list(files)
    found: dict[str, Setting] = {}
    classes = settings_classes(source, files)
    for path in files:
        for setting in (*variables_in(source, path), *fields_in(source, path, classes)):
            known = found.get(setting.name)
            if setting.name not in OF_THE_SYSTEM and (known is None or known.has_default):
                found[setting.name] = setting
    for path in EXAMPLES:
        for name in dotenv_values(stream=io.StringIO(source.texts.get(path, "")), interpolate=False):
            # As an example has a value for each, it says nothing about what is needed.
            found.setdefault(name, Setting(name, has_default=True, place=path))
    return sorted(found.values(), key=lambda setting: setting.name)


def variables_in(source: Source, path: str) -> Iterator[Setting]:
    """Yield the environment variables that a file reads by a name in clear."""
    for node in served(source.tree(path)):
        name, has_default = "", False
        if isinstance(node, ast.Call) and name_of(node.func) in READERS and node.args:
            name, has_default = text_of(node.args[0]), len(node.args) + len(node.keywords) > 1
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and name_of(node.value) in MAPPINGS:
            name = text_of(node.slice)
        if name:
            yield Setting(name, has_default, f"{path}:{getattr(node, 'lineno', 0)}")


def settings_classes(source: Source, files: Iterable[str]) -> set[str]:
    """Return the names of the classes that derive from pydantic's BaseSettings, directly or not."""
    bases = {
        node.name: {name_of(base).rpartition(".")[2] for base in node.bases}
        for path in files
        for node in ast.walk(source.tree(path))
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = {"BaseSettings"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found - {"BaseSettings"}


def fields_in(source: Source, path: str, classes: set[str]) -> Iterator[Setting]:
    """Yield the fields of a file's settings classes, by the names that pydantic reads."""
    for node in ast.walk(source.tree(path)):
        if not isinstance(node, ast.ClassDef) or node.name not in classes:
            continue
        prefix = prefix_of(node)
        for field in node.body:
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if field.target.id.startswith(("_", "model_")) or "ClassVar" in ast.unparse(field.annotation):
                continue
            alias, has_default = described(field.value)
            name = alias or f"{prefix}{field.target.id}".upper()
            yield Setting(name, has_default, f"{path}:{field.lineno}")


def prefix_of(node: ast.ClassDef) -> str:
    """Return the prefix of a settings class, from its `model_config` or its class `Config`."""
    for part in ast.walk(node):
        if isinstance(part, ast.keyword) and part.arg == "env_prefix":
            return text_of(part.value)
        if isinstance(part, ast.Assign) and name_of(part.targets[0]) == "env_prefix":
            return text_of(part.value)
        if isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values, strict=True):
                if text_of(key) == "env_prefix":
                    return text_of(value)
    return ""


def described(value: ast.expr | None) -> tuple[str, bool]:
    """Return the alias of a field, and True if it has a default, from what the class assigns to it."""
    if not isinstance(value, ast.Call) or name_of(value.func).rpartition(".")[2] != "Field":
        return "", value is not None
    words = {word.arg: word.value for word in value.keywords}
    first = value.args[0] if value.args else words.get("default")
    is_ellipsis = isinstance(first, ast.Constant) and first.value is ...
    alias = words.get("validation_alias") or words.get("alias")
    if isinstance(alias, ast.Call) and alias.args:  # AliasChoices("A", "B")
        alias = alias.args[0]
    return text_of(alias), "default_factory" in words or (first is not None and not is_ellipsis)
