"""What both environments render from their real variables is taken by those who read it: nginx, systemd, `Settings`."""

from __future__ import annotations

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import World

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(("host", "environment"), [("dev1", "dev"), ("prod1", "prod")])
def test_those_who_read_the_files_take_them(here: World, converged: Converged, host: str, environment: str) -> None:
    assert here.shell(host, "nginx -t -q 2>&1") == ""
    units = "nba@blue.service nba@green.service nba@blue.socket nba@green.socket"
    assert here.shell(host, f"systemd-analyze verify --man=no --recursive-errors=one {units} 2>&1") == ""
    live = here.status(host)["live"]
    check = here.execute(host, "nba-release", "exec", live, "python", "-m", "nba.settings")
    assert check.startswith("settings ok: 14 keys")
    assert f"ENVIRONMENT={environment}\n" in here.execute(host, "cat", "/srv/nba/live/release/.env")
