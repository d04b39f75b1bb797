"""The block that preflight prints: what was inferred, and the lines to write where a variable does not fit it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from discovery.entry import named
from discovery.hosts import Host
from discovery.inference import Application
from discovery.packages import PLACE
from discovery.source import Source

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
    variables: Mapping[str, Any]
    """The variables of the role app that say what the application is."""
    settings: Sequence[str]
    """The names in `app_settings` and `app_migration_settings`."""

    def text(self) -> str:
        """Return the block."""
        lines = [("application", self.identity()), ("server", self.server()), ("migrations", self.migrations())]
        lines += [("settings", self.read()), ("health", self.health()), ("page", self.page())]
        lines += [("warning", words) for words in (*self.application.warnings, *self.lacks())]
        text = [wrapped(title, words) for title, words in lines]
        if proposed := self.proposed():
            text += [f"to write into {PLACE}:", *(f"  {line}" for line in yaml_lines(proposed))]
        return "\n".join(text)

    def identity(self) -> str:
        """Return entry, Python and lock file."""
        app = self.application
        entry = f"{app.entry.module} ({app.entry.file or 'a package of the lock'})" if app.entry else "not found"
        pythons = ", ".join(dict.fromkeys("{}.{}".format(*host.minor) for host in self.hosts))
        have = f"host has {pythons}" if len(self.hosts) == 1 or "," not in pythons else f"hosts may have {pythons}"
        lock = " and ".join(app.locks) or "none"
        return f"{entry}    python {app.python or 'any'}, {have}    lock {lock}"

    def server(self) -> str:
        """Return the server in the lock file."""
        lock = self.application.lock
        package = lock.package("gunicorn") if lock else None
        return f"gunicorn {package.version} ({lock.path})" if lock and package else "none in the lock file"

    def migrations(self) -> str:
        """Return where the migrations are."""
        if not self.application.alembic:
            return "none (no alembic.ini): create your tables yourself"
        return f"Alembic, {self.application.alembic}, scripts in {self.application.scripts}/"

    def read(self) -> str:
        """Return the settings that the application reads."""
        names = [setting.name for setting in self.application.settings]
        if not names:
            return "none seen in the code"
        left = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f"{len(names)} read ({' '.join(names[:SHOWN])}{left})"

    def health(self) -> str:
        """Return what says that the application is able to serve."""
        route = self.application.health
        return f"GET {route.path} ({route.place})" if route else "no path was seen that says more than that it answers"

    def page(self) -> str:
        """Return where the page is."""
        return "frontend/index.html" if self.application.has_page else "none (no frontend/index.html)"

    def proposed(self) -> dict[str, Any]:
        """Return the variables that should be set, with the values that fit the application."""
        app, set_to = self.application, self.variables
        found: dict[str, Any] = {}
        if app.entry and not named(self.source, str(set_to["app_module"])).file:
            found["app_module"] = app.entry.module
        command = list(set_to["app_settings_command"])
        if command[1:2] == ["-m"] and not self.source.module(command[2]):
            found["app_settings_command"] = []
        if set_to["app_migrations"] and not app.alembic:
            found["app_migrations"] = False
        paths = {route.path for route in app.routes}
        if answered := app.health.path if app.health else "/" if "/" in paths else "":
            found |= {name: answered for name in ("app_ready_path", "app_live_path") if set_to[name] not in paths}
        return found

    def lacks(self) -> Iterator[str]:
        """Yield what hosts still ask for and the application does not show (docs/applications.md)."""
        app = self.application
        if app.candidates:
            names = ", ".join(entry.module for entry in app.candidates)
            yield f"app_module: choose one of {names}, and set it in {PLACE}"
        elif not app.entry:
            yield (
                f"no FastAPI application found in main.py, app.py, api.py, app/ or src/: set app_module in {PLACE}, as "
                "`app_module: package.module:app`"
            )
        if app.entry and app.entry.folder and app.entry.folder != ".":
            yield (
                f"{app.entry.module} is below {app.entry.folder}/, which hosts do not have on Python's path: they "
                "install the packages of the lock file, not the application itself"
            )
        if app.lock and not app.lock.package("gunicorn"):
            yield f"{app.lock.path} has no gunicorn, and hosts start the application with gunicorn 25 or later: add it"
        paths = {route.path for route in app.routes}
        if app.entry and str(self.variables["app_version_path"]) not in paths:
            yield (
                f"GET {self.variables['app_version_path']} was not seen in the code. Hosts ask there for the release's "
                "id (app_version_path)"
            )
        needed = [one for one in app.settings if not one.has_default and one.name not in self.settings]
        if needed:
            names = ", ".join(f"{one.name} ({one.place})" for one in needed)
            yield f"app_settings in {PLACE} does not set what has no default: {names}"


def wrapped(title: str, words: str) -> str:
    """Return a line of the block, continued below its words."""
    below = " " * TITLE
    return textwrap.fill(
        f"{title:<{TITLE}}{words}", WIDTH, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )


def yaml_lines(values: Mapping[str, Any]) -> list[str]:
    """Return values as they are written in a file of variables."""
    return yaml.safe_dump(dict(values), default_flow_style=None, sort_keys=False, width=WIDTH).splitlines()
