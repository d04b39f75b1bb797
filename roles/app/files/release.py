#!/usr/bin/python3
"""Installs, starts, switches and lists the releases of one application on this host.

The configuration is the file `release.json` beside this program. One folder holds everything:

    <root>/incoming/<id>/   what Ansible brought: artefact.tar, .env, .env.migrate, .mysql.cnf, release.json
    <root>/releases/<id>/   a release: code, `.env` and a link to its virtual environment; never changed afterwards
    <root>/venvs/<key>/     a virtual environment, named by poetry.lock and Python, shared by releases with that lock
    <root>/slots/<slot>/    blue or green: `release` -> a release, `socket` -> the slot's socket
    <root>/live             -> the slot that gets the public requests; replaced by rename
    <root>/state/<id>.json  what became of a release: prepared, good, failed

nginx names only `<root>/live/socket` and `<root>/live/release/frontend`, and the kernel resolves both on each request.
So one rename switches back end and front end together, without a reload.

`start`, `switch` and `repair` run as one transient systemd unit. Its name is the lock: a second one cannot start while
the first runs, nothing is left behind when it ends, and neither Ctrl-C nor a lost connection tears it.

Runs on Python 3.10 or newer, with nothing but its standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import grp
import hashlib
import http.client
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

SLOTS = ("blue", "green")
RECENT_SECONDS = 3600
CONFIG = Path(__file__).resolve().with_suffix(".json")
OPTION_FILE = ".mysql.cnf"


class ReleaseError(Exception):
    """A release cannot be used; the message says why and what to do."""


# What ends in one message instead of a traceback: a full disk or a damaged archive are no faults of this program.
UNUSABLE = (ReleaseError, OSError, tarfile.TarError)


@dataclass(frozen=True)
class Config:
    """What the role tells this program; seconds, bytes and paths as named."""

    name: str
    root: Path
    user: str
    migration_user: str
    poetry: str
    python: str
    index_url: str
    settings_command: list[str]
    serve_command: list[str]
    live_path: str
    ready_path: str
    version_path: str
    public_url: str
    public_host: str
    start_timeout_seconds: float
    settle_seconds: float
    watch_seconds: float
    drain_seconds: float
    workers_max: int
    keep_releases: int

    @classmethod
    def load(cls) -> Config:
        """Read the file beside this program."""
        values = json.loads(CONFIG.read_text())
        return cls(**{**values, "root": Path(values["root"])})

    def unit(self, kind: str, slot: str) -> str:
        """Return the name of a slot's ``service`` or ``socket``."""
        return f"{self.name}@{slot}.{kind}"


