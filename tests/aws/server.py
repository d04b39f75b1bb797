"""moto's server with a console that shows ssh host keys, as cloud-init prints them. Usage: server.py PORT."""

from __future__ import annotations

import hashlib
import sys
from base64 import b64encode
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses.general import General
from moto.server import main


def host_key(instance: str) -> str:
    """Return the key that an instance shows: a line of its own for each."""
    return "ssh-ed25519 " + b64encode(hashlib.sha256(instance.encode()).digest() * 2).decode().rstrip("=")


def get_console_output(self: General) -> ActionResult:
    """Answer with the end of a first boot."""
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    text = f"""
ci-info: no authorized SSH keys fingerprints found for user admin.
-----BEGIN SSH HOST KEY KEYS-----
{host_key(instance.id)} root@ip-10-10-0-5
-----END SSH HOST KEY KEYS-----
"""
    result: dict[str, Any] = {"InstanceId": instance.id, "Output": b64encode(text.encode()).decode()}
    return ActionResult(result)


if __name__ == "__main__":
    General.get_console_output = get_console_output
    sys.exit(main(["-H", "127.0.0.1", "-p", sys.argv[1]]))
