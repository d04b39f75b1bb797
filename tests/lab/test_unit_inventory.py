"""The inventory: what `lab up` writes, and what hosts.py prints with any python3."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import access
from lab.config import Lab

SCRIPT = Path(__file__).resolve().parents[2] / "inventory/lab/hosts.py"


def make_lab(checkout: Path, name: str = "lab") -> Lab:
    lab = Lab.from_environment({"LAB_NAME": name})
    return Lab(name=lab.name, network=lab.network, checkout=checkout, state_root=checkout / "state")


def run_script(checkout: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "inventory/lab/hosts.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SCRIPT, script)
    env = {"PATH": "/usr/bin:/bin", **environ}
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False, env=env)


def listing(checkout: Path, **environ: str) -> dict[str, Any]:
    result = run_script(checkout, "--list", **environ)
    assert result.returncode == 0, result.stderr
    inventory: dict[str, Any] = json.loads(result.stdout)
    return inventory


@pytest.mark.parametrize("name", ["lab", "test"])
def test_defaults_are_what_up_would_write(tmp_path: Path, name: str) -> None:
    lab = make_lab(tmp_path, name)
    written = access.inventory(lab, lab.default_hosts(), python_index_url="")
    del written["all"]["vars"]["python_index_url"]  # known at run time only
    assert listing(tmp_path, LAB_NAME=name) == written


def test_prints_what_up_wrote(tmp_path: Path) -> None:
    path = tmp_path / ".lab/lab/inventory.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"dev": {"hosts": ["dev1"]}}')
    assert listing(tmp_path) == {"dev": {"hosts": ["dev1"]}}


def test_a_broken_file_is_an_error_and_no_empty_inventory(tmp_path: Path) -> None:
    path = tmp_path / ".lab/lab/inventory.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    result = run_script(tmp_path, "--list")
    assert result.returncode == 1
    assert str(path) in result.stderr


def test_host_variables_are_not_asked_one_by_one(tmp_path: Path) -> None:
    assert run_script(tmp_path, "--host", "dev1").stdout.strip() == "{}"


def test_keys_are_private_and_pinned_by_name_and_address(tmp_path: Path) -> None:
    lab = make_lab(tmp_path)
    access.ensure_keys(lab, lab.default_hosts())
    key = lab.ssh_key.read_text()
    access.ensure_keys(lab, lab.default_hosts())
    assert lab.ssh_key.read_text() == key
    assert lab.ssh_key.stat().st_mode & 0o777 == 0o600
    pinned = [line.split()[0] for line in lab.known_hosts.read_text().splitlines()]
    assert pinned == ["dev1,dev1.waffle.lab,10.203.0.11", "prod1,prod1.waffle.lab,10.203.0.21"]


def test_checking_host_keys_is_never_off(tmp_path: Path) -> None:
    options = access.ssh_options(make_lab(tmp_path))
    assert "StrictHostKeyChecking=yes" in options


def test_the_index_of_pip_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    assert access.python_index_url() == "https://index.example/simple"
