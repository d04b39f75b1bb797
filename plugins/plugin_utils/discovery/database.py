"""How an application reaches its database: which of its settings hold which part."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import Lock
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.settings import EXAMPLES, Setting
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from dotenv import dotenv_values

PREFIXES = ("DATABASE_", "DB_", "MYSQL_", "MARIADB_")
# What a part is called after the prefix, the usual word first.
WORDS = {
    "host": ("HOST", "HOSTNAME", "SERVER"),
    "port": ("PORT",),
    "user": ("USER", "USERNAME"),
    "password": ("PASSWORD", "PASS", "PASSWD", "PWD"),
    "name": ("NAME", "DATABASE", "DB", "SCHEMA"),
    "tls_ca": (
        "TLS_CA",
        "SSL_CA",
        "TLS_CA_FILE",
        "SSL_CA_FILE",
        "TLS_CA_PATH",
        "SSL_CA_PATH",
        "CA_FILE",
        "CA_PATH",
        "CA",
    ),
}
ADDRESSES = (
    "DATABASE_URL", "DB_URL", "MYSQL_URL", "MARIADB_URL", "DATABASE_URI", "DB_URI", "DATABASE_DSN", "DB_DSN",
    "SQLALCHEMY_DATABASE_URL", "SQLALCHEMY_DATABASE_URI", "ASYNC_DATABASE_URL",
)  # fmt: skip
NEEDED = ("host", "user", "password", "name")
KNOWN = (*WORDS, "url", "scheme")
# Packages that talk to MySQL, and the beginning of the address by which SQLAlchemy finds each. Those that are
# asynchronous come first, as aiomysql brings PyMySQL along.
SCHEMES = {
    "asyncmy": "mysql+asyncmy",
    "aiomysql": "mysql+aiomysql",
    "pymysql": "mysql+pymysql",
    "mysqlclient": "mysql+mysqldb",
    "mysql-connector-python": "mysql+mysqlconnector",
    "mariadb": "mariadb+mariadbconnector",
}
ASYNCHRONOUS = ("asyncmy", "aiomysql")
ADDRESS = re.compile(r"((?:mysql|mariadb)(?:\+\w+)?)://")


def drivers(lock: Lock | None) -> list[str]:
    """Return the packages of a lock that talk to MySQL."""
    return [name for name in SCHEMES if lock and lock.package(name)]


def names_of(settings: Iterable[Setting], stated: Iterable[str] = ()) -> dict[str, str]:
    """Return the setting that holds each part of the way to the database, in the order that people write them.

    Args:
        settings: what the application reads.
        stated: names in `app_settings`, which the code may read in a way that was not seen.
    """
    needed = {one.name for one in settings if not one.has_default}
    # As they are written; they are compared in upper case.
    names = {name.upper(): name for name in (*stated, *(one.name for one in settings))}
    parts = max((parts_with(names, prefix) for prefix in PREFIXES), key=len)
    if not all(part in parts for part in NEEDED):
        parts = {}
    url = next((names[name] for name in ADDRESSES if name in names), "")
    if url and (not parts or url in needed):
        authority = next(
            (found["tls_ca"] for prefix in PREFIXES if "tls_ca" in (found := parts_with(names, prefix))), ""
        )
        parts = {**parts, "url": url} | ({"tls_ca": authority} if authority else {})
    return parts


def parts_with(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the setting of each part whose name begins with a prefix."""
    found = {
        part: next((prefix + word for word in words if prefix + word in names), "") for part, words in WORDS.items()
    }
    return {part: names[name] for part, name in found.items() if name}


def scheme_of(source: Source, files: Iterable[str], lock: Lock | None, url: str) -> str:
    """Return what the address of the database begins with.

    Args:
        source: the application.
        files: what the server imports of it.
        lock: its lock file.
        url: the setting that holds the address.
    """
    for path in EXAMPLES:
        example = dotenv_values(stream=io.StringIO(source.texts.get(path, "")), interpolate=False).get(url)
        if found := ADDRESS.match(example or ""):
            return found[1]
    have = drivers(lock)
    if not lock or not lock.package("sqlalchemy") or not have:
        return "mysql"
    is_async = any(re.search(r"async_engine|AsyncEngine", source.texts[path]) for path in files)
    fitting = [name for name in have if (name in ASYNCHRONOUS) == is_async]
    return SCHEMES[(fitting or have)[0]]
