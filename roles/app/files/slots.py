"""The two places that a release can run in, as systemd and their sockets have them; what the role tells all of this."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from application import Application
from basics import parsed, replace_link, run
from unix_http import UnixConnection

if TYPE_CHECKING:
    from messages import Version

SLOTS = ("blue", "green")
# What the server of a release answers itself, before the application (server/waffle_asgi.py).
LIVE_PATH = "/.waffle/live"
VERSION_PATH = "/.waffle/version"
# A release of an older version has this from its application.
OLDER_VERSION_PATH = "/version"
CONFIG = Path(__file__).resolve().with_name("release.json")
# Where administrators' programs put units, beside those in /etc that people edit.
UNITS = Path("/usr/local/lib/systemd/system")
# What podman leaves between systemd and a container: the unit's main process, whose only child is the server.
MONITOR = "conmon"


@dataclass(frozen=True)
class Config:
    """What the role tells this program; seconds, bytes and paths as named."""

    name: str
    root: Path
    user: str
    migration_user: str
    build_user: str
    poetry: str
    uv: str
    python: str
    pythons: str
    index_url: str
    packages_from_source: list[str]
    public_url: str
    public_host: str
    request_timeout_seconds: int
    graceful_timeout_seconds: int
    start_timeout_seconds: float
    settle_seconds: float
    watch_seconds: float
    drain_seconds: float
    confirm_seconds: float
    workers_max: int
    pool_settings: dict[str, str]
    connection_reserve: int
    keep_releases: int
    certificate_files: list[str]

    @classmethod
    def load(cls) -> Config:
        """Read the file beside this program."""
        values = json.loads(CONFIG.read_text())
        return cls(**{**values, "root": Path(values["root"])})

    def unit(self, kind: str, slot: str) -> str:
        """Return the name of a slot's ``service`` or ``socket``."""
        return f"{self.name}@{slot}.{kind}"


def ask(
    connection: http.client.HTTPConnection, path: str, host: str = "localhost", scheme: str = ""
) -> tuple[int, str]:
    """Send one GET, with the ``scheme`` that a proxy claims; return status and body.

    The body of a redirect is the address that it leads to. If there was no answer, status is 0 and the body is the
    reason.
    """
    headers = {"Host": host, "Connection": "close", **({"X-Forwarded-Proto": scheme} if scheme else {})}
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(1 << 16).decode(errors="replace")
        return answer.status, answer.headers.get("Location", body) if 300 <= answer.status < 400 else body
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def children(pid: str) -> list[str]:
    """Return the ids of a process's children; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def alive(pid: str) -> bool:
    """Return True if there is a process of this id."""
    return Path(f"/proc/{pid}").exists()


def server(main: str) -> str:
    """Return the id of the process that serves, by that of a unit's main process."""
    try:
        monitored = Path(f"/proc/{main}/comm").read_text().strip() == MONITOR
    except OSError:
        return main
    return next(iter(children(main)), "0") if monitored else main


def own_id(pid: str) -> str:
    """Return the id that a process knows itself by: in a container it is not the host's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return pid
    return next((line.split()[-1] for line in lines if line.startswith("NSpid:")), pid)


def workers_of(main: str) -> set[str]:
    """Return the process ids of the workers of a server's main process, as they know them themselves."""
    return {own_id(worker) for worker in children(main)}


@dataclass
class Slot:
    """One of the two places that a release can run in."""

    config: Config
    name: str

    @property
    def folder(self) -> Path:
        """Return the folder with the links ``release`` and ``socket``."""
        return self.config.root / "slots" / self.name

    @property
    def service(self) -> str:
        """Return the unit that runs the release."""
        return self.config.unit("service", self.name)

    @property
    def socket_unit(self) -> str:
        """Return the unit that holds the socket."""
        return self.config.unit("socket", self.name)

    @property
    def user(self) -> str:
        """Return the account that the slot's release runs as: neither slot can signal the other's processes."""
        return f"{self.config.user}-{self.name}"

    @property
    def units(self) -> tuple[str, str]:
        """Return both units, the socket's first: while it listens, a connection starts a service that was stopped."""
        return self.socket_unit, self.service

    @property
    def release(self) -> str:
        """Return the id of the release that the slot points to, or an empty text."""
        try:
            return (self.folder / "release").readlink().name
        except OSError:
            return ""

    def show(self, *properties: str) -> dict[str, str]:
        """Return properties of the service as systemd has them."""
        out = run("systemctl", "show", self.service, "--property", ",".join(properties)).stdout
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    @property
    def application(self) -> Application | None:
        """Return the application of the release that the slot points to; None if an older version made it."""
        return Application.of(self.folder / "release")

    def ask(self, path: str, timeout: float = 5, host: str = "localhost", scheme: str = "") -> tuple[int, str]:
        """Send one GET through the slot's socket."""
        return ask(UnixConnection(str(self.folder / "socket"), timeout), path, host, scheme)

    def version(self) -> Version:
        """Return what the server on the socket says of its release; nothing if none answers."""
        status, body = self.ask(VERSION_PATH if self.application else OLDER_VERSION_PATH)
        version: Version = parsed(body) if status == 200 else {}
        return version

    def answering(self) -> str:
        """Return the id of the release that answers on the socket, or an empty text."""
        return str(self.version().get("release", ""))

    def main(self) -> str:
        """Return the process id of the server's main process, 0 where there is none.

        Whoever watches it asks once: a restart is another process, and each question to systemd costs one, too, while
        the workers need the processors.
        """
        return server(self.show("MainPID").get("MainPID", "0"))

    @property
    def drop_in(self) -> Path:
        """Return what has systemd start the slot's release as root, for podman; the role brings what it links to."""
        return UNITS / f"{self.service}.d" / "container.conf"

    def contain(self, wanted: bool) -> bool:
        """Set whether systemd starts the slot's release for podman; return True if it has to read its units anew."""
        if wanted == self.drop_in.is_symlink():
            return False
        if wanted:
            self.drop_in.parent.mkdir(parents=True, exist_ok=True)
            replace_link(self.drop_in, CONFIG.with_name("container.conf"))
        else:
            self.drop_in.unlink()
            self.drop_in.parent.rmdir()
        return True

    def at_boot(self) -> dict[str, str]:
        """Return what the disk says of each unit, not what systemd has in memory: enabled, disabled, masked, ..."""
        states = run("systemctl", "is-enabled", *self.units, check=False).stdout.split()
        return {unit: states[place] if place < len(states) else "unknown" for place, unit in enumerate(self.units)}

    def enable(self) -> None:
        """Enable the slot at boot; systemd is to read its units anew later, which takes a third of a second."""
        run("systemctl", "enable", "--quiet", "--no-reload", *self.units)

    def stop(self) -> None:
        """Stop the slot after its running requests; it does not come back at boot."""
        run("systemctl", "disable", "--quiet", "--no-reload", *self.units)
        # Together, or the next connection would start the service again.
        run("systemctl", "stop", "--no-block", *self.units)
        self.contain(False)
        # While its requests end.
        run("systemctl", "daemon-reload")
        run("systemctl", "stop", *self.units)
        run("systemctl", "reset-failed", *self.units, check=False)

    def journal(self, lines: int = 60) -> str:
        """Return the last lines that the service logged since it was started."""
        invocation = self.show("InvocationID").get("InvocationID", "")
        match = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else [f"--unit={self.service}"]
        out = run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={lines}", *match, check=False).stdout
        return out.strip()
