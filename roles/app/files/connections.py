"""Check that a release can sign in to its database, and that the connections of an environment fit the server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from basics import ReleaseError
from database import BackupError, Database
from environment import settings_of

if TYPE_CHECKING:
    from messages import Connections

# While a release is switched to, the old one still runs beside it.
SLOTS = 2
# A pooled connection is replaced when it is used next, not at the second it comes of age.
SPARE_SECONDS = 10
LIMITS = "SELECT @@GLOBAL.max_connections, @@GLOBAL.wait_timeout"
PORT = 3306
DOCTOR = "ansible-playbook playbooks/doctor.yml -l ENV names what is in the way"


@dataclass(frozen=True)
class Pool:
    """The pool of each worker process, as a release's `.env` sets it; ``keys`` are its settings there."""

    keys: Mapping[str, str]
    size: int
    overflow: int
    recycle_seconds: int

    @classmethod
    def of(cls, folder: Path, keys: Mapping[str, str]) -> Pool | None:
        """Return the pool of the release in ``folder``; None where it has no such settings."""
        settings = settings_of(folder)
        try:
            numbers = {name: int(settings[key]) for name, key in keys.items()}
            return cls(keys, numbers["size"], numbers["overflow"], numbers["recycle_seconds"])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Server:
    """What the database server allows; ``reserve`` of its connections stay for others."""

    max_connections: int
    wait_timeout_seconds: int
    reserve: int

    @classmethod
    def ask(cls, option_file: Path, reserve: int) -> Server:
        """Return what the server of an option file says.

        Raises:
            ReleaseError: it does not answer.
        """
        try:
            ((connections, seconds),) = Database(option_file).ask(LIMITS)
        except BackupError as error:
            raise ReleaseError(str(error)) from None
        return cls(int(connections), int(seconds), reserve)


def fit(pool: Pool, server: Server, workers: int) -> Connections:
    """Return the sum of the connections and what the server has for them.

    Args:
        pool: of each worker process.
        server: the one that all of them use.
        workers: worker processes of all hosts of the environment, in one slot each.

    Raises:
        ReleaseError: they do not fit, with each number that could be changed, and to what.
    """
    each, free = pool.size + pool.overflow, server.max_connections - server.reserve
    needed = workers * SLOTS * each
    sums = (
        f"{workers} workers on all hosts x {SLOTS} slots during a switch x ({pool.size} + {pool.overflow}) "
        f"= {needed} connections; the server takes {server.max_connections} (max_connections), "
        f"{server.reserve} of them kept for others (app_connection_reserve)"
    )
    findings = []
    if needed > free:
        largest = free // (workers * SLOTS) - pool.overflow
        way = f"set {pool.keys['size']} to {largest} or less" if largest > 0 else "lower app_workers_max"
        findings.append(f"{sums}. Either {way}, or max_connections to {needed + server.reserve} or more")
    if pool.recycle_seconds >= server.wait_timeout_seconds:
        findings.append(
            f"{pool.keys['recycle_seconds']} is {pool.recycle_seconds}, and the server closes a connection that was "
            f"idle for {server.wait_timeout_seconds} s (wait_timeout). Either set "
            f"{pool.keys['recycle_seconds']} to {max(1, server.wait_timeout_seconds - SPARE_SECONDS)} or less, "
            f"or wait_timeout to {pool.recycle_seconds + SPARE_SECONDS} or more"
        )
    if findings:
        raise ReleaseError(
            "the connections do not fit the database server, so nothing was started:\n"
            + "\n".join(f"  - {finding}" for finding in findings)
        )
    return {"checked": True, "needed": needed, "free": free, "sums": sums}


