"""Locked packages that hosts could not install, found before any host is touched."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import IMAGES, Host, is_known, possible
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import Lock, applies, present, read, shown
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.packages import (
    accepts,
    lock_findings,
    package_findings,
    package_warnings,
    python_findings,
    python_of,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source

from tests.support import ROOT

(TRIXIE,) = possible("debian-13", "x86_64", "")
(BOOKWORM,) = possible("debian-12", "x86_64", "")
POETRY = """
[[package]]
name = "{name}"
version = "1.0"
optional = false
groups = ["main"]
{more}
files = [{files}]
"""


def poetry(name: str = "thing", more: str = "", files: tuple[str, ...] = ()) -> str:
    """Return a package as poetry.lock has it; ``more`` may end in tables."""
    listed = ", ".join(f'{{file = "{file}", hash = "sha256:0"}}' for file in files)
    return POETRY.format(name=name, more=more, files=listed)


def locked(text: str, path: str = "poetry.lock") -> Source:
    return Source({path: text})


def found(text: str, path: str = "poetry.lock", hosts: Any = (TRIXIE,), from_source: tuple[str, ...] = ()) -> list[str]:
    return list(package_findings(locked(text, path), path, list(hosts), from_source))


def names(text: str, path: str, host: Host = TRIXIE) -> list[str]:
    return [package.name for package in read(locked(text, path), path, host.surroundings).packages]


# --- wheels ---


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("thing-1.0-py3-none-any.whl", True),
        ("thing-1.0-py2.py3-none-any.whl", True),
        ("thing-1.0-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("thing-1.0-cp313-cp313-manylinux_2_41_x86_64.whl", True),
        ("thing-1.0-cp313-cp313-manylinux1_x86_64.whl", True),
        ("thing-1.0-cp39-abi3-manylinux_2_28_x86_64.whl", True),
        ("thing-1.0-cp313-none-linux_x86_64.whl", True),
        ("thing-1.0-cp313-cp313-manylinux_2_42_x86_64.whl", False),
        ("thing-1.0-cp313-cp313t-manylinux_2_17_x86_64.whl", False),
        ("thing-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", False),
        ("thing-1.0-cp314-abi3-manylinux_2_17_x86_64.whl", False),
        ("thing-1.0-cp313-cp313-manylinux_2_17_aarch64.whl", False),
        ("thing-1.0-cp313-cp313-musllinux_1_2_x86_64.whl", False),
        ("thing-1.0-cp313-cp313-win_amd64.whl", False),
        ("thing.whl", False),
    ],
)
def test_a_wheel_fits_by_its_name(wheel: str, fits: bool) -> None:
    assert TRIXIE.takes(wheel) == fits
    assert bool(found(poetry(files=(wheel,)))) != fits


def test_a_package_without_a_wheel_for_the_host_is_named_with_the_ways_out() -> None:
    text = poetry(files=("thing-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", "thing-1.0.tar.gz"))
    (finding,) = found(text)
    assert finding == (
        "thing 1.0: poetry.lock has no wheel for Python 3.13 (debian-13 on x86_64), and hosts install wheels "
        "alone. Fix: a version that has one (`poetry update --lock thing`, commit poetry.lock); or have hosts build "
        "it: `packages_from_source: [thing]` and what that takes, as `base_extra_packages: [gcc, python3-dev]`"
    )
    assert found(text, from_source=("Thing",)) == []
    assert len(found(poetry(files=("thing-1.0.tar.gz",)))) == 1, "what has its source alone would be built, too"
    (without,) = found(poetry(files=("thing-1.0-cp312-cp312-manylinux_2_17_x86_64.whl",)))
    assert "packages_from_source" not in without


def test_hosts_that_nobody_has_described_are_believed_to_fit() -> None:
    text = poetry(files=("thing-1.0-cp312-cp312-manylinux_2_17_aarch64.whl",))
    assert found(text, hosts=possible("", "", "")) == []
    assert found(text, hosts=possible("ubuntu-24.04", "", "")) == []
    assert len(found(text, hosts=possible("ubuntu-24.04", "x86_64", ""))) == 1
    assert len(found(text, hosts=possible("debian-12", "", ""))) == 1
    (everywhere,) = found(poetry(files=("thing-1.0-cp310-cp310-win_amd64.whl",)), hosts=possible("", "", ""))
    assert "Python 3.11, 3.13, 3.12" in everywhere


def test_what_a_host_does_not_install_needs_no_wheel() -> None:
    windows = ("thing-1.0-cp313-cp313-win_amd64.whl",)
    for more in ("markers = \"sys_platform == 'win32'\"", "markers = {main = \"python_version < '3.12'\"}"):
        assert found(poetry(more=more, files=windows)) == []
    assert found(poetry(files=windows).replace('["main"]', '["dev"]')) == []
    assert found(poetry(files=windows).replace("optional = false", "optional = true")) == []
    # Poetry 1 does not say which packages are for development.
    assert found(poetry(files=windows).replace('groups = ["main"]\n', "")) == []


@pytest.mark.parametrize(
    "marker",
    ["python_version <", "nonsense == '1'", "sys_platform ~= 'linux'", "'dev' in dependency_groups"],
    ids=["invalid", "unknown name", "undefined comparison", "undefined name"],
)
def test_a_package_whose_marker_cannot_be_read_counts(marker: str) -> None:
    """One that is looked at for nothing costs little; one that is passed over fails on the host."""
    assert applies(marker, TRIXIE.surroundings)
    assert not applies("sys_platform == 'win32'", TRIXIE.surroundings)


def test_a_uv_lock_is_followed_from_the_project() -> None:
    text = """
