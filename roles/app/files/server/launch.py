"""Starts a release's server: gunicorn and uvicorn, which Waffle Iron brings, around the application.

Runs with the release's own Python, in its folder, with its settings as environment variables (serve.py). gunicorn,
uvicorn and uvicorn_worker come from the folder of the server and never from the application's lock; what they need
beside (click, h11, websockets, ...) comes from the application's lock if that has it.

With `--check` it imports the application and ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
# Which folder has each of these, whatever else is on Python's path.
OURS = ("waffle_asgi", "waffle_server")
PINNED = ("gunicorn", "uvicorn", "uvicorn_worker")
# nginx's limit for one header and for the request line (roles/nginx).
LINE_BYTES = 16 * 1024
# An error of these kinds does not go away when the database is migrated: the application cannot start.
FINAL = (ImportError, AttributeError, NameError, SyntaxError, KeyError, ValueError)


class Finder(MetaPathFinder):
    """Finds some packages in one folder alone."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a package is; None if it is not one of these."""
        folder = self.folders.get(name)
        return importlib.machinery.PathFinder.find_spec(name, [str(folder)], target) if folder else None


def set_path(release: Path, folder: str, server: Path) -> None:
    """Set the path of Python: the application first, then its packages, and last what the server needs beside them."""
    sys.path[:0] = [str(release / place) for place in dict.fromkeys((folder or ".", ".", ".project"))]
    sys.path.append(str(server))
    sys.meta_path.insert(0, Finder({**dict.fromkeys(PINNED, server), **dict.fromkeys(OURS, HERE)}))


def check(module: str, seconds: int) -> str:
    """Import the module of the application; return why it can never start, or an empty text."""
    # One that serves while it is imported never ends.
    faulthandler.dump_traceback_later(seconds, exit=True)
    name, _, attribute = module.partition(":")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.removesuffix("()").split("."):
            found = getattr(found, part)
    except SystemExit as error:
        return f"importing {name} exits with status {error.code}" if error.code else ""
    except FINAL as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - the database may not be what it will be at the start
        print(f"importing {name}: {type(error).__name__}: {error}", file=sys.stderr)
    return ""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(description="Start the server of the release in this folder.")
    top.add_argument("module", help="module:attribute or module:function()")
    top.add_argument("--folder", default="", help="of the release, what comes first on Python's path")
    top.add_argument("--server", default=".server", help="folder of the server's packages")
    top.add_argument("--release", default="")
    top.add_argument("--root-path", default="")
    top.add_argument("--preload", default="", help="libraries, separated by commas")
    top.add_argument("--workers", type=int, default=1)
    top.add_argument("--timeout", type=int, default=30)
    top.add_argument("--graceful-timeout", type=int, default=30)
    top.add_argument("--bind", default="", help="without systemd's socket")
    top.add_argument("--check", type=int, default=0, metavar="SECONDS", help="import the application and end")
    return top


def main() -> None:
    """Set Python's path, and check or serve."""
    options = parser().parse_args()
    set_path(Path.cwd(), options.folder, Path(options.server).resolve())
    if not options.check:
        # The library for WebSockets has limits of its own.
        os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", str(LINE_BYTES + 256))
        importlib.import_module("waffle_server").serve(options)
        return
    problem = check(options.module, options.check)
    print(problem, file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    # What the application has begun does not keep this from ending.
    os._exit(1 if problem else 0)


if __name__ == "__main__":
    main()
