"""Lock files: which one an application has, and the packages in it that hosts install."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.utils import canonicalize_name

KINDS = {"uv.lock": "uv", "poetry.lock": "Poetry", "pylock.toml": "pip", "requirements.txt": "pip"}
REQUIREMENT = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*([^\s;\\]+)\s*(?:;([^\\]*))?", re.MULTILINE
)


@dataclass(frozen=True)
class Package:
    """A package of a lock file."""

    name: str
    version: str
    wheels: tuple[str, ...] = ()
    """File names."""
    has_source: bool = False
    """True if the lock has an archive of its source."""
    git: str = ""
    """The repository of a package that comes from one."""
    index: str = ""
    """The index of a package that comes from another one than the public index."""
    lists_files: bool = True
    """True if the lock says which files there are; a requirements.txt has digests alone."""


# What a marker (PEP 508) is asked about, such as `python_version`.
Surroundings = Mapping[str, str]


@dataclass(frozen=True)
class Lock:
    """A lock file, and the packages in it that a host has to install."""

    path: str
    packages: tuple[Package, ...]

    @property
    def tool(self) -> str:
        """Return the name of what installs from it."""
        return KINDS[self.path]

    def package(self, name: str) -> Package | None:
        """Return a package by its name."""
        return next((package for package in self.packages if package.name == canonicalize_name(name)), None)


def present(source: Source) -> list[str]:
    """Return the lock files of an application; a requirements.txt without digests is none."""
    return [
        path
        for path in KINDS
        if path in source.texts and (path != "requirements.txt" or "--hash=" in source.texts[path])
    ]


def read(source: Source, path: str, surroundings: Surroundings) -> Lock:
    """Return a lock file's packages for hosts that are so."""
    readers = {"uv.lock": uv, "poetry.lock": poetry, "pylock.toml": pylock}
    if path in readers:
        return Lock(path, tuple(readers[path](source.toml(path), surroundings)))
    return Lock(path, tuple(requirements(source.texts[path], surroundings)))


def applies(marker: object, surroundings: Surroundings) -> bool:
    """Return True if something with a marker is for such hosts, which install no extras; True if it cannot be read."""
    try:
        return not marker or Marker(str(marker)).evaluate({**surroundings, "extra": ""})
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName):
        return True


def file_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a file that a lock lists by name, address or path."""
    address = str(
        entry.get("file") or entry.get("filename") or entry.get("name") or entry.get("url") or entry.get("path")
    )
    return unquote(urlsplit(address).path.rpartition("/")[2])


def shown(address: str) -> str:
    """Return an address without credentials and parameters."""
    return re.sub(r"(?<=://)[^/@]*@", "", address).partition("?")[0].partition("#")[0]


def poetry(lock: Mapping[str, Any], surroundings: Surroundings) -> Iterator[Package]:
    """Yield the packages of a poetry.lock that `poetry sync --only=main` installs.

    A lock of Poetry 1 does not say which are for development; its files count for nothing.
    """
    for entry in lock.get("package", ()):
        markers, source = entry.get("markers", ""), entry.get("source", {})
        marker = markers.get("main", "") if isinstance(markers, dict) else markers
        if "main" not in entry.get("groups", ["main"]) or entry.get("optional") or not applies(marker, surroundings):
            continue
        files, kind = [file_name(file) for file in entry.get("files", ())], source.get("type", "")
        wheels = tuple(name for name in files if name.endswith(".whl"))
        yield Package(
            name=canonicalize_name(str(entry["name"])),
            version=str(entry["version"]),
            wheels=wheels,
            has_source=len(files) > len(wheels),
            git=shown(str(source.get("url", ""))) if kind == "git" else "",
            index=shown(str(source.get("url", ""))) if kind == "legacy" else "",
            lists_files="groups" in entry and kind in ("", "legacy"),
        )


def uv(lock: Mapping[str, Any], surroundings: Surroundings) -> Iterator[Package]:
    """Yield the packages of a uv.lock that the project itself needs, without its groups and extras."""
    entries = list(lock.get("package", ()))
    registries = [str(entry.get("source", {}).get("registry", "")) for entry in entries]
    # An index of one's own serves some packages; the one that serves most is the public one, or its mirror.
    public = max(set(registries) - {""}, key=registries.count, default="")
    for entry in needed(entries, surroundings):
        source = entry.get("source", {})
        registry = str(source.get("registry", ""))
        yield Package(
            name=canonicalize_name(str(entry["name"])),
            version=str(entry.get("version", "")),
            wheels=tuple(file_name(file) for file in entry.get("wheels", ())),
            has_source="sdist" in entry,
            git=shown(str(source.get("git", ""))),
            index=shown(registry) if registry != public else "",
            lists_files="registry" in source,
        )


def needed(entries: list[dict[str, Any]], surroundings: Surroundings) -> list[dict[str, Any]]:
    """Return the packages of a uv.lock that its project needs on such hosts, directly or not."""
    found: set[tuple[int, str]] = set()
    waiting = [(entry, "") for entry in entries if {"editable", "virtual"} & set(entry.get("source", {}))]
    own = {id(entry) for entry, _ in waiting}
    while waiting:
        entry, extra = waiting.pop()
        dependencies = entry.get("optional-dependencies", {}).get(extra, ()) if extra else entry.get("dependencies", ())
        for dependency in dependencies:
            if not applies(dependency.get("marker"), surroundings):
                continue
            for target in (one for one in entries if is_meant(dependency, one)):
                news = {(id(target), name) for name in ("", *dependency.get("extra", ()))} - found
                found |= news
                waiting += [(target, name) for _, name in sorted(news)]
    return [entry for entry in entries if (id(entry), "") in found and id(entry) not in own]


def is_meant(dependency: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Return True if a dependency is this package: by name, and by version and source if it says them."""
    return bool(dependency["name"] == entry["name"]) and all(
        dependency[word] == entry.get(word) for word in ("version", "source") if word in dependency
    )


def pylock(lock: Mapping[str, Any], surroundings: Surroundings) -> Iterator[Package]:
    """Yield the packages of a pylock.toml (PEP 751)."""
    for entry in lock.get("packages", ()):
        if applies(entry.get("marker"), surroundings):
            yield Package(
                name=canonicalize_name(str(entry["name"])),
                version=str(entry.get("version", "")),
                wheels=tuple(file_name(file) for file in entry.get("wheels", ())),
                has_source="sdist" in entry,
                git=shown(str(entry.get("vcs", {}).get("url", ""))),
                lists_files="wheels" in entry or "sdist" in entry,
            )


def requirements(text: str, surroundings: Surroundings) -> Iterator[Package]:
    """Yield the packages of a requirements.txt with digests."""
    for found in REQUIREMENT.finditer(text):
        if applies((found[3] or "").strip(), surroundings):
            yield Package(canonicalize_name(found[1]), found[2], lists_files=False)
    for line in text.splitlines():
        name, at, address = line.partition(" #")[0].partition("@ ")
        if at and address.strip().startswith("git+"):
            name = name.strip()
            yield Package(
                canonicalize_name(name), "", git=shown(address.strip().removeprefix("git+")), lists_files=False
            )
