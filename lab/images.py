"""Root file systems: built once per recipe by mmdebstrap, kept in the cache, shared by hosts read-only."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.commands import run, wait_until
from lab.config import LOGINS
from lab.errors import InterruptedByUserError, LabError
from lab.progress import notice, say, step

CACHE_ROOT = Path("/var/cache/waffle-iron")
# What an EC2 image has at the very least; everything else is the roles' work.
BARE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "libpam-systemd",
    "netbase",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)
DATABASE_PACKAGES = ("ca-certificates", "dbus", "systemd", "systemd-sysv", "tzdata")
EXTRA_AUTHORITIES = Path("/usr/local/share/ca-certificates")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
RECIPE_VERSION = 1  # raise it when `_customize` changes what it makes


@dataclass(frozen=True)
class Recipe:
    """All that an image depends on; its digest is part of the image's name."""

    kind: str
    release: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    login: str | None
    authorities: tuple[tuple[str, str], ...]
    proxy: tuple[tuple[str, str], ...]
    apt_proxy: str
    version: int = RECIPE_VERSION

    @property
    def key(self) -> str:
        """Name of the image in the cache."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{self.release}-{digest[:12]}"

    @property
    def root(self) -> Path:
        """Where the finished image is."""
        return CACHE_ROOT / self.key

    @property
    def is_built(self) -> bool:
        """Return True if the image is in the cache, complete."""
        return self.root.is_dir()


def bare(release: str) -> Recipe:
    """Return the recipe of a host as EC2 gives it."""
    return _recipe("bare", release, BARE_PACKAGES, LOGINS[release])


def database_choices() -> tuple[Recipe, Recipe]:
    """Return the recipes of the database machine: MySQL, and MariaDB where MySQL cannot be had."""
    return (
        _recipe("mysql", "sid", (*DATABASE_PACKAGES, "mysql-server"), None),
        _recipe("mariadb", "trixie", (*DATABASE_PACKAGES, "mariadb-server"), None),
    )


def _recipe(kind: str, release: str, packages: tuple[str, ...], login: str | None) -> Recipe:
    return Recipe(
        kind=kind,
        release=release,
        packages=packages,
        sources=sources(release),
        login=login,
        authorities=tuple((path.name, path.read_text()) for path in sorted(EXTRA_AUTHORITIES.glob("*.crt"))),
        proxy=tuple((name, os.environ[name]) for name in PROXY_VARIABLES if os.environ.get(name)),
        apt_proxy=apt_proxy(),
    )


def distribution(release: str) -> str:
    """Return the distribution that a release belongs to."""
    return "ubuntu" if release == "noble" else "debian"


def os_release() -> dict[str, str]:
    """Return this machine's /etc/os-release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def sources(release: str, etc_apt: Path = Path("/etc/apt")) -> tuple[str, ...]:
    """Return apt's lines for a release, from this machine's own mirror; none if it has no such mirror.

    mmdebstrap then takes the distribution's public archive.
    """
    machine = os_release()
    codename = machine.get("VERSION_CODENAME", "")
    archive = find_mirror(etc_apt, codename)
    if machine.get("ID") != distribution(release) or not archive:
        return ()
    components = "main universe" if release == "noble" else "main"
    if release == "sid":
        return (f"deb {archive} sid {components}",)
    security = find_mirror(etc_apt, f"{codename}-security") or archive
    return (
        f"deb {archive} {release} {components}",
        f"deb {archive} {release}-updates {components}",
        f"deb {security} {release}-security {components}",
    )


