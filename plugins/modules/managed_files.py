#!/usr/bin/python
"""Applies the wanted state to a set of files, directories and links in one call.

plugins/action/managed_files.py sends this very file and plugins/module_utils/attributes.py to a host, and calls
`bring`: all but `main` needs the standard library alone.
"""

from __future__ import annotations

import errno
import fnmatch
import grp
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.attributes import (
    attributes_of,
    clear,
    clear_tree,
    in_tree,
    thaw,
)

DOCUMENTATION = r"""
module: managed_files
short_description: Brings a set of files, directories and links to the wanted state in one call
description:
  - One call on a host costs 0.35 to 0.4 seconds, whatever it does. C(copy) and C(template) make two or three calls
    for each file, so an unchanged run is priced by the number of files. This module takes all files of a concern, and
    comes to the host as a plain program, which costs a quarter of a module's call.
  - Content comes rendered, as a rule from C(lookup('waffle.iron.rendered', ...)).
  - A file is written aside and renamed, so it is whole or not there. When C(validate) fails, everything that this call
    changed is put back.
  - Whatever stands in the way (a directory where a file belongs, a foreign entry in a purged directory) is moved
    to C(/var/backups/waffle-iron), never deleted.
  - Immutable bits, access control lists, file capabilities and other extended attributes count as a change, and are
    removed.
  - Pass secrets under C(no_log), as in any other module.
options:
  entries:
    description: What must exist, in this order. Owner and group default to root.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: str, required: true, description: Absolute path on the host.}
      state: {type: str, choices: [file, directory, link, absent], default: file, description: What it must be.}
      content: {type: str, description: The whole content of a file.}
      source: {type: str, description: "In its place: a file as it is, found on the control node as by C(copy)."}
      target: {type: str, description: What a link points to.}
      owner: {type: str, default: root, description: Name or number of the owner.}
      group: {type: str, default: root, description: Name or number of the group.}
      mode: {type: str, description: "Octal, quoted; default 0644 for files and 0755 for directories."}
      recurse: {type: bool, default: false, description: "Of a directory: nothing in it may have such attributes."}
  purge:
    description: Directories that hold nothing but what C(entries) name in them, or below.
    type: list
    elements: str
    default: []
  keep:
    description: Paths in purged directories that stay, with the wildcards of a shell.
    type: list
    elements: str
    default: []
  keep_packaged:
    description: Whether that which a package brought stays in purged directories; so does a link to such a file.
    type: bool
    default: false
  readers:
    description:
      - Services, and the folder that each reads when it starts or reloads. One whose processes are older than something
        in its folder counts as a change, C(<service> is older than <folder>), so that handlers reload it. That is how a
        file is reported that somebody fixed manually and did not reload.
    type: dict
    default: {}
  validate:
    description: A command, run without a shell after something changed. If it fails, the changes are undone.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Configure the journal
  waffle.iron.managed_files:
    entries:
      - path: /etc/systemd/journald.conf.d
        state: directory
      - path: /etc/systemd/journald.conf.d/50-size.conf
        content: "{{ lookup('waffle.iron.rendered', 'journald.conf.j2') }}"
"""

RETURN = r"""
changed_paths:
  description: What was changed, or would be in check mode.
  type: list
  elements: str
  returned: always
"""

BACKUP_ROOT = "/var/backups/waffle-iron"
DEFAULT_MODE = {"file": "0644", "directory": "0755"}


class Conflict(Exception):
    """The wanted state cannot be reached; the message says why."""


