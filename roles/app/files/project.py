"""Metadata of the application itself for `importlib.metadata`, whose own build never runs on hosts."""

from __future__ import annotations

import re
from pathlib import Path

from application import Application

# In a release; on Python's path of whatever runs its code.
FOLDER = ".project"
HEADER = re.compile(r"^\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$", re.MULTILINE)
TEXT = re.compile(r"""^\s*(?:"([^"]+)"|'([^']+)'|([\w-]+))\s*=\s*(["'])(.*?)\4\s*(?:#.*)?$""", re.MULTILINE)
# They become part of a file's name.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
ENTRY = re.compile(r"[\w.]+(:[\w.]+)?")
GROUP = re.compile(r"^project\.entry-points\.[\"']?([\w.-]+?)[\"']?$")


def python_path(folder: Path) -> list[Path]:
    """Return what has to be on Python's path for the code of a release, its packages aside."""
    application = Application.of(folder)
    own = [folder / application.folder] if application and application.folder else []
    return [*own, folder, folder / FOLDER]


def write_metadata(folder: Path) -> None:
    """Write the metadata of a release's project if its `pyproject.toml` states a name and a version."""
    try:
        tables = tables_of((folder / "pyproject.toml").read_text())
    except (OSError, ValueError):
        return
    stated = tables.get("project", {})
    if "name" not in stated:
        stated = tables.get("tool.poetry", {})
    name = stated.get("name", "")
    # Poetry takes the version that its own table has if [project] has none.
    version = stated.get("version") or tables.get("tool.poetry", {}).get("version", "")
    if not (NAME.fullmatch(name) and VERSION.fullmatch(version)):
        return
    place = folder / FOLDER
    if place.is_symlink() or place.is_file():
        place.unlink()  # Eclipse has a file of this name, which no application reads
    metadata = place / f"{re.sub(r'[-_.]+', '_', name).lower()}-{version.replace('-', '_')}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    files = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    if entries := entry_points(tables):
        files["entry_points.txt"] = entries
    for name, text in files.items():
        (metadata / name).write_text(text)


def tables_of(text: str) -> dict[str, dict[str, str]]:
    """Return the keys with a text on one line, by table. Python 3.10 has no reader of TOML."""
    parts = HEADER.split(text)
    return {
        header.strip(): {found[1] or found[2] or found[3]: found[5] for found in TEXT.finditer(body)}
        for header, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def entry_points(tables: dict[str, dict[str, str]]) -> str:
    """Return the content of entry_points.txt: what plug-ins are found by."""
    groups = {
        "console_scripts": tables.get("project.scripts", {}),
        "gui_scripts": tables.get("project.gui-scripts", {}),
    }
    groups |= {found[1]: table for name, table in tables.items() if (found := GROUP.match(name))}
    lines = []
    for group, table in groups.items():
        stated = {key: value for key, value in table.items() if ENTRY.fullmatch(value)}
        if stated:
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in stated.items()), ""]
    return "\n".join(lines)
