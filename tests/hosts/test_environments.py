"""What releases of the applications in tests/apps run in, built on a host: from each lock file, with another Python."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import CHECKOUT, World

pytestmark = pytest.mark.lab

HOST, OLDER = "dev1", "bare1"
# Of an application: its lock file, what its code needs beside the release's folder, and what it says of itself.
VERSION = "from importlib.metadata import version; "
APPLICATIONS = {
    "team": ("uv.lock", "src", VERSION + "import club.main; print(version('club'))"),
    "small": ("requirements.txt", "", "import app; print(app.app.title)"),
    "tutorial": ("poetry.lock", "", VERSION + "import fastapi, pymysql; print(version('players'))"),
}
SAID = {"team": "2.4.1", "small": "Clock", "tutorial": "0.1.0"}
SETTINGS = {"DATABASE_URL": "mysql+aiomysql://a:b@127.0.0.1/c", "SESSION_SECRET": "x" * 40}
PROGRAM = """
import sys
sys.path.insert(0, "/usr/local/lib/nba")
from pathlib import Path
from basics import ReleaseError
from project import python_path
from releases import Releases
from slots import Config
folder = Path(sys.argv[1])
runtime = Releases(Config.load()).runtime(folder)
try:
    print({0})
except ReleaseError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def ready(here: World, converged: Converged) -> World:
    """Return a lab whose dev has the release program and the installers."""
    return here


def ask(here: World, name: str, expression: str, host: str = HOST) -> str:
    """Return what the release program answers about a release."""
    program = shlex.quote(PROGRAM.replace("{0}", expression))
    return here.shell(host, f"python3 -I -c {program} {folder_of(name)} 2>&1").strip()


def folder_of(name: str) -> str:
    return f"/srv/nba/releases/.{name}.partial"


def bring(here: World, name: str, change: Callable[[str], str] = str, **stated: str) -> None:
    """Unpack an application of tests/apps as a release that is not finished, its lock file changed on the way."""
    lock, folder, _ = APPLICATIONS[name]
    path = CHECKOUT / "tests/apps" / name
    facts = {"artefact": "0123", "application": {"module": "main:app", "lock": lock, "folder": folder, **stated}}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(path, ".", filter=lambda member: None if member.name in ("./" + lock, "./.venv") else member)
        for file, text in ((lock, change((path / lock).read_text())), ("release.json", json.dumps(facts))):
            member = tarfile.TarInfo(file)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    here.write(HOST, "/root/application", base64.b64encode(archive.getvalue()).decode())
    target = folder_of(name)
    here.shell(
        HOST,
        f"umask 022; rm -rf {target}; mkdir {target}; base64 -d /root/application | tar -xzC {target} --no-same-owner; "
        f"chmod -R u=rwX,go=rX {target}",
    )


