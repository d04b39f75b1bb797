"""The block that preflight prints: what an application is, what it gets, and what it lacks."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.database import drivers
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import Host
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.inference import Application
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.packages import PLACE
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.resolved import Resolved, Stated
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.system_packages import warnings

SCHEMA = "settings.schema.json"
SERVER = Path(__file__).resolve().parents[3] / "roles/app/files/server/requirements.txt"
FOREIGN = ("asyncpg", "psycopg", "psycopg2", "psycopg2-binary")
SHOWN = 12
TITLE = 13
WIDTH = 120


@dataclass(frozen=True)
class Report:
    """What is said about an application."""

    application: Application
    source: Source
    hosts: Sequence[Host]
    """Those that are possible."""
    stated: Stated
    resolved: Resolved

    def text(self) -> str:
        """Return the block."""
        lines = [("application", self.identity()), ("server", self.server()), ("migrations", self.migrations())]
        lines += [("settings", self.settings()), ("health", self.health()), ("page", self.page())]
        lines += [("warning", words) for words in (*self.application.warnings, *self.lacks())]
        return "\n".join(wrapped(title, words) for title, words in lines)

    def identity(self) -> str:
        """Return entry, Python and lock file."""
        app = self.application
        outside = "its file is missing" if app.is_missing else "a package of the lock"
        entry = f"{app.entry.module} ({app.entry.file or outside})" if app.entry else "not found"
        pythons = ", ".join("{}.{}".format(*minor) for minor in sorted({host.minor for host in self.hosts}))
        have = f"host has {pythons}" if len(self.hosts) == 1 or "," not in pythons else f"hosts may have {pythons}"
        if self.stated.python_version:
            have = f"{self.stated.python_version} by uv"
        lock = self.resolved.lock or " and ".join(app.locks) or "none"
        return f"{entry}    python {app.python or 'any'}, {have}    lock {lock}"

    def server(self) -> str:
        """Return the server."""
        return f"gunicorn{server_version()}, brought by Waffle Iron"

    def migrations(self) -> str:
        """Return where the migrations are."""
        if command := self.resolved.schema_command:
            return f"none; each deploy applies `{shlex.join(command)}` (app_schema_command)"
        if path := self.resolved.alembic:
            scripts = f", scripts in {self.application.scripts}/" if path == self.application.alembic else ""
            return f"Alembic, {path}{scripts}"
        if not self.resolved.database:
            return "none: no database"
        files = sorted(path for path in self.source.texts if path.endswith(".sql") and "/" not in path)
        way = f"`app_schema_command: [{files[0]}]`" if files else "set app_schema_command"
        return f"none (no alembic.ini): create your tables yourself, or {way}; backups are manual"

    def settings(self) -> str:
        """Return the settings that the application gets."""
        names = list(dict.fromkeys((*self.resolved.database.values(), *self.stated.settings)))
        left = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        count = f"{len(names)} variable{'' if len(names) == 1 else 's'} exported"
        told = f"{count} ({' '.join(names[:SHOWN])}{left})" if names else "none exported"
        if SCHEMA not in self.source.texts and names:
            told += "; no schema to check them by"
        return told

    def health(self) -> str:
        """Return what says that the application is able to serve, and where its version comes from."""
        path, place = self.resolved.ready_path, ""
        if self.application.health and self.application.health.path == path:
            place = f" ({self.application.health.place})"
        said = "answers 2xx" if self.resolved.ready_answers == "success" else "answers below 500"
        more = "" if self.resolved.ready_answers == "success" else " (set app_ready_path for more)"
        return f"GET {path}{place} {said}{more}    version  by the server"

    def page(self) -> str:
        """Return where the page is, and where the API."""
        resolved = self.resolved
        prefix = "" if resolved.strip_path or resolved.path == "/" else ", which the application sees"
        api = f"the API answers at {resolved.path}{prefix}"
        return f"frontend/index.html; {api}" if resolved.page else f"none: {api}"

    def lacks(self) -> Iterator[str]:
        """Yield what the application does not show, and what that costs (docs/applications.md)."""
        app, database = self.application, self.resolved.database
        if app.entry and not app.entry.file and not app.is_missing and self.source.texts:
            yield f"app_module: {app.entry.module} is no file of the application, so its code was not read"
        exported = {*database.values(), *self.stated.settings}
        needed = [one for one in app.settings if not one.has_default and one.name not in exported]
        if needed:
            names = ", ".join(f"{one.name} ({one.place})" for one in needed)
            yield f"app_settings in {PLACE} does not set what has no default: {names}"
        if (driver := next(iter(drivers(app.lock)), "")) and not database:
            yield (
                f"{self.resolved.lock} has {driver}, and no setting was seen that holds the way to a database, so none "
                f"is created. Fix: `app_database_settings: {{url: DATABASE_URL}}` in {PLACE}, or host, port, user, "
                "password and name, each with the setting that your code reads"
            )
        if foreign := next((name for name in FOREIGN if app.lock and app.lock.package(name)), ""):
            yield f"{foreign} is for PostgreSQL, and Waffle Iron brings MySQL: that database is yours to make"
        if self.stated.system_packages is not None:
            yield from warnings(app.lock, self.stated.system_packages)
        project = self.source.toml("pyproject.toml").get("project", {})
        if "version" in project.get("dynamic", ()) and any(
            "importlib.metadata" in self.source.texts[path] for path in app.files
        ):
            yield (
                "pyproject.toml has a dynamic version, and hosts build nothing: importlib.metadata does not find the "
                'application. Fix: `version = "1.0.0"` in [project]'
            )


def server_version() -> str:
    """Return the version of the server that hosts get, after a blank; empty if it is not known here."""
    try:
        found = re.search(r"^gunicorn==(\S+)", SERVER.read_text(), re.MULTILINE)
    except FileNotFoundError:
        return ""
    return f" {found[1]}" if found else ""


def wrapped(title: str, words: str) -> str:
    """Return a line of the block, continued below its words."""
    below = " " * TITLE
    return textwrap.fill(
        f"{title:<{TITLE}}{words}", WIDTH, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
