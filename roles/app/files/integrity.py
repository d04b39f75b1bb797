"""What a release and a virtual environment were when they were finished, and what somebody changed in them since."""

from __future__ import annotations

import ctypes
import grp
import hashlib
import json
import os
import pwd
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attributes import attributes_of, clear_tree
from basics import OPTION_FILE, run, write_whole
from environment import FILES, MIGRATION_SETTINGS, SETTINGS
from slots import Slot, server

# In a folder that releases share, from its check on.
COMPLETE = ".complete"
# In a release, to the folders that it shares: a repair replaces them.
LINKS = (".venv", ".server")
NAMED = 3  # so many changed files are named, the others counted
# From linux/fs.h and linux/fcntl.h: renameat2 exchanges two names, so that neither is ever missing.
RENAME_EXCHANGE, AT_FDCWD = 2, -100


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a folder (".") and all that is in it, with what `lstat` says; links to what releases share are not."""
    yield ".", os.lstat(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = f"{place}/{name}"
            relative = path[len(str(folder)) + 1 :]
            if relative not in LINKS:
                yield relative, os.lstat(path)


def digest(path: Path) -> str:
    """Return what a link points to, or the digest of a file's content."""
    return str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()


def take(folder: Path) -> dict[str, list[Any]]:
    """Return mode, owner, time of change (ns) and digest of each file in a folder."""
    return {
        name: [status.st_mode, status.st_uid, status.st_ctime_ns, digest(folder / name)]
        for name, status in walk(folder)
        if not stat.S_ISDIR(status.st_mode)
    }


def compare(folder: Path, known: dict[str, list[Any]]) -> list[str]:
    """Return the files that are not what they were, in words. Only those are read whose time of change is another.

    A directory's time of change tells of what is in it, so no directory has one in ``known``.
    """
    left, found = dict(known), []
    for name, status in walk(folder):
        # Python keeps what it compiled; root may have run something.
        if name not in left and not stat.S_ISDIR(status.st_mode) and not name.endswith(".pyc"):
            found.append(f"{name} was added")
            continue
        mode, owner, changed, content = left.pop(name, (status.st_mode, status.st_uid, None, None))
        if status.st_ctime_ns == changed:
            continue
        words = []
        if (status.st_mode, status.st_uid) != (mode, owner) or (content and digest(folder / name) != content):
            words.append("was changed")
        if attributes := attributes_of(f"{folder}/{name}"):
            words.append(f"has the attribute {', '.join(attributes)}")
        found += [f"{name} {' and '.join(words)}"] if words else []
    return sorted(found + [f"{name} is gone" for name in left])


def in_words(changes: list[str]) -> str:
    """Return the first of many changes."""
    more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return ", ".join(changes[:NAMED]) + more


