"""The module that sees that no package is older than it was."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from tests.support import module_at

package_versions = module_at("plugins/modules/package_versions.py")
pytestmark = pytest.mark.skipif(not shutil.which("dpkg"), reason="versions are compared by dpkg")


class Packages:
    """Plays the packages of a host: what is installed, and what its sources offer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, record: Path) -> None:
        self.installed: dict[str, str] = {"nginx": "1.26.3-3", "tzdata": "2026a-1"}
        self.offered: dict[str, str] = dict(self.installed)
        self.upgraded: list[str] = []
        self.record = record
        monkeypatch.setattr(package_versions, "installed", lambda: dict(self.installed))
        monkeypatch.setattr(package_versions.AnsibleModule, "run_command", self.upgrade)

    def upgrade(self, command: list[str], **options: Any) -> tuple[int, str, str]:
        assert command[:2] == ["apt-get", "install"] and "--only-upgrade" in command
        names = [word for word in command if word in self.installed]
        self.upgraded += names
        self.installed.update({name: self.offered[name] for name in names})
        return 0, "", ""

    def run(self, capsys: pytest.CaptureFixture[str], check: bool = False) -> dict[str, Any]:
        arguments = {"record": str(self.record), "_ansible_check_mode": check}
        with patch_module_args(arguments), contextlib.suppress(SystemExit):
            package_versions.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packages:
    return Packages(monkeypatch, tmp_path / "lib/packages.json")


def test_a_package_that_was_taken_back_is_upgraded(packages: Packages, capsys: pytest.CaptureFixture[str]) -> None:
    assert packages.run(capsys)["changed"] is False
    packages.installed["nginx"] = "1.26.3-2"
    words = ["nginx is 1.26.3-2, and was 1.26.3-3"]
    assert packages.run(capsys, check=True)["changed_paths"] == words
    assert packages.upgraded == []
    assert packages.run(capsys)["changed_paths"] == words
    assert packages.upgraded == ["nginx"]
    assert packages.run(capsys)["changed"] is False


def test_an_upgrade_is_recorded_and_no_change(packages: Packages, capsys: pytest.CaptureFixture[str]) -> None:
    packages.run(capsys)
    packages.installed["nginx"] = "1.28.0-1"
    assert packages.run(capsys)["changed"] is False
    assert json.loads(packages.record.read_text())["nginx"] == "1.28.0-1"


def test_what_is_not_offered_any_more_is_taken_as_it_is(packages: Packages, capsys: pytest.CaptureFixture[str]) -> None:
    packages.run(capsys)
    packages.installed["nginx"] = packages.offered["nginx"] = "1.22.1-9"
    assert packages.run(capsys)["changed"] is True
    assert packages.run(capsys)["changed"] is False


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_spoilt_record_is_written_anew(packages: Packages, capsys: pytest.CaptureFixture[str], text: str) -> None:
    packages.record.parent.mkdir()
    packages.record.write_text(text)
    assert packages.run(capsys)["changed"] is False
    assert json.loads(packages.record.read_text()) == packages.installed


def test_a_dry_run_records_nothing(packages: Packages, capsys: pytest.CaptureFixture[str]) -> None:
    assert packages.run(capsys, check=True)["changed"] is False
    assert not packages.record.exists()


def test_versions_are_compared_as_dpkg_does() -> None:
    assert package_versions.is_older("1.0~rc1-1", "1.0-1")
    assert not package_versions.is_older("1:1.0", "2.0")


def test_a_host_is_known_after_its_first_run(packages: Packages, capsys: pytest.CaptureFixture[str]) -> None:
    assert packages.run(capsys, check=True)["first"] is True
    assert packages.run(capsys)["first"] is True
    assert packages.run(capsys)["first"] is False


def test_what_is_installed_is_a_fact_without_architectures(
    packages: Packages, capsys: pytest.CaptureFixture[str]
) -> None:
    packages.installed["libc6:amd64"] = "2.41-12"
    facts = packages.run(capsys, check=True)["ansible_facts"]
    assert facts == {"installed_packages": ["libc6", "nginx", "tzdata"]}