def find_mirror(etc_apt: Path, suite: str) -> str:
    """Return the first archive address for `suite` in apt's one-line or deb822 files, '' if there is none."""
    lists = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*.list"))]
    for path in lists:
        for line in path.read_text().splitlines() if path.is_file() else []:
            if match := re.match(rf"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+{re.escape(suite)}\s", line + " "):
                return match[1]
    for path in sorted((etc_apt / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^([A-Za-z-]+):\s*(.*)$", stanza, re.MULTILINE))
            if suite in fields.get("Suites", "").split() and fields.get("URIs"):
                return str(fields["URIs"]).split()[0]
    return ""


def apt_proxy() -> str:
    """Return the HTTP proxy that this machine's apt is set to, '' if none."""
    if not shutil.which("apt-config"):
        return ""
    match = re.search(r'^Acquire::http::Proxy "(.*)";$', run(["apt-config", "dump"]).stdout, re.MULTILINE)
    return match[1] if match else ""


def ensure_database() -> Recipe:
    """Return the database's image, built if need be: MySQL, or MariaDB with a notice.

    LAB_DATABASE=mariadb asks for the latter.
    """
    mysql, mariadb = database_choices()
    if os.environ.get("LAB_DATABASE") == "mariadb":
        return ensure(mariadb)
    if mysql.is_built:
        return mysql
    try:
        return ensure(mysql)
    except InterruptedByUserError:
        raise
    except LabError as error:
        notice(f"MySQL's packages cannot be had, the database will be MariaDB. {error}")
        return ensure(mariadb)


def ensure(recipe: Recipe) -> Recipe:
    """Build the image unless it is in the cache; another process that builds it is waited for."""
    if recipe.is_built:
        return recipe
    CACHE_ROOT.mkdir(parents=True, exist_ok=True)
    with (
        step(f"build image {recipe.kind} {recipe.release}"),
        (CACHE_ROOT / f"{recipe.key}.lock").open("w") as lock,
    ):
        wait_for_lock(lock.fileno(), recipe.key)
        if not recipe.is_built:
            _build(recipe)
    return recipe


def wait_for_lock(descriptor: int, name: str) -> None:
    """Take an exclusive lock, however long somebody else has it; say so if that is the case."""

    def locked() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    if not locked():
        say(f"  another process builds {name}: waiting for it")
        wait_until(locked, seconds=3600, interval=0.5)


def mmdebstrap(recipe: Recipe, root: Path) -> list[str]:
    """Return the command line that makes the recipe's root file system at `root`."""
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    argv += [f"--include={','.join(recipe.packages)}"]
    # The index of `sid` may have run out where the machine's clock or mirror is off.
    argv += ['--aptopt=Acquire::Check-Valid-Until "false"'] if recipe.release == "sid" else []
    argv += [f'--aptopt=Acquire::http::Proxy "{recipe.apt_proxy}"'] if recipe.apt_proxy else []
    argv += ["--components=main,universe"] if recipe.release == "noble" else []
    return [*argv, recipe.release, str(root), *recipe.sources]


def probe(recipe: Recipe) -> None:
    """Check that mmdebstrap can read the package index; raise LabError if it cannot."""
    command, *options = mmdebstrap(recipe, Path("/nonexistent"))
    with tempfile.TemporaryDirectory(prefix="waffle-probe-") as directory:
        options[options.index("/nonexistent")] = str(Path(directory) / "root")
        run([command, "--simulate", *options])


def _build(recipe: Recipe) -> None:
    for leftover in CACHE_ROOT.glob(f".building-{recipe.key}-*"):
        # A build that outlived its killed parent may still write there; what is left goes the next time.
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".building-{recipe.key}-", dir=CACHE_ROOT))
    log = CACHE_ROOT / f"{recipe.key}.log"
    log.unlink(missing_ok=True)
    root = work / "root"
    try:
        run(mmdebstrap(recipe, root), log=log)
        _customize(recipe, root)
        root.chmod(0o755)
        root.rename(recipe.root)
    except LabError as error:
        raise LabError(f"image {recipe.kind} {recipe.release} could not be built (log: {log}): {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _customize(recipe: Recipe, root: Path) -> None:
    """Make of the bare root what the machine and the lab need; nothing that is a role's work."""
    for name, certificate in recipe.authorities:
        (root / "usr/local/share/ca-certificates" / name).write_text(certificate)
    if recipe.authorities:
        chroot(root, "update-ca-certificates")
    if recipe.proxy:
        with (root / "etc/environment").open("a") as file:
            file.writelines(f'{name}="{value}"\n' for name, value in recipe.proxy)
    if recipe.apt_proxy:
        (root / "etc/apt/apt.conf.d/90proxy").write_text(f'Acquire::http::Proxy "{recipe.apt_proxy}";\n')
    # Both are per host; one that is missing or empty would be made anew at each boot.
    for path in [*root.glob("etc/ssh/ssh_host_*"), root / "etc/machine-id", root / "var/lib/dbus/machine-id"]:
        path.unlink(missing_ok=True)
    (root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
    if recipe.login:
        if not (root / "home" / recipe.login).is_dir():
            chroot(root, "useradd", "--create-home", "--shell", "/bin/bash", recipe.login)
        sudoers = root / "etc/sudoers.d/90-cloud-init-users"
        sudoers.write_text(f"{recipe.login} ALL=(ALL) NOPASSWD:ALL\n")
        sudoers.chmod(0o440)
        (root / "etc/ssh/sshd_config.d/10-cloud.conf").write_text(
            "PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        )


def chroot(root: Path, *argv: str) -> None:
    """Run a program of a root file system inside it."""
    run(["chroot", root, *argv], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"})


def purge(in_use: set[str]) -> list[str]:
    """Remove all images but those that still run; return the names of the removed ones."""
    removed = []
    for path in sorted(CACHE_ROOT.iterdir()) if CACHE_ROOT.is_dir() else []:
        if path.name in in_use:
            continue
        if path.is_dir():
            shutil.rmtree(path)
            removed.append(path.name)
        else:
            path.unlink()
    return removed
