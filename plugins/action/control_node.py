"""Examines the control node: Ansible, its Python, its collections and the programs that it needs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version

NAME = re.compile(r"([a-z_][a-z0-9_]*)\.([a-z_][a-z0-9_]*)\.[a-z_][a-z0-9_.]*")
SETUP = "make setup && . .venv/bin/activate"


def python_findings(required: str, running: tuple[int, int]) -> Iterator[str]:
    """Yield a finding if this Python is none of those that ``pyproject.toml`` asks for, such as ``>=3.12,<3.15``."""
    checks: dict[str, Callable[[tuple[int, int]], bool]] = {
        ">=": lambda bound: running >= bound,
        "<": lambda bound: running < bound,
    }
    for sign, major, minor in re.findall(r"(>=|<)\s*(\d+)\.(\d+)", required):
        if not checks[sign]((int(major), int(minor))):
            now = ".".join(map(str, running))
            yield f"Ansible runs on Python {now} ({sys.executable}), and this project needs {required}. Fix: {SETUP}"
            return


def version_findings(locked: str, running: str) -> Iterator[str]:
    """Yield a finding if another Ansible runs than the one that ``poetry.lock`` names."""
    if locked and locked != running:
        yield f"ansible-core {running} runs ({sys.prefix}), and poetry.lock has {locked}. Fix: {SETUP}"


def locked_version(path: Path, package: str) -> str:
    """Return the version of a package in a lock file; nothing if it is not there."""
    if not path.is_file():
        return ""
    packages = tomllib.loads(path.read_text()).get("package", [])
    return next((str(one["version"]) for one in packages if one["name"] == package), "")


def collections_in(node: object) -> Iterator[str]:
    """Yield the collection of each module that tasks name in full."""
    if isinstance(node, dict):
        for key, value in node.items():
            if match := NAME.fullmatch(str(key)):
                yield f"{match[1]}.{match[2]}"
            yield from collections_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from collections_in(item)


def collection_findings(root: Path, known: Callable[[str], bool]) -> Iterator[str]:
    """Yield a finding for each collection that the tasks below ``root`` use and that is not installed."""
    users: dict[str, str] = {}
    for path in sorted([*root.glob("roles/*/tasks/*.yml"), *root.glob("playbooks/*.yml")]):
        for name in collections_in(yaml.safe_load(path.read_text())):
            users.setdefault(name, str(path.relative_to(root)))
    for name, file in users.items():
        if name != "ansible.builtin" and not known(name):
            yield f"the collection {name} is not installed, which {file} uses. Fix: {SETUP}"


def is_installed(collection: str) -> bool:
    """Return True if Ansible finds a collection."""
    try:
        return importlib.util.find_spec(f"ansible_collections.{collection}") is not None
    except ModuleNotFoundError:
        return False


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted. Fails with every finding at once."""

    TRANSFERS_FILES = False
    _VALID_ARGS: frozenset[str] = frozenset()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what was looked at as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        root = Path((task_vars or {})["playbook_dir"])
        root = root.parent if root.name == "playbooks" else root
        project = root / "pyproject.toml"
        required = tomllib.loads(project.read_text())["project"]["requires-python"] if project.is_file() else ""
        findings = [
            *python_findings(required, sys.version_info[:2]),
            *version_findings(locked_version(root / "poetry.lock", "ansible-core"), ansible_version),
            *collection_findings(root, is_installed),
        ]
        findings += [
            f"the program {name} is not installed on this machine. Fix: install {package}"
            for name, package in (("ssh", "openssh-client"), ("git", "git"))
            if not shutil.which(name)
        ]
        if findings:
            lines = "\n".join(f"  {number}. control node: {words}" for number, words in enumerate(findings, 1))
            raise AnsibleActionFail(f"no host was looked at; {len(findings)} finding(s):\n{lines}")
        checked = (
            f"ansible-core {ansible_version}, Python {'.'.join(map(str, sys.version_info[:3]))}, collections, vaults"
        )
        return {**result, "changed": False, "checked": checked}
