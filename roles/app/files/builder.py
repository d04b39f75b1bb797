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
from installers import EXPORTED, PYLOCK_MIRRORED, Installer, requirements_of
from integrity import COMPLETE
from slots import Config

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
NETRC = Path("/root/.netrc")  # credentials of an index of packages
# In a folder that is being built: sources, a home and the installer's cache. Nothing of it outlives the build.
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
# ("Connection refused", say) follows on standard output, after a line of its own.
ERRORS = "--- standard error ---"
APART = f"""
errors=$(mktemp)
"$@" 2>"$errors"
status=$?
printf '\\n%s\\n' '{ERRORS}'
cat "$errors"
rm "$errors"
exit "$status"
"""
WARNING = re.compile(r"\s*(\S+:\d+: )?\w*warning\b", re.IGNORECASE)
# Before the script of an installer.
NAMED = """
python=$1 target=$2 tool=$3
shift 3
"""


@dataclass(frozen=True)
class Builder:
    """Builds the virtual environments of an application, and its server's packages, one at a time."""

    config: Config

    @property
    def unit(self) -> str:
        """Return the unit that builds run in."""
        return f"{self.config.name}-build.service"

    def build(self, installer: Installer, python: str, source: Path, secrets: tuple[str, ...], target: Path) -> None:
        """Make ``target`` with exactly the packages that a lock file names.

        Args:
            installer: what installs them.
            python: the interpreter that they are for.
            source: the folder with the lock file, which is only read.
            secrets: what the build does not get of it.
            target: the folder to make, at its final path, which its programs name.

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
        self.discard(target)
        workshop = target / WORKSHOP
        shutil.copytree(
            source,
            workshop / "source",
            symlinks=True,
            ignore=lambda place, _: secrets if Path(place) == source else (),
        )
        (workshop / "home").mkdir()
        if installer is PYLOCK_MIRRORED:
            (workshop / EXPORTED).write_text(requirements_of((source / installer.lock).read_text()))
        # Nobody else can write there yet.
        for path in (target, *target.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        self.install(installer, python, target)
        shutil.rmtree(workshop)
        seal(target, python, installer.lock)
        self.check(installer, python, target)

    def discard(self, target: Path) -> None:
        """Remove what is not finished, after the end of a build that lost the program that began it."""
        run("systemctl", "stop", self.unit, check=False)
        shutil.rmtree(target, ignore_errors=True)

    def install(self, installer: Installer, python: str, target: Path) -> None:
        """Install the packages; the only step that has a network."""
        workshop = target / WORKSHOP
        # A wheel is unpacked; what is built runs code while there is a network.
        lock = (workshop / "source" / installer.lock).read_text()
        wheels = installer.wheels(lock, self.config.packages_from_source)
        environment = self.environment(target, wheels)
        options = [f"--property=ReadWritePaths={target}", f"--working-directory={workshop}/source"]
        if NETRC.is_file():
            options.append(f"--property=LoadCredential=netrc:{NETRC}")
            environment["NETRC"] = f"/run/credentials/{self.unit}/netrc"
        options += [f"--setenv={name}={value}" for name, value in environment.items()]
        tool = getattr(self.config, installer.tool)
        words = ("/bin/sh", "-euc", NAMED + installer.script, "sh", python, str(target), tool)
        done = self.run(self.unit, self.config.build_user, options, (*words, *installer.options(wheels)))
        if done.returncode != 0:
            raise ReleaseError(
                f"the packages of {installer.lock} could not be installed: `{installer.title}` exited with status "
                f"{done.returncode}:\n{reason(done)}\nNothing was switched. Fix: change what it names, commit "
                f"{installer.lock}, and run the same command again"
            )

    def environment(self, target: Path, wheels: list[str] | None) -> dict[str, str]:
        """Return what the installers read from their environment."""
        workshop = target / WORKSHOP
        values = {
            "HOME": f"{workshop}/home",
            "LANG": "C.UTF-8",
            "PATH": f"{target}/bin:/usr/bin:/bin",
            "POETRY_CACHE_DIR": f"{workshop}/cache",
            "POETRY_INSTALLER_ONLY_BINARY": ":all:" if wheels is None else ",".join(wheels),
            # Both bring a list of authorities of their own; the system's may know more.
            "REQUESTS_CA_BUNDLE": AUTHORITIES,
            "SSL_CERT_FILE": AUTHORITIES,
            "UV_CACHE_DIR": f"{workshop}/cache",
            "UV_COMPILE_BYTECODE": "1",
            # The host's settings count, not those of a developer that the application has in its repository.
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PROJECT_ENVIRONMENT": str(target),
            "UV_PYTHON_DOWNLOADS": "never",
            "VIRTUAL_ENV": str(target),
        }
        if self.config.index_url:
            values |= {"POETRY_PYPI_MIRROR_URL": self.config.index_url, "UV_DEFAULT_INDEX": self.config.index_url}
        return values

    def check(self, installer: Installer, python: str, target: Path) -> None:
        """Raise `ReleaseError` if the service account cannot use what was built."""
        own = target / "bin/python"
        words = (str(own) if own.exists() else python, "-I", "-c", installer.proof, str(target))
        unit = f"{self.config.name}-build-check.service"
        done = self.run(unit, self.config.user, ["--property=PrivateNetwork=yes"], words)
        if done.returncode != 0:
            raise ReleaseError(
                f"{self.config.user} cannot use the packages of {installer.lock} that were installed: "
                f"{words[0]} exited with status {done.returncode}:\n{reason(done)}\n"
                f"Fix: let everybody enter the folders above {target}, and run the same command again"
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
            *("/bin/sh", "-c", APART, "sh", *words),
            check=False,
            stdin=subprocess.DEVNULL,
        )


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return the end of what a command said of its failure, without the warnings that it also wrote.

    Poetry writes some errors to standard output.
    """
    written, _, errors = (done.stdout + done.stderr).partition(f"\n{ERRORS}\n")
    for text in (errors, written):
        if lines := [line for line in text.strip().splitlines() if not WARNING.match(line)]:
            return "\n".join(lines[-OUTPUT_LINES:])
    return errors.strip() or "it said nothing"


def seal(venv: Path, python: str, lock: str) -> None:
    """Give a folder of packages to root, readable for everybody, whatever the umask and its builder left.

    Raises:
        ReleaseError: it holds something that a package does not need, such as a setuid bit or a link to elsewhere.
    """
    if os.path.lexists(venv / COMPLETE):
        raise ReleaseError(
            f"the packages of {lock} were refused: one of them brings {venv / COMPLETE}, the mark of a finished "
            f"build. Fix: pin another version of the package that brings it, and commit {lock}"
        )
    outside = os.path.realpath(python)
    paths = [str(venv), *(f"{place}/{name}" for place, *names in os.walk(venv) for name in (*names[0], *names[1]))]
    for path in paths:
        status = os.lstat(path)
        if reason := unfit(path, status, venv, outside):
            raise ReleaseError(
                f"the packages of {lock} were refused: {path} is {reason}, which root will not own. "
                f"Fix: pin another version of the package that brings it, and commit {lock}"
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
