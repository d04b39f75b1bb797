"""What a release states about its application, and its settings as an environment."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import module_at

application = module_at("roles/app/files/application.py")
environment = module_at("roles/app/files/environment.py")


def test_a_release_states_its_application(tmp_path: Path) -> None:
    stated = {"module": "club.main:app", "folder": "src", "ready_path": "/healthz", "later": "unknown"}
    (tmp_path / "release.json").write_text(json.dumps({"release": "a", "application": stated}))
    found = application.Application.of(tmp_path)
    assert (found.module, found.folder, found.ready_path, found.alembic) == ("club.main:app", "src", "/healthz", "")


def test_an_older_release_states_none(tmp_path: Path) -> None:
    assert application.Application.of(tmp_path) is None
    (tmp_path / "release.json").write_text('{"release": "a"}')
    assert application.Application.of(tmp_path) is None


def test_the_settings_of_the_migration_account_come_second(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DB_USER=nba\nDB_NAME='o${:-\\}n\\'e'\n")
    assert environment.settings_of(tmp_path, migration=True) == {"DB_USER": "nba", "DB_NAME": "o\\n'e"}
    (tmp_path / ".env.migrate").write_text("DB_USER=nba_migrate\n")
    assert environment.settings_of(tmp_path)["DB_USER"] == "nba"
    assert environment.settings_of(tmp_path, migration=True)["DB_USER"] == "nba_migrate"
