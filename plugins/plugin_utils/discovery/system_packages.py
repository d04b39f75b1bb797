"""Debian packages that an application needs on its hosts (`app_packages`), and the locked packages that show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import Lock

# apt takes a name with `-` at its end for a removal.
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+]")
# What a package of the lock loads or runs and does not bring, by the names of Debian 12. Debian 13 and Ubuntu 24.04
# have some of them with `t64` at the end, which also provide the name without it.
NEEDED = {
    "weasyprint": ("libpango-1.0-0", "libpangoft2-1.0-0", "libharfbuzz-subset0"),
    "cairocffi": ("libcairo2",),
    "mysqlclient": ("libmariadb3",),
    "opencv-contrib-python": ("libgl1", "libglib2.0-0"),
    "opencv-python": ("libgl1", "libglib2.0-0"),
    "pdf2image": ("poppler-utils",),
    "psycopg2": ("libpq5",),
    "pydub": ("ffmpeg",),
    "pyodbc": ("unixodbc",),
    "pypandoc": ("pandoc",),
    "pytesseract": ("tesseract-ocr",),
    "python-magic": ("libmagic1",),
    "pyzbar": ("libzbar0",),
}


def findings(packages: object) -> Iterator[str]:
    """Yield what is wrong with a value of `app_packages`, and how to fix it."""
    if not isinstance(packages, (list, tuple)):
        yield "is no list. Fix: write it as `app_packages: [libpango-1.0-0]`"
        return
    for name in packages:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield f"{name!r} is no name of a Debian package. Fix: the name alone, without a version, as libpango-1.0-0"


def warnings(lock: Lock | None, packages: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each package of a lock that needs what hosts do not get.

    Args:
        lock: the application's; None if it has none.
        packages: the Debian packages that hosts get.
    """
    present = {name.removesuffix("t64") for name in packages}
    for package, needed in NEEDED.items():
        lacking = [name for name in needed if name not in present]
        if lacking and lock and lock.package(package):
            yield (
                f"{lock.path} has {package}, which needs {' and '.join(lacking)} on the hosts. Fix: "
                f"`app_packages: [{', '.join(lacking)}]` in group_vars/all/vars.yml"
            )
