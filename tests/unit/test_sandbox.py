"""The parts of the unit's sandbox that an application may have opened."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.waffle.iron.plugins.module_utils import sandbox
from ansible_collections.waffle.iron.plugins.module_utils.doctor import service
from ansible_collections.waffle.iron.plugins.module_utils.host_state.digests import SecretDigests
from ansible_collections.waffle.iron.plugins.modules import host_state

from tests.support import ROOT, module_at, rendered

waffle = module_at("plugins/filter/waffle.py")
OPENED = {"MemoryDenyWriteExecute": False, "SystemCallFilter": ["@resources", "@chown"]}
LINES = ["MemoryDenyWriteExecute=false", "SystemCallFilter=@resources", "SystemCallFilter=@chown"]


def test_the_unit_has_what_is_opened_after_its_own() -> None:
    assert waffle.sandbox(OPENED) == LINES
    closed = rendered("app", "app@.service.j2", __app_opened=[])
    unit = rendered("app", "app@.service.j2", __app_opened=LINES)
    added = [line for line in unit.splitlines() if line not in closed.splitlines()]
    assert [line for line in added if not line.startswith("#")] == LINES
    assert unit.index("MemoryDenyWriteExecute=true") < unit.index("MemoryDenyWriteExecute=false")
    assert unit.index(LINES[-1]) < unit.index("[Install]")
    # A host on which nothing is opened has the unit of before.
    assert "app_sandbox" not in closed


@pytest.mark.parametrize("name", sandbox.RELAXATIONS)
def test_each_part_is_closed_by_the_unit_and_explained(name: str) -> None:
    unit = (ROOT / "roles/app/templates/app@.service.j2").read_text()
    closed = re.findall(rf"^{name}=(.+)$", unit, flags=re.MULTILINE)
    assert closed and set(sandbox.RELAXATIONS[name]).isdisjoint(closed)
    page = (ROOT / "docs/beside.md").read_text()
    for value, words in sandbox.RELAXATIONS[name].items():
        assert words.startswith("the application ") and len(words) < 120, value
        assert f"| `{name}` | `{value}` | {words.removeprefix('the application ')} |" in page


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "is no mapping"),
        (
            {"ProtectSystem": False},
            "ProtectSystem cannot be opened. Fix: remove it, or use one of MemoryDenyWriteExecute",
        ),
        ({"MemoryDenyWriteExecute": True}, "does not take true. Fix: set false, or remove it"),
        ({"ProtectHome": False}, "ProtectHome does not take false. Fix: set read-only"),
        ({"ProcSubset": ["all", "all"]}, "ProcSubset does not take all, all"),
        ({"SystemCallFilter": []}, "does not take an empty list. Fix: set some of @resources"),
        ({"SystemCallFilter": ["@resources", "@raw-io"]}, "SystemCallFilter does not take @raw-io"),
        ({"RestrictAddressFamilies": "AF_NETLINK\nUser=root"}, "RestrictAddressFamilies does not take AF_NETLINK\n"),
    ],
)
def test_what_is_in_no_table_is_refused(value: Any, words: str) -> None:
    (finding,) = sandbox.findings(value)
    assert words in finding
    with pytest.raises(AnsibleFilterError, match="app_sandbox: "):
        waffle.sandbox(value)


def test_one_value_or_several_are_added() -> None:
    assert list(sandbox.findings({"RestrictAddressFamilies": "AF_NETLINK", **OPENED})) == []
    assert list(sandbox.opened({"RestrictAddressFamilies": "AF_NETLINK"})) == ["RestrictAddressFamilies=AF_NETLINK"]


def test_the_doctor_tells_what_is_open(tmp_path: Path) -> None:
    assert service.sandbox(tmp_path).checked == []
    (tmp_path / "sandbox.json").write_text(json.dumps(OPENED))
    area = service.sandbox(tmp_path)
    assert area.findings == [] and len(area.checked) == len(LINES)
    assert area.checked[0].startswith("MemoryDenyWriteExecute=false (the application may run code")


def test_parity_compares_what_is_open(tmp_path: Path) -> None:
    host = host_state.Host("waffle-test", SecretDigests("key"), "")
    host.library = str(tmp_path)
    assert not any(key.startswith("sandbox: ") for key in host.application())
    (tmp_path / "sandbox.json").write_text(json.dumps(OPENED))
    facts = host.application()
    assert [key for key in facts if key.startswith("sandbox: ")] == [f"sandbox: {line}" for line in LINES]
    assert facts["sandbox: SystemCallFilter=@chown"] == sandbox.RELAXATIONS["SystemCallFilter"]["@chown"]
