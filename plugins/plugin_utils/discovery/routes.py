"""The paths that an application answers, as far as its code has them in clear."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.entry import fastapi_names
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source, name_of, text_of

METHODS = {"get", "head", "api_route"}
# Whether it is able to serve, the closest word first.
HEALTH = ("/health/ready", "/readyz", "/health", "/healthz")
DEPTH = 8

# A router or an application: the file that makes it, and its name there.
Router = tuple[str, str]


@dataclass(frozen=True)
class Route:
    """A path that GET is answered on."""

    path: str
    place: str
    """File and line."""


@dataclass(frozen=True)
class Inclusion:
    """The router or application that includes another one; no prefix if the code has none in clear."""

    parent: Router
    prefix: str | None


def routes(source: Source, files: Iterable[str], folder: str = "") -> list[Route]:
    """Return the routes of files; one below a prefix that is not known is left out."""
    files = list(files)
    roots = {router for path in files for router in applications(source, path)}
    own = {router: prefix for path in files for router, prefix in routers(source, path)}
    above = dict(inclusion for path in files for inclusion in inclusions(source, path, folder))

    def full(router: Router, depth: int = DEPTH) -> str | None:
        """Return what stands before a router's paths."""
        if router in roots:
            return ""
        found, mine = above.get(router), own.get(router)
        if found is None or found.prefix is None or mine is None or not depth:
            return None
        before = full(found.parent, depth - 1)
        return None if before is None else before + found.prefix + mine

    found = []
    for path in files:
        for name, route, line in decorated(source, path):
            if (prefix := full((path, name))) is not None:
                found.append(Route(prefix + route or "/", f"{path}:{line}"))
    return found


def made(source: Source, path: str, names: set[str]) -> Iterator[tuple[str, ast.Call]]:
    """Yield name and call of what a file assigns from a call to one of the names."""
    for node in ast.walk(source.tree(path)):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        if name_of(node.value.func) in names:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield name_of(target), node.value


def applications(source: Source, path: str) -> Iterator[Router]:
    """Yield the applications that a file makes."""
    for name, _ in made(source, path, fastapi_names(source.tree(path))):
        yield path, name


def routers(source: Source, path: str) -> Iterator[tuple[Router, str | None]]:
    """Yield the routers that a file makes, and the prefix of each; None for one that is not in clear."""
    for name, call in made(source, path, {"APIRouter", "fastapi.APIRouter"}):
        yield (path, name), prefix_of(call)


def prefix_of(call: ast.Call) -> str | None:
    """Return the prefix that a call gives: empty if it gives none, None if it is not in clear."""
    for word in call.keywords:
        if word.arg == "prefix":
            return text_of(word.value) or (None if not isinstance(word.value, ast.Constant) else "")
    return ""


def inclusions(source: Source, path: str, folder: str) -> Iterator[tuple[Router, Inclusion]]:
    """Yield each router that a file includes in another one."""
    known = {here: (file, name) for file, name, here in source.imports(path, folder)}

    def resolved(name: str) -> Router:
        """Return the file that makes what a name stands for, and its name there."""
        first, _, rest = name.rpartition(".")
        if first in known and not known[first][1]:
            return known[first][0], rest
        return known[name] if name in known and known[name][1] else (path, name)

    for node in ast.walk(source.tree(path)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        if node.func.attr == "include_router" and (name := name_of(node.args[0])):
            yield resolved(name), Inclusion(resolved(name_of(node.func.value)), prefix_of(node))


def decorated(source: Source, path: str) -> Iterator[tuple[str, str, int]]:
    """Yield router, path and line of each function that a file decorates for GET."""
    for node in ast.walk(source.tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
                    given = call.args[0] if call.args else None
                    if isinstance(given, ast.Constant) and isinstance(given.value, str):
                        yield name_of(call.func.value), given.value, call.lineno


def health(found: Iterable[Route]) -> Route | None:
    """Return the route that says best if the application is able to serve: one at the top, else the shortest below."""
    by_path = {route.path.rstrip("/"): route for route in found if "{" not in route.path}
    below = sorted(by_path, key=len)
    paths = [path for word in HEALTH for path in below if path == word]
    paths += [path for word in HEALTH for path in below if path.endswith(word)]
    return by_path[paths[0]] if paths else None
