"""What Ansible brings for a release: the archive of its code, and the files that belong beside it."""

from __future__ import annotations

import grp
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from basics import ReleaseError, digest_of
from environment import FILES

if TYPE_CHECKING:
    from messages import ReleaseFacts

FACTS = "release.json"
SPARE_BYTES = 64 << 20


def stays_inside(path: PurePosixPath, links: set[str]) -> bool:
    """Return True if a path below the release stays there, and passes no link on its way."""
    at = PurePosixPath()
    for part in path.parts:
        if path.is_absolute() or str(at) in links or (part == ".." and at == PurePosixPath()):
            return False
        at = at.parent if part == ".." else at / part
    return True


def has_place(member: tarfile.TarInfo, links: set[str]) -> bool:
    """Return True if a member of an artefact is a file or a link that stays inside the release."""
    place = PurePosixPath(member.name)
    if ".." in place.parts or place.parts[:1] == (FILES,) or not stays_inside(place, links):
        return False
    return member.isfile() or (member.issym() and stays_inside(place.parent / member.linkname, links))


def write_secret(path: Path, text: str, group: str) -> None:
    """Write a new file that root and one group can read, and that at no moment anybody else could.

    Its folder is made in the same way if it is missing.
    """
    number = grp.getgrnam(group).gr_gid
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700)
        os.chown(path.parent, 0, number)
        path.parent.chmod(0o750)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chown(path, 0, number)
    path.chmod(0o640)


@dataclass(frozen=True)
class Bundle:
    """An archive of ``size`` bytes, and the files beside its code by name; `release.json` says what this is."""

    archive: IO[bytes]
    size: int
    files: Mapping[str, str]

    @classmethod
    def of(cls, stream: IO[bytes], folder: Path) -> Bundle:
        """Take in what Ansible sends: a line of JSON with the files and the archive's size, and the archive.

        Args:
            stream: read to its end, also where it is of no use: whoever still sends would call a closed pipe a host
                that is gone.
            folder: has room for the archive, in a file without a name: nobody can exchange it between the look at its
                digest and its use.

        Raises:
            ReleaseError: not all of it arrived.
        """
        archive = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the bundle)
        head = stream.readline()
        try:
            shutil.copyfileobj(stream, archive)
        finally:
            while stream.read(1 << 20):
                pass
        words = json.loads(head) if head.endswith(b"\n") else {}
        if words.get("bytes") != archive.tell():
            arrived = f"{archive.tell()} of {words.get('bytes', 'nobody knows how many')} bytes"
            raise ReleaseError(f"not all that was sent arrived ({arrived} of the artefact). Run the same command again")
        return cls(archive, words["bytes"], words["files"])

    @property
    def facts(self) -> ReleaseFacts:
        """Return what the control node says of the release: artefact (digest), lock, commit, subject, settings."""
        found: ReleaseFacts = json.loads(self.files[FACTS])
        return found

    @property
    def secret_files(self) -> list[str]:
        """Return the paths of the application's secret files in the release."""
        return [name for name in self.files if name.startswith(f"{FILES}/")]

    def unpack(self, folder: Path, groups: Mapping[str, str]) -> None:
        """Make ``folder`` from the archive, after comparing its digest, and add the files.

        Args:
            folder: does not exist yet.
            groups: the secret files to add, each with the group that may read it.

        Raises:
            ReleaseError: the archive is not what was sent or holds what has no place, or the disk is nearly full.
        """
        needed, free = self.size * 3 + SPARE_BYTES, shutil.disk_usage(folder.parent).free
        if free < needed:
            raise ReleaseError(f"only {free >> 20} MiB are free below {folder.parent}: free some space, then run again")
        if digest_of(self.archive) != self.facts["artefact"]:
            raise ReleaseError("the artefact is not what was sent: its digest differs. Run the same command again")
        folder.mkdir(mode=0o755)
        self.extract(folder)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        (folder / FACTS).write_text(self.files[FACTS])
        (folder / FACTS).chmod(0o644)
        for name, group in groups.items():
            if name in self.files:
                write_secret(folder / name, self.files[name], group)

    def extract(self, folder: Path) -> None:
        """Extract every member of the archive, or refuse all of them."""
        self.archive.seek(0)
        with tarfile.open(fileobj=self.archive) as tar:
            members = tar.getmembers()
            names = [str(PurePosixPath(member.name)) for member in members]
            links = {name for name, member in zip(names, members, strict=True) if member.issym()}
            count = Counter(names)
            for name, member in zip(names, members, strict=True):
                # Extracted twice, the second would be written through the first where that is a link.
                if not has_place(member, links) or count[name] > 1:
                    raise ReleaseError(f"the artefact holds {member.name!r}, which has no place in a release")
                # The archive has no times, so that it is the same everywhere; nginx makes its ETag of time and size,
                # and a changed file of the same size must not look unchanged to a browser.
                member.mtime = int(time.time())
                # Whatever the archive says, all of it is root's, and at no moment setuid.
                member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
                member.mode = 0o755 if member.mode & 0o100 else 0o644
            # The Python 3.11.2 of Debian 12 has no filters: all is checked above. Where there is one, it checks again.
            options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, members, **options)  # type: ignore[arg-type]  # noqa: S202
