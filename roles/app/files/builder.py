"""Builds a virtual environment as an account of its own, in a sandbox, and gives the result to root.

Packages bring code that runs while they are installed (the build of an sdist) and whenever the environment's Python
starts (a `.pth` file). Root runs nothing of either.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from basics import ReleaseError, run
from integrity import COMPLETE
from slots import Config

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
NETRC = Path("/root/.netrc")  # credentials of an index of packages
# In a virtual environment that is being built: sources, a home and Poetry's cache. Nothing of it outlives the build.
WORKSHOP = ".build"
# What gives an account more than the mode says.
EXTENDED = {"security.capability", "system.posix_acl_access", "system.posix_acl_default"}
OUTPUT_LINES = 25

SANDBOX = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    # Of its own, too: PrivateDevices leaves the host's, which every account may write.
    "TemporaryFileSystem=/dev/shm:rw,nosuid,mode=1777",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "KeyringMode=private",
    "LimitCORE=0",
    "UMask=0022",
    # The credentials of the machine's role on EC2: the firewall's table is there only while a slot runs.
    "IPAddressDeny=169.254.169.254 fd00:ec2::254",
    # Where memory runs out, the build ends and the service stays.
    "OOMScoreAdjust=1000",
)
# What systemd-run says on standard error tells basics.run whether to repeat a lost call. What the command writes there
# ("Connection refused", say) goes to standard output.
WITHOUT_STDERR = 'exec "$@" 2>&1'
# The name of a package in a poetry.lock.
PACKAGE = re.compile(r'^name = "([^"]+)"$', re.MULTILINE)
INSTALL = """
"$1" -I -m venv --without-pip "$2"
exec "$3" sync --only=main --no-root --no-interaction --compile
"""
# As the account that will run it: the interpreter starts, and the packages can be read.
CHECK = "from importlib.metadata import distributions; print(len([each.version for each in distributions()]))"


@dataclass(frozen=True)
class Builder:
    """Builds the virtual environments of an application, one at a time."""

    config: Config

    @property
    def unit(self) -> str:
        """Return the unit that builds run in."""
        return f"{self.config.name}-build.service"

    def build(self, release: Path, secrets: tuple[str, ...], venv: Path) -> None:
        """Make ``venv`` with exactly the packages that the release's poetry.lock names.

        Args:
            release: folder of the release, which is only read.
            secrets: files of it that the build does not get.
            venv: the folder to make, at its final path, which its programs name.

        Raises:
            ReleaseError: it cannot be made; `discard` removes what there is of it.
        """
        try:
            account = pwd.getpwnam(self.config.build_user)
        except KeyError:
            raise ReleaseError(
                f"{self.config.build_user}, the account that installs dependencies, is not on this host. "
                "Fix: ansible-playbook playbooks/app.yml -l ENV"
            ) from None
        self.discard(venv)
        workshop = venv / WORKSHOP
        left_out = (*secrets, ".venv")
        shutil.copytree(
            release,
            workshop / "source",
            symlinks=True,
            ignore=lambda place, _: left_out if Path(place) == release else (),
        )
        (workshop / "home").mkdir()
        # Nobody else can write there yet.
        for path in (venv, *venv.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        self.install(venv)
        shutil.rmtree(workshop)
        seal(venv, self.config.python)
        self.check(venv)

    def discard(self, venv: Path) -> None:
        """Remove what is not finished, after the end of a build that lost the program that began it."""
        run("systemctl", "stop", self.unit, check=False)
        shutil.rmtree(venv, ignore_errors=True)

    def install(self, venv: Path) -> None:
        """Install the packages; the only step that has a network."""
        workshop = venv / WORKSHOP
        environment = {
            "HOME": workshop / "home",
            "LANG": "C.UTF-8",
            "PATH": f"{venv}/bin:/usr/bin:/bin",
            "POETRY_CACHE_DIR": workshop / "cache",
            # Poetry brings its own list of authorities; the system's may know more.
            "REQUESTS_CA_BUNDLE": AUTHORITIES,
            "VIRTUAL_ENV": venv,
        }
        options = [f"--property=ReadWritePaths={venv}", f"--working-directory={workshop}/source"]
        # A wheel is unpacked; what is built runs code while there is a network.
        built = {re.sub(r"[-_.]+", "-", name).lower() for name in self.config.packages_from_source}
        wheels = set(PACKAGE.findall((workshop / "source/poetry.lock").read_text())) - built
        environment["POETRY_INSTALLER_ONLY_BINARY"] = ",".join(sorted(wheels)) if built else ":all:"
        if self.config.index_url:
            environment["POETRY_PYPI_MIRROR_URL"] = self.config.index_url
        if NETRC.is_file():
            options.append(f"--property=LoadCredential=netrc:{NETRC}")
            environment["NETRC"] = f"/run/credentials/{self.unit}/netrc"
        options += [f"--setenv={name}={value}" for name, value in environment.items()]
        words = ("/bin/sh", "-euc", INSTALL, "sh", self.config.python, str(venv), self.config.poetry)
        done = self.run(self.unit, self.config.build_user, options, words)
        if done.returncode != 0:
            raise ReleaseError(
                f"the packages of poetry.lock could not be installed: `poetry sync` exited with status "
                f"{done.returncode}:\n{tail(done)}\nNothing was switched. Fix what it names, and run the same command"
            )

    def check(self, venv: Path) -> None:
        """Raise `ReleaseError` if the service account cannot use what was built."""
        words = (f"{venv}/bin/python", "-c", CHECK)
        unit = f"{self.config.name}-build-check.service"
        done = self.run(unit, self.config.user, ["--property=PrivateNetwork=yes"], words)
        if done.returncode != 0:
            raise ReleaseError(
                f"{self.config.user} cannot use the virtual environment that was built: "
                f"{venv}/bin/python exited with status {done.returncode}:\n{tail(done)}\n"
                f"Fix: let everybody enter the folders above {venv}, and run the same command again"
            )

    def run(self, unit: str, user: str, options: list[str], words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """Run a command in the sandbox as an account of this host, and wait for the end of all its processes."""
        root = self.config.root
        hidden = f"InaccessiblePaths=-{root}/state -{root}/releases -{root}/slots -{root}/images"
        return run(
            *("systemd-run", "--quiet", "--collect", "--wait", "--pipe", f"--unit={unit}", f"--uid={user}"),
            f"--description=Packages of {self.config.name}",
            *(f"--property={each}" for each in (*SANDBOX, hidden)),
            *options,
            "--",
            *("/bin/sh", "-c", WITHOUT_STDERR, "sh", *words),
            check=False,
            stdin=subprocess.DEVNULL,
        )


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """Return the end of what a command wrote."""
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-OUTPUT_LINES:])


def seal(venv: Path, python: str) -> None:
    """Give a virtual environment to root, readable for everybody, whatever the umask and its builder left.

    Raises:
        ReleaseError: it holds something that a package does not need, such as a setuid bit or a link to elsewhere.
    """
    if os.path.lexists(venv / COMPLETE):
        raise ReleaseError(
            f"the packages of poetry.lock were refused: one of them brings {venv / COMPLETE}, the mark of a finished "
            "build. Fix: pin another version of the package that brings it, and commit poetry.lock"
        )
    outside = os.path.realpath(python)
    paths = [str(venv), *(f"{place}/{name}" for place, *names in os.walk(venv) for name in (*names[0], *names[1]))]
    for path in paths:
        status = os.lstat(path)
        if reason := unfit(path, status, venv, outside):
            raise ReleaseError(
                f"the packages of poetry.lock were refused: {path} is {reason}, which root will not own. "
                "Fix: pin another version of the package that brings it, and commit poetry.lock"
            )
    for path in paths:
        os.chown(path, 0, 0, follow_symlinks=False)
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode):
            os.chmod(path, 0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644)  # noqa: PTH101 (a text: thousands)


def unfit(path: str, status: os.stat_result, venv: Path, outside: str) -> str:
    """Return what is wrong with a path of a virtual environment; nothing if it may be root's."""
    if stat.S_ISLNK(status.st_mode):
        target = os.path.realpath(path)
        return "" if target == outside or Path(target).is_relative_to(os.path.realpath(venv)) else f"a link to {target}"
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return "a special file"
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        return "a hard link"
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        return "setuid or setgid"
    if found := EXTENDED & set(os.listxattr(path, follow_symlinks=False)):
        return f"marked with {', '.join(sorted(found))}"
    return ""
