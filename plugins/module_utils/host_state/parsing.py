"""The forms that files, programs and the kernel give their facts in."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
from collections.abc import Iterator
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.environment import dotenv_values

Facts = dict[str, str]
LISTENS = 0x10000
SESSION_FOLDERS = ("/run/user/", "/tmp/")  # noqa: S108 (looked at, not written)


def lines_of(text: str, comment: str = "#") -> str:
    """Return a configuration without comments (a pattern of how they begin), blank lines and trailing blanks."""
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line.strip() and not re.match(rf"\s*(?:{comment})", line))


def assignments(text: str) -> Facts:
    """Return ``NAME=value`` lines as a mapping; quotes around a value are taken off."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def dotenv_settings(text: str) -> Facts:
    """Return the settings of a ``.env`` file, unquoted; a line that somebody wrote and that is none is passed over."""
    return dict(dotenv_values("\n".join(line for line in text.splitlines() if "=" in line and line[:1] != "#")))


def option_settings(text: str) -> Facts:
    """Return the options of a client's option file as the filter `option_file` wrote them, unquoted."""
    pairs = re.findall(r'^([\w-]+) = "(.*)"$', text, flags=re.MULTILINE)
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}


def kernel_family(release: str) -> str:
    """Return the first two numbers of a kernel's release and its flavour: ``6.12 cloud-amd64``."""
    numbers = re.match(r"\d+\.\d+", release)
    flavour = re.search(r"-((?:rt|cloud|aws|azure|gcp|generic|amd64|arm64)[\w-]*)$", release)
    return " ".join(part for part in (numbers[0] if numbers else release, flavour[1] if flavour else "") if part)


def nginx_files(text: str) -> Facts:
    """Return the files of ``nginx -T`` by path, without comments."""
    parts = re.split(r"^# configuration file (/.*):$", text, flags=re.MULTILINE)
    return {path: lines_of(content) for path, content in zip(parts[1::2], parts[2::2], strict=True)}


def blocks_of(text: str) -> list[Facts]:
    """Return the blocks of ``systemctl show`` for several units."""
    return [assignments(block) for block in text.split("\n\n") if block.strip()]


def sysctl_name(path: str) -> str:
    """Return the name of a setting below /proc/sys: a dot inside of a name becomes a slash, as sysctl does it."""
    parts = path.removeprefix("/proc/sys/").split("/")
    return ".".join(part.replace(".", "/") for part in parts)


def address_of(text: str) -> str:
    """Return an address and port of /proc/net as people write it: ``0.0.0.0:80``, ``[::]:80``."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[index : index + 8])[::-1] for index in range(0, len(address), 8)]
    packed = b"".join(words)
    family = socket.AF_INET6 if len(packed) == 16 else socket.AF_INET
    shown = socket.inet_ntop(family, packed)
    return f"[{shown}]:{int(port, 16)}" if family == socket.AF_INET6 else f"{shown}:{int(port, 16)}"


def listeners_in(text: str, protocol: str, ephemeral: range) -> Iterator[tuple[str, str]]:
    """Yield what listens and its inode, from /proc/net/tcp, tcp6, udp or udp6."""
    for line in text.splitlines()[1:]:
        columns = line.split()
        if columns[3] != ("0A" if protocol == "tcp" else "07"):
            continue
        address = address_of(columns[1])
        host, _, port = address.rpartition(":")
        if protocol == "udp" and int(port) in ephemeral:
            address = f"{host}:<any port>"
        yield f"{protocol} {address}", columns[9]


def unix_listeners_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield the paths that listen and their inodes, from /proc/net/unix; abstract and session sockets are left out."""
    for line in text.splitlines()[1:]:
        columns = line.split(None, 7)
        if len(columns) < 8 or not int(columns[3], 16) & LISTENS or not columns[7].startswith("/"):
            continue
        if not columns[7].startswith(SESSION_FOLDERS):
            yield f"unix {columns[7]}", columns[6]


def accounts_in(passwd: str, shadow: str) -> Facts:
    """Return the accounts by name: numbers, home, shell, what the password can do, and until when."""
    states = {}
    for line in shadow.splitlines():
        name, password, *rest = line.split(":")
        state = "no password" if not password else "locked" if password[0] in "!*" else "has a password"
        expires = rest[5] if len(rest) > 5 else ""
        states[name] = state + (f", expires on day {expires}" if expires else "")
    found = {}
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) == 7:
            name, _, number, group, words, home, shell = fields
            found[name] = (
                f"uid {number}, gid {group}, {home}, {shell}, {states.get(name, 'no shadow entry')}, {words!r}"
            )
    return found


def groups_in(text: str) -> Facts:
    """Return the groups by name: number and members."""
    rows = [line.split(":") for line in text.splitlines() if line.count(":") == 3]
    return {
        name: f"gid {number}: {', '.join(sorted(filter(None, members.split(','))))}"
        for name, _, number, members in rows
    }


def without_counters(text: str) -> str:
    """Return firewall rules without counters and the dates in comments."""
    text = re.sub(r"packets \d+ bytes \d+", "packets * bytes *", text)
    text = re.sub(r"^\[\d+:\d+\] ", "", text, flags=re.MULTILINE)
    return lines_of(re.sub(r"(?<=\S) \[\d+:\d+\]$", "", text, flags=re.MULTILINE))


def as_text(value: Any) -> Any:
    r"""Return a JSON value whose texts are Unicode: a byte of a file's name that is none stands as ``\xff``."""
    if isinstance(value, str):
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if isinstance(value, dict):
        return {as_text(key): as_text(part) for key, part in value.items()}
    return [as_text(part) for part in value] if isinstance(value, list) else value


def unescaped(grant: str) -> str:
    """Return a grant with its database as it is called elsewhere: parity looks for the names that environments set."""
    return re.sub(r"\\+([_%])", r"\1", grant)


def without_hash(text: str) -> str:
    """Return an account's definition without the hash of its password, which has a salt of its own."""
    literal = r"(?:'(?:[^'\\]|\\.|'')*'|0x[0-9A-Fa-f]+)"
    text = re.sub(rf"\bAS {literal}", "AS <hash>", text)
    return re.sub(rf"IDENTIFIED BY PASSWORD {literal}", "IDENTIFIED BY PASSWORD <hash>", text)


def without_own_path(data: bytes, name: str, environment: str) -> bytes:
    """Return a file of a virtual environment without that one's path and name, which its scripts have.

    A distribution's RECORD has digests of such scripts: they are compared as the content of ``bin``.
    """
    if name == "RECORD":
        data = b"".join(line for line in data.splitlines(keepends=True) if not line.startswith(b"../"))
    folder, _, own = environment.rpartition("/")
    return data.replace(folder.encode(), b"").replace(own.encode(), b"<environment>")


def literal(text: str) -> str:
    """Return a text as a string of SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fingerprint(line: str) -> str:
    """Return the fingerprint of a line of ``authorized_keys`` as ssh-keygen shows it."""
    for word in line.split():
        if word.startswith("AAAA"):
            with contextlib.suppress(ValueError):
                digest = hashlib.sha256(base64.b64decode(word)).digest()
                return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
    return "unknown"