def exchange(new: Path, old: Path) -> None:
    """Give two folders each other's names at one moment."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE)
    if done != 0:
        raise OSError(ctypes.get_errno(), "renameat2", str(old))


def boot() -> float:
    """Return when this machine started, in seconds since 1970, by today's clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Integrity:
    """Compares what is on the host with what it was made to be."""

    def __init__(self, root: Path, user: str, migration_user: str) -> None:
        self.root, self.user, self.migration_user = root, user, migration_user

    def manifest(self, folder: Path) -> Path:
        """Return the file that keeps what a release or a virtual environment was."""
        return self.root / "state" / f"{folder.parent.name}-{folder.name}.files"

    def record(self, folder: Path) -> None:
        """Keep what a folder is now, that it was just finished; it has nothing that the folder above hands down."""
        self.clear(folder)
        write_whole(self.manifest(folder), json.dumps(take(folder)))

    def clear(self, folder: Path) -> None:
        """Remove access lists, capabilities, other attributes and immutable bits from a folder and what is in it."""
        if not folder.is_symlink():
            clear_tree(str(folder))

    def forget(self, folder: Path) -> None:
        """Keep nothing of a folder that is gone."""
        self.manifest(folder).unlink(missing_ok=True)

    def changes(self, folder: Path) -> list[str]:
        """Return what somebody changed in a folder; of one that no list was kept of, whether it is there."""
        if folder.is_symlink() or not folder.is_dir():
            return ["it is gone" if not os.path.lexists(folder) else "it is not the folder that it was"]
        try:
            known = json.loads(self.manifest(folder).read_text())
        except FileNotFoundError:
            return []
        except ValueError:
            return ["the list of its files was changed"]
        return compare(folder, known)

    def shared_changes(self, release: Path, link: str, folder: Path) -> list[str]:
        """Return what is wrong with what a release shares by a link to one of a folder's."""
        shared = Path(os.path.realpath(release / link))
        if not (release / link).is_symlink() or shared.parent != Path(os.path.realpath(folder)):
            return [f"{link} is not a link to one"]
        return self.venv_problems(shared)

    def venv_problems(self, venv: Path) -> list[str]:
        """Return why a virtual environment may not be used.

        The list of its files is made last, by root: without one, a package may have brought `.complete`.
        """
        if changes := self.changes(venv):
            return changes
        finished = (venv / COMPLETE).is_file() and self.manifest(venv).is_file()
        return [] if finished else ["it is not complete"]

    def secrets(self, release: Path) -> dict[Path, str]:
        """Return the files and folders of a release that only one group may read, each with the name of that group."""
        own = release / FILES
        paths = [release / SETTINGS, own, *(own.iterdir() if own.is_dir() else ())]
        groups = dict.fromkeys(paths, self.user)
        groups |= dict.fromkeys((release / MIGRATION_SETTINGS, release / OPTION_FILE), self.migration_user)
        return {path: group for path, group in groups.items() if path.exists()}

    def groups(self) -> dict[str, grp.struct_group]:
        """Return the groups that read secrets, by name; KeyError if one is not on this host."""
        return {name: grp.getgrnam(name) for name in (self.user, self.migration_user)}

    def account_problems(self, release: Path) -> list[str]:
        """Return what is wrong with the groups that may read a release's secrets."""
        found = []
        try:
            groups = self.groups()
        except KeyError:
            return []  # the role creates the accounts, and says so
        if members := sorted(set(groups[self.user].gr_mem) - {self.migration_user}):
            found.append(f"the group {self.user} has members that may read its secrets: {', '.join(members)}")
        for path, group in self.secrets(release).items():
            if path.stat().st_gid != groups[group].gr_gid:
                found.append(f"{path} belongs to another group")
        return found

    def repair_accounts(self, releases: list[Path]) -> None:
        """Take strangers out of the service's group, and give every release's secrets to the groups that read them."""
        try:
            groups = self.groups()
        except KeyError:
            return
        for member in set(groups[self.user].gr_mem) - {self.migration_user}:
            run("gpasswd", "--delete", member, self.user)
        for release in releases:
            for path, group in self.secrets(release).items():
                if path.stat().st_gid != groups[group].gr_gid:
                    os.chown(path, 0, groups[group].gr_gid)

    def process_problems(self, slot: Slot, shown: dict[str, str]) -> list[str]:
        """Return why the main process of a slot is not what its files say: it is older, or runs as another account."""
        pid, release = server(shown.get("MainPID", "0")), slot.folder / "release"
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            account = pwd.getpwnam(slot.user)
        except (OSError, KeyError):
            return []
        owner = next(line.split()[1] for line in lines if line.startswith("Uid:"))
        if owner != str(account.pw_uid):
            return [f"{slot.service} runs as the account {owner}, and {slot.user} is {account.pw_uid}"]
        began = boot() + int(words[19]) / os.sysconf("SC_CLK_TCK")
        units = [shown.get("FragmentPath", ""), *shown.get("DropInPaths", "").split()]
        socket = run("systemctl", "show", slot.socket_unit, "--property=FragmentPath", "--value").stdout.strip()
        # Texts, as there are thousands: a `Path` costs as much as what it is asked for.
        files = [name for name in (*units, socket) if name]
        # An application reads certificates once, when it starts.
        files += map(os.path.realpath, slot.config.certificate_files)
        files += [f"{release}/{name}" for name in (".env", "release.json")]
        for folder in (os.path.realpath(release), *(os.path.realpath(release / link) for link in LINKS)):
            try:
                files += [f"{folder}/{name}" for name in json.loads(self.manifest(Path(folder)).read_text())]
            except (OSError, ValueError):
                continue
        now = time.time()
        for path in files:
            try:
                changed = os.lstat(path).st_ctime
            except OSError:
                continue
            # One from the future tells nothing: the clock has gone back since, and no restart would make it older.
            if began < changed <= now:
                return [f"{slot.service} runs since before {path} was changed"]
        return []


def unknown(folder: Path, known: set[str]) -> list[Path]:
    """Return what a folder holds beside what is known; what begins with a dot is still being made."""
    return sorted(path for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