@dataclass(frozen=True)
class Account:
    """How a release signs in to its database, by its own settings; ``names`` are the settings by what they hold."""

    names: Mapping[str, str]
    host: str
    user: str
    password: str
    name: str
    port: int = PORT
    tls_ca: str = ""

    @classmethod
    def of(cls, folder: Path, names: Mapping[str, str]) -> Account | None:
        """Return the account of the release in ``folder``; None if its settings do not name one.

        Raises:
            ReleaseError: a setting is no port, or no address.
        """
        settings = settings_of(folder)
        values = {key: settings[name] for key, name in names.items() if settings.get(name)}
        try:
            if "url" in values:
                url = urlsplit(values["url"])
                tls_ca = values.get("tls_ca") or parse_qs(url.query).get("ssl_ca", [""])[0]
                host, user, password, name = (
                    unquote(part or "") for part in (url.hostname, url.username, url.password, url.path[1:])
                )
                port, names = url.port or PORT, {**dict.fromkeys(KEYS, names["url"]), **names}
            else:
                host, user, password, name = (values.get(key, "") for key in ("host", "user", "password", "name"))
                port, tls_ca = int(values.get("port", PORT)), values.get("tls_ca", "")
        except ValueError:
            wrong = names["url"] if "url" in values else names["port"]
            raise ReleaseError(
                f"the setting {wrong} does not name a database: a port is a number, and an address is "
                f"mysql+driver://user:password@host:port/name. Fix: correct {wrong} in app_settings"
            ) from None
        return cls(names, host, user, password, name, port, tls_ca) if host and user else None

    def options(self) -> str:
        """Return the option file of the client."""
        verified = {"ssl-ca": self.tls_ca, "loose-ssl-mode": "VERIFY_IDENTITY", "loose-ssl-verify-server-cert": "1"}
        # What the server asks for without TLS, by the words of either client.
        unverified = {"loose-ssl-mode": "PREFERRED", "loose-ssl-verify-server-cert": "0"}
        client = {"host": self.host, "port": str(self.port), "user": self.user, "password": self.password}
        client |= {"loose-get-server-public-key": "1", **(verified if self.tls_ca else unverified)}
        lines = [f"{key} = {in_quotes(value)}" for key, value in client.items()]
        return "\n".join(["[client]", *lines, "[mysql]", f"database = {in_quotes(self.name)}", ""])

    def sign_in(self) -> None:
        """Read one row from the database.

        Raises:
            ReleaseError: it does not answer, or refuses the account; the settings to correct are named.
        """
        # In memory, so that the password is in no file and in no command line.
        descriptor = os.memfd_create("options")
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, self.options().encode())
            Database(Path(f"/proc/{os.getpid()}/fd/{descriptor}")).ask("SELECT 1")
        except BackupError as error:
            raise ReleaseError(self.explained(str(error))) from None
        finally:
            os.close(descriptor)

    def explained(self, complaint: str) -> str:
        """Return a complaint of the client with the settings that it is about, and what to do."""
        said = next((line for line in complaint.splitlines() if "ERROR " in line), complaint)
        said = said.removeprefix("the database does not answer: ")
        code = int(found[1]) if (found := re.search(r"ERROR (\d+)", said)) else 0
        keys, way = REFUSALS.get(code, (("host", "port"), DOCTOR))
        settings = " and ".join(dict.fromkeys(self.names[key] for key in keys if key in self.names))
        return (
            f"the release cannot sign in to its database by its own settings ({settings}): {said}. "
            f"Nothing was started. Fix: {way}"
        )


KEYS = ("host", "port", "user", "password", "name")
SET = "correct the setting in group_vars (app_settings)"
GRANT = "ansible-playbook playbooks/database.yml -l ENV, which creates the database and its accounts"
# What the client says, with the settings that it is about and what to do.
REFUSALS = {
    1044: (("name", "user"), GRANT),
    1045: (("user", "password"), f"{GRANT} with their passwords; or {SET}"),
    1049: (("name",), f"{GRANT}; or {SET}"),
    2002: (("host", "port"), f"{SET}; {DOCTOR}"),
    2003: (("host", "port"), f"{SET}; {DOCTOR}"),
    2005: (("host",), SET),
    2026: (("tls_ca", "host"), f"{SET}: it names the file of the authority that signed the server's certificate"),
}


def in_quotes(value: str) -> str:
    """Return a value as an option file takes it: in double quotes, nothing but a backslash is special."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
