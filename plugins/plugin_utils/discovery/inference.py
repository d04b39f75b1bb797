"""An application as its files show it: what is taken for granted where no variable says otherwise."""

from __future__ import annotations

import configparser
import posixpath
from dataclasses import dataclass

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.entry import Entry, Found, find, named, search, tops
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import Host
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import Lock, present, read
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.packages import package_warnings, python_of
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.routes import Route, health, routes
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.settings import Setting, settings_in
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.warnings import warnings

PAGE = "frontend/index.html"


@dataclass(frozen=True)
class Application:
    """What was inferred; printed by `discovery.report`."""

    entry: Entry | None
    files: tuple[str, ...]
    """What a server imports of it."""
    candidates: tuple[Entry, ...]
    """Entries to choose from, if none is clear."""
    is_missing: bool
    """True if the entry was named, and its file is neither in the application nor in a package of the lock."""
    inferred: tuple[Entry, ...]
    """What the files show in the place of an entry without a file."""
    python: str
    """The versions of Python that it takes (PEP 440); empty if it states none."""
    locks: tuple[str, ...]
    lock: Lock | None
    """The one that counts, if that is clear."""
    alembic: str
    """Path of alembic.ini; empty for an application without migrations."""
    scripts: str
    """Folder of the migrations, as alembic.ini has it."""
    settings: tuple[Setting, ...]
    routes: tuple[Route, ...]
    health: Route | None
    has_page: bool
    warnings: tuple[str, ...]


def infer(source: Source, host: Host, module: str = "", lock_file: str = "") -> Application:
    """Return what an application is.

    Args:
        source: its files.
        host: one of those that it comes to, for the packages that it needs there.
        module: what `app_module` says; empty to find it.
        lock_file: what `lock_file` says.
    """
    found = Found(named(source, module)) if module else find(source)
    entry = found.entry
    reached = source.reached(entry.file, entry.folder) if entry and entry.file else source.programs
    locks = present(source)
    path = lock_file if lock_file in locks else locks[0] if len(locks) == 1 else ""
    lock = read(source, path, host.surroundings) if path else None
    alembic = next((path for path in sorted(source.texts, key=depth) if posixpath.basename(path) == "alembic.ini"), "")
    scripts = script_location(source.texts[alembic], posixpath.dirname(alembic)) if alembic else ""
    environment = [path for path in (f"{scripts}/env.py",) if path in source.texts]
    settings = settings_in(source, [*reached, *(path for path in environment if path not in reached)])
    others = search(source) if entry and not entry.file else Found(None)
    inferred = (others.entry, *others.candidates) if others.entry else others.candidates
    answered = routes(source, reached, entry.folder if entry else "")
    return Application(
        entry=entry,
        files=tuple(reached),
        candidates=found.candidates,
        is_missing=bool(entry and not entry.file and is_missing(source, entry.module, lock, bool(inferred))),
        inferred=inferred,
        python=python_of(source),
        locks=tuple(locks),
        lock=lock,
        alembic=alembic,
        scripts=scripts,
        settings=tuple(settings),
        routes=tuple(answered),
        health=health(answered),
        has_page=PAGE in source.texts,
        warnings=(*warnings(source, reached, settings), *(package_warnings(source, lock) if lock else ())),
    )


def is_missing(source: Source, module: str, lock: Lock | None, has_other: bool) -> bool:
    """Return True if a module without a file should have one: the first part of its name is no package of the lock.

    A package may have another name than its module, so an application that shows no other entry gets a warning only.
    """
    first = module.partition(":")[0].partition(".")[0]
    if first in tops(source, "") | tops(source, "src/"):
        return True
    return has_other and not (lock and lock.package(first))


def depth(path: str) -> tuple[int, str]:
    """Return a key that sorts files at the top first."""
    return path.count("/"), path


def script_location(text: str, folder: str) -> str:
    """Return the folder that an alembic.ini names, in the artefact."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        return ""
    stated = parser.get("alembic", "script_location", fallback="alembic")
    # `package:folder` is how Alembic names one inside a package.
    stated = stated.replace("%(here)s", ".").replace(":", "/")
    return posixpath.normpath(posixpath.join(folder, stated))
