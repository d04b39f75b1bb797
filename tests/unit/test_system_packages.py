"""The Debian packages that an application needs on its hosts."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery import system_packages
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import Lock, Package
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source

from tests.support import ROOT, module_at, yaml_at
from tests.unit.test_application import described

waffle = module_at("plugins/filter/waffle.py")


def lock(*names: str) -> Lock:
    return Lock("uv.lock", tuple(Package(name, "1") for name in names))


@pytest.mark.parametrize("name", ["libpango-1.0-0", "libstdc++6", "0ad"])
def test_names_of_debian_are_taken(name: str) -> None:
    assert waffle.package_names([name]) == [name]


@pytest.mark.parametrize(
    "value",
    [
        "libmagic1",
        {"libmagic1": ""},
        ["LibMagic1"],
        ["libmagic1=5"],
        ["./a.deb"],
        ["nginx-"],
        ["a.deb-"],
        ["-o"],
        ["a"],
        [1],
        [""],
    ],
)
def test_anything_else_is_refused(value: Any) -> None:
    (finding,) = system_packages.findings(value)
    assert ". Fix: " in finding
    with pytest.raises(AnsibleFilterError, match="app_packages: "):
        waffle.package_names(value)


def test_a_package_of_the_lock_that_needs_others_is_named() -> None:
    (words,) = system_packages.warnings(lock("weasyprint", "fastapi"), ["libpango-1.0-0"])
    assert words.startswith(
        "uv.lock has weasyprint, which needs libpangoft2-1.0-0 and libharfbuzz-subset0 on the hosts."
    )
    assert words.endswith("`app_packages: [libpangoft2-1.0-0, libharfbuzz-subset0]` in group_vars/all/vars.yml")


def test_what_hosts_get_is_not_named() -> None:
    needed = system_packages.NEEDED
    assert all(system_packages.NAME.fullmatch(name) for names in needed.values() for name in names)
    # Each is looked for by the name that a lock file has.
    for package, names in needed.items():
        assert len(list(system_packages.warnings(lock(package), []))) == 1
        assert list(system_packages.warnings(lock(package), names)) == []
        assert list(system_packages.warnings(lock(package), [f"{name}t64" for name in names])) == []
    assert list(system_packages.warnings(lock("psycopg2-binary", "opencv-python-headless"), [])) == []
    assert list(system_packages.warnings(None, [])) == []


def test_the_block_of_preflight_has_the_warning() -> None:
    locked = f"python-magic==0.4.27 --hash=sha256:{'0' * 64}\n"
    found = Source({"main.py": "from fastapi import FastAPI\napp = FastAPI()\n", "requirements.txt": locked})
    expected = "requirements.txt has python-magic, which needs libmagic1"
    assert expected in " ".join(described(found, system_packages=[])[1].split())
    assert expected not in " ".join(described(found, system_packages=["libmagic1"])[1].split())
    # An image has packages of its own.
    assert expected not in " ".join(described(found)[1].split())


def test_they_are_installed_before_a_release_is_prepared() -> None:
    tasks = [task["name"] for task in yaml_at("roles/app/tasks/service.yml")]
    assert tasks.index("Install the packages of the application") < tasks.index("Install the programs and units")
    gather = (ROOT / "roles/app/tasks/gather.yml").read_text()
    assert "import_tasks: service.yml" in gather
