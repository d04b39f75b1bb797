"""The files of an artefact as Git lists them, and those that cannot be part of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LINK = "120000"
LFS = b"version https://git-lfs.github.com/spec/"
# A pointer of Git LFS is a few lines.
LFS_BYTES = 1024
LIMIT_MEGABYTES = 50
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A line of `git ls-tree -r -l -z`."""

    path: str
    """Bytes that are not UTF-8 are surrogates."""
    mode: str
    kind: str
    digest: str
    size: int
    """Zero for what has no content."""

    @property
    def shown(self) -> str:
        """Return the path for a message."""
        return self.path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def listed(listing: bytes) -> list[Entry]:
    """Return what `git ls-tree -r -l -z` lists."""
    entries = []
    for line in filter(None, listing.decode(errors="surrogateescape").split("\0")):
        head, path = line.split("\t", 1)
        mode, kind, digest, size = head.split()
        entries.append(Entry(path, mode, kind, digest, int(size) if size.isdecimal() else 0))
    return entries


def checked(
    entries: Iterable[Entry],
    contents: Callable[[list[str]], list[bytes]],
    what: str,
    limit: int = LIMIT_MEGABYTES,
) -> tuple[dict[str, tuple[str, bytes]], list[str]]:
    """Return mode and content of each file by its path, and a finding for each that cannot be part of an artefact.

    Args:
        entries: what Git lists.
        contents: returns what the digests stand for; not asked for files that are too large.
        what: the archive is of, for the findings.
        limit: the most megabytes of a file.
    """
    entries = list(entries)
    refused = list(entry_findings(entries, what, limit))
    kept = [entry for entry in entries if entry.kind == "blob" and entry.size <= limit * MEGABYTE]
    read = contents([entry.digest for entry in kept])
    files = {entry.path: (entry.mode, content) for entry, content in zip(kept, read, strict=True)}
    names = {entry.path: entry.shown for entry in kept}
    return files, [*refused, *content_findings(files, names, what)]


def entry_findings(entries: Iterable[Entry], what: str, limit: int) -> Iterator[str]:
    """Yield a finding for each entry that is none of an artefact's, whatever its content."""
    for entry in entries:
        if entry.kind != "blob":
            yield (
                f"{entry.shown}: a Git submodule cannot be part of the {what}. Fix: commit its files in its place "
                f"(`git rm --cached {entry.shown}`), or install it as a package"
            )
        elif any("\udc80" <= character <= "\udcff" for character in entry.path):
            yield f"{entry.shown}: the name is not UTF-8, as hosts read names. Fix: `git mv` it to another name"
        elif entry.size > limit * MEGABYTE:
            yield (
                f"{entry.shown}: {-(-entry.size // MEGABYTE)} MB, and a file of the {what} may have {limit} MB. Fix: "
                "keep it elsewhere, as in a bucket, and take it out (`git rm`); or set app_file_limit_megabytes in "
                "group_vars/all/vars.yml"
            )


def content_findings(files: Mapping[str, tuple[str, bytes]], names: Mapping[str, str], what: str) -> Iterator[str]:
    """Yield a finding for each file that is something else than it seems, and each link out of the folder."""
    links = {path: os.fsdecode(content) for path, (mode, content) in files.items() if mode == LINK}
    for path in outside(links):
        yield (
            f"{names[path]}: the link to {links[path]!a} leaves the folder of the {what}, and hosts refuse such links. "
            "Fix: commit the file itself, or remove the link"
        )
    for path, (mode, content) in files.items():
        if mode != LINK and len(content) <= LFS_BYTES and content.startswith(LFS):
            yield (
                f"{names[path]}: a pointer of Git LFS, and not the file: an archive has what Git has. Fix: have Git "
                f"keep the file itself (`git lfs untrack {names[path]}`, `git add --renormalize .`, commit), or have "
                "the application take it from elsewhere when it starts"
            )


def outside(links: Mapping[str, str]) -> Iterator[str]:
    """Yield the links that lead out of their tree, also by way of other links; the kernel's own rules decide."""
    if not links:
        return
    with tempfile.TemporaryDirectory(prefix="waffle-links-") as folder:
        root = Path(os.path.realpath(folder))
        for path, target in links.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(target or ".")
        for path in links:
            if not Path(os.path.realpath(root / path)).is_relative_to(root):
                yield path
