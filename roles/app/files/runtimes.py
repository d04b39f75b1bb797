"""What the code of a release runs in: a virtual environment of this host, or an image with a system of its own.

A release keeps to the one that its `release.json` names, so that a rollback crosses from one to the other.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import platform
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from application import Application
from basics import OPTION_FILE, ReleaseError, digest_of, read_json, run
from builder import NETRC, Builder
from environment import FILES, environment_of
from installers import SERVER, Installer, installer_for
from integrity import LINKS, Integrity
from project import write_metadata
from serve import as_root
from shared import Shared
from slots import Config, Slot

CERTIFICATES = Path("/etc/ssl/certs")
# Our own part of the server of a release, and the pins of the packages that it needs.
WORKERS = Path(__file__).resolve().with_name("server")
# What gives a command in a container the settings of its release.
EXPORT = Path(__file__).resolve().with_name("environment.py")


@dataclass(frozen=True)
class Runtime(abc.ABC):
    """What releases.py and preparation.py ask of either; ``folder`` is a release's own, its code and settings."""

    config: Config
    integrity: Integrity

    # What messages call it, and whether systemd hands a slot to podman, which is root's.
    title = ""
    contained = False

    @abc.abstractmethod
    def make(self, folder: Path) -> None:
        """Make what a release needs, unless it is there.

        Raises:
            ReleaseError: it cannot be made.
        """

    @abc.abstractmethod
    def changes(self, folder: Path) -> list[str]:
        """Return what is wrong with what a release needs, in words."""

    @abc.abstractmethod
    def renew(self, folder: Path, others: Iterable[Path]) -> None:
        """Make anew what a release needs, for the ``others`` that share it as well."""

    @abc.abstractmethod
    def run(self, folder: Path, user: str, command: list[str], *programs: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of a release in its folder as an account of this host.

        ``programs`` are files of this host that the command names.
        """

    @abc.abstractmethod
    def serve(self, slot: Slot, command: list[str]) -> None:
        """Become the server of a slot that systemd starts for podman, with the socket that it has handed over."""

    @abc.abstractmethod
    def names(self) -> set[str]:
        """Return the names of all that there are on this host."""

    @abc.abstractmethod
    def names_for(self, folder: Path) -> set[str]:
        """Return the names of those that a release has."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove one that no release needs."""

    def clean(self, kept: Iterable[Path]) -> None:
        """Remove all but those of the releases that stay."""
        for name in self.names().difference(*(self.names_for(folder) for folder in kept)):
            self.remove(name)

    @contextlib.contextmanager
    def left_as_it_was(self) -> Iterator[None]:
        """Remove at the end what was made meanwhile."""
        known = self.names()
        try:
            yield
        finally:
            for name in self.names() - known:
                self.remove(name)


class Venv(Runtime):
    """A virtual environment for each set of packages, shared by the releases that have it and linked as `.venv`.

    Beside it, the server's own packages, linked as `.server`: the application's lock file does not name them.
    """

    title = "virtual environment"

    @property
    def venvs(self) -> Shared:
        """Return the virtual environments."""
        return Shared(self.integrity, self.config.root / "venvs", ".venv")

    @property
    def servers(self) -> Shared:
        """Return the folders with the server's packages."""
        return Shared(self.integrity, self.config.root / "servers", ".server")

    def make(self, folder: Path) -> None:
        """Make those for the release, unless they are there, and link them."""
        (folder / ".venv").symlink_to(self.venv_for(folder))
        if Application.of(folder):
            (folder / ".server").symlink_to(self.server_for(folder))
            write_metadata(folder)
        # Isolated, Python reads the release's code and runs none of it, nor of its packages.
        skipped = "/(" + "|".join(map(re.escape, (*LINKS, FILES))) + ")/"
        run(self.interpreter(folder), "-I", "-m", "compileall", "-q", "-x", skipped, folder)

    def interpreter(self, folder: Path) -> str:
        """Return the Python of a release: this host's own, unless the application needs a version that it has not.

        Raises:
            ReleaseError: no such version is on this host.
        """
        application = Application.of(folder)
        wanted = application.python if application else ""
        if not wanted or f"{self.version(self.config.python)}.".startswith(f"{wanted}."):
            return self.config.python
        # A link to the newest that was installed: a virtual environment is for one of them.
        python = Path(os.path.realpath(Path(self.config.pythons) / wanted / "bin" / "python3"))
        if not python.is_file():
            raise ReleaseError(
                f"Python {wanted} is not on this host: {self.config.python} is {self.version(self.config.python)}, and "
                f"{self.config.pythons} has no {wanted}. Fix: ansible-playbook site.yml -l ENV installs the version "
                "that app_python_version names"
            )
        return str(python)

    def version(self, python: str) -> str:
        """Return the version of an interpreter, as 3.13.5."""
        return run(python, "-VV").stdout.split()[1]

    def venv_for(self, folder: Path) -> Path:
        """Return the virtual environment for a release's lock file."""
        builder, installer, python = Builder(self.config), self.installer(folder), self.interpreter(folder)

        def build(target: Path) -> None:
            builder.build(installer, python, folder, (*BESIDE, *LINKS), target)

        return self.venvs.made(self.key(folder), build, builder.discard)

    def server_for(self, folder: Path) -> Path:
        """Return the folder with the server's packages for a release's Python."""
        builder, python = Builder(self.config), self.interpreter(folder)
        parts = [digest_of(WORKERS / SERVER.lock), python, run(python, "-VV").stdout, platform.machine()]

        def build(target: Path) -> None:
            builder.build(SERVER, python, WORKERS, ("__pycache__",), target)

        return self.servers.made(keyed(parts), build, builder.discard)

    def installer(self, folder: Path) -> Installer:
        """Return what installs the packages of a release."""
        application = Application.of(folder)
        return installer_for(application.lock if application else "poetry.lock", bool(self.config.index_url))

    def key(self, folder: Path) -> str:
        """Return a digest of all that determines what is in the virtual environment for a release."""
        installer, python = self.installer(folder), self.interpreter(folder)
        tool = Path(os.path.realpath(getattr(self.config, installer.tool)))
        # The program and what it needs, by version, in the virtual environment that it is installed in.
        versions = [path.name for path in tool.parent.parent.glob("lib/python*/site-packages/*.dist-info")]
        parts = [python, run(python, "-VV").stdout, platform.machine(), str(tool), *sorted(versions)]
        files = [folder / name for name in (installer.lock, *installer.settings)]
        parts += [f"{path.name} {digest_of(path)}" for path in files if path.is_file()]
        if installer.local.search((folder / installer.lock).read_text()):
            # It may be built from any file of the artefact.
            parts.append(str(read_json(folder / "release.json")["artefact"]))
        return keyed(parts)

    def kinds(self, folder: Path) -> list[Shared]:
        """Return the kinds of folders that a release shares; an older one has its server among its packages."""
        return [self.venvs, self.servers] if Application.of(folder) else [self.venvs]

    def changes(self, folder: Path) -> list[str]:
        """Return what somebody changed in those that a release has."""
        found = self.venvs.changes(folder)
        if self.servers in self.kinds(folder):
            found += [f"in the server's packages: {change}" for change in self.servers.changes(folder)]
        return found

    def renew(self, folder: Path, others: Iterable[Path]) -> None:
        """Give a release, and all that share those that it has, some that are as they were made."""
        others = list(others)
        for kind in self.kinds(folder):
            target = self.venv_for(folder) if kind == self.venvs else self.server_for(folder)
            kind.replace(target, folder, [each for each in others if kind in self.kinds(each)])

    def run(self, folder: Path, user: str, command: list[str], *_programs: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the virtual environment in the release's folder."""
        account = pwd.getpwnam(user)
        base = {"PATH": f"{folder}/.venv/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent",
                "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        return subprocess.run(
            [str(folder / ".venv" / "bin" / command[0]), *command[1:]],
            check=False,
            cwd=folder,
            env=environment_of(folder, base, migration=user == self.config.migration_user),
            user=user,
            group=account.pw_gid,
            extra_groups=os.getgrouplist(user, account.pw_gid),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def serve(self, slot: Slot, _command: list[str]) -> None:
        """Refuse: only a unit that was made for a container comes here, as root; serve.py serves this one.

        Raises:
            ReleaseError: always.
        """
        raise ReleaseError(as_root(slot.service))

    def names(self) -> set[str]:
        """Return those of both kinds, as `venvs/<key>`."""
        return {f"{kind.folder.name}/{name}" for kind in (self.venvs, self.servers) for name in kind.names()}

    def names_for(self, folder: Path) -> set[str]:
        """Return those that a release is linked to."""
        return {f"{kind.folder.name}/{kind.of(folder).name}" for kind in self.kinds(folder)}

    def remove(self, name: str) -> None:
        """Remove one, and what is known of its files."""
        folder, _, key = name.partition("/")
        next(kind for kind in (self.venvs, self.servers) if kind.folder.name == folder).remove(key)


def keyed(parts: Iterable[str]) -> str:
    """Return the name of a folder whose content these decide."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# crun alone can leave a container in the control group that it is started in. Podman's own events would stand in the
# journal between the lines of the application.
PODMAN = ("podman", "--runtime=crun", "--events-backend=none")
# It knows `--log-driver=passthrough`; an older one would build and migrate, and then not start.
OLDEST_PODMAN = 4
# Where an image has the application: the WORKDIR of its Containerfile.
INSIDE = "/app"
# What a release adds to the code that is in the image.
OF_THE_RELEASE = ("release.json", ".env", FILES)
OF_THE_MIGRATION_ACCOUNT = (".env.migrate",)
# What is beside the artefact's files, and never given to a build: whoever has an image can read all that is in it.
BESIDE = (*OF_THE_RELEASE, *OF_THE_MIGRATION_ACCOUNT, OPTION_FILE)
CONFINEMENT = (
    "--network=host",
    "--http-proxy=false",
    "--pull=never",
    # It stays in the control group of whoever starts it, so the unit's limits hold.
    "--cgroups=disabled",
    "--read-only",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--umask=0027",
    # Those of the unit (app@.service.j2), which do not reach through podman.
    "--ulimit=nofile=8192:8192",
    "--ulimit=core=0:0",
    # The authorities that this host trusts, a private one of the database among them.
    f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
)


class Image(Runtime):
    """An image for each artefact and base, built on this host by podman from the artefact's own Containerfile."""

    title = "image"
    contained = True

    @property
    def folder(self) -> Path:
        """Return the folder with a file for each tag, which tells what to remove one day."""
        return self.config.root / "images"

    @property
    def repository(self) -> str:
        """Return the name that all images of the application have before the colon."""
        return f"localhost/{self.config.name}"

    def name_for(self, folder: Path) -> str:
        """Return the tag of the image for a release's artefact and base."""
        facts = read_json(folder / "release.json")
        base = hashlib.sha256(facts["image_base"].encode()).hexdigest()[:8] if facts.get("image_base") else "own"
        return f"{facts['artefact'][:16]}-{base}"

    def names_for(self, folder: Path) -> set[str]:
        """Return the tag of a release's image."""
        return {self.name_for(folder)}

    def image_for(self, folder: Path) -> str:
        """Return the image of a release by its full name."""
        return f"{self.repository}:{self.name_for(folder)}"

    def make(self, folder: Path) -> None:
        """Build the image, unless it is there."""
        if not shutil.which(PODMAN[0]):
            raise ReleaseError("podman is not installed: ansible-playbook playbooks/app.yml -l ENV installs it")
        if not (folder / "Containerfile").is_file():
            raise ReleaseError("the application has no Containerfile; commit one, or set app_runtime: venv")
        (self.folder / self.name_for(folder)).touch()
        if not self.changes(folder):
            return
        version = run(*PODMAN, "version", "--format={{.Client.Version}}").stdout.strip()
        if int(version.partition(".")[0]) < OLDEST_PODMAN:
            raise ReleaseError(
                f"podman {version} cannot run releases; {OLDEST_PODMAN}.0 and later can (Debian 12, Ubuntu 24.04). "
                "Use such a host, or set app_runtime: venv"
            )
        with tempfile.TemporaryDirectory(prefix="release-image-") as temporary:
            context, pip = Path(temporary) / "context", Path(temporary) / "pip.conf"
            shutil.copytree(
                folder, context, symlinks=True, ignore=lambda place, _: BESIDE if Path(place) == folder else ()
            )
            pip.write_text(f"[global]\nindex-url = {self.config.index_url}\n")
            brought = {pip: "/etc/pip.conf", NETRC: NETRC} if self.config.index_url else {}
            # As volumes, they stay out of the image.
            options = [f"--volume={path}:{place}:ro" for path, place in brought.items() if path.exists()]
            self.build(folder, context, options)

    def build(self, folder: Path, context: Path, options: list[str]) -> None:
        """Build the image of a release from a copy of its artefact.

        Raises:
            ReleaseError: with the end of what podman said.
        """
        facts = read_json(folder / "release.json")
        arguments = {"COMMIT": facts.get("commit"), "ARTEFACT": facts["artefact"], "BASE": facts.get("image_base")}
        labels = {"application": self.config.name, "artefact": facts["artefact"], "lock": facts.get("lock")}
        try:
            run(
                *PODMAN,
                "build",
                "--network=host",
                *options,
                *(f"--build-arg={name}={value}" for name, value in arguments.items() if value),
                *(f"--label=io.waffle-iron.{name}={value}" for name, value in labels.items()),
                f"--tag={self.image_for(folder)}",
                f"--file={context}/Containerfile",
                context,
                stdin=subprocess.DEVNULL,
            )
        except ReleaseError as error:
            raise ReleaseError(
                f"the image could not be built from the application's Containerfile; its base is "
                f"{facts.get('image_base') or 'its own default'} (app_image_base in group_vars/all/vars.yml).\n{error}"
            ) from None

    def changes(self, folder: Path) -> list[str]:
        """Return whether a release's image is gone; podman keeps what is in it."""
        image = self.image_for(folder)
        there = shutil.which(PODMAN[0]) and run(*PODMAN, "image", "exists", image, check=False).returncode == 0
        return [] if there else [f"{image} is gone"]

    def renew(self, folder: Path, _others: Iterable[Path]) -> None:
        """Build the image again, by the name that all releases of the same artefact know it by."""
        self.make(folder)

    def command(self, folder: Path, user: str, options: list[str], command: list[str]) -> list[str]:
        """Return the command line that runs a release's image as an account of this host.

        The container reads the release's settings from mounted files, and has them as variables by a program of its
        own: nothing secret is in a command line, or in what `podman inspect` shows.
        """
        account = pwd.getpwnam(user)
        groups = set(os.getgrouplist(user, account.pw_gid)) - {account.pw_gid}
        # What is compiled in it is for this host's Python; uvicorn does without in another one.
        brought = folder / ".server"
        files = OF_THE_RELEASE + (OF_THE_MIGRATION_ACCOUNT if user == self.config.migration_user else ())
        return [
            *PODMAN,
            "run",
            "--rm",
            *CONFINEMENT,
            f"--user={account.pw_uid}:{account.pw_gid}",
            *(f"--group-add={group}" for group in sorted(groups)),
            f"--workdir={INSIDE}",
            *(f"--volume={folder / name}:{INSIDE}/{name}:ro" for name in files if (folder / name).exists()),
            *((f"--volume={brought.resolve()}:{INSIDE}/.server:ro",) if brought.exists() else ()),
            f"--volume={EXPORT}:{EXPORT}:ro",
            *options,
            self.image_for(folder),
            *("python", "-I", str(EXPORT), *command),
        ]

    def run(self, folder: Path, user: str, command: list[str], *programs: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the image, in a container that is gone afterwards."""
        options = ["--log-driver=none", *(f"--volume={path}:{path}:ro" for path in programs)]
        return run(*self.command(folder, user, options, command), check=False, stdin=subprocess.DEVNULL)

    def serve(self, slot: Slot, command: list[str]) -> None:
        """Become podman, which starts the container, tells systemd of its monitor and ends."""
        options = [
            f"--name={self.config.name}-{slot.name}",
            "--replace",
            "--detach",
            # What it writes goes where systemd sends what a unit writes.
            "--log-driver=passthrough",
            "--sdnotify=conmon",
            f"--volume={WORKERS}:{WORKERS}:ro",
        ]
        folder = (slot.folder / "release").resolve()
        os.execvp(PODMAN[0], self.command(folder, slot.user, options, command))  # noqa: S606

    def names(self) -> set[str]:
        """Return the tags of the images that were built here; a host without containers need not have podman."""
        return {path.name for path in self.folder.iterdir()}

    def remove(self, name: str) -> None:
        """Remove an image; what its build kept to be quick goes when it was of no use for a week."""
        if shutil.which(PODMAN[0]):
            run(*PODMAN, "image", "rm", "--force", "--ignore", f"{self.repository}:{name}")
            run(*PODMAN, "image", "prune", "--force", "--filter=until=168h")
        (self.folder / name).unlink()


KINDS: dict[str, type[Runtime]] = {"venv": Venv, "container": Image}


def runtime_of(folder: Path) -> str:
    """Return which of the `KINDS` a release runs in; one from before there was a choice has a virtual environment."""
    return str(read_json(folder / "release.json").get("runtime", "venv"))