@pytest.fixture(params=list(APPLICATIONS))
def application(ready: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the name of an application whose code is on a host, for as long as a test takes."""
    bring(ready, request.param)
    yield request.param
    ready.shell(HOST, f"rm -rf {folder_of(request.param)}")


def said(here: World, name: str, code: str) -> str:
    """Return what code says that runs as the service account with what a release has."""
    path = ask(here, name, 'print(*python_path(folder), sep=":") or ""')
    settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in SETTINGS.items())
    words = f"env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} {settings} .venv/bin/python -c {shlex.quote(code)}"
    return here.shell(HOST, f"cd {folder_of(name)} && runuser -u nba -- {words} 2>&1", check=False).strip()


def test_packages_of_every_lock_file_are_installed_beside_the_server(ready: World, application: str) -> None:
    assert ask(ready, application, "runtime.make(folder)") == "None"
    assert said(ready, application, APPLICATIONS[application][2]) == SAID[application]
    served = "import sys; sys.path.append('.server'); import gunicorn, uvicorn_worker; print(gunicorn.__file__)"
    assert said(ready, application, served) == f"{folder_of(application)}/.server/gunicorn/__init__.py"
    folders = ready.shell(HOST, f"cd {folder_of(application)} && readlink -f .venv .server").split()
    odd = "\\( ! -user root -o -perm /022 -o -name .build \\)"
    strange = ready.shell(HOST, f"find {' '.join(folders)} ! -type l {odd}")
    assert strange == ""
    assert ask(ready, application, "runtime.changes(folder)") == "[]"


@pytest.mark.parametrize("name", ["team"])
def test_changed_packages_of_the_server_are_named_and_replaced(ready: World, name: str) -> None:
    bring(ready, name)
    ask(ready, name, "runtime.make(folder)")
    ready.shell(HOST, f"echo '# edited manually' >>{folder_of(name)}/.server/gunicorn/__init__.py")
    assert ask(ready, name, "runtime.changes(folder)") == (
        '["in the server\'s packages: gunicorn/__init__.py was changed"]'
    )
    ask(ready, name, "runtime.renew(folder, [])")
    assert ask(ready, name, "runtime.changes(folder)") == "[]"


def test_a_package_of_another_digest_is_refused(ready: World, application: str) -> None:
    bring(ready, application, lambda text: re.sub(r"sha256:[0-9a-f]{6}", "sha256:ffffff", text))
    lock = APPLICATIONS[application][0]
    found = ask(ready, application, "runtime.make(folder)")
    assert found.startswith(f"the packages of {lock} could not be installed: `")
    assert f"commit {lock}, and run the same command again" in found


# Debian 12's own Python, as uv's archives have one.
PACK = """
set -e
rm -rf /root/packed && mkdir -p /root/packed/python/bin /root/packed/python/lib && cd /root/packed
cp /usr/bin/python3.11 python/bin && ln -s python3.11 python/bin/python3
cp -r /usr/lib/python3.11 python/lib && find . -type l -lname '/*' -delete  # uv refuses them
find . -name __pycache__ -prune -exec rm -r {} +
tar -czf python.tar.gz python && base64 -w0 python.tar.gz
"""
KEY = "cpython-3.11.2-linux-x86_64-gnu"


@pytest.fixture
def without_another_python(ready: World) -> Iterator[None]:
    """Leave a host without a Python that uv installed, before and after a test."""
    remove = f"rm -rf /usr/local/lib/waffle-iron {folder_of('team')}"
    ready.shell(HOST, remove)
    yield
    ready.shell(HOST, remove)


def test_another_python_is_installed_by_its_digest(ready: World, without_another_python: None) -> None:
    ready.lab("exec", HOST, "--", "sh", "-c", "base64 -d >/root/python.tar.gz", stdin=ready.shell(OLDER, PACK))
    digest = ready.shell(HOST, "sha256sum /root/python.tar.gz").split()[0]
    arguments = ("playbooks/base.yml", "-l", HOST, "--tags", "python", "-e", "app_python_version=3.11")
    known = ("-e", "python_downloads_json=/root/downloads.json")

    def downloads(sha256: str) -> None:
        entry = {
            "name": "cpython", "arch": {"family": "x86_64", "variant": None}, "os": "linux", "libc": "gnu",
            "major": 3, "minor": 11, "patch": 2, "prerelease": "", "variant": None, "build": "20240101",
            "url": "file:///root/python.tar.gz", "sha256": sha256,
        }  # fmt: skip
        ready.write(HOST, "/root/downloads.json", json.dumps({KEY: entry}))

    downloads("0" * 64)
    refused = ready.ansible(*arguments, *known)
    assert refused.code != 0 and "Hash mismatch" in refused.output and "python_download_mirror" in refused.output
    bring(ready, "team", python="3.11")
    assert "Python 3.11 is not on this host" in ask(ready, "team", "runtime.make(folder)")
    downloads(digest)
    ready.ansible(*arguments, *known).succeeded()
    assert ready.ansible(*arguments, *known).succeeded().changed()[HOST] == 0
    bring(ready, "team", python="3.11")
    assert ask(ready, "team", "runtime.make(folder)") == "None"
    code = "import sys, club.main; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
    assert said(ready, "team", code).startswith("3.11 /usr/local/lib/waffle-iron/python/3.11-")
    served = "import sys; sys.path.append('.server'); import uvloop, httptools; print(sys.version_info[1])"
    assert said(ready, "team", served) == "11"
    # A change is noticed and taken back.
    ready.shell(HOST, "echo '# edited manually' >>/usr/local/lib/waffle-iron/python/3.11/lib/python3.11/os.py")
    repaired = ready.ansible(*arguments, *known).succeeded()
    assert repaired.changes() == [f"python : Install the Python of the application: {HOST}"]
    assert "edited manually" not in ready.shell(HOST, "cat /usr/local/lib/waffle-iron/python/3.11/lib/python3.11/os.py")