def run(*command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program; raise `ReleaseError` with the end of its output where it fails and ``check`` is set."""
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)
    if check and done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise ReleaseError(f"`{' '.join(str(part) for part in command)}` ended with {done.returncode}:\n{output}")
    return done


def replace_link(link: Path, target: str | Path) -> None:
    """Point ``link`` to ``target`` atomically."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` atomically; on a full disk the old content stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(connection: http.client.HTTPConnection, path: str, host: str = "localhost") -> tuple[int, str]:
    """Send one GET; return status and body, or status 0 and the reason why there was no answer."""
    try:
        connection.request("GET", path, headers={"Host": host, "Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 16).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


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

    def ask(self, path: str, timeout: float = 5) -> tuple[int, str]:
        """Send one GET through the slot's socket."""
        return ask(UnixConnection(str(self.folder / "socket"), timeout), path)

    def version(self) -> dict[str, Any]:
        """Return what the release on the socket says of itself; nothing where none answers."""
        status, body = self.ask(self.config.version_path)
        return parsed(body) if status == 200 else {}

    def answering(self) -> str:
        """Return the id of the release that answers on the socket, or an empty text."""
        return str(self.version().get("release", ""))

    def workers(self) -> set[str]:
        """Return the process ids of the server's main process and its workers."""
        main = self.show("MainPID").get("MainPID", "0")
        try:
            return {main, *Path(f"/proc/{main}/task/{main}/children").read_text().split()}
        except OSError:
            return set()

    def stop(self) -> None:
        """Let running requests end, then stop the slot; it does not come back at boot."""
        run("systemctl", "disable", "--quiet", self.service, self.socket_unit)
        # The socket first, or the next connection would start the service again.
        run("systemctl", "stop", self.socket_unit)
        run("systemctl", "stop", self.service)
        run("systemctl", "reset-failed", self.service, self.socket_unit, check=False)

    def journal(self, lines: int = 25) -> str:
        """Return the last lines that the service logged since it was started."""
        invocation = self.show("InvocationID").get("InvocationID", "")
        match = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else [f"--unit={self.service}"]
        out = run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={lines}", *match, check=False).stdout
        return out.strip()


def parsed(body: str) -> dict[str, Any]:
    """Return the JSON object that ``/version`` answers; nothing where the body is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def release_in(body: str) -> str:
    """Return the release id in the JSON that ``/version`` answers."""
    return str(parsed(body).get("release", ""))


def has_place(member: tarfile.TarInfo, links: set[str]) -> bool:
    """Tell whether a member of an artefact is a file or a link that stays inside the release."""
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or any(str(parent) in links for parent in place.parents):
        return False
    target = os.path.normpath(place.parent / member.linkname)
    return member.isfile() or (member.issym() and target.split("/")[0] not in ("", ".."))


@dataclass
class Host:
    """The releases of one application on this host."""

    config: Config
    steps: list[dict[str, Any]] = field(default_factory=list)

    # --- looking ---

    @property
    def live(self) -> Slot | None:
        """Return the slot that gets the public requests."""
        try:
            name = (self.config.root / "live").readlink().name
        except OSError:
            return None
        return self.slot(name) if name in SLOTS else None

    @property
    def idle(self) -> Slot:
        """Return the slot that gets none."""
        live = self.live
        return self.slot(SLOTS[1] if live and live.name == SLOTS[0] else SLOTS[0])

    def slot(self, name: str) -> Slot:
        """Return a slot by its name."""
        return Slot(self.config, name)

    def folder(self, release: str) -> Path:
        """Return the folder of a release."""
        return self.config.root / "releases" / release

    def state(self, release: str) -> dict[str, Any]:
        """Return what is known of a release."""
        try:
            known: dict[str, Any] = json.loads((self.config.root / "state" / f"{release}.json").read_text())
        except FileNotFoundError:
            return {}
        return known

    def remember(self, release: str, **facts: Any) -> None:
        """Add facts to what is known of a release."""
        path = self.config.root / "state" / f"{release}.json"
        write_whole(path, json.dumps({**self.state(release), **facts}, indent=1) + "\n")

    def releases(self) -> list[str]:
        """Return the ids of all finished releases, the one used last first."""
        folder = self.config.root / "releases"
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        return sorted(found, key=lambda name: float(self.state(name).get("at", 0)), reverse=True)

    def problems(self) -> list[str]:
        """Return what keeps the live release from being what it should be, in words."""
        live = self.live
        if live is None:
            return ["no release is live"]
        if not (live.folder / "release" / ".env").is_file():
            return [f"the live slot {live.name} points to a release that is not there: {live.release or 'none'}"]
        found = []
        shown = live.show("ActiveState", "UnitFileState", "NeedDaemonReload")
        if shown.get("UnitFileState") != "enabled":
            found.append(f"{live.service} is {shown.get('UnitFileState') or 'unknown'}, not enabled")
        if shown.get("NeedDaemonReload") == "yes":
            found.append(f"{live.service} was changed since systemd read it")
        if shown.get("ActiveState") != "active":
            found.append(f"{live.service} is {shown.get('ActiveState')}")
        elif not (live.folder / "socket").is_socket():
            found.append(f"the socket of {live.socket_unit} is gone")
        elif (answering := live.answering()) != live.release:
            found.append(f"{answering or 'nothing'} answers where {live.release} is live")
        idle = self.idle.show("ActiveState", "UnitFileState")
        if idle.get("ActiveState") == "active" or idle.get("UnitFileState") == "enabled":
            found.append(f"{self.idle.service} still runs or is enabled, though it is not live")
        return found

    def status(self) -> dict[str, Any]:
        """Return what is live, what is wrong with it, and the other releases."""
        live = self.live
        return {
            "live": live.release if live else "",
            "slot": live.name if live else "",
            "problems": self.problems(),
            "releases": [{"id": name, **self.state(name)} for name in self.releases()],
        }

    def listing(self) -> list[str]:
        """Return a line for each release: id, state, when it got there (UTC), schema, subject of its commit."""
        live = self.live.release if self.live else ""
        lines = []
        for name in self.releases():
            known = self.state(name)
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(known.get("at", 0))))
            state = "live" if name == live else str(known.get("state", "unknown"))
            lines.append(f"{name}  {state:<8}  {at}  {known.get('schema') or '-':<12}  {known.get('subject', '')}")
        return lines

    def rollback_target(self, wanted: str, keep_schema: bool) -> str:
        """Return the release to go back to: ``wanted``, or the good one that was live before.

        Raises:
            ReleaseError: there is none, it never was good, or the database has another schema than it had then.
        """
        live = self.live.release if self.live else ""
        good = [name for name in self.releases() if name != live and self.state(name).get("state") == "good"]
        if not good or (wanted and wanted not in good):
            known = ", ".join(good) or "none"
            raise ReleaseError(f"{wanted or 'a previous release'} is not a release to go back to; good ones here: {known}")
        target = wanted or good[0]
        then, now = self.state(target).get("schema"), self.state(live).get("schema")
        if then != now and not keep_schema:
            raise ReleaseError(
                f"release {target} ran on schema {then}, and the database has {now}. If the old code works on the new "
                "schema (it was only expanded), run the same command with -e schema=keep"
            )
        return target

    # --- preparing ---

    def prepare(self, release: str) -> None:
        """Make ``releases/<id>`` from ``incoming/<id>``, whole or not at all."""
        target, incoming = self.folder(release), self.config.root / "incoming" / release
        if target.is_dir():
            shutil.rmtree(incoming, ignore_errors=True)
            return
        with self.only_one_prepares():
            partial = target.with_name(f".{release}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                self.unpack(incoming, partial)
                self.link_venv(partial)
                self.check_settings(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(target)
        facts = json.loads((target / "release.json").read_text())
        self.remember(release, state="prepared", at=time.time(), **{k: v for k, v in facts.items() if k != "release"})
        shutil.rmtree(incoming)

    @contextlib.contextmanager
    def only_one_prepares(self) -> Iterator[None]:
        """Hold a lock that ends with this process."""
        with (self.config.root / "state" / ".prepare.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def unpack(self, incoming: Path, folder: Path) -> None:
        """Unpack the artefact after comparing its digest, and add the settings."""
        facts = json.loads((incoming / "release.json").read_text())
        artefact = incoming / "artefact.tar"
        if digest_of(artefact) != facts["artefact"]:
            raise ReleaseError(f"{artefact} is not what was sent: its digest differs. Run the same command again")
        needed, free = artefact.stat().st_size * 3, shutil.disk_usage(self.config.root).free
        if free < needed + (64 << 20):
            raise ReleaseError(f"only {free >> 20} MiB are free below {self.config.root}: free some space, then run again")
        folder.mkdir(mode=0o755)
        with tarfile.open(artefact) as tar:
            members = tar.getmembers()
            links = {str(PurePosixPath(member.name)) for member in members if member.issym()}
            for member in members:
                if not has_place(member, links):
                    raise ReleaseError(f"{artefact} holds {member.name!r}, which has no place in a release")
                # The archive has no times, so that it is the same everywhere; nginx makes its ETag of time and size,
                # and a changed file of the same size must not look unchanged to a browser.
                member.mtime = int(time.time())
            # The names were checked above; Python 3.10 and 3.11 have the filter only in their later releases.
            options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, members, **options)  # type: ignore[arg-type]  # noqa: S202
        shutil.copy(incoming / "release.json", folder / "release.json")
        self.copy_secret(incoming / ".env", folder / ".env", self.config.user)
        self.copy_secret(incoming / ".env.migrate", folder / ".env.migrate", self.config.migration_user)
        if (incoming / OPTION_FILE).exists():
            self.copy_secret(incoming / OPTION_FILE, folder / OPTION_FILE, self.config.migration_user)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink() and not path.name.startswith((".env", OPTION_FILE)):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)

    def copy_secret(self, source: Path, target: Path, group: str) -> None:
        """Copy a file so that root and one group can read it, at no moment anybody else."""
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(source.read_bytes())
        os.chown(target, 0, grp.getgrnam(group).gr_gid)
        target.chmod(0o640)

    def link_venv(self, folder: Path) -> None:
        """Make the virtual environment for the release's lock file, unless there is one, and link it."""
        version = run(self.config.python, "-VV").stdout
        key = hashlib.sha256((folder / "poetry.lock").read_bytes() + version.encode()).hexdigest()[:16]
        venv = self.config.root / "venvs" / key
        if not (venv / ".complete").is_file():
            shutil.rmtree(venv, ignore_errors=True)
            run(self.config.python, "-m", "venv", "--without-pip", venv)
            self.install(folder, venv)
            (venv / ".complete").touch()
        (folder / ".venv").symlink_to(venv)
        run(venv / "bin" / "python", "-m", "compileall", "-q", "-x", r"/\.venv/", folder)

    def install(self, folder: Path, venv: Path) -> None:
        """Install exactly what poetry.lock names into ``venv``."""
        environment = {
            **os.environ,
            "VIRTUAL_ENV": str(venv),
            "PATH": f"{venv}/bin:{os.environ.get('PATH', os.defpath)}",
            "POETRY_CACHE_DIR": "/var/cache/poetry",
            # Poetry brings its own list of authorities; the system's may know more.
            "REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt",
        }
        if self.config.index_url:
            environment["POETRY_PYPI_MIRROR_URL"] = self.config.index_url
        run(
            self.config.poetry, "sync", "--only=main", "--no-root", "--no-interaction", "--compile",
            cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def check_settings(self, folder: Path) -> None:
        """Let the release's own code accept or refuse its ``.env``."""
        if not self.config.settings_command:
            return
        done = self.run_in(folder, self.config.user, self.config.settings_command)
        if done.returncode != 0:
            raise ReleaseError(
                f"the application refuses its settings:\n{(done.stderr or done.stdout).strip()}\n"
                "correct them in group_vars and run the same command again; nothing was switched"
            )

    def run_in(self, folder: Path, user: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of the release's virtual environment in its folder, as ``user``."""
        account = pwd.getpwnam(user)
        return subprocess.run(
            [str(folder / ".venv" / "bin" / command[0]), *command[1:]],
            cwd=folder,
            env={"PATH": f"{folder}/.venv/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent",
                 "PYTHONDONTWRITEBYTECODE": "1"},
            user=user,
            group=account.pw_gid,
            extra_groups=os.getgrouplist(user, account.pw_gid),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )  # fmt: skip

    def execute(self, release: str, command: list[str]) -> str:
        """Run a command of a release as its service account."""
        done = self.run_in(self.folder(release), self.config.user, command)
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-40:])
        if done.returncode != 0:
            raise ReleaseError(f"`{' '.join(command)}` in release {release} ended with {done.returncode}:\n{output}")
        return output

    # --- switching ---

    def start(self, release: str) -> None:
        """Start a release in the idle slot and wait until it is ready; on failure the live one is untouched."""
        if not self.folder(release).is_dir():
            raise ReleaseError(f"{release} is not on this host; `{self.config.name}-release list` names those that are")
        slot = self.idle
        with self.step("stop what runs in the idle slot"):
            slot.stop()
            replace_link(slot.folder / "release", self.folder(release))
        try:
            with self.step(f"start {release} in {slot.name}"):
                # Enabled before it gets a request: a host that goes down in the middle comes back with it.
                run("systemctl", "enable", "--quiet", slot.socket_unit, slot.service)
                run("systemctl", "start", slot.socket_unit)
                run("systemctl", "start", slot.service)
            with self.step("wait until it is ready"):
                self.await_ready(slot, release)
            # Where nothing was live, there is nothing to keep.
            if self.live:
                with self.step("see whether it lasts"):
                    self.settle(slot)
        except ReleaseError as error:
            journal = slot.journal()
            slot.stop()
            self.remember(release, state="failed", at=time.time())
            raise ReleaseError(
                f"release {release} was refused, and what was live before still is: {error}\n"
                f"the last lines of its log:\n{journal}"
            ) from None

    def await_ready(self, slot: Slot, release: str) -> None:
        """Wait until a slot's own health check and version are right; give up when its main process dies."""
        deadline = time.monotonic() + self.config.start_timeout_seconds
        last = "no answer yet"
        while time.monotonic() < deadline:
            if slot.show("ActiveState").get("ActiveState") != "active":
                raise ReleaseError("its main process ended")
            status, body = slot.ask(self.config.ready_path)
            if status == 200:
                answering = slot.answering()
                if answering == release:
                    return
                last = f"{self.config.version_path} names the release {answering or 'none'}"
            else:
                last = f"{self.config.ready_path} answered {status or 'nothing'}: {body[:300]}"
            time.sleep(0.1)
        raise ReleaseError(f"not ready after {self.config.start_timeout_seconds:.0f} s; {last}")

    def settle(self, slot: Slot) -> None:
        """Watch a ready slot for a while: a release that crashes soon after its start must never get a request."""
        workers, deadline = slot.workers(), time.monotonic() + self.config.settle_seconds
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if slot.workers() != workers:
                raise ReleaseError("a worker died soon after it had started")
        status, body = slot.ask(self.config.ready_path)
        if status != 200:
            raise ReleaseError(f"{self.config.ready_path} answered {status or 'nothing'} after a while: {body[:300]}")

    def switch(self, release: str) -> None:
        """Give the public requests to a started release, watch it, and stop the old one; on failure switch back."""
        old, new = self.live, self.idle
        if old and old.release == release and not new.release == release:
            return
        if new.release != release or new.answering() != release:
            raise ReleaseError(f"{release} does not run in the idle slot {new.name}; start it first")
        link = self.config.root / "live"
        with self.step("switch"):
            replace_link(link, new.folder)
        try:
            with self.step("watch the public address"):
                self.watch(new, release, self.config.watch_seconds if old else 0)
        except ReleaseError as error:
            self.remember(release, state="failed", at=time.time())
            if old:
                replace_link(link, old.folder)
                time.sleep(self.config.drain_seconds)
                new.stop()
                raise ReleaseError(f"switched back to {old.release}: {error}\n{new.journal()}") from None
            # A first release that does not answer must not look like a good one to the next run.
            link.unlink()
            new.stop()
            raise
        self.remember(release, state="good", at=time.time(), schema=new.version().get("schema"))
        if old:
            with self.step(f"drain and stop {old.name}"):
                time.sleep(self.config.drain_seconds)
                old.stop()
        self.clean_up()

    def watch(self, slot: Slot, release: str, seconds: float) -> None:
        """Ask the public address which release answers, again and again for some seconds."""
        if not self.config.public_url:
            return
        host, _, path = self.config.public_url.removeprefix("http://").partition("/")
        name = self.config.public_host if self.config.public_host != "_" else host
        deadline = time.monotonic() + seconds
        while True:
            connection = http.client.HTTPConnection(host, timeout=10)
            status, body = ask(connection, f"/{path}{self.config.version_path}".replace("//", "/"), name)
            if status != 200 or release_in(body) != release:
                raise ReleaseError(
                    f"{self.config.public_url}{self.config.version_path} answered {status or 'nothing'} "
                    f"({release_in(body) or body[:200]}), not release {release}"
                )
            if slot.show("ActiveState").get("ActiveState") != "active":
                raise ReleaseError(f"{slot.service} died after the switch")
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def repair(self) -> None:
        """Bring the live slot back to what it should be: running, enabled, answering; the idle one stopped."""
        live = self.live
        if live is None:
            raise ReleaseError("no release is live; deploy one")
        run("systemctl", "daemon-reload")
        run("systemctl", "unmask", "--quiet", live.service, live.socket_unit)
        run("systemctl", "enable", "--quiet", live.service, live.socket_unit)
        if not (live.folder / "socket").is_socket():
            run("systemctl", "stop", live.service, live.socket_unit)
        run("systemctl", "start", live.socket_unit)
        run("systemctl", "restart" if live.answering() != live.release else "start", live.service)
        self.await_ready(live, live.release)
        self.idle.stop()
        if left := self.problems():
            raise ReleaseError("could not be repaired: " + "; ".join(left))

    def clean_up(self) -> None:
        """Remove old releases and virtual environments; what a slot points to and the newest good ones stay."""
        pointed = {self.slot(name).release for name in SLOTS}
        names = self.releases()
        good = [name for name in names if self.state(name).get("state") == "good"]
        # Another run may have prepared one that it is about to start.
        recent = [name for name in names if time.time() - float(self.state(name).get("at", 0)) < RECENT_SECONDS]
        prepared = {name for name in recent if self.state(name).get("state") == "prepared"}
        kept = pointed | prepared | set(good[: self.config.keep_releases])
        for name in names:
            if name not in kept:
                shutil.rmtree(self.folder(name))
                (self.config.root / "state" / f"{name}.json").unlink(missing_ok=True)
        used = {os.path.realpath(self.folder(name) / ".venv") for name in kept if name}
        with self.only_one_prepares():
            for venv in (self.config.root / "venvs").iterdir():
                if os.path.realpath(venv) not in used:
                    shutil.rmtree(venv)
            for leftover in (self.config.root / "releases").glob(".*.partial"):
                shutil.rmtree(leftover)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Log a step and keep its seconds for the result."""
        begin = time.monotonic()
        print(name, flush=True)
        try:
            yield
        finally:
            self.steps.append({"step": name, "seconds": round(time.monotonic() - begin, 2)})

    # --- running ---

    def serve(self, slot: str) -> None:
        """Become the server of a slot; systemd starts this as the service account."""
        workers = min(len(os.sched_getaffinity(0)) + 1, self.config.workers_max)
        command = [part.replace("{workers}", str(workers)).replace("{slot}", slot) for part in self.config.serve_command]
        program = Path.cwd() / ".venv" / "bin" / command[0]
        os.execv(program, [str(program), *command[1:]])  # noqa: S606

    def probe(self, slot_name: str, pid: int) -> None:
        """Wait until a starting slot answers at all; end at once when its main process ``pid`` is gone.

        gunicorn tells systemd that it is ready before it has imported the application, so `Type=notify` proves nothing.
        """
        slot, deadline = self.slot(slot_name), time.monotonic() + self.config.start_timeout_seconds
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                raise ReleaseError("the main process ended while it started") from None
            if slot.ask(self.config.live_path, timeout=2)[0] == 200:
                return
            time.sleep(0.05)
        raise ReleaseError(f"{self.config.live_path} did not answer within {self.config.start_timeout_seconds:.0f} s")


@dataclass
class Schema:
    """The database's schema on its way to that of a release: planned, backed up, changed."""

    host: Host
    release: str

    @property
    def half_applied(self) -> Path:
        """Return the file that remembers a migration that failed half-way; backup.py removes it after a restore."""
        return self.host.config.root / "state" / "half-applied.json"

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run migrations.py in the release, as the migration account, and return its result.

        Raises:
            MigrationFailed: a revision failed.
            ReleaseError: anything else.
        """
        folder, program = self.host.folder(self.release), Path(__file__).resolve().with_name("migrations.py")
        if not folder.is_dir():
            known = f"`{self.host.config.name}-release list` names those that are"
            raise ReleaseError(f"{self.release} is not on this host; {known}")
        # Isolated: nothing beside migrations.py is importable by the application's env.py.
        done = self.host.run_in(folder, self.host.config.migration_user, ["python", "-I", str(program), *arguments])
        result = parsed(done.stdout)
        if done.returncode != 0:
            text = "\n".join(done.stderr.strip().splitlines()[-60:])
            raise MigrationFailed(text, result["failure"]) if "failure" in result else ReleaseError(text)
        return result

    def migrate(self, backup: bool) -> dict[str, Any]:
        """Bring the database to the release's revision, after a backup; return what was done."""
        plan = self.run("plan")
        self.refuse_half_applied(plan["current"])
        if not plan["pending"]:
            return {"backup": None, "from": plan["current"], "to": plan["current"], "applied": []}
        return self.change(["upgrade"], backup)

    def downgrade(self, revision: str, backup: bool) -> dict[str, Any]:
        """Take the database back to an earlier revision of this release, after a backup; return what was done."""
        self.refuse_half_applied(self.run("plan")["current"])
        return self.change(["downgrade", revision], backup)

    def change(self, command: list[str], backup: bool) -> dict[str, Any]:
        """Make a backup, then run migrations; remember one that failed half-way."""
        made = self.back_up() if backup else None
        try:
            result = self.run(*command)
        except MigrationFailed as error:
            text = f"{error}\n{self.ways_out(error.report, made)}"
            if error.report["applied"]:
                kept = {"text": text, "version": error.report["version"], "file": error.report["file"]}
                digest = digest_of(self.host.folder(self.release) / kept["file"])
                write_whole(self.half_applied, json.dumps({**kept, "digest": digest, "at": time.time()}, indent=1))
            raise ReleaseError(text) from None
        self.half_applied.unlink(missing_ok=True)
        return {"backup": made, **result}

    def back_up(self) -> str | None:
        """Make a backup of the database; return its name, None where there is nothing in it or no access was given."""
        option_file = self.host.folder(self.release) / OPTION_FILE
        if not option_file.exists():
            return None
        program = Path(__file__).resolve().with_name("backup.py")
        done = run(sys.executable, program, "create", "--option-file", option_file)
        made: str | None = json.loads(done.stdout)["backup"]
        return made

    def refuse_half_applied(self, current: str | None) -> None:
        """Stop where a revision is known to be half applied and nothing was done about it.

        Raises:
            ReleaseError: with the report of the run that failed.
        """
        try:
            known = json.loads(self.half_applied.read_text())
        except FileNotFoundError:
            return
        file = self.host.folder(self.release) / known["file"]
        mended = not file.is_file() or digest_of(file) != known["digest"]
        if current == known["version"] and not mended:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(known["at"]))
            raise ReleaseError(
                f"a migration failed half-way at {at} UTC, and nothing was done about it since. It said:\n"
                f"{known['text']}\n"
                f"  undone by hand: rm {self.half_applied}, and run the same command again"
            )

    def ways_out(self, report: dict[str, Any], backup: str | None) -> str:
        """Return what to do about a revision that failed."""
        name, folder = self.host.config.name, self.host.folder(self.release)
        if not report["applied"] and not report["done_already"]:
            nothing = f"What was live before still is. Nothing of revision {report['revision']} was applied"
            return f"{nothing}: mend it, and run the same command again"
        restore = backup or "NAME (the same command without -e backup lists them)"
        return (
            "What was live before still is. There are two ways out:\n"
            f"  back:    ansible-playbook playbooks/restore.yml -l ENV -e backup={restore}\n"
            f"  forward: mend {report['file']} so that it also skips what is there, and run the same command again;\n"
            "           or make by hand what was not applied, and then say so, as root on this host:\n"
            f"           mysql --defaults-file={folder}/{OPTION_FILE}\n"
            f"           {name}-release stamp {self.release} {report['revision']}"
        )


class MigrationFailed(ReleaseError):
    """A revision failed; `report` is what migrations.py tells of it."""

    def __init__(self, text: str, report: dict[str, Any]) -> None:
        super().__init__(text)
        self.report = report


def plan_lines(release: str, plan: dict[str, Any]) -> list[str]:
    """Return the plan of a release for people: revisions, their SQL, and warnings."""
    lines = [
        f"release {release}",
        f"the database is at {plan['current'] or 'no revision'}, this release wants {plan['head'] or 'none'}",
    ]
    if not plan["pending"]:
        lines.append("nothing is to be done")
    for revision in plan["pending"]:
        mark = ", older code works on it" if revision["compatible"] else ""
        lines.append(f"{revision['revision']}: {revision['message']}{mark}")
        lines += [f"    {statement};" for statement in revision["statements"]]
        lines += [f"    WARNING: {warning}" for warning in revision["warnings"]]
    return lines


def locked(host: Host, arguments: list[str], wait: float) -> int:
    """Run this program again as the transient unit whose name is the lock; return its exit code.

    Prints the unit's result. With ``wait`` seconds, waits for another one to end first.
    """
    unit, result = f"{host.config.name}-release.service", Path("/run") / f"{host.config.name}-release.result"
    deadline = time.monotonic() + wait
    command = ["systemd-run", f"--unit={unit}", "--collect", "--wait", "--quiet", f"--description={describe(arguments)}"]
    while True:
        begin = time.time()
        done = run(*command, sys.executable, str(Path(__file__).resolve()), "--in-unit", *arguments, check=False)
        holder = run("systemctl", "show", unit, "--property=ActiveState,Description,ActiveEnterTimestamp").stdout
        if "already loaded" not in done.stderr and "already exists" not in done.stderr:
            break
        if time.monotonic() > deadline:
            raise ReleaseError(f"another run holds the lock on this host:\n{holder}wait for it, or: journalctl -fu {unit}")
        time.sleep(0.5)
    # A unit that could not even start has left no result: one from an earlier run is not its.
    ended = result.is_file() and result.stat().st_mtime >= begin
    outcome = json.loads(result.read_text()) if ended else {}
    if done.returncode != 0:
        raise ReleaseError(outcome.get("error") or f"{unit} ended without a result:\n{done.stderr}\nsee: journalctl -u {unit}")
    print(json.dumps(outcome))
    return 0


def describe(arguments: list[str]) -> str:
    """Return a line that tells the next one who holds the lock, and what for."""
    return f"{' '.join(arguments)}, by {os.environ.get('SUDO_USER', 'root')}"


def in_unit(host: Host, action: Callable[[], None]) -> int:
    """Run an action inside the transient unit and leave its result for the one who waits."""
    result = Path("/run") / f"{host.config.name}-release.result"
    result.unlink(missing_ok=True)
    outcome: dict[str, Any] = {}
    try:
        action()
    except UNUSABLE as error:
        outcome["error"] = str(error)
    outcome["steps"] = host.steps
    write_whole(result, json.dumps(outcome))
    if "error" in outcome:
        print(outcome["error"], file=sys.stderr)
    return 1 if "error" in outcome else 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="release", description=__doc__.splitlines()[0] if __doc__ else "")
    top.add_argument("--in-unit", action="store_true", help=argparse.SUPPRESS)
    top.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="wait for another run to end")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="print what is live, as JSON")
    commands.add_parser("list", help="print the releases on this host")
    commands.add_parser("stop-idle", help="stop a release that was started and is not wanted after all")
    commands.add_parser("repair", help="bring the live slot back to what it should be")
    for name, text in (
        ("prepare", "make a release from what Ansible brought"),
        ("start", "start a release in the idle slot"),
        ("switch", "give it the public requests"),
    ):
        commands.add_parser(name, help=text).add_argument("release")
    plan = commands.add_parser("plan", help="print the migrations that a release would run, with their SQL, as JSON")
    plan.add_argument("--text", action="store_true", help="for people")
    migrate = commands.add_parser("migrate", help="bring the database to the release's schema, after a backup")
    downgrade = commands.add_parser("downgrade", help="take it back to an earlier revision, after a backup")
    for command in (migrate, downgrade):
        command.add_argument("--no-backup", action="store_true", help="make none")
    stamp = commands.add_parser("stamp", help="note that the database is at a revision, and run nothing")
    compatible = commands.add_parser("compatible", help="tell whether older code may run on a newer schema")
    for command in (plan, migrate, downgrade, stamp, compatible):
        command.add_argument("release")
    for command in (downgrade, stamp):
        command.add_argument("revision")
    compatible.add_argument("older")
    compatible.add_argument("newer")
    target = commands.add_parser("rollback-target", help="print the release that a rollback goes to")
    target.add_argument("--keep-schema", action="store_true", help="also where the database has another schema by now")
    target.add_argument("release", nargs="?", default="")
    execute = commands.add_parser("exec", help="run a command of a release as the service account")
    execute.add_argument("release")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    serve = commands.add_parser("serve", help="(systemd) become the server of a slot")
    serve.add_argument("slot", choices=SLOTS)
    probe = commands.add_parser("probe", help="(systemd) wait until a starting slot answers")
    probe.add_argument("slot", choices=SLOTS)
    probe.add_argument("pid", type=int)
    return top


