"""How the packages of each kind of lock file are installed, and what of a release decides what comes out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from basics import ReleaseError

# In each script $python is the interpreter, $target the folder to fill, $tool the program; "$@" is what may be built.
VENV = '"$python" -I -m venv --without-pip "$target"\n'
PIP_SYNC = 'exec "$tool" pip sync --python "$target/bin/python" "$@" '
# Outside of the sources, where a link of the artefact cannot lead the writer elsewhere.
EXPORTED = "exported.txt"
IMPORTED = "from importlib.metadata import distributions; print(len([each.version for each in distributions()]))"
SERVED = "import gunicorn.app.base, uvicorn, uvicorn_worker, h11, httptools, uvloop, websockets"

NAME = re.compile(r'^name = "([^"]+)"', re.MULTILINE)
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*(?:==|@)", re.MULTILINE)
# In a pylock.toml: its packages and their digests.
TABLE = re.compile(r"^\[\[packages\]\]$", re.MULTILINE)
SHA256 = re.compile(r"""\bsha256 = ["']([0-9a-f]{64})["']""")


@dataclass(frozen=True)
class Installer:
    """Installs what a lock file names and nothing else; `Builder.build` runs it as the build account."""

    lock: str
    tool: str
    """The field of `Config` with the path of the program."""
    title: str
    """What messages call the program."""
    script: str
    names: re.Pattern[str]
    """Finds the names of the packages in the lock file."""
    local: re.Pattern[str]
    """Finds a package or a list that is in the artefact, too."""
    settings: tuple[str, ...] = ("pyproject.toml",)
    """Files beside the lock file that the program goes by."""
    one_wheel: str = "--only-binary"
    """The option for a package that may not be built."""
    proof: str = IMPORTED
    """Python that the service account must be able to run with what was installed."""

    def wheels(self, text: str, from_source: Iterable[str]) -> list[str] | None:
        """Return the packages of a lock file that may not be built on hosts; None if that is all there are."""
        built = {normal(name) for name in from_source}
        return sorted({normal(name) for name in self.names.findall(text)} - built) if built else None

    def options(self, wheels: list[str] | None) -> list[str]:
        """Return the arguments that say so to uv; Poetry reads its environment, and `uv pip` does not."""
        if self.tool != "uv":
            return []
        return ["--no-build"] if wheels is None else [word for name in wheels for word in (self.one_wheel, name)]


POETRY = Installer(
    "poetry.lock",
    "poetry",
    "poetry sync",
    VENV + 'exec "$tool" sync --only=main --no-root --no-interaction --compile',
    NAME,
    re.compile(r'^type = "(directory|file)"$', re.MULTILINE),
    ("pyproject.toml", "poetry.toml"),
)
# The project itself, which is not installed, is at ".".
UV_LOCAL = re.compile(r'^source = \{ (?:directory|editable|path|virtual) = "(?!\.")', re.MULTILINE)
UV = Installer(
    "uv.lock",
    "uv",
    "uv sync",
    VENV + 'exec "$tool" sync --frozen --no-dev --no-install-project --no-editable --python "$target/bin/python" "$@"',
    NAME,
    UV_LOCAL,
    one_wheel="--no-build-package",
)
# uv.lock holds the address of each file; a mirror has the files of the same names and digests elsewhere.
UV_MIRRORED = Installer(
    "uv.lock",
    "uv",
    "uv pip sync",
    VENV
    + '"$tool" export --quiet --frozen --no-dev --no-emit-project --no-editable --no-header --no-annotate '
    + f'--python "$target/bin/python" --format requirements.txt --output-file ../{EXPORTED}\n'
    + f"{PIP_SYNC}../{EXPORTED}",
    NAME,
    UV_LOCAL,
)
PYLOCK_LOCAL = re.compile(r"^\[packages\.(?:directory|archive)\]|\bpath = ", re.MULTILINE)
PYLOCK = Installer(
    "pylock.toml",
    "uv",
    "uv pip sync",
    VENV + f"{PIP_SYNC}--preview-features pylock pylock.toml",
    NAME,
    PYLOCK_LOCAL,
)
PYLOCK_MIRRORED = Installer(
    "pylock.toml",
    "uv",
    "uv pip sync",
    VENV + f"{PIP_SYNC}--require-hashes ../{EXPORTED}",
    NAME,
    PYLOCK_LOCAL,
)
REQUIREMENTS = Installer(
    "requirements.txt",
    "uv",
    "uv pip sync",
    VENV + f"{PIP_SYNC}--require-hashes requirements.txt",
    PINNED,
    re.compile(r"^\s*(?:-[rce]\b|--(?:requirement|constraint|editable)\b|[./]|\S+ @ (?:file:|\.))", re.MULTILINE),
)
SERVER = Installer(
    "requirements.txt",
    "uv",
    "uv pip sync",
    'exec "$tool" pip sync --python "$python" --target "$target" "$@" --require-hashes requirements.txt',
    PINNED,
    REQUIREMENTS.local,
    (),
    proof=f"import sys; sys.path.insert(0, sys.argv[1]); {SERVED}",
)


def installer_for(lock: str, mirrored: bool) -> Installer:
    """Return what installs the packages of a lock file.

    Raises:
        ReleaseError: nothing does.
    """
    known = (UV_MIRRORED, PYLOCK_MIRRORED) if mirrored else (UV, PYLOCK)
    by_lock = {each.lock: each for each in (POETRY, REQUIREMENTS, *known)}
    if lock not in by_lock:
        raise ReleaseError(
            f"the packages of {lock} could not be installed: it is none of {', '.join(sorted(by_lock))}. "
            "Fix: name one of them as lock_file in group_vars/all/vars.yml"
        )
    return by_lock[lock]


def normal(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(pylock: str) -> str:
    """Return the packages of a pylock.toml by name, version and digests, without the addresses of their files.

    What has no version or no digest becomes a line that `--require-hashes` refuses.
    """
    lines = []
    for table in TABLE.split(pylock)[1:]:
        name, version, marker = (value_in(table, key) for key in ("name", "version", "marker"))
        line = f"{name}=={version}" if version else name
        parts = [f"{line} ; {marker}" if marker else line]
        lines.append(" \\\n    ".join(parts + [f"--hash=sha256:{digest}" for digest in SHA256.findall(table)]))
    return "\n".join(lines) + "\n"


def value_in(table: str, key: str) -> str:
    """Return the text that a line of a table of TOML gives to a key; empty if none does."""
    found = re.search(rf"""^{key} = (["'])(.*?)\1\s*$""", table, re.MULTILINE)
    return found[2].replace('\\"', '"') if found else ""
