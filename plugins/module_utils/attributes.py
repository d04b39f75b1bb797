"""What a file can have beside its content, mode and owner: access lists, capabilities, other attributes, and flags."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import struct

# From linux/fs.h: to read and set the flags that `lsattr` shows, and the two that keep root from changing a file.
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FROZEN = {0x10: "immutable", 0x20: "append-only"}
# Of the extended attributes those that a person sets. A filesystem has others, and so has a security module (SELinux).
ACCESS_LIST = "system.posix_acl_access"
SET_BY_PEOPLE = ("system.posix_acl_", "security.capability", "user.", "trusted.")
# From linux/posix_acl.h: the entry of an access list that stands for the file's own group.
GROUP_OF_THE_FILE = 0x04
NONE_HERE = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def flags_of(path: str, wanted: int | None = None) -> int:
    """Return the flags of a file or directory, after setting them if ``wanted`` is given."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        if wanted is not None:
            flags[0] = wanted
            fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, flags)
        return int(flags[0])
    except OSError as error:
        if wanted is None and error.errno in NONE_HERE:
            return 0  # a filesystem without flags
        raise
    finally:
        os.close(descriptor)


def extended(path: str) -> list[str]:
    """Return the names of the extended attributes that a person set."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in NONE_HERE:
            return []
        raise
    # A layer of overlayfs marks its files in these two namespaces.
    return sorted(name for name in names if name.startswith(SET_BY_PEOPLE) and ".overlay." not in name)


def attributes_of(path: str) -> list[str]:
    """Return the names of all that a file or directory has beside content, mode and owner; none of anything else."""
    try:
        kind = os.lstat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            return []
        flags = flags_of(path)
        return [name for bit, name in FROZEN.items() if flags & bit] + extended(path)
    except FileNotFoundError:
        return []  # another program removed it since its name was read


def thaw(path: str) -> None:
    """Remove the flags that keep root from changing a file or directory."""
    flags = flags_of(path)
    if flags & sum(FROZEN):
        flags_of(path, flags & ~sum(FROZEN))


def clear(path: str) -> None:
    """Remove from a file or directory what `attributes_of` names; the mode is then what it was without access list."""
    if not attributes_of(path):
        return
    thaw(path)
    for name in extended(path):
        if name == ACCESS_LIST:
            restore_group(path)
        os.removexattr(path, name, follow_symlinks=False)


def restore_group(path: str) -> None:
    """Give the mode of a file the group's bits of its access list: until then they are the list's mask."""
    entries = struct.iter_unpack("<HHI", os.getxattr(path, ACCESS_LIST, follow_symlinks=False)[4:])
    bits = next(bits for tag, bits, _ in entries if tag == GROUP_OF_THE_FILE)
    os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode) & ~stat.S_IRWXG | bits << 3)


def in_tree(folder: str) -> dict[str, list[str]]:
    """Return, for each path in a folder, and for the folder itself, the attributes that it has; nothing if none."""
    return {path: found for path in paths_in(folder) if (found := attributes_of(path))}


def clear_tree(folder: str) -> None:
    """Remove the attributes of a folder and of all that is in it."""
    for path in paths_in(folder):
        clear(path)


def paths_in(folder: str) -> list[str]:
    """Return a folder and all that is in it, without following links."""
    found = [folder]
    for place, folders, files in os.walk(folder):
        found += [f"{place}/{name}" for name in (*folders, *files)]
    return found