def kind_of(path: str) -> str:
    """Return ``file``, ``directory``, ``link``, ``absent`` or ``other`` without following a link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "absent"
        raise
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "other"


def describe(path: str, recurse: bool = False) -> dict[str, Any]:
    """Return what stands at ``path``: kind, and owner, group, mode, attributes, content or target where they apply."""
    kind = kind_of(path)
    state: dict[str, Any] = {"kind": kind}
    if kind == "link":
        state["target"] = os.readlink(path)
    if kind in ("file", "directory"):
        status = os.lstat(path)
        state.update(uid=status.st_uid, gid=status.st_gid, mode=stat.S_IMODE(status.st_mode))
        found = in_tree(path) if recurse and kind == "directory" else {path: attributes_of(path)}
        state["attributes"] = [
            name + ("" if place == path else f" of {place}") for place, names in found.items() for name in names
        ]
    if kind == "file":
        with open(path, "rb") as stream:
            state["content"] = stream.read()
    return state


def thaw_existing(*paths: str) -> None:
    """Remove what keeps root from changing files and directories; a path that is not there needs nothing."""
    for path in paths:
        if kind_of(path) in ("file", "directory"):
            thaw(path)


def packaged(paths: list[str]) -> set[str]:
    """Return those of ``paths`` that a package brought, or that are links to something that one did."""
    if not paths or not shutil.which("dpkg-query"):
        return set()
    done = subprocess.run(
        ["dpkg-query", "--search", *{name for path in paths for name in (path, os.path.realpath(path))}],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    known = {line.partition(": ")[2] for line in done.stdout.splitlines()}
    return {path for path in paths if path in known or os.path.realpath(path) in known}


def started(process: str) -> float:
    """Return when a process began, in seconds since 1970."""
    with open(f"/proc/{process}/stat") as stream:
        ticks = int(stream.read().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def reading_since(service: str) -> float | None:
    """Return when the processes of a service read their files: the oldest worker's start, or the service's own.

    A worker that only finishes its last requests does not count. None if the service does not run.
    """
    shown = subprocess.run(
        ["systemctl", "show", "--property=MainPID", "--value", service],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    if shown in ("", "0"):
        return None
    try:
        with open(f"/proc/{shown}/task/{shown}/children") as stream:
            workers = stream.read().split()
        lines = {}
        for worker in workers:
            with open(f"/proc/{worker}/cmdline") as stream:
                lines[worker] = stream.read()
        serving = [worker for worker, line in lines.items() if "worker process" in line and "shutting down" not in line]
        return min(started(process) for process in serving or [shown])
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended while this looked


def newest_change(folder: str) -> float:
    """Return when something in or below a folder last changed, in seconds since 1970; 0 if there is no folder."""
    times = [os.lstat(folder).st_ctime] if kind_of(folder) == "directory" else []
    for place, folders, files in os.walk(folder):
        times += [os.lstat(os.path.join(place, name)).st_ctime for name in (*folders, *files)]
    return max(times, default=0)


class Tree:
    """Applies entries one by one and records how to undo them."""

    def __init__(self, check_mode: bool) -> None:
        self.check_mode = check_mode
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self._undo: list[tuple[str, dict[str, Any], str | None]] = []

    def apply(self, entry: dict[str, Any]) -> None:
        """Apply one entry."""
        path, wanted = entry["path"], self._wanted(entry)
        before = describe(path, entry.get("recurse", False))
        if all(before.get(key) == value for key, value in wanted.items()):
            return
        self._note(path, before, wanted)
        if self.check_mode:
            return
        aside = None
        if before["kind"] not in ("absent", wanted["kind"]):
            aside = self._quarantine(path)
        self._undo.append((path, before, aside))
        self._write(path, wanted, entry.get("recurse", False))

    def purge(self, directory: str, kept: set[str], patterns: list[str], keep_packaged: bool) -> None:
        """Move away what ``directory`` holds beside ``kept`` (absolute paths), those above them, and ``patterns``."""
        if kind_of(directory) != "directory":
            return
        before = describe(directory)
        if before["attributes"] and directory not in self.changed:
            self._note(directory, before, {**before, "attributes": []})
            if not self.check_mode:
                clear(directory)
        places = [os.path.join(directory, name) for name in sorted(os.listdir(directory))]
        foreign = [
            path
            for path in places
            if not any(known == path or known.startswith(path + "/") for known in kept)
            and not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
        ]
        of_packages = packaged(foreign) if keep_packaged else set()
        for path in foreign:
            if path in of_packages or path in self.changed:
                continue
            before = describe(path)
            self._note(path, before, {"kind": "absent"})
            if not self.check_mode:
                self._undo.append((path, before, self._quarantine(path)))

    def compare_reader(self, service: str, folder: str) -> None:
        """Note a service whose processes are older than something in the folder that it reads."""
        since = reading_since(service)
        if since is not None and newest_change(folder) > since:
            self.changed.append(f"{service} is older than {folder}")

    def undo(self) -> None:
        """Put back everything that was changed, last change first."""
        for path, before, aside in reversed(self._undo):
            if kind_of(path) == "directory":
                if before["kind"] != "directory":
                    os.rmdir(path)
            elif kind_of(path) != "absent":
                os.unlink(path)
            if aside:
                shutil.move(aside, path)
            elif before["kind"] != "absent":
                self._write(path, before)

    def _wanted(self, entry: dict[str, Any]) -> dict[str, Any]:
        kind = entry["state"]
        wanted: dict[str, Any] = {"kind": kind}
        if kind == "link":
            wanted["target"] = entry["target"]
        if kind in DEFAULT_MODE:
            wanted["mode"] = int(entry["mode"] or DEFAULT_MODE[kind], 8)
            wanted["uid"] = self._id(entry, "owner", lambda name: pwd.getpwnam(name).pw_uid)
            wanted["gid"] = self._id(entry, "group", lambda name: grp.getgrnam(name).gr_gid)
            wanted["attributes"] = []
        if kind == "file":
            wanted["content"] = entry["content"].encode()
        return wanted

    def _id(self, entry: dict[str, Any], key: str, look_up: Any) -> int | None:
        if entry[key].isdecimal():
            return int(entry[key])
        try:
            return int(look_up(entry[key]))
        except KeyError:
            # On a bare host in check mode the account is one that the run would have created.
            if self.check_mode:
                return None
            raise Conflict(f"{entry['path']}: {key} {entry[key]!r} does not exist on this host") from None

    def _quarantine(self, path: str) -> str:
        folder = os.path.join(BACKUP_ROOT, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        aside = os.path.join(folder, path.strip("/").replace("/", "__"))
        number = 0
        while kind_of(aside) != "absent":
            number += 1
            aside = f"{aside.rsplit('~', 1)[0]}~{number}"
        thaw_existing(os.path.dirname(path), path)
        shutil.move(path, aside)
        return aside

    def _write(self, path: str, wanted: dict[str, Any], recurse: bool = False) -> None:
        kind = wanted["kind"]
        if kind != "absent":
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            thaw_existing(os.path.dirname(path), path)
        if kind == "directory":
            if kind_of(path) == "absent":
                os.mkdir(path, 0o700)
            clear_tree(path) if recurse else clear(path)
            os.chown(path, wanted["uid"], wanted["gid"])
            os.chmod(path, wanted["mode"])
        elif kind == "absent":
            if kind_of(path) != "absent":
                self._undo[-1] = (path, self._undo[-1][1], self._quarantine(path))
        else:
            self._replace(path, wanted)

    def _replace(self, path: str, wanted: dict[str, Any]) -> None:
        folder = tempfile.mkdtemp(prefix=".waffle-", dir=os.path.dirname(path))
        temporary = os.path.join(folder, "new")
        try:
            if wanted["kind"] == "link":
                os.symlink(wanted["target"], temporary)
            else:
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
                    stream.write(wanted["content"])
                    stream.flush()
                    os.fsync(stream.fileno())
                clear(temporary)  # a directory may hand an access list down
                os.chown(temporary, wanted["uid"], wanted["gid"])
                os.chmod(temporary, wanted["mode"])
            os.rename(temporary, path)
        finally:
            shutil.rmtree(folder)

    def _note(self, path: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        self.changed.append(path)
        self.diffs.append(
            {
                "before_header": path,
                "after_header": path,
                "before": render(before),
                "after": render({**before, **after} if after["kind"] != "absent" else after),
            }
        )


def render(state: dict[str, Any]) -> str:
    """Return a state as text for ``--diff``: a line of attributes, then the content."""
    if state["kind"] == "absent":
        return ""
    if state["kind"] == "link":
        return f"link to {state.get('target')}\n"
    mode: int | None = state.get("mode")
    extras = ", ".join(state.get("attributes", ()))
    head: str = (
        f"{state['kind']} mode={mode:04o} uid={state.get('uid')} gid={state.get('gid')}{extras and ' ' + extras}\n"
        if mode is not None
        else ""
    )
    content: bytes = state.get("content", b"")
    return head + content.decode(errors="replace")


ENTRY = {
    "path": {"type": "str", "required": True},
    "state": {"choices": ["file", "directory", "link", "absent"], "default": "file"},
    "content": {"type": "str"},
    "target": {"type": "str"},
    "owner": {"default": "root"},
    "group": {"default": "root"},
    "mode": {"type": "str"},
    "recurse": {"type": "bool", "default": False},
}
ARGUMENTS = {
    "entries": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": ENTRY,
        "required_if": [("state", "file", ["content"]), ("state", "link", ["target"])],
    },
    "purge": {"type": "list", "elements": "str", "default": []},
    "keep": {"type": "list", "elements": "str", "default": []},
    "keep_packaged": {"type": "bool", "default": False},
    "readers": {"type": "dict", "default": {}},
    "validate": {"type": "list", "elements": "str"},
}


def bring(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Apply the options (`ARGUMENTS`, all of them) to files; return the result of a task."""
    tree = Tree(check_mode)
    try:
        for item in given["entries"]:
            tree.apply(item)
        kept = {item["path"] for item in given["entries"] if item["state"] != "absent"}
        for directory in given["purge"]:
            tree.purge(directory, kept, given["keep"], given["keep_packaged"])
        for service, folder in given["readers"].items():
            tree.compare_reader(service, folder)
    except (Conflict, OSError, ValueError) as error:
        return refused(tree, f"nothing was changed: {error}")
    if tree.changed and given["validate"] and not check_mode and (words := objections(given["validate"])):
        return refused(tree, words)
    return {"changed": bool(tree.changed), "changed_paths": tree.changed, "diff": tree.diffs}


def objections(command: list[str]) -> str:
    """Return what a command has against the new files, empty if it has nothing."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False)
    except OSError as error:
        return f"`{' '.join(command)}` could not look at the new files, so the old ones were put back: {error}"
    if done.returncode == 0:
        return ""
    words = f"`{' '.join(command)}` refused the new files, so the old ones were put back:"
    return f"{words}\n{done.stdout}{done.stderr}"


def refused(tree: Tree, message: str) -> dict[str, Any]:
    """Undo everything; return the result of a task that failed with ``message``."""
    tree.undo()
    return {"failed": True, "msg": message, "changed": False, "changed_paths": []}


def main() -> None:
    """Run as an Ansible module."""
    from ansible.module_utils.basic import AnsibleModule  # noqa: PLC0415

    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.exit_json(**bring(module.params, module.check_mode))


if __name__ == "__main__":
    main()
