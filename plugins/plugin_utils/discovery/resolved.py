"""An application as its releases state it: what variables say wins over what was inferred."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.database import KNOWN, drivers, names_of, scheme_of
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.entry import Entry, module_files
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.inference import Application
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import KINDS, Lock
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.packages import PLACE
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source

PATH = re.compile(r"/|(/[A-Za-z0-9._~-]+)+")
MODULE = re.compile(r"\w+(\.\w+)*:\w+(\(\))?")
ANSWERS = ("success", "any")
# What the packages of a lock need so that these can be imported before the workers start.
PRELOADED = {
    "fastapi": ("fastapi",),
    "pydantic_settings": ("pydantic-settings",),
    "pymysql": ("pymysql",),
    "sqlalchemy.dialects.mysql.pymysql": ("sqlalchemy", "pymysql"),
}


@dataclass(frozen=True)
class Stated:
    """What variables say; an empty value is inferred."""

    module: str = ""
    lock_file: str = ""
    python_version: str = ""
    alembic: str = ""
    path: str = ""
    strip_path: bool = True
    ready_path: str = ""
    ready_answers: str = ""
    public_scheme: str = "http"
    settings_command: list[str] = field(default_factory=list)
    schema_command: list[str] = field(default_factory=list)
    seed_command: list[str] = field(default_factory=list)
    preload_modules: list[str] = field(default_factory=list)
    database_settings: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    """The names in `app_settings`."""
    migration_settings: list[str] = field(default_factory=list)
    system_packages: list[str] | None = None
    """The Debian packages that hosts get; None if the application runs in a system of its own."""


@dataclass(frozen=True)
class Resolved:
    """What the action `application` returns; the fields of roles/app/files/application.py go with each release."""

    module: str
    folder: str
    lock: str
    python: str
    root_path: str
    path: str
    """The prefix of the public addresses that the application answers."""
    strip_path: bool
    """True if nginx removes that prefix."""
    page: bool
    """True if there is a page, which nginx serves at /."""
    ready_path: str
    ready_answers: str
    health_path: str
    """The public address of `ready_path`."""
    scheme: str
    settings_command: list[str]
    alembic: str
    schema_command: list[str]
    seed_command: list[str]
    preload_modules: list[str]
    database: dict[str, str]
    database_scheme: str
    """What an address of the database begins with."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name, as a fact of Ansible has them."""
        return asdict(self)


def resolve(app: Application, source: Source, stated: Stated) -> Resolved:
    """Return an application as its releases state it; `findings` says what is missing for that."""
    has_page = app.has_page and stated.path != "/"
    path = stated.path or ("/api" if has_page else "/")
    is_stripped = stated.strip_path and path != "/"
    ready = stated.ready_path or (app.health.path if app.health else "/")
    is_known = bool(stated.ready_path or app.health)
    database, scheme = database_of(app, source, stated)
    return Resolved(
        module=app.entry.module if app.entry else stated.module,
        folder=app.entry.folder if app.entry else "",
        lock=app.lock.path if app.lock else stated.lock_file,
        python=stated.python_version,
        root_path=path if is_stripped else "",
        path=path,
        strip_path=stated.strip_path,
        page=has_page,
        ready_path=ready,
        ready_answers=stated.ready_answers or ("success" if is_known else "any"),
        health_path=path + ready if is_stripped else ready,
        scheme=stated.public_scheme,
        settings_command=stated.settings_command,
        alembic=stated.alembic or app.alembic,
        schema_command=stated.schema_command,
        seed_command=stated.seed_command,
        preload_modules=[name for name in stated.preload_modules if has_packages(app.lock, name)],
        database=database,
        database_scheme=scheme,
    )


def database_of(app: Application, source: Source, stated: Stated) -> tuple[dict[str, str], str]:
    """Return the setting of each part of the way to the database, and what an address of it begins with."""
    given = dict(stated.database_settings)
    scheme = given.pop("scheme", "")
    if not given and drivers(app.lock):
        given = names_of(app.settings, stated.settings)
    if "url" in given and not scheme:
        scheme = scheme_of(source, app.files, app.lock, given["url"])
    return given, scheme


def has_packages(lock: Lock | None, module: str) -> bool:
    """Return True if a lock has what a module is part of, or if nobody knows what that is."""
    return all(lock is None or lock.package(name) for name in PRELOADED.get(module, ()))


def findings(app: Application, stated: Stated, values: Mapping[str, Any], database: Mapping[str, str]) -> Iterator[str]:
    """Yield a finding for each variable that has to be set or corrected before there can be a release.

    Args:
        app: what was inferred.
        stated: what variables say.
        values: host of the database, as the inventory says it.
        database: the setting of each part of the way to the database.
    """
    if stated.module and not MODULE.fullmatch(stated.module):
        yield f"app_module: {stated.module!r} is not as package.module:app. Fix it in {PLACE}"
    elif app.entry and app.is_missing:
        yield missing_file(app.entry, app.inferred, bool(stated.module))
    elif app.candidates:
        names = ", ".join(entry.module for entry in app.candidates)
        yield f"app_module: several applications, {names}. Fix: `app_module: {app.candidates[0].module}` in {PLACE}"
    elif not app.entry:
        yield (
            "app_module: no FastAPI application was found in main.py, app.py, api.py, app/ or src/. Fix: "
            f"`app_module: package.module:app` in {PLACE}"
        )
    if not app.locks:
        yield f"lock file: the application has none of {', '.join(KINDS)} (with digests). Fix: `uv lock`"
    for name, value in (("app_path", stated.path), ("app_ready_path", stated.ready_path)):
        if value and not PATH.fullmatch(value):
            yield f"{name}: {value!r} is no path as /api or /health/ready. Fix it in {PLACE}"
    if stated.ready_answers not in ("", *ANSWERS):
        yield f"app_ready_answers: {stated.ready_answers!r} is neither of {' and '.join(ANSWERS)}. Fix it in {PLACE}"
    for part in stated.database_settings:
        if part not in KNOWN:
            yield f"app_database_settings: {part!r} is none of {', '.join(KNOWN)}. Fix it in {PLACE}"
    if database and not values.get("host"):
        yield (
            "database_host (the inventory): is not set, and the application has a database "
            f"({' '.join(database.values())}). Fix: set it for the environment's hosts"
        )


def missing_file(entry: Entry, inferred: tuple[Entry, ...], is_variable: bool) -> str:
    """Return the finding of an entry whose file is missing, with what the files show instead."""
    place = PLACE if is_variable else "pyproject.toml, [tool.fastapi] entrypoint"
    shown = ", ".join(f"{other.module} ({other.file})" for other in inferred) or "no application"
    is_clear = len(inferred) == 1
    way = f"name {inferred[0].module}, or leave it out" if is_clear else "name a module that is there"
    files = " or ".join(module_files(entry.module, inferred[0].folder if is_clear else ""))
    return (
        f"app_module: {entry.module} ({place}) needs {files}, and the application has neither; its files show {shown}. "
        f"Fix: {way}; or commit the file"
    )
