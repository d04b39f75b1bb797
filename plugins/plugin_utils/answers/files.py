"""Files that the control node writes about hosts: inside their folder, for this account alone, through no link."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

NAME = re.compile(r"(?!\.{1,2}\Z)[^/\x00-\x1f\x7f]{1,200}")
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def write_inside(root: Path, *parts: str, text: str) -> Path:
    """Replace the file ``parts`` below the folder ``root``, and return its path; folders on the way are made.

    Names come from the inventory and the command line, never from a host. What is at that name is replaced whole, by
    rename: a link there is not followed.

    Raises:
        ValueError: a part is no plain name.
        OSError: a folder below ``root`` is a link, or the file cannot be written.
    """
    for part in parts:
        if not NAME.fullmatch(part):
            raise ValueError(f"{part!r} cannot be a file name below {root}: use letters, digits, '.', '-' and '_'")
    *folders, name = parts
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        place = os.open(root, FOLDER)
        stack.callback(os.close, place)
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700, dir_fd=place)
            place = os.open(folder, FOLDER | os.O_NOFOLLOW, dir_fd=place)
            stack.callback(os.close, place)
        temporary = f".{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=place), "w", encoding="utf-8") as stream:
            try:
                stream.write(text)
                stream.flush()
                os.rename(temporary, name, src_dir_fd=place, dst_dir_fd=place)
            except BaseException:
                os.unlink(temporary, dir_fd=place)
                raise
    return root.joinpath(*parts)
