"""Where the ASGI application is: `app_module`, found in the order of FastAPI's own command line."""

from __future__ import annotations

import ast
import functools
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source, is_main_guard, name_of

# The order of `fastapi run` (fastapi_cli/discover.py), and after it where else people have it.
FASTAPI_CLI = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
BELOW = re.compile(r"^(src/)?([^/]+/)?(main|app|api|asgi|server|__init__)\.py$")
# The names that are taken first, as there.
PREFERRED = ("app", "api", "application")
DEPTH = 8


@dataclass(frozen=True)
class Entry:
    """An ASGI application in a file of the artefact."""

    module: str
    """As `app_module` takes it: module:attribute."""
    file: str
    """Empty if no file of the artefact is the module."""
    folder: str = ""
    """What has to be on Python's path, below the application's folder."""


@dataclass(frozen=True)
class Found:
    """The entry that is taken, or those to choose from."""

    entry: Entry | None
    candidates: tuple[Entry, ...] = ()


def find(source: Source) -> Found:
    """Return the application's entry; without one that is clear, those to choose from."""
    stated = source.toml("pyproject.toml").get("tool", {}).get("fastapi", {}).get("entrypoint")
    if isinstance(stated, str) and ":" in stated:
        return Found(named(source, stated))
    return search(source)


def search(source: Source) -> Found:
    """Return the application's entry as its files show it, whatever names another one."""
    first = [entry for path in FASTAPI_CLI if path in source.texts for entry in entries_in(source, path)]
    if first:
        return Found(first[0])
    others = [path for path in source.programs if BELOW.fullmatch(path) and path not in FASTAPI_CLI]
    found = [entry for path in others for entry in list(entries_in(source, path))[:1]]
    # A package that hands on what another file makes is the same application.
    makers = [entry for entry in found if makes(source, entry.file)] or found
    if len(makers) == 1:
        return Found(makers[0])
    return Found(None, (*makers, *factories(source)))


def named(source: Source, module: str) -> Entry:
    """Return the entry that `app_module` names."""
    name = module.partition(":")[0]
    file = source.module(name)
    if not file:
        # Below another folder, if one alone has it: backend/main.py for main:app.
        endings = tuple(f"/{name.replace('.', '/')}{end}" for end in (".py", "/__init__.py"))
        below = [path for path in source.programs if path.endswith(endings)]
        if len(below) != 1:
            return Entry(module, "")
        (file,) = below
        return Entry(module, file, file.removesuffix(next(end for end in endings if file.endswith(end))))
    in_src = file.startswith("src/") and not name.startswith("src.")
    return Entry(module, file, "src" if in_src else "")


def module_files(module: str, folder: str) -> tuple[str, str]:
    """Return the two files that a module may be, if a folder is on Python's path."""
    stem = posixpath.join(folder, module.partition(":")[0].replace(".", "/"))
    return f"{stem}.py", f"{stem}/__init__.py"


def entries_in(source: Source, path: str) -> Iterator[Entry]:
    """Yield the applications of a file, the one that is taken first."""
    names = bound(source, path)
    certain = sorted(name for name, is_certain in names.items() if is_certain)
    module, folder = address(source, path)
    ordered = [name for name in PREFERRED if name in certain] + [name for name in certain if name not in PREFERRED]
    for name in ordered or [name for name in PREFERRED[:2] if name in names]:
        yield Entry(f"{module}:{name}", path, folder)


def address(source: Source, path: str) -> tuple[str, str]:
    """Return a file's module and the folder that has to be on Python's path.

    FastAPI's command line takes the first folder without an `__init__.py`. The application's own folder, which a server
    has on the path in any case, does as well if nothing below the other one is imported by its bare name.
    """
    folder = posixpath.dirname(path)
    while folder and f"{folder}/__init__.py" in source.texts:
        folder = posixpath.dirname(folder)
    if folder:
        imported = imported_in(source, folder)
        own = tops(source, f"{folder}/") - tops(source, "")
        if folder in imported or (folder != "src" and not imported & own):
            folder = ""
    stem = path.removesuffix(".py").removesuffix("/__init__")
    return stem.removeprefix(f"{folder}/" if folder else "").replace("/", "."), folder


