"""The Python files of an artefact: their syntax trees, and which of them import which."""

from __future__ import annotations

import ast
import functools
import posixpath
import re
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The largest text that is read: what is longer is data, and no program, settings or lock file.
TEXT_BYTES = 8 * 1024 * 1024
READ = re.compile(r"\.(py|toml|lock|ini|txt|html|sql)$|(^|/)\.env\.\w+$|^settings\.schema\.json$")
TESTS = re.compile(r"(^|/)(tests?/|test_[^/]*\.py$|[^/]*_test\.py$|conftest\.py$)")


@dataclass(frozen=True, eq=False)
class Source:
    """The texts of an application, by their paths in the artefact. Equal to itself alone: a key of caches."""

    texts: Mapping[str, str]

    @classmethod
    def read(cls, artefact: Path) -> Source:
        """Return what an archive holds, as far as it says what the application is."""
        texts = {}
        with tarfile.open(artefact) as tar:
            for member in tar.getmembers():
                if READ.search(member.name) and member.isfile() and member.size <= TEXT_BYTES:
                    stream = tar.extractfile(member)
                    texts[member.name] = stream.read().decode(errors="replace") if stream else ""
        return cls(texts)

    @functools.cache  # noqa: B019  a run has one or two of these
    def toml(self, path: str) -> dict[str, Any]:
        """Return a TOML file's content; nothing for a file that is missing or broken."""
        try:
            return tomllib.loads(self.texts.get(path, ""))
        except tomllib.TOMLDecodeError:
            return {}

    @functools.cached_property
    def programs(self) -> list[str]:
        """Return the paths of the Python files that are no tests."""
        return sorted(path for path in self.texts if path.endswith(".py") and not TESTS.search(path))

    def tree(self, path: str) -> ast.Module:
        """Return the syntax tree of a file; an empty one for a file that is no Python of this version."""
        return _tree(self.texts[path])

    def module(self, name: str, folder: str = "") -> str:
        """Return the path of a module by its absolute name, looked for in a folder and in src/; empty if not found."""
        stem = name.replace(".", "/")
        for root in dict.fromkeys((folder, "", "src")):
            for path in (f"{stem}.py", f"{stem}/__init__.py"):
                if (found := posixpath.join(root, path)) in self.texts:
                    return found
        return ""

    @functools.cache  # noqa: B019
    def imports(self, path: str, folder: str = "") -> list[tuple[str, str, str]]:
        """Return (file, name, name here) of what a file imports of the application; no name for a whole module."""
        return list(self._imports(path, folder))

    def _imports(self, path: str, folder: str) -> Iterator[tuple[str, str, str]]:
        for node in ast.walk(self.tree(path)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if found := self.module(alias.name, folder):
                        yield found, "", alias.asname or alias.name
            elif isinstance(node, ast.ImportFrom):
                package = node.module or ""
                if node.level:
                    base = path
                    for _ in range(node.level):
                        base = posixpath.dirname(base)
                    package = ".".join(part for part in (base.replace("/", "."), package) if part)
                for alias in node.names:
                    if found := self.module(f"{package}.{alias.name}" if package else alias.name, folder):
                        yield found, "", alias.asname or alias.name
                    elif package and (found := self.module(package, folder)):
                        yield found, alias.name, alias.asname or alias.name

    def reached(self, path: str, folder: str = "") -> list[str]:
        """Return a file and what it imports of the application, directly or not."""
        found, waiting = set(), [path]
        while waiting:
            if (current := waiting.pop()) not in found:
                found.add(current)
                waiting += [file for file, _, _ in self.imports(current, folder)]
                waiting += [package for package in self.packages(current) if package not in found]
        return sorted(found)

    def packages(self, path: str) -> list[str]:
        """Return the `__init__.py` files that an import of a file runs before it."""
        parts = path.split("/")[:-1]
        inits = ["/".join([*parts[:count], "__init__.py"]) for count in range(1, len(parts) + 1)]
        return [init for init in inits if init in self.texts]


@functools.lru_cache(maxsize=2000)
def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module(body=[], type_ignores=[])


def name_of(node: ast.AST) -> str:
    """Return the dotted name that an expression is, as in `os.environ.get`; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := name_of(node.value)):
        return f"{base}.{node.attr}"
    return ""


def text_of(node: ast.AST | None) -> str:
    """Return the text that an expression is; empty for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def is_main_guard(node: ast.AST) -> bool:
    """Return True for `if __name__ == "__main__":`, whose body a server never runs."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def served(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield every node of a file that a server may run."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not is_main_guard(child)]
