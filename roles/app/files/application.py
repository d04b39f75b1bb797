"""What the control node states about the application of a release, in the release's `release.json`.

It belongs to the release and not to the host: a rollback brings back the entry, the paths and the commands, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class Application:
    """An application, as plugins/plugin_utils/discovery found it in the artefact or variables state it."""

    module: str
    """module:attribute of the ASGI application, or module:function()."""
    folder: str = ""
    """Below the release's folder, what has to be on Python's path beside it."""
    lock: str = "poetry.lock"
    python: str = ""
    """A version of Python that uv installs; empty for the host's own."""
    root_path: str = ""
    """The prefix of public addresses that nginx removes; the application builds its own addresses with it."""
    ready_path: str = "/"
    ready_answers: str = "success"
    """What a healthy answer is: `success` (2xx) or `any` (below 500: no health path is known)."""
    scheme: str = "http"
    """That of public addresses, which the health check claims as a proxy does."""
    settings_command: list[str] = field(default_factory=list)
    alembic: str = ""
    """Path of alembic.ini; empty for an application without migrations."""
    schema_command: list[str] = field(default_factory=list)
    """Creates or changes the tables of an application without Alembic."""
    seed_command: list[str] = field(default_factory=list)
    preload_modules: list[str] = field(default_factory=list)
    database: dict[str, str] = field(default_factory=dict)
    """Names of settings by what they hold: host, port, user, password, name, url, tls_ca; empty: no database."""

    @classmethod
    def of(cls, folder: Path) -> Application | None:
        """Return the application of the release in ``folder``; None for a release that states none (an older one)."""
        try:
            stated = json.loads((folder / "release.json").read_text()).get("application")
        except FileNotFoundError:
            return None
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in stated.items() if name in known}) if stated else None