def tops(source: Source, prefix: str) -> set[str]:
    """Return the modules and packages right below a folder."""
    below = (path.removeprefix(prefix) for path in source.programs if path.startswith(prefix))
    return {path.partition("/")[0].removesuffix(".py") for path in below}


@functools.cache
def imported_in(source: Source, folder: str) -> frozenset[str]:
    """Return the first parts of what the files below a folder import."""
    files = [path for path in source.programs if path.startswith(f"{folder}/")]
    return frozenset(name_of_import(node) for path in files for node in ast.walk(source.tree(path)))


def name_of_import(node: ast.AST) -> str:
    """Return the first part of the package that a statement imports; empty for a relative import."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] if not node.level else ""
    return node.names[0].name.partition(".")[0] if isinstance(node, ast.Import) else ""


def at_start(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that an import runs, those in `if`, `try` and `with` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With) and not is_main_guard(node):
            for part in ("body", "orelse", "finalbody"):
                yield from at_start(getattr(node, part, []))


@functools.cache
def bound(source: Source, path: str, depth: int = DEPTH) -> dict[str, bool]:
    """Return the names of a file that may hold an application: True for those that certainly do."""
    names: dict[str, bool] = {}
    tree = source.tree(path)
    classes = fastapi_names(tree)
    made = makers_in(source, path, depth)
    for file, name, here in source.imports(path, address(source, path)[1]):
        if name and depth and bound(source, file, depth - 1).get(name):
            names[here] = True
    for node in at_start(tree.body):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        annotated = isinstance(node, ast.AnnAssign) and name_of(node.annotation) in classes
        called = name_of(node.value.func) if isinstance(node.value, ast.Call) else ""
        is_certain = annotated or called in classes | made or bool(names.get(name_of(node.value)))
        if is_certain or called:
            for target in (name_of(target) for target in targets):
                # What wraps an application is one as well.
                names[target] = is_certain or names.get(target, False)
    return names


def fastapi_names(tree: ast.Module) -> set[str]:
    """Return what a file calls FastAPI's class, and the classes that it derives from it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fastapi":
            found |= {alias.asname or alias.name for alias in node.names if alias.name == "FastAPI"}
        elif isinstance(node, ast.Import):
            found |= {f"{alias.asname or alias.name}.FastAPI" for alias in node.names if alias.name == "fastapi"}
        elif isinstance(node, ast.ClassDef) and found & {name_of(base) for base in node.bases}:
            found.add(node.name)
    return found


@functools.cache
def makers_in(source: Source, path: str, depth: int = DEPTH) -> set[str]:
    """Return the functions of a file, own and imported ones, that return an application."""
    tree = source.tree(path)
    classes = fastapi_names(tree)
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and makes_one(node, classes):
            found.add(node.name)
    for file, name, here in source.imports(path, address(source, path)[1]):
        if name and depth and name in makers_in(source, file, depth - 1):
            found.add(here)
    return found


def makes_one(node: ast.FunctionDef, classes: set[str]) -> bool:
    """Return True if a function returns an application: by its annotation, or by what it does."""
    if node.returns is not None and name_of(node.returns) in classes:
        return True
    parts = list(ast.walk(node))
    own = {
        name_of(target)
        for part in parts
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Call) and name_of(part.value.func) in classes
        for target in part.targets
    }
    returned = [part.value for part in parts if isinstance(part, ast.Return) and part.value is not None]
    return any(
        name_of(value) in own or (isinstance(value, ast.Call) and name_of(value.func) in classes) for value in returned
    )


def makes(source: Source, path: str) -> bool:
    """Return True if a file makes an application, and does not only import one."""
    imported = {here for _, name, here in source.imports(path, address(source, path)[1]) if name}
    return any(is_certain and name not in imported for name, is_certain in bound(source, path).items())


def factories(source: Source) -> Iterator[Entry]:
    """Yield the functions without parameters that return an application: gunicorn takes `module:function()`."""
    for path in source.programs:
        classes = fastapi_names(source.tree(path))
        for node in source.tree(path).body:
            if isinstance(node, ast.FunctionDef) and not node.args.args and makes_one(node, classes):
                module, folder = address(source, path)
                yield Entry(f"{module}:{node.name}()", path, folder)