def dispatch(host: Host, options: argparse.Namespace) -> int:
    """Run one command; return the exit code."""
    command = options.command
    torn: dict[str, Callable[[], None]] = {
        "start": lambda: host.start(options.release),
        "switch": lambda: host.switch(options.release),
        "repair": host.repair,
        "stop-idle": lambda: host.idle.stop(),
    }
    if command in torn:
        if options.in_unit:
            return in_unit(host, torn[command])
        return locked(host, [command, *([options.release] if "release" in options else [])], options.wait)
    if command == "status":
        print(json.dumps(host.status()))
    elif command == "list":
        print("\n".join(host.listing()))
    elif command == "rollback-target":
        print(host.rollback_target(options.release, options.keep_schema))
    elif command == "prepare":
        host.prepare(options.release)
    elif command in ("plan", "migrate", "downgrade", "stamp", "compatible"):
        print(change_schema(Schema(host, options.release), options))
    elif command == "exec":
        print(host.execute(options.release, options.argv))
    elif command == "serve":
        host.serve(options.slot)
    else:
        host.probe(options.slot, options.pid)
    return 0


def change_schema(schema: Schema, options: argparse.Namespace) -> str:
    """Run one of the commands about the database's schema; return what to print."""
    if options.command == "plan":
        plan = schema.run("plan")
        return "\n".join(plan_lines(schema.release, plan)) if options.text else json.dumps(plan)
    if options.command == "migrate":
        return json.dumps(schema.migrate(not options.no_backup))
    if options.command == "downgrade":
        return json.dumps(schema.downgrade(options.revision, not options.no_backup))
    if options.command == "stamp":
        return json.dumps(schema.run("stamp", options.revision))
    return json.dumps(schema.run("compatible", options.older, options.newer))


def main() -> int:
    """Parse, run, and turn a failure into one message."""
    options = parser().parse_args()
    try:
        return dispatch(Host(Config.load()), options)
    except UNUSABLE as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
