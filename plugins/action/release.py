"""Runs the release program of a host and returns its answer."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

READ_ONLY = frozenset(("status", "list", "log", "proven", "rollback-target", "preview"))
RECORDED = frozenset(("prepare", "activate", "rollback", "go-back", "repair", "migrate", "restore"))
# What these answer is text for people.
SHOWN = frozenset(("list", "plan"))
NO_SUCH_PROGRAM = 127


def who() -> str:
    """Return who runs this, and from where; a pipeline names the person who started it."""
    actor = os.environ.get("GITHUB_ACTOR") or os.environ.get("SUDO_USER") or getpass.getuser()
    return f"{actor}@{socket.gethostname()}"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs a command of the program that the role installs on the host: one call, without the start of a module.

    Arguments:
        program: path of the program on the host.
        command: its command and arguments, a list.
        input: what the program reads from its standard input, as a line of JSON. Secrets may be in it: they pass
            through the connection, and no command line, file or journal has them.
        upload: a file on the control node that follows the input; its size is the input's key ``bytes``, and `input`
            itself the key ``files``.
        bare: what to return where the program is not installed yet; without it that is an error.
        receipts: folder on the control node for the receipt of a finished run.
        together: whether a later task judges all hosts of an environment together. A refusal, or a host that cannot
            be reached (``gone``), is then told by ``refused`` alone and does not end the run.

    Returns the keys of the JSON object that the program printed, or ``stdout`` where it printed text, which is shown
    where it is for people; a failure has the program's words as ``msg`` and ``refused``.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("program", "command", "upload", "input", "bare", "receipts", "together"))

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
        together = boolean(arguments.get("together", False))
        try:
            done = self._execute([str(arguments["program"]), *command], arguments)
        except AnsibleConnectionFailure as error:
            if not together:
                raise
            return {**result, "changed": False, "gone": True, "refused": f"could not be reached: {error}"}
        if done["rc"] == NO_SUCH_PROGRAM and "bare" in arguments:
            return {**result, "changed": False, **arguments["bare"]}
        if done["rc"] != 0 and self._task.check_mode and "bare" in arguments:
            # Its files were changed, and the run without --check would mend them first.
            words = f"cannot be asked: {(done['stderr'] or done['stdout']).strip()}"
            bare = dict(arguments["bare"])
            return {**result, **bare, "changed": True, "unasked": True, "problems": [words]}
        if done["rc"] != 0:
            words = (done["stderr"] or done["stdout"]).strip()
            result.update(failed=not together, rc=done["rc"], msg=words, refused=words)
        answer = self._answer(done["stdout"])
        host = str((task_vars or {}).get("inventory_hostname", ""))
        for line in answer.get("stdout", "").splitlines() if command[0] in SHOWN else ():
            self._display.display(f"{host}: {line}")
        self._keep(answer, str(arguments.get("receipts", "")), host)
        # What is wrong with what is live would be mended: a preview counts that as a change.
        mended = self._task.check_mode and bool(answer.get("problems"))
        return {"changed": not reads or mended, **answer, **result}

    def _execute(self, command: list[str], arguments: dict[str, Any]) -> dict[str, Any]:
        words, upload = arguments.get("input"), b""
        if path := str(arguments.get("upload") or ""):
            upload = Path(path).read_bytes()
            words = {"files": words, "bytes": len(upload)}
        # With something to read there is no terminal, which would mix what the program says with what went wrong.
        data = json.dumps(words).encode() + b"\n" + upload
        done: dict[str, Any] = self._low_level_execute_command(shlex.join(command), in_data=data)
        return done

    def _answer(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text or "{}")
        except ValueError:
            return {"stdout": text}
        if not isinstance(found, dict):
            raise AnsibleActionFail(f"the release program answered with {type(found).__name__}, not with an object")
        return found

    def _keep(self, answer: dict[str, Any], folder: str, host: str) -> None:
        receipt = answer.get("receipt")
        for note in (receipt or {}).get("notes", ()):
            self._display.warning(f"{host}: {note}")
        # What a migration was going to do, statement by statement, whatever became of it.
        for line in ((receipt or {}).get("migration") or {}).get("plan", ()):
            _, warns, warning = line.partition("WARNING: ")
            if warns:
                self._display.warning(f"{host}: the migration {warning}")
            else:
                self._display.display(f"{host}: {line}")
        if folder and receipt:
            path = Path(folder) / host / f"{int(receipt['began'])}-{receipt['release']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(receipt, indent=1) + "\n")
            answer["receipt"] = str(path)
