"""Folders that releases share: each is built once for what decides its content, and linked from the releases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from basics import replace_link
from integrity import COMPLETE, Integrity


@dataclass(frozen=True)
class Shared:
    """The folders of one kind on this host."""

    integrity: Integrity
    folder: Path
    """The folder of them all."""
    link: str
    """What a release calls the one that it has."""

    def made(self, key: str, build: Callable[[Path], None], discard: Callable[[Path], None]) -> Path:
        """Return the one with a key, made unless there is one that is as it was made.

        One that somebody changed stays beside the new one for those who still run from it; `remove` is for later.
        """
        number, target = 0, self.folder / key
        while (target / COMPLETE).is_file() and self.integrity.venv_problems(target):
            number += 1
            target = target.with_name(f"{key}.{number}")
        if not (target / COMPLETE).is_file():
            try:
                build(target)
                (target / COMPLETE).touch()
                self.integrity.record(target)
            except BaseException:
                # On a full disk the room is needed by what goes on serving.
                discard(target)
                raise
        return target

    def of(self, release: Path) -> Path:
        """Return the one that a release is linked to."""
        return Path(os.path.realpath(release / self.link))

    def changes(self, release: Path) -> list[str]:
        """Return what is wrong with the one that a release has."""
        return self.integrity.shared_changes(release, self.link, self.folder)

    def replace(self, target: Path, release: Path, others: Iterable[Path]) -> None:
        """Link a release, and the others that share the one that it has, to another one."""
        old = self.of(release)
        for each in (release, *others):
            if each == release or self.of(each) == old:
                replace_link(each / self.link, target)

    def names(self) -> set[str]:
        """Return the names of all, and of what else is where only they belong."""
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def remove(self, name: str) -> None:
        """Remove one, and what is known of its files."""
        target = self.folder / name
        self.integrity.clear(target)
        shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()
        self.integrity.forget(target)
