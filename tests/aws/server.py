"""moto's server with what it lacks. Usage: server.py PORT.

A console shows ssh host keys, as cloud-init prints them. Databases of the class SCARCE are sold out, the account may
not have the network FULL, and sessions of Systems Manager can be started.
"""

from __future__ import annotations

import hashlib
import sys
from base64 import b64encode
from typing import Any

from moto.core.responses import ActionResult, BaseResponse
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses import EC2Response
from moto.ec2.responses.general import General
from moto.rds.exceptions import RDSClientError
from moto.rds.responses import RDSResponse
from moto.server import main
from moto.ssm.responses import SimpleSystemManagerResponse

SCARCE = "db.r8g.48xlarge"
FULL = "10.99.0.0/16"


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


def refusing(responses: type[BaseResponse], method: str, parameter: str, value: str, error: Exception) -> None:
    """Let a method refuse a value of a parameter, as AWS does it."""
    original = getattr(responses, method)

    def refuse(self: BaseResponse) -> ActionResult:
        if self._get_param(parameter) == value:
            raise error
        answer: ActionResult = original(self)
        return answer

    setattr(responses, method, refuse)


def start_session(self: SimpleSystemManagerResponse) -> ActionResult:
    """Answer with a session, which the session manager plugin would open."""
    return ActionResult(
        {"SessionId": f"session-{self._get_param('Target')}", "TokenValue": "t", "StreamUrl": "wss://x"}
    )


def terminate_session(self: SimpleSystemManagerResponse) -> ActionResult:
    """Answer that it has ended."""
    return ActionResult({"SessionId": self._get_param("SessionId")})


if __name__ == "__main__":
    General.get_console_output = get_console_output
    SimpleSystemManagerResponse.start_session = start_session
    SimpleSystemManagerResponse.terminate_session = terminate_session
    sold_out = RDSClientError("InsufficientDBInstanceCapacity", "The class is not available in enough zones.")
    refusing(RDSResponse, "create_db_instance", "DBInstanceClass", SCARCE, sold_out)
    too_many = EC2ClientError("VpcLimitExceeded", "The maximum number of VPCs has been reached.")
    refusing(EC2Response, "create_vpc", "CidrBlock", FULL, too_many)
    sys.exit(main(["-H", "127.0.0.1", "-p", sys.argv[1]]))
