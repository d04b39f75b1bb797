"""What files have beside content, mode and owner: what a person set is named and removed, the rest is left alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.waffle.iron.plugins.module_utils import attributes

FLAGS = {name: bit for bit, name in attributes.FROZEN.items()}
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
EXTENDED = (
    "system.posix_acl_access", "system.posix_acl_default", "security.capability", "user.note", "trusted.note",
)  # fmt: skip
OF_FILES = (*FLAGS, *(name for name in EXTENDED if name != "system.posix_acl_default"))
OF_DIRECTORIES = (*FLAGS, *(name for name in EXTENDED if name != "security.capability"))


def access_list(mode: int) -> bytes:
    """Return the list that `setfacl -m u:4711:rw` makes of a mode; its mask then shows as the group's bits."""
    user, group, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    entries = ((1, user, -1), (2, 6, 4711), (4, group, -1), (16, group | 6, -1), (32, other, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, who % 2**32) for tag, bits, who in entries)


def value_of(name: str, mode: int) -> bytes:
    """Return a value for an extended attribute of a file."""
    if "acl" in name:
        return access_list(mode)
    return CAPABILITY if "capability" in name else b"manually"


def give(path: Path, name: str) -> None:
    """Give a file or directory an attribute, unless this account or filesystem cannot."""
    try:
        if name in FLAGS:
            attributes.flags_of(str(path), attributes.flags_of(str(path)) | FLAGS[name])
        else:
            os.setxattr(path, name, value_of(name, path.stat().st_mode))
    except OSError as error:
        pytest.skip(f"{name}: {error}")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "file"
    made.write_text("text")
    made.chmod(0o640)
    yield made
    attributes.clear_tree(str(tmp_path))


@pytest.mark.parametrize("name", OF_FILES)
def test_each_attribute_of_a_file_is_named_and_removed(path: Path, name: str) -> None:
    assert attributes.attributes_of(str(path)) == []
    give(path, name)
    assert attributes.attributes_of(str(path)) == [name]
    attributes.clear(str(path))
    assert attributes.attributes_of(str(path)) == []
    assert path.read_text() == "text"


def test_the_mode_is_what_it_was_without_the_access_list(path: Path) -> None:
    give(path, "system.posix_acl_access")
    assert path.stat().st_mode & 0o777 == 0o660
    attributes.clear(str(path))
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_frozen_file_loses_its_other_attributes_too(path: Path) -> None:
    for name in ("user.note", "system.posix_acl_access", "immutable"):
        give(path, name)
    attributes.clear(str(path))
    assert attributes.attributes_of(str(path)) == []


@pytest.mark.parametrize("name", OF_DIRECTORIES)
def test_a_tree_is_looked_through(tmp_path: Path, path: Path, name: str) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    give(folder, name)
    assert attributes.in_tree(str(tmp_path)) == {str(folder): [name]}
    attributes.clear_tree(str(tmp_path))
    assert attributes.in_tree(str(tmp_path)) == {}


def test_what_a_filesystem_or_a_security_module_sets_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["security.selinux", "security.ima", "btrfs.compression", "trusted.overlay.origin", "user.overlay.impure"]
    monkeypatch.setattr(os, "listxattr", lambda _, follow_symlinks: own)
    assert attributes.attributes_of(str(path)) == []


def test_sockets_pipes_and_links_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    assert [attributes.attributes_of(str(tmp_path / name)) for name in ("pipe", "link")] == [[], []]
