"""Installations from each kind of lock file by the real uv, with packages and an index of the test's own."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.unit.releases import CONFIG, Config, ReleaseError

builder, installers = sys.modules["builder"], sys.modules["installers"]

PYPROJECT = '[project]\nname = "shop"\nversion = "1"\nrequires-python = ">=3.9"\ndependencies = ["alpha"]\n'


@pytest.fixture(scope="session")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the uv that hosts have."""
    folder = tmp_path_factory.mktemp("uv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pins = ROOT / "roles/python/files/uv.txt"
    subprocess.run([folder / "bin/pip", "install", "--quiet", "--require-hashes", "-r", pins], check=True)
    return folder / "bin/uv"


@dataclass
class Index:
    """An index with the packages alpha, which needs beta, and beta; `asked` are the paths that were asked for."""

    folder: Path
    url: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, needs: str = "") -> None:
        """Add a package."""
        wheel = self.folder / f"files/{name}-1.0-py3-none-any.whl"
        wheel.parent.mkdir(exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        metadata += f"Requires-Dist: {needs}\n" if needs else ""
        files = {
            f"{name}.py": f"NAME = {name!r}\n",
            f"{name}-1.0.dist-info/METADATA": metadata,
            f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(
            f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
            f"{len(text)}\n"
            for path, text in files.items()
        )
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in {**files, f"{name}-1.0.dist-info/RECORD": record}.items():
                archive.writestr(path, text)
        self.digests[name] = hashlib.sha256(wheel.read_bytes()).hexdigest()
        page = self.folder / f"simple/{name}/index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f'<a href="../../files/{wheel.name}#sha256={self.digests[name]}">{wheel.name}</a>')

    def lock(self, lock: str, url: str) -> str:
        """Return a lock file of a kind whose files are at an address, as uv writes it."""
        if lock == "requirements.txt":
            return "".join(f"{name}==1.0 \\\n    --hash=sha256:{digest}\n" for name, digest in self.digests.items())
        if lock == "pylock.toml":
            return 'lock-version = "1.0"\ncreated-by = "a test"\n' + "".join(
                f'\n[[packages]]\nname = "{name}"\nversion = "1.0"\nmarker = "python_version >= \'3\'"\n'
                f'wheels = [{{ url = "{url}/files/{name}-1.0-py3-none-any.whl", '
                f'hashes = {{ sha256 = "{digest}" }} }}]\n'
                for name, digest in self.digests.items()
            )
        needs = {"alpha": 'dependencies = [{ name = "beta" }]\n'}
        return (
            'version = 1\nrequires-python = ">=3.9"\n'
            + "".join(
                f'\n[[package]]\nname = "{name}"\nversion = "1.0"\nsource = {{ registry = "{url}/simple" }}\n'
                f'{needs.get(name, "")}wheels = [{{ url = "{url}/files/{name}-1.0-py3-none-any.whl", '
                f'hash = "sha256:{digest}" }}]\n'
                for name, digest in self.digests.items()
            )
            + '\n[[package]]\nname = "shop"\nversion = "1"\nsource = { virtual = "." }\n'
            'dependencies = [{ name = "alpha" }]\n[package.metadata]\nrequires-dist = [{ name = "alpha" }]\n'
        )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index")
    made.folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Keep silent."""

        def do_GET(self) -> None:
            made.asked.append(self.path)
            super().do_GET()

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(made.folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.url = f"http://127.0.0.1:{server.server_port}"
        made.add("beta")
        made.add("alpha", "beta")
        yield made
        server.shutdown()


@pytest.fixture
def install(uv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what builds a folder from sources as a host does, without systemd and accounts of its own."""

    def run(*command: object, **_: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        if words[0] == "systemctl":
            return subprocess.CompletedProcess(words, 0, "", "")
        options, words = words[: words.index("--")], words[words.index("--") + 1 :]
        values = dict(option.removeprefix("--setenv=").split("=", 1) for option in options if "--setenv=" in option)
        folder = next((word.partition("=")[2] for word in options if word.startswith("--working-directory=")), "/")
        return subprocess.run(words, check=False, env=values, cwd=folder, capture_output=True, text=True)

    monkeypatch.setattr(builder, "run", run)
    monkeypatch.setattr(builder.pwd, "getpwnam", lambda _: builder.pwd.getpwuid(builder.os.getuid()))

    def build(source: Path, lock: str, mirror: str = "", built: tuple[str, ...] = ()) -> Path:
        values = {**CONFIG, "root": tmp_path, "uv": str(uv), "python": sys.executable, "index_url": mirror}
        config = Config(**{**values, "packages_from_source": list(built)})
        target = tmp_path / "venv"
        installer = installers.installer_for(lock, bool(mirror))
        builder.Builder(config).build(installer, sys.executable, source, (".env",), target)
        return target

    return build


def source(tmp_path: Path, lock: str, text: str, pyproject: str = PYPROJECT) -> Path:
    """Return the folder of a release with a lock file."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / lock).write_text(text)
    if pyproject:
        (folder / "pyproject.toml").write_text(pyproject)
    return folder


def installed(venv: Path) -> list[str]:
    """Return the packages of a virtual environment."""
    done = subprocess.run([venv / "bin/python", "-I", "-c", "import alpha, beta; print(alpha.NAME, beta.NAME)"],
                          check=True, capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "alpha beta\n"
    folders = (venv / "lib").glob("python*/site-packages/*.dist-info")
    return sorted(path.name.partition("-")[0] for path in folders)


@pytest.mark.parametrize("lock", ["uv.lock", "pylock.toml", "requirements.txt"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_locked_packages_are_installed_and_no_other(
    tmp_path: Path, index: Index, install: Any, lock: str, mirrored: bool
) -> None:
    # With a mirror, the addresses of the lock file lead nowhere.
    text = index.lock(lock, "http://127.0.0.1:9" if mirrored else index.url)
    if lock == "requirements.txt" and not mirrored:
        text = f"--index-url {index.url}/simple\n{text}"
    # An application of a single file has no pyproject.toml, and settings of a developer count for nothing.
    folder = source(tmp_path, lock, text, PYPROJECT if lock == "uv.lock" else "")
    (folder / "uv.toml").write_text('index-url = "http://127.0.0.1:9/simple"\n')
    (folder / ".python-version").write_text("3.9\n")
    venv = install(folder, lock, f"{index.url}/simple" if mirrored else "")
    assert installed(venv) == ["alpha", "beta"], "not the application itself, whose build would run"
    assert list((venv / "lib").glob("python*/site-packages/__pycache__/alpha.*.pyc"))
    assert not (venv / ".build").exists()
    assert any(path.endswith(".whl") for path in index.asked)


@pytest.mark.parametrize("lock", ["uv.lock", "pylock.toml", "requirements.txt"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_file_of_another_digest_is_refused(
    tmp_path: Path, index: Index, install: Any, lock: str, mirrored: bool
) -> None:
    index.digests["beta"] = "0" * 64
    text = index.lock(lock, index.url)
    if lock == "requirements.txt" and not mirrored:
        text = f"--index-url {index.url}/simple\n{text}"
    said = rf"(?s)^the packages of {lock} .*(Hash|hash).*Fix: .*commit {lock}"
    with pytest.raises(ReleaseError, match=said) as found:
        install(source(tmp_path, lock, text), lock, f"{index.url}/simple" if mirrored else "")
    assert "experimental" not in str(found.value), "the error, and not what uv warns of"


def test_requirements_without_digests_are_refused(tmp_path: Path, index: Index, install: Any) -> None:
    folder = source(tmp_path, "requirements.txt", "alpha==1.0\nbeta==1.0\n")
    with pytest.raises(ReleaseError, match=r"(?s)requirements\.txt could not.*--require-hashes"):
        install(folder, "requirements.txt", f"{index.url}/simple")


def test_a_pylock_becomes_requirements_with_all_that_was_locked() -> None:
    text = (
        'lock-version = "1.0"\n\n[[packages]]\nname = "a"\nversion = "1"\nmarker = "os_name == \'posix\'"\n'
        'sdist = { url = "https://index.example/a.tar.gz", hashes = { sha256 = "' + "1" * 64 + '" } }\n'
        'wheels = [{ url = "https://index.example/a.whl", hashes = { sha256 = "' + "2" * 64 + '" } }]\n\n'
        '[[packages]]\nname = "b"\nmarker = \'os_name == "nt"\'\n[packages.vcs]\ntype = "git"\n'
    )
    assert installers.requirements_of(text) == (
        f"a==1 ; os_name == 'posix' \\\n    --hash=sha256:{'1' * 64} \\\n    --hash=sha256:{'2' * 64}\n"
        'b ; os_name == "nt"\n'
    )


LOCAL = {
    "poetry.lock": '[package.source]\ntype = "directory"\nurl = "packages/own"\n',
    "uv.lock": 'source = { editable = "packages/own" }\n',
    "pylock.toml": '[[packages]]\nname = "own"\ndirectory = { path = "packages/own" }\n',
    "requirements.txt": "-r base.txt\n",
}


@pytest.mark.parametrize("lock", list(LOCAL))
def test_what_an_installation_takes_from_the_artefact_is_noticed(lock: str) -> None:
    installer = installers.installer_for(lock, mirrored=False)
    assert installer.local.search(LOCAL[lock])
    path = {"small": "requirements.txt", "team": "uv.lock", "tutorial": "poetry.lock"}
    for name in (name for name, known in path.items() if known == lock):
        assert not installer.local.search((ROOT / "tests/apps" / name / lock).read_text())


def test_the_server_s_pins_are_wheels_for_every_host() -> None:
    text = (ROOT / "roles/app/files/server/requirements.txt").read_text()
    names = {installers.normal(name) for name in installers.SERVER.names.findall(text)}
    assert {"gunicorn", "uvicorn", "uvicorn-worker", "h11", "httptools", "uvloop", "websockets", "click"} <= names
    pinned = [part for part in text.split("\n") if part and not part.startswith((" ", "#"))]
    assert len(pinned) <= text.count("--hash=sha256:") and all("==" in line for line in pinned)
