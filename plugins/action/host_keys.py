"""Pins the ssh host keys of new EC2 instances, as their consoles show them and not as the network does."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from botocore.exceptions import BotoCoreError, ClientError

# cloud-init prints them between these lines at the first boot.
BLOCK = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
KEY = re.compile(r"\b((?:ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/]{40,}={0,2})")
PAUSE_SECONDS = 10.0


def keys_in(console: str) -> list[str]:
    """Return the public host keys in a console's text, the last boot's; an unfinished block holds none."""
    blocks = BLOCK.findall(console)
    return KEY.findall(blocks[-1]) if blocks else []


def pinned(text: str) -> set[str]:
    """Return the names in the text of a known_hosts file."""
    return {line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")}


def await_keys(ask: Callable[[], str], seconds: float, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """Read a console's text until it holds keys; return the keys, or none after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (keys := keys_in(ask())):
        if time.monotonic() >= deadline:
            return []
        sleep(min(PAUSE_SECONDS, seconds))
    return keys


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone.

    Arguments:
        region: region of the instances.
        instances: id of each instance by the name of its host.
        file: known_hosts file; each key stands there under the instance's id. What is in it stays.
        wait_seconds: how long to wait for a console that does not show them yet.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("region", "instances", "file", "wait_seconds"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the names of the hosts whose keys were pinned."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        instances: Mapping[str, str] = self._task.args["instances"]
        file = Path(self._task.args["file"])
        text = file.read_text() if file.exists() else ""
        new = {name: identity for name, identity in instances.items() if identity not in pinned(text)}
        result.update(changed=bool(new), pinned=sorted(new))
        if not new or self._task.check_mode:
            return result
        client = boto3.client("ec2", region_name=self._task.args["region"])
        missing = []
        for name, identity in new.items():
            keys = await_keys(self._console(client, identity), float(self._task.args.get("wait_seconds", 300)))
            text += "".join(f"{identity} {key}\n" for key in keys)
            missing += [] if keys else [f"{name} ({identity})"]
        write(file, text)
        if missing:
            raise AnsibleActionFail(
                f"the console of {', '.join(missing)} has not the ssh host keys yet. Fix: run the same command again "
                "in some minutes. Or read them in a session of Systems Manager (docs/aws.md, Host keys) and write "
                f"them into {file}, after the instance's id"
            )
        return result

    def _console(self, client: Any, identity: str) -> Callable[[], str]:
        def ask() -> str:
            try:
                # The latest text is for machines on Nitro alone; others have it some minutes after the boot.
                try:
                    answer = client.get_console_output(InstanceId=identity, Latest=True)
                except ClientError as error:
                    if error.response["Error"]["Code"] != "UnsupportedOperation":
                        raise
                    answer = client.get_console_output(InstanceId=identity)
            except (BotoCoreError, ClientError) as error:
                raise AnsibleActionFail(f"the console of {identity} cannot be read: {error}") from error
            return str(answer.get("Output", ""))

        return ask


def write(file: Path, text: str) -> None:
    """Replace a file as a whole."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".new-", delete=False) as stream:
        stream.write(text)
    Path(stream.name).replace(file)
