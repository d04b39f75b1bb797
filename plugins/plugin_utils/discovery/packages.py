"""What hosts cannot install, found before any host is touched, each with the ways out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import IMAGES, Host
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import KINDS, Lock, Package, read
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

PLACE = "group_vars/all/vars.yml"
# Those that the pinned uv can install, and that the server has wheels for.
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
UPDATE = {
    "uv.lock": "uv lock --upgrade-package {0}",
    "poetry.lock": "poetry update --lock {0}",
    "pylock.toml": "uv pip compile pyproject.toml --format pylock.toml --upgrade-package {0} -o pylock.toml",
    "requirements.txt": "uv pip compile --generate-hashes --upgrade-package {0} requirements.in -o requirements.txt",
}


def python_of(source: Source) -> str:
    """Return the versions of Python that an application states, as PEP 440 has them; empty for none."""
    project = source.toml("pyproject.toml")
    stated = (
        project.get("project", {}).get("requires-python")
        or project.get("tool", {}).get("poetry", {}).get("dependencies", {}).get("python")
        or source.toml("uv.lock").get("requires-python")
        or source.toml("pylock.toml").get("requires-python")
        or ""
    )
    return ",".join(part for each in str(stated).split(",") if (part := as_specifier(each.strip())))


def as_specifier(text: str) -> str:
    """Return one of Poetry's own constraints (`^3.11`, `~3.11`, `3.11`, `*`) as PEP 440 has it."""
    found = re.fullmatch(r"([~^]?)(\d+)(?:\.(\d+))?((?:\.\d+)*)", text)
    if not found:
        return "" if text == "*" else text
    sign, major, minor, rest = found.groups()
    version = f"{major}.{minor or 0}{rest}"
    if not sign:
        return f"=={text}" if rest else f"=={text}.*"
    if sign == "^" or minor is None:
        return f">={version},<{int(major) + 1}"
    return f">={version},<{major}.{int(minor) + 1}"


def accepts(specifier: str, version: str) -> bool:
    """Return True if a statement about versions takes one; also if it cannot be read."""
    try:
        return SpecifierSet(specifier).contains(version, prereleases=True)
    except InvalidSpecifier:
        return True


def python_findings(specifier: str, hosts: Sequence[Host]) -> Iterator[str]:
    """Yield a finding if no host that is possible has a Python that the application takes."""
    if not hosts or any(accepts(specifier, host.python) for host in hosts):
        return
    have = ", ".join(dict.fromkeys(f"{host.image} has {host.python.removesuffix('.99')}" for host in hosts))
    fitting = [host.image for host in IMAGES.values() if accepts(specifier, host.python)]
    image = f"hosts with machine_image: {' or '.join(fitting)}; " if fitting else ""
    version = next((each for each in VERSIONS if accepts(specifier, f"{each}.99")), "")
    installed = f'`app_python_version: "{version}"` in {PLACE}, which uv installs on the hosts; ' if version else ""
    yield (
        f"Python: the application takes {specifier} (requires-python), and {have}. Fix: {installed}{image}an "
        "interpreter of your own on the hosts, named by app_python (as /usr/bin/python3.14); or a wider "
        "requires-python, and a new lock"
    )


def lock_findings(locks: Sequence[str], stated: str) -> Iterator[str]:
    """Yield a finding if it is not clear which lock file counts."""
    if stated and stated not in locks:
        known = " or ".join(locks) or f"none of {', '.join(KINDS)}"
        yield f"lock_file: {stated!r} is not in the application, which has {known}. Fix: set it in {PLACE}"
    elif len(locks) > 1 and not stated:
        yield (
            f"{' and '.join(locks)}: the application has {len(locks)} lock files, and they may disagree. Fix: remove "
            f"what is not used (`git rm {locks[-1]}`), or set `lock_file: {locks[0]}` in {PLACE}"
        )


def package_findings(source: Source, path: str, hosts: Sequence[Host], from_source: Iterable[str]) -> Iterator[str]:
    """Yield a finding for each package of a lock file that no host that is possible can install.

    Args:
        source: the application.
        path: its lock file.
        hosts: those that are possible.
        from_source: packages that hosts may build from their source.
    """
    locks = {host: read(source, path, host.surroundings) for host in hosts}
    first = next(iter(locks.values()), Lock(path, ()))
    for package in first.packages:
        if is_private(package.git):
            yield (
                f"{package.name}: {path} takes it from {package.git}, and hosts have no key for that. Fix: an https "
                "address that needs none, a release of it on an index (python_index_url), or its code in the "
                "application's own repository"
            )
    built = {canonicalize_name(name) for name in from_source}
    for package in first.packages:
        lacking = [host for host, lock in locks.items() if not fits(lock.package(package.name), host)]
        if len(lacking) == len(hosts) and package.name not in built:
            yield no_wheel(package, path, lacking)


def is_private(git: str) -> bool:
    """Return True if an address of Git takes a key of ssh."""
    return git.startswith(("ssh://", "git+ssh://")) or re.match(r"[\w.-]+@[\w.-]+:", git) is not None


def fits(package: Package | None, host: Host) -> bool:
    """Return True if a host can install a package without a build, or does not need it."""
    if package is None or not package.lists_files:
        return True
    return any(host.takes(wheel) for wheel in package.wheels)


def no_wheel(package: Package, path: str, hosts: Sequence[Host]) -> str:
    """Return the finding about a package without a wheel for hosts."""
    pythons = dict.fromkeys("{}.{}".format(*host.minor) for host in hosts)
    update = UPDATE[path].format(package.name)
    built = (
        f"; or have hosts build it: `packages_from_source: [{package.name}]` and what that takes, as "
        "`base_extra_packages: [gcc, python3-dev]`"
        if package.has_source
        else ""
    )
    return (
        f"{package.name} {package.version}: {path} has no wheel for Python {', '.join(pythons)} "
        f"({', '.join(host.title for host in hosts)}), and hosts install wheels alone. Fix: a version that has one "
        f"(`{update}`, commit {path}){built}"
    )


def package_warnings(source: Source, lock: Lock) -> Iterator[str]:
    """Yield what hosts may not reach: indexes of one's own."""
    by_index: dict[str, list[str]] = {}
    for package in lock.packages:
        if package.index:
            by_index.setdefault(package.index, []).append(package.name)
    if lock.path == "requirements.txt":
        for address in re.findall(r"^--(?:extra-)?index-url[ =](\S+)", source.texts[lock.path], flags=re.MULTILINE):
            by_index.setdefault(re.sub(r"(?<=://)[^/@]*@", "", address), [])
    for index, names in by_index.items():
        what = ", ".join(names) or "its packages"
        yield (
            f"{lock.path} takes {what} from {index}: each host has to reach it, and credentials for it belong "
            "into /root/.netrc (mode 0600)"
        )
