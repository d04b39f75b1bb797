#!/usr/bin/python
"""Brings a set of files, directories and links to the wanted state in one call."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import stat
import tempfile
import time
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: managed_files
short_description: Brings a set of files, directories and links to the wanted state in one call
description:
  - One call on a host costs 0.35 to 0.4 seconds, whatever it does. C(copy) and C(template) make two or three calls
    for each file, so an unchanged run is priced by the number of files. This module takes all files of a concern.
  - Content comes rendered, as a rule from C(lookup('ansible.builtin.template', ...)).
  - A file is written aside and renamed, so it is whole or not there. When C(validate) fails, everything that this call
    changed is put back.
  - Whatever stands in the way (a directory where a file belongs, a foreign entry in a purged directory) is moved
    to C(/var/backups/waffle-iron), never deleted.
  - Pass secrets under C(no_log), as in any other module.
options:
  entries:
    description: What must exist, in this order. Owner and group default to root.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: Absolute path on the host.}
      state: {type: str, choices: [file, directory, link, absent], default: file, description: What it must be.}
      content: {type: str, description: The whole content of a file.}
      target: {type: str, description: What a link points to.}
      owner: {type: str, default: root, description: Name of the owner.}
      group: {type: str, default: root, description: Name of the group.}
      mode: {type: str, description: "Octal, quoted; default 0644 for files and 0755 for directories."}
  purge:
    description: Directories that hold nothing but what C(entries) name in them.
    type: list
    elements: path
    default: []
  validate:
    description: A command, run without a shell after something changed. If it fails, the changes are undone.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Configure the journal
  managed_files:
    entries:
      - path: /etc/systemd/journald.conf.d
        state: directory
      - path: /etc/systemd/journald.conf.d/50-size.conf
        content: "{{ lookup('ansible.builtin.template', 'journald.conf.j2') }}"
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


def describe(path: str) -> dict[str, Any]:
    """Return what stands at ``path``: kind, and owner, group, mode, content or target where they apply."""
    kind = kind_of(path)
    state: dict[str, Any] = {"kind": kind}
    if kind == "link":
        state["target"] = os.readlink(path)
    if kind in ("file", "directory"):
        status = os.lstat(path)
        state.update(uid=status.st_uid, gid=status.st_gid, mode=stat.S_IMODE(status.st_mode))
    if kind == "file":
        with open(path, "rb") as stream:
            state["content"] = stream.read()
    return state


class Tree:
    """Applies entries one by one and remembers how to undo them."""

    def __init__(self, check_mode: bool) -> None:
        self.check_mode = check_mode
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self._undo: list[tuple[str, dict[str, Any], str | None]] = []

    def apply(self, entry: dict[str, Any]) -> None:
        """Bring one entry to its wanted state."""
        path, wanted = entry["path"], self._wanted(entry)
        before = describe(path)
        if all(before.get(key) == value for key, value in wanted.items()):
            return
        self._note(path, before, wanted)
        if self.check_mode:
            return
        aside = None
        if before["kind"] not in ("absent", wanted["kind"]):
            aside = self._set_aside(path)
        self._undo.append((path, before, aside))
        self._write(path, wanted)

    def purge(self, directory: str, kept: set[str]) -> None:
        """Move away what ``directory`` holds beside ``kept`` (absolute paths)."""
        if kind_of(directory) != "directory":
            return
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if path in kept:
                continue
            before = describe(path)
            self._note(path, before, {"kind": "absent"})
            if not self.check_mode:
                self._undo.append((path, before, self._set_aside(path)))

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
        if kind == "file":
            wanted["content"] = entry["content"].encode()
        return wanted

    def _id(self, entry: dict[str, Any], key: str, look_up: Any) -> int | None:
        try:
            return int(look_up(entry[key]))
        except KeyError:
            # On a bare host in check mode the account is one that the run would have created.
            if self.check_mode:
                return None
            raise Conflict(f"{entry['path']}: {key} {entry[key]!r} does not exist on this host") from None

    def _set_aside(self, path: str) -> str:
        folder = os.path.join(BACKUP_ROOT, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        aside = os.path.join(folder, path.strip("/").replace("/", "__"))
        number = 0
        while kind_of(aside) != "absent":
            number += 1
            aside = f"{aside.rsplit('~', 1)[0]}~{number}"
        shutil.move(path, aside)
        return aside

    def _write(self, path: str, wanted: dict[str, Any]) -> None:
        kind = wanted["kind"]
        if kind == "directory":
            if kind_of(path) == "absent":
                os.mkdir(path, 0o700)
            os.chown(path, wanted["uid"], wanted["gid"])
            os.chmod(path, wanted["mode"])
        elif kind == "absent":
            if kind_of(path) != "absent":
                self._undo[-1] = (path, self._undo[-1][1], self._set_aside(path))
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
    head: str = (
        f"{state['kind']} mode={mode:04o} uid={state.get('uid')} gid={state.get('gid')}\n" if mode is not None else ""
    )
    content: bytes = state.get("content", b"")
    return head + content.decode(errors="replace")


def fail(module: AnsibleModule, tree: Tree, message: str) -> NoReturn:
    """Undo everything and end with ``message``."""
    tree.undo()
    module.fail_json(msg=message, changed_paths=[])
    raise AssertionError("fail_json returned")


def main() -> None:
    """Run as an Ansible module."""
    entry = {
        "path": {"type": "path", "required": True},
        "state": {"choices": ["file", "directory", "link", "absent"], "default": "file"},
        "content": {"type": "str"},
        "target": {"type": "str"},
        "owner": {"default": "root"},
        "group": {"default": "root"},
        "mode": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "entries": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": entry,
                "required_if": [("state", "file", ["content"]), ("state", "link", ["target"])],
            },
            "purge": {"type": "list", "elements": "path", "default": []},
            "validate": {"type": "list", "elements": "str"},
        },
        supports_check_mode=True,
    )
    tree = Tree(module.check_mode)
    try:
        for item in module.params["entries"]:
            tree.apply(item)
        kept = {item["path"] for item in module.params["entries"] if item["state"] != "absent"}
        for directory in module.params["purge"]:
            tree.purge(directory, kept)
    except (Conflict, OSError, ValueError) as error:
        fail(module, tree, f"nothing was changed: {error}")
    if tree.changed and module.params["validate"] and not module.check_mode:
        code, out, err = module.run_command(module.params["validate"])
        if code != 0:
            command = " ".join(module.params["validate"])
            fail(module, tree, f"`{command}` refused the new files, so the old ones were put back:\n{out}{err}")
    module.exit_json(changed=bool(tree.changed), changed_paths=tree.changed, diff=tree.diffs)


if __name__ == "__main__":
    main()
