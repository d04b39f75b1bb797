"""The build of a virtual environment, with systemd and the accounts played: who runs it, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.releases import Config, Host, ReleaseError, runtimes

builder = sys.modules["builder"]


class Unit:
    """Plays systemd-run: the build leaves a file, or what a test has it leave."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.owned: dict[str, tuple[int, int]] = {}
        self.leaves: Callable[[Path], object] = lambda venv: None
        self.codes = {"nba-build.service": 0, "nba-build-check.service": 0}
        self.venv = Path()
        self.script: list[str] = []
        self.says = "what Poetry says\n"

    def run(self, *command: object, **_: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        self.told.append(words)
        if words[0] != "systemd-run":
            assert words == ["systemctl", "stop", "nba-build.service"]
            return subprocess.CompletedProcess(words, 5, "", "")
        unit = self.option("--unit")
        if unit == "nba-build.service":
            self.venv = Path(self.option("--property=ReadWritePaths").partition("=")[2])
            self.sources = sorted(path.name for path in (self.venv / ".build/source").iterdir())
            self.script = words[words.index("-euc") + 1 :]
            (self.venv / "lib").mkdir()
            (self.venv / "lib/module.py").write_text("VALUE = 1\n")
            (self.venv / "bin").mkdir()
            (self.venv / "bin/python").symlink_to(self.script[2])
            (self.venv / "bin/tool").write_text("#!/bin/sh\n")
            (self.venv / "bin/tool").chmod(0o700)
            self.leaves(self.venv)
        return subprocess.CompletedProcess(words, self.codes[unit], self.says, "")

    def option(self, name: str) -> str:
        """Return the value of an option of the last command."""
        return next(word.partition("=")[2] for word in self.told[-1] if word.startswith(f"{name}="))

    def of(self, unit: str) -> set[str]:
        """Return the command line of a unit."""
        return next(set(words) for words in self.told if f"--unit={unit}" in words)

    def chown(self, path: str | Path, user: int, group: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        self.owned[str(path)] = (user, group)


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> Unit:
    unit = Unit()
    monkeypatch.setattr(builder, "run", unit.run)
    monkeypatch.setattr(builder.os, "chown", unit.chown)
    monkeypatch.setattr(builder.pwd, "getpwnam", {"nba-build": SimpleNamespace(pw_uid=903, pw_gid=904)}.__getitem__)
    monkeypatch.setattr(runtimes, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Python 3.13.5", ""))
    return unit


def release(host: Any, name: str, **files: str) -> Path:
    """Unpack a release: its lock file, its secrets and, by name without dots, what else is in it."""
    folder: Path = host.releases.folder(name)
    folder.mkdir()
    known = {"poetry.lock": "# lock\n", "pyproject.toml": "[project]\n", "release.json": '{"artefact": "0123"}'}
    secrets = dict.fromkeys((".env", ".env.migrate", ".mysql.cnf"), "secret\n")
    for file, text in {**known, **secrets, **{key.replace("_", "."): text for key, text in files.items()}}.items():
        (folder / file).write_text(text)
    return folder


def made(host: Any, folder: Path) -> Path:
    """Return the virtual environment of a release."""
    found: Path = host.releases.runtime(folder).venv_for(folder)
    return found


def test_packages_are_installed_by_an_account_that_can_do_nothing_else(host: Any, unit: Unit) -> None:
    venv = made(host, release(host, "r1"))
    words = unit.of("nba-build.service")
    assert "--uid=nba-build" in words
    properties = {word.partition("=")[2] for word in words if word.startswith("--property=")}
    assert {"NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes"} <= properties
    assert [each for each in properties if each.startswith("ReadWritePaths=")] == [f"ReadWritePaths={venv}"]
    assert not any(each.startswith("LoadCredential=") for each in properties)
    root = host.config.root
    assert f"InaccessiblePaths=-{root}/state -{root}/releases -{root}/slots -{root}/images" in properties
    assert unit.sources == ["poetry.lock", "pyproject.toml"], "no secret comes near it"
    assert unit.owned[str(venv / ".build/source/poetry.lock")] == (903, 904)


def test_root_runs_no_python_of_a_virtual_environment(host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[list[str]]()

    def run(*command: object, **_: Any) -> subprocess.CompletedProcess[str]:
        told.append([str(word) for word in command])
        return subprocess.CompletedProcess([], 0, "Python 3.13.5", "")

    monkeypatch.setattr(runtimes, "run", run)
    host.releases.runtime(folder := release(host, "r1")).make(folder)
    assert [words[:4] for words in told] == [
        ["/usr/bin/python3", "-VV"],
        ["/usr/bin/python3", "-I", "-m", "compileall"],
    ]
    assert {words[0] for words in unit.told} == {"systemctl", "systemd-run"}


def test_what_was_built_is_root_s_whatever_the_umask_was(host: Any, unit: Unit) -> None:
    def leave(venv: Path) -> None:
        for path in (venv / "lib", venv / "lib/module.py"):
            path.chmod(path.stat().st_mode & 0o700)

    unit.leaves = leave
    umask = os.umask(0o077)
    try:
        venv = made(host, release(host, "r1"))
    finally:
        os.umask(umask)
    modes = {path.name: oct(path.lstat().st_mode & 0o7777) for path in (venv, *venv.rglob("*"))}
    assert {modes[name] for name in (venv.name, "lib", "bin", "tool")} == {"0o755"} and modes["module.py"] == "0o644"
    assert {unit.owned[str(path)] for path in (venv, *venv.rglob("*")) if path.name != ".complete"} == {(0, 0)}
    assert not (venv / ".build").exists()


def test_a_build_is_tried_by_the_service_account_without_a_network(host: Any, unit: Unit) -> None:
    unit.codes["nba-build-check.service"] = 1
    with pytest.raises(ReleaseError, match=r"(?s)nba cannot use the packages of poetry\.lock.*what Poetry says.*Fix"):
        made(host, release(host, "r1"))
    assert {"--uid=nba", "--property=PrivateNetwork=yes"} <= unit.of("nba-build-check.service")
    assert list((host.config.root / "venvs").iterdir()) == [], "it is not taken by the next run"


def outside(venv: Path) -> None:
    (venv / "lib/elsewhere").symlink_to("/etc/shadow")


def listening(venv: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        os.chdir(venv)  # a socket's path is short
        each.bind("socket")


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        (outside, r"lib/elsewhere is a link to /etc/shadow"),
        (lambda venv: (venv / "bin/tool").chmod(0o4755), "bin/tool is setuid or setgid"),
        (lambda venv: (venv / "lib").chmod(0o2755), "lib is setuid or setgid"),
        (lambda venv: os.mkfifo(venv / "lib/fifo"), "lib/fifo is a special file"),
        (listening, "socket is a special file"),
        (lambda venv: os.link(venv / "lib/module.py", venv / "lib/again.py"), "is a hard link"),
    ],
)
def test_what_no_package_needs_is_refused(
    host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch, leaves: Callable[[Path], None], words: str
) -> None:
    monkeypatch.chdir(host.config.root)
    unit.leaves = leaves
    with pytest.raises(ReleaseError, match=f"refused: .*{words}, which root will not own.*Fix: "):
        made(host, release(host, "r1"))
    assert (0, 0) not in unit.owned.values()
    assert list((host.config.root / "venvs").iterdir()) == []


@pytest.mark.parametrize("name", ["security.capability", "system.posix_acl_access", "system.posix_acl_default"])
def test_more_than_a_mode_says_is_refused(host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = {"module.py": ["user.any", name]}
    monkeypatch.setattr(builder.os, "listxattr", lambda path, follow_symlinks: found.get(Path(path).name, []))
    with pytest.raises(ReleaseError, match=f"module.py is marked with {name}"):
        made(host, release(host, "r1"))


def test_packages_that_cannot_be_installed_say_why(host: Any, unit: Unit) -> None:
    unit.codes["nba-build.service"] = 1
    with pytest.raises(ReleaseError, match=r"(?s)^the packages of poetry\.lock .*status 1:\nwhat"):
        made(host, release(host, "r1"))
    assert unit.told[-1][:2] == ["systemctl", "stop"], "nothing writes any more where it was"


def test_the_index_and_its_credentials_are_for_the_fetch_alone(
    host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine index.example.org login user password hunter2")
    monkeypatch.setattr(builder, "NETRC", netrc)
    private = Host(Config(**{**host.config.__dict__, "index_url": "https://index.example.org/simple"}))
    made(private, release(host, "r1"))
    words = unit.of("nba-build.service")
    assert f"--property=LoadCredential=netrc:{netrc}" in words
    assert "--setenv=NETRC=/run/credentials/nba-build.service/netrc" in words
    assert "--setenv=POETRY_PYPI_MIRROR_URL=https://index.example.org/simple" in words
    assert "netrc" not in str(unit.of("nba-build-check.service")) and "hunter2" not in str(unit.told)


def test_only_what_is_named_is_built_on_a_host(host: Any, unit: Unit) -> None:
    wheels_only = "--setenv=POETRY_INSTALLER_ONLY_BINARY=:all:"
    made(host, release(host, "r1"))
    assert wheels_only in unit.of("nba-build.service")
    unit.told.clear()
    building = Host(Config(**{**host.config.__dict__, "packages_from_source": ["PyYAML"]}))
    lock = '[[package]]\nname = "pyyaml"\n\n[[package]]\nname = "fastapi"\n'
    made(building, release(host, "r2", poetry_lock=lock))
    assert "--setenv=POETRY_INSTALLER_ONLY_BINARY=fastapi" in unit.of("nba-build.service")


def test_a_host_without_the_account_says_who_makes_it(host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.pwd, "getpwnam", {}.__getitem__)
    with pytest.raises(ReleaseError, match=r"nba-build, the account .* is not on this host\. Fix: .*app"):
        made(host, release(host, "r1"))


def test_a_package_that_brings_the_mark_of_a_finished_build_is_refused(host: Any, unit: Unit) -> None:
    unit.leaves = lambda venv: (venv / ".complete").touch()
    with pytest.raises(ReleaseError, match=r"refused: .*/\.complete, the mark of a finished build.*Fix: "):
        made(host, release(host, "r1"))
    assert list((host.config.root / "venvs").iterdir()) == []


def test_a_build_that_was_killed_is_never_taken_for_a_finished_one(host: Any, unit: Unit) -> None:
    folder = release(host, "r1")
    killed = host.config.root / "venvs" / host.releases.runtime(folder).key(folder)
    killed.mkdir()
    (killed / ".complete").touch()  # a wheel brought it
    found = made(host, folder)
    assert found.name == f"{killed.name}.1" and "nba-build.service" in str(unit.told)
    assert made(host, folder) == found, "a finished one is taken again"
    host.releases.integrity.manifest(found).unlink()
    (folder / ".venv").symlink_to(found)
    assert host.releases.runtime(folder).changes(folder) == ["it is not complete"]


def test_a_build_shares_no_memory_with_the_host(host: Any, unit: Unit) -> None:
    made(host, release(host, "r1"))
    for name in ("nba-build.service", "nba-build-check.service"):
        assert "--property=TemporaryFileSystem=/dev/shm:rw,nosuid,mode=1777" in unit.of(name)


# It does not reach systemd, or it runs the command after its own options.
SYSTEMD_RUN = """#!/bin/sh
echo called >>"$0.calls"
test "$(wc -l <"$0.calls")" -eq 1 && echo "Failed to start transient service unit: Connection refused" >&2 && exit 1
while test "$1" != --; do shift; done
shift
exec "$@"
"""


def test_a_build_is_not_repeated_for_what_it_says_itself(
    host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "systemd-run").write_text(SYSTEMD_RUN)
    (tmp_path / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    words = ("/bin/sh", "-c", "echo 'index: Connection refused' >&2; exit 7")
    done = builder.Builder(host.config).run("nba-build.service", "nba-build", [], words)
    assert (done.returncode, done.stderr) == (7, "")
    assert builder.reason(done) == "index: Connection refused"
    calls = (tmp_path / "systemd-run.calls").read_text().splitlines()
    assert len(calls) == 2, "repeated because systemd did not answer, and not because the index did not"


@pytest.mark.parametrize(
    ("written", "errors", "reason"),
    [
        ("Installing\n", "warning: old\nerror: no wheel\n", "error: no wheel"),
        ("checksums differ\n", "The poetry.lock is old\n", "The poetry.lock is old"),
        ("checksums differ\n", "/a/b.py:3: DeprecationWarning: old\n", "checksums differ"),
        ("", "Warning: old\n", "Warning: old"),
        ("", "", "it said nothing"),
    ],
)
def test_the_reason_of_a_failure_is_its_error_and_not_its_warnings(written: str, errors: str, reason: str) -> None:
    done = subprocess.CompletedProcess([], 1, f"{written}\n{builder.ERRORS}\n{errors}", "")
    assert builder.reason(done) == reason


def application(**stated: str) -> str:
    """Return the metadata of a release that states its application."""
    return json.dumps({"artefact": "0123", "application": {"module": "main:app", **stated}})


@pytest.mark.parametrize(
    ("lock", "index", "words"),
    [
        ("poetry.lock", "", ["sync --only=main --no-root"]),
        ("uv.lock", "", ["sync --frozen --no-dev --no-install-project"]),
        ("uv.lock", "https://index.example.org/simple", ["export --quiet --frozen --no-dev", "pip sync"]),
        ("pylock.toml", "", ["pip sync", "pylock.toml"]),
        ("pylock.toml", "https://index.example.org/simple", ["pip sync", "--require-hashes ../exported.txt"]),
        ("requirements.txt", "", ["pip sync", "--require-hashes requirements.txt"]),
    ],
)
def test_each_lock_file_has_its_installer(host: Any, unit: Unit, lock: str, index: str, words: list[str]) -> None:
    here = Host(Config(**{**host.config.__dict__, "index_url": index}))
    folder = release(here, "r1", release_json=application(lock=lock))
    (folder / "poetry.lock").rename(folder / lock)
    made(here, folder)
    script, _, _, target, tool, *options = unit.script
    assert all(each in script for each in words)
    assert (target, tool) == (str(unit.venv), here.config.poetry if lock == "poetry.lock" else here.config.uv)
    assert options == ([] if lock == "poetry.lock" else ["--no-build"])
    unit.codes["nba-build.service"] = 1
    other = release(here, "r2", release_json=application(lock=lock), pyproject_toml="[project] # another\n")
    (other / "poetry.lock").rename(other / lock)
    with pytest.raises(ReleaseError, match=rf"(?s)^the packages of {lock} could not .*`(poetry|uv) .*commit {lock}"):
        made(here, other)


def test_a_lock_file_of_no_known_kind_is_refused(host: Any, unit: Unit) -> None:
    folder = release(host, "r1", release_json=application(lock="Pipfile.lock"))
    with pytest.raises(ReleaseError, match=r"Pipfile\.lock could not be installed: .* Fix: .*lock_file"):
        made(host, folder)


@pytest.mark.parametrize(
    ("lock", "text", "options"),
    [
        ("uv.lock", 'name = "a"\n\nname = "My_B"\n', ["--no-build-package", "a"]),
        ("pylock.toml", 'name = "a"\nname = "my-b"\n', ["--only-binary", "a"]),
        ("requirements.txt", "a==1 ; python_version < '4' \\\n  --hash=x\nmy.b[c]==2\n", ["--only-binary", "a"]),
    ],
)
def test_what_may_be_built_is_said_to_uv(host: Any, unit: Unit, lock: str, text: str, options: list[str]) -> None:
    here = Host(Config(**{**host.config.__dict__, "packages_from_source": ["my-b"]}))
    folder = release(here, "r1", release_json=application(lock=lock))
    (folder / lock).write_text(text)
    made(here, folder)
    assert unit.script[-2:] == options


# --- the server's packages ---


def test_a_release_shares_the_server_s_packages(host: Any, unit: Unit) -> None:
    first, second = (release(host, name, release_json=application(), main_py=name) for name in ("r1", "r2"))
    host.releases.runtime(first).make(first)
    script, _, python, target, tool, *options = unit.script
    assert "--require-hashes requirements.txt" in script and options == ["--no-build"]
    assert (python, tool) == (host.config.python, host.config.uv)
    assert Path(target).parent == host.config.root / "servers" and (first / ".server").resolve() == Path(target)
    assert "requirements.txt" in unit.sources
    unit.told.clear()
    host.releases.runtime(second).make(second)
    assert (second / ".server").resolve() == Path(target) and unit.told == []


def test_a_release_of_an_older_version_has_its_server_among_its_packages(host: Any, unit: Unit) -> None:
    host.releases.runtime(folder := release(host, "r1")).make(folder)
    assert not (folder / ".server").exists() and list((host.config.root / "servers").iterdir()) == []
    assert host.releases.runtime(folder).changes(folder) == []


def test_another_server_is_another_folder(
    host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = release(host, "r1", release_json=application())
    first = host.releases.runtime(folder).server_for(folder)
    (tmp_path / "server").mkdir()
    (tmp_path / "server/requirements.txt").write_text("gunicorn==0\n")
    monkeypatch.setattr(runtimes, "WORKERS", tmp_path / "server")
    assert host.releases.runtime(folder).server_for(folder) != first


def test_changed_packages_of_the_server_are_told_and_made_anew(host: Any, unit: Unit) -> None:
    first, second = (release(host, name, release_json=application(), main_py=name) for name in ("r1", "r2"))
    runtime = host.releases.runtime(first)
    for folder in (first, second):
        runtime.make(folder)
    old = (first / ".server").resolve()
    assert runtime.changes(first) == []
    (old / "lib/module.py").write_text("VALUE = 2\n")
    assert runtime.changes(first) == ["in the server's packages: lib/module.py was changed"]
    runtime.renew(first, [second])
    new = (first / ".server").resolve()
    assert new != old and (second / ".server").resolve() == new and runtime.changes(first) == []
    runtime.clean([first, second])
    assert not old.exists() and new.exists()
    runtime.clean([])
    assert not new.exists() and list((host.config.root / "venvs").iterdir()) == []


# --- which Python ---


@pytest.fixture
def pythons(host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a host whose system has Python 3.13, with Python 3.12 beside it."""
    (tmp_path / "pythons/cpython-3.12.9/bin").mkdir(parents=True)
    (tmp_path / "pythons/cpython-3.12.9/bin/python3").touch()
    (tmp_path / "pythons/3.12").symlink_to("cpython-3.12.9")

    def run(*command: object, **_: Any) -> subprocess.CompletedProcess[str]:
        version = "3.12.9" if "cpython-3.12.9" in str(command[0]) else "3.13.5"
        return subprocess.CompletedProcess([], 0, f"Python {version} (main)", "")

    monkeypatch.setattr(runtimes, "run", run)
    return Host(Config(**{**host.config.__dict__, "pythons": str(tmp_path / "pythons")}))


@pytest.mark.parametrize("wanted", ["", "3", "3.13", "3.13.5"])
def test_the_host_s_own_python_is_enough(pythons: Any, wanted: str) -> None:
    folder = release(pythons, "r1", release_json=application(python=wanted))
    assert pythons.releases.runtime(folder).interpreter(folder) == "/usr/bin/python3"


def test_a_release_has_the_python_that_it_states(pythons: Any, unit: Unit) -> None:
    folder = release(pythons, "r1", release_json=application(python="3.12"))
    own = release(pythons, "r2", release_json=application())
    runtime = pythons.releases.runtime(folder)
    assert runtime.key(folder) != runtime.key(own)
    runtime.make(folder)
    assert unit.script[2] == f"{pythons.config.pythons}/cpython-3.12.9/bin/python3", (
        "a newer one is another environment"
    )
    runtime.make(own)
    assert (own / ".server").resolve() != (folder / ".server").resolve()


@pytest.mark.parametrize("wanted", ["3.1", "3.14", "3.13.50"])
def test_a_python_that_is_not_there_is_named_with_the_way_to_it(pythons: Any, wanted: str) -> None:
    folder = release(pythons, "r1", release_json=application(python=wanted))
    with pytest.raises(ReleaseError, match=rf"Python {wanted} is not on this host.*3\.13\.5.*Fix: .*site\.yml"):
        pythons.releases.runtime(folder).interpreter(folder)


# --- which one a release gets ---


def key(host: Any, name: str, **files: str) -> str:
    """Return the name of the virtual environment of a release with these files."""
    folder = release(host, name, **files)
    found: str = host.releases.runtime(folder).key(folder)
    return found


LOCAL = '[[package]]\nname = "own"\n\n[package.source]\ntype = "directory"\nurl = "packages/own"\n'


def test_another_content_is_another_environment(host: Any, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    same = key(host, "r1")
    assert key(host, "r2", main_py="code\n", release_json='{"artefact": "4567"}') == same
    others = {
        key(host, "r3", poetry_lock="# another\n"),
        key(host, "r4", pyproject_toml="[project]\nname = 'another'\n"),
        key(host, "r5", poetry_toml="[installer]\nno-binary = true\n"),
    }
    own = key(host, "r6", poetry_lock=LOCAL)
    others |= {own, key(host, "r7", poetry_lock=LOCAL, release_json='{"artefact": "4567"}')}
    assert key(host, "r8", poetry_lock=LOCAL) == own
    with monkeypatch.context() as patch:
        patch.setattr(runtimes.platform, "machine", lambda: "riscv64")
        others.add(key(host, "r9"))
    monkeypatch.setattr(runtimes, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Python 3.13.9", ""))
    others.add(key(host, "r10"))
    assert len(others - {same}) == 7


def test_another_installer_is_another_environment(host: Any, unit: Unit, tmp_path: Path) -> None:
    installed = tmp_path / "poetry/lib/python3.13/site-packages/poetry-2.4.0.dist-info"
    installed.mkdir(parents=True)
    (tmp_path / "poetry/bin").mkdir()
    (tmp_path / "poetry/bin/poetry").touch()
    (tmp_path / "command").symlink_to(tmp_path / "poetry/bin/poetry")
    here = Host(Config(**{**host.config.__dict__, "poetry": str(tmp_path / "command")}))
    before = key(here, "r1")
    installed.rename(installed.with_name("poetry-2.4.1.dist-info"))
    assert len({before, key(here, "r2"), key(host, "r3")}) == 3