[[package]]
name = "shop"
version = "1"
source = { editable = "." }
dependencies = [{ name = "a", extra = ["x"] }, { name = "w", marker = "sys_platform == 'win32'" }]
[package.dev-dependencies]
dev = [{ name = "d" }]
[[package]]
name = "a"
version = "1"
source = { registry = "https://index.example/simple" }
dependencies = [{ name = "b", version = "2", marker = "python_full_version >= '3.13'" }, { name = "b", version = "1" }]
[package.optional-dependencies]
x = [{ name = "c" }]
[[package]]
name = "b"
version = "1"
source = { registry = "https://index.example/simple" }
[[package]]
name = "b"
version = "2"
source = { registry = "https://index.example/simple" }
dependencies = [{ name = "a" }]
[[package]]
name = "c"
version = "1"
source = { registry = "https://other.example/simple" }
wheels = [{ url = "https://other.example/c-1-cp312-cp312-win_amd64.whl" }]
[[package]]
name = "w"
version = "1"
source = { registry = "https://index.example/simple" }
dependencies = [{ name = "v" }]
[[package]]
name = "v"
version = "1"
source = { registry = "https://index.example/simple" }
[[package]]
name = "d"
version = "1"
source = { registry = "https://index.example/simple" }
"""
    assert names(text, "uv.lock") == ["a", "b", "b", "c"]
    assert names(text, "uv.lock", BOOKWORM) == ["a", "b", "c"]
    assert [line.partition(":")[0] for line in found(text, "uv.lock")] == ["a 1", "b 1", "b 2", "c 1"]
    (warning,) = package_warnings(
        locked(text, "uv.lock"), read(locked(text, "uv.lock"), "uv.lock", TRIXIE.surroundings)
    )
    assert warning.startswith("uv.lock takes c from https://other.example/simple")


def test_other_locks_are_read_as_well() -> None:
    pylock = """
