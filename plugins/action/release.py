"""Runs the release program of a host and returns its answer."""

from __future__ import annotations

import getpass
import itertools
import json
import os
import re
import shlex
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.waffle.iron.plugins.plugin_utils.answers import messages
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.files import write_inside
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import (
    HostAction,
    answer_in,
    json_in,
    known,
    words_of,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import printable

READ_ONLY: frozenset[messages.Command] = frozenset(("status", "list", "log", "proven", "rollback-target", "preview"))
RECORDED: frozenset[messages.Command] = frozenset(
    ("prepare", "activate", "confirm", "rollback", "go-back", "repair", "migrate", "restore")
)
ANSWERS: dict[messages.Command, type[Mapping[str, Any]]] = {
    "status": messages.Status,
    "rollback-target": messages.RollbackTarget,
    "preview": messages.Preview,
    "plan": messages.Migrations,
    **dict.fromkeys(RECORDED, messages.Outcome),
}
REQUESTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NO_SUCH_PROGRAM = 127


def who() -> str:
    """Return who runs this, and from where; a pipeline names the person who started it."""
    actor = os.environ.get("GITHUB_ACTOR") or os.environ.get("SUDO_USER") or getpass.getuser()
    return f"{actor}@{socket.gethostname()}"


def subject_of(command: list[str]) -> str:
    """Return what a command is about: the release or backup that was requested, or else the command itself."""
    name = dict(itertools.pairwise(command)).get("--refused", "".join(command[1:2]))
    return name if REQUESTED.fullmatch(name) else command[0]


class ActionModule(HostAction):
    """Runs a command of the program that the role installs on the host: one call, without the start of a module.

    Arguments:
        program: path of the program on the host.
        command: its command and arguments, a list.
        input: what the program reads from its standard input, as a line of JSON. Secrets may be in it: they pass
            through the connection, and no command line, file or journal has them.
        upload: a file on the control node that follows the input; its size is the input's key ``bytes``, and `input`
            itself the key ``files``.
        default: what to return if the program is not installed yet; without it that is an error.
        receipts: folder on the control node for the receipt of a finished run.
        defer_failure: whether a refusal is returned as ``refused`` alone, for a later task that fails with it.

    A host that cannot be reached while it is changed fails (``host_unreachable``) instead of leaving the play, so that
    the tasks that revert a deploy ask it again.

    Returns the fields of the program's answer (plugins/plugin_utils/answers/messages.py), or ``stdout`` where it
    printed text, which is shown where it is for people; a failure has the program's words as ``msg`` and ``refused``. A
    wrong answer is a refusal, too.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("program", "command", "upload", "input", "default", "receipts", "defer_failure"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the program's answer as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        command = [str(part) for part in arguments["command"]]
        reads = command[0] in READ_ONLY
        if self._task.check_mode and not reads:
            return {**result, "changed": True, "msg": f"would run: {shlex.join(command)}"}
        if command[0] in RECORDED:
            command += ["--by", who()]
        deferred = boolean(arguments.get("defer_failure", False))
        host = str((task_vars or {}).get("inventory_hostname", ""))
        try:
            done = self._execute([str(arguments["program"]), *command], arguments)
            if done["rc"] == NO_SUCH_PROGRAM and "default" in arguments:
                return {**result, "changed": False, **arguments["default"]}
            if done["rc"] != 0 and self._task.check_mode and "default" in arguments:
                # Its files were changed, and the run without --check would repair them first.
                words = f"cannot be asked: {words_of(done)}"
                return {**result, **arguments["default"], "changed": True, "unasked": True, "problems": [words]}
            answer = self._answer(command, done)
        except AnsibleConnectionFailure as error:
            if command[0] not in RECORDED:
                raise
            words = f"could not be reached: {printable(str(error))}"
            result.update(failed=not deferred, msg=words, refused=words)
            return {**result, "changed": False, "host_unreachable": True}
        except AnsibleActionFail as error:
            if not deferred:
                raise
            return {**result, "changed": True, "refused": str(error)}
        if done["rc"] != 0:
            words = words_of(done)
            result.update(failed=not deferred, rc=done["rc"], msg=words, refused=words)
        if command[0] == "list" or "--text" in command:
            for line in answer.get("stdout", "").splitlines():
                self._display.display(f"{host}: {line}")
        self._keep(answer, str(arguments.get("receipts", "")), host, subject_of(command))
        # A problem of the live release would be repaired: a dry run counts that as a change.
        repaired = self._task.check_mode and bool(answer.get("problems"))
        return {"changed": not reads or repaired, **answer, **result}

    def _execute(self, command: list[str], arguments: dict[str, Any]) -> dict[str, Any]:
        words, upload = arguments.get("input"), b""
        if path := str(arguments.get("upload") or ""):
            upload = Path(path).read_bytes()
            words = {"files": words, "bytes": len(upload)}
        # With something to read there is no terminal, which would mix what the program says with what went wrong.
        data = json.dumps(words).encode() + b"\n" + upload
        done: dict[str, Any] = self._low_level_execute_command(shlex.join(command), in_data=data)
        return done

    def _answer(self, command: list[str], done: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of an answer; nothing if there is none and none is due."""
        printed, model = str(done["stdout"]), ANSWERS.get(cast("messages.Command", command[0]))
        if model is None or "--text" in command:
            return {"stdout": printable(printed)} if printed else {}
        due = done["rc"] == 0 and command[0] not in RECORDED
        if not due and not json_in(printed):
            return {}
        return known(answer_in(printed, model, f"`{shlex.join(command)}`"))

    def _keep(self, answer: dict[str, Any], folder: str, host: str, subject: str) -> None:
        receipt = answer.get("receipt") or {}
        for note in receipt.get("notes", ()):
            self._display.warning(f"{host}: {note}")
        # What a migration was going to do, statement by statement, whatever became of it.
        for line in (receipt.get("migration") or {}).get("plan", ()):
            _, warns, warning = line.partition("WARNING: ")
            if warns:
                self._display.warning(f"{host}: the migration {warning}")
            else:
                self._display.display(f"{host}: {line}")
        if folder and receipt:
            # Its name is what this machine knows: the time here, and what was requested.
            name, text = f"{int(time.time())}-{subject}.json", json.dumps(receipt, indent=1) + "\n"
            try:
                answer["receipt"] = str(write_inside(Path(folder), host, name, text=text))
            except (OSError, ValueError) as error:
                self._display.warning(f"{host}: no receipt was written on this machine: {error}. The host has it")
