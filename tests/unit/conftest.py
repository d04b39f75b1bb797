"""A host with the release program, for the tests of its parts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.releases import (
    CONFIG,
    Clock,
    Config,
    Host,
    Marks,
    Preparation,
    Run,
    Schema,
    Slot,
    Systemd,
    basics,
    bundles,
    deploy,
    gate,
    put,
    runtimes,
    schema,
    slots,
    stand_in,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "srv"
    for folder in ("releases", "venvs", "servers", "images", "state", "slots/blue", "slots/green"):
        (root / folder).mkdir(parents=True)
    for slot in slots.SLOTS:
        (root / "slots" / slot / "socket").symlink_to(tmp_path / f"{slot}.sock")
    return root


@pytest.fixture
def systemd(root: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    systemd = Systemd(root)
    stand_in(monkeypatch, basics.run, systemd.run)
    monkeypatch.setattr(Slot, "ask", lambda slot, path, **_: systemd.ask(slot))
    monkeypatch.setattr(Path, "is_socket", lambda path: path.is_symlink())
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Run, "active", lambda run: False)
    monkeypatch.setattr(Schema, "refuse_interrupted", lambda schema: None)
    stand_in(monkeypatch, schema.recorded, lambda root: systemd.revision)
    # A slot's name stands for the id of its process.
    monkeypatch.setattr(Slot, "main", lambda slot: slot.name if slot.service in systemd.active else "0")
    stand_in(monkeypatch, slots.alive, lambda main: f"nba@{main}.service" in systemd.active)
    monkeypatch.setattr(gate, "workers_of", lambda main: set())
    return systemd


@pytest.fixture
def clock(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def host(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "release.json").write_text(json.dumps({**CONFIG, "root": str(root)}))
    monkeypatch.setattr(slots, "CONFIG", tmp_path / "release.json")
    return Host(Config.load())


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Play the groups of the host; return who was given which secret."""
    given: dict[str, int] = {}
    groups = {"nba": 901, "nba-migrate": 902}
    monkeypatch.setattr(bundles.grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=groups[name]))

    def chown(path: Path, uid: int, gid: int) -> None:
        if gid != -1:  # tarfile leaves the group as it is
            given[Path(path).name] = gid

    monkeypatch.setattr(bundles.os, "chown", chown)
    return given


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Play the installation of dependencies and the check of the settings."""
    calls: list[str] = []
    monkeypatch.setattr(runtimes.Venv, "make", lambda venv, folder: calls.append("venv"))
    monkeypatch.setattr(Preparation, "check_settings", lambda host, folder: calls.append("settings"))
    return calls


@pytest.fixture
def moved_on(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a host whose live release brought another schema."""
    for name, systemd.revision in (("old", "0001"), ("new", "0002")):
        put(host, name)
        deploy(host, name)
    stand_in(monkeypatch, Schema, Marks)
    monkeypatch.setattr(Marks, "unmarked", [])
    return host