lock-version = "1.0"
[[packages]]
name = "a"
version = "1"
wheels = [{ url = "https://index.example/a-1-cp312-cp312-win_amd64.whl" }]
[[packages]]
name = "b"
marker = "sys_platform == 'win32'"
"""
    assert names(pylock, "pylock.toml") == ["a"]
    assert len(found(pylock, "pylock.toml")) == 1
    text = "a==1 \\\n    --hash=sha256:0\nb[x]==2 ; sys_platform == 'win32' \\\n    --hash=sha256:1\n"
    assert names(text, "requirements.txt") == ["a"]
    assert found(text, "requirements.txt") == []


@pytest.mark.parametrize("app", ["app", "tests/apps/tutorial", "tests/apps/team", "tests/apps/small"])
def test_our_own_applications_fit_every_host(app: str) -> None:
    (path,) = (name for name in ("poetry.lock", "uv.lock", "requirements.txt") if (ROOT / app / name).is_file())
    source = Source({path: (ROOT / app / path).read_text()})
    for host in possible("debian-13", "", ""):
        lock = read(source, path, host.surroundings)
        assert lock.package("fastapi") and not lock.package("pytest") and not lock.package("colorama")
        assert list(package_findings(source, path, [host], [])) == []


# --- where packages come from ---


@pytest.mark.parametrize("url", ["git@git.example.com:a/b.git", "ssh://git@git.example.com/a/b.git"])
def test_a_package_that_takes_a_key_is_named(url: str) -> None:
    text = poetry() + f'[package.source]\ntype = "git"\nurl = "{url}"\n'
    (finding,) = found(text)
    assert finding.startswith(f"thing: poetry.lock takes it from {shown(url)}, and hosts have no key for that. Fix: ")
    line = f"thing @ git+{'ssh://git@git.example.com/a/b.git' if url.startswith('git@') else url}@main"
    assert len(found(f"{line}\n--hash=", "requirements.txt")) == 1


def test_a_public_repository_is_none_of_them() -> None:
    assert found(poetry() + '[package.source]\ntype = "git"\nurl = "https://git.example.com/a/b.git"\n') == []


def test_an_index_of_one_s_own_is_a_warning_without_its_credentials() -> None:
    source = '[package.source]\ntype = "legacy"\nurl = "https://me:hunter2@index.example/simple"\nreference = "own"\n'
    text = poetry(files=("thing-1.0-py3-none-any.whl",)) + source
    lock = read(locked(text), "poetry.lock", TRIXIE.surroundings)
    (warning,) = package_warnings(locked(text), lock)
    assert warning.startswith("poetry.lock takes thing from https://index.example/simple: each host has to reach it")
    text = "--extra-index-url https://me:hunter2@index.example/simple\na==1 --hash=sha256:0\n"
    (warning,) = package_warnings(locked(text, "requirements.txt"), Lock("requirements.txt", ()))
    assert "https://index.example/simple" in warning and "hunter2" not in warning


# --- which lock file ---


def test_two_lock_files_are_a_question() -> None:
    texts = {"uv.lock": "", "poetry.lock": "", "requirements.txt": "a==1"}
    locks = present(Source(texts))
    assert locks == ["uv.lock", "poetry.lock"]
    (finding,) = lock_findings(locks, "")
    assert finding.startswith("uv.lock and poetry.lock: the application has 2 lock files, and they may disagree. Fix: ")
    assert list(lock_findings(locks, "poetry.lock")) == []
    assert list(lock_findings(["poetry.lock"], "")) == list(lock_findings([], "")) == []
    (finding,) = lock_findings(["poetry.lock"], "uv.lock")
    assert finding.startswith("lock_file: 'uv.lock' is not in the application, which has poetry.lock. Fix: ")


# --- Python ---


@pytest.mark.parametrize(
    ("text", "specifier", "fitting"),
    [
        ('[project]\nrequires-python = ">=3.13"', ">=3.13", ["debian-13"]),
        ('[project]\nrequires-python = ">=3.10, <3.15"', ">=3.10,<3.15", ["debian-12", "debian-13", "ubuntu-24.04"]),
        ('[tool.poetry.dependencies]\npython = "^3.12"', ">=3.12,<4", ["debian-13", "ubuntu-24.04"]),
        ('[tool.poetry.dependencies]\npython = "~3.11"', ">=3.11,<3.12", ["debian-12"]),
        ('[tool.poetry.dependencies]\npython = "3.12"', "==3.12.*", ["ubuntu-24.04"]),
        ('[tool.poetry.dependencies]\npython = "*"', "", ["debian-12", "debian-13", "ubuntu-24.04"]),
        ('[tool.poetry.dependencies]\npython = "~3.8 || ^3.10"', "~3.8 || ^3.10", [*sorted(IMAGES)]),
        ("not TOML", "", ["debian-12", "debian-13", "ubuntu-24.04"]),
    ],
)
def test_the_python_is_held_against_the_hosts(text: str, specifier: str, fitting: list[str]) -> None:
    assert python_of(Source({"pyproject.toml": text})) == specifier
    assert sorted(image for image, host in IMAGES.items() if accepts(specifier, host.python)) == fitting
    for image in IMAGES:
        assert bool(list(python_findings(specifier, possible(image, "", "")))) == (image not in fitting)
    assert list(python_findings(specifier, possible("", "", ""))) == []


def test_a_python_that_hosts_have_not_is_named_with_the_ways_out() -> None:
    (finding,) = python_findings(">=3.13", [BOOKWORM])
    assert finding == (
        "Python: the application takes >=3.13 (requires-python), and debian-12 has 3.11.2. Fix: `app_python_version: "
        '"3.13"` in group_vars/all/vars.yml, which uv installs on the hosts; hosts with '
        "machine_image: debian-13; an interpreter of your own on the hosts, named by app_python "
        "(as /usr/bin/python3.14); or a wider requires-python, and a new lock"
    )
    (finding,) = python_findings(">=3.14", possible("", "", ""))
    assert 'ubuntu-24.04 has 3.12.3. Fix: `app_python_version: "3.14"` in group_vars/all/vars.yml' in finding
    (finding,) = python_findings("<3.9", possible("", "", ""))
    assert "debian-12 has 3.11.2, debian-13 has 3.13.5, ubuntu-24.04 has 3.12.3. Fix: an interpreter" in finding


@pytest.mark.parametrize(
    ("python", "known"),
    [("", True), ("/usr/bin/python3", True), ("/opt/bin/python3.14", True), ("/opt/python/bin/python3", False)],
)
def test_of_an_interpreter_without_a_version_nothing_is_said(python: str, known: bool) -> None:
    assert is_known(python) is known


def test_an_interpreter_of_one_s_own_has_the_version_in_its_name() -> None:
    hosts = possible("debian-12", "arm64", "/opt/python/bin/python3.14")
    assert [(host.python, host.machine) for host in hosts] == [("3.14.99", "aarch64")]
    assert list(python_findings(">=3.14.2", hosts)) == []
    assert hosts[0].takes("thing-1.0-cp314-cp314-manylinux_2_17_aarch64.whl")
    assert possible("unknown", "x86_64", "/usr/bin/python3") == possible("", "x86_64", "")
