"""moto's server with what it lacks. Usage: server.py PORT.

A console shows ssh host keys, as cloud-init prints them. Databases of the class SCARCE are sold out, the account may
not have the network FULL, the zone CLOSED cannot be used, and sessions of Systems Manager can be started. Groups of
parameters know that TLS can be required, and one that is not there is an error. A target takes MOMENTS questions to
become healthy, or to be out.
"""

from __future__ import annotations

import hashlib
import sys
from base64 import b64encode
from typing import Any

from moto.core.responses import ActionResult, BaseResponse
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.responses import EC2Response
from moto.ec2.responses.general import General
from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeTargetGroup
from moto.rds.exceptions import RDSClientError
from moto.rds.models import DBParameterGroup, RDSBackend
from moto.rds.responses import RDSResponse
from moto.server import main
from moto.ssm.responses import SimpleSystemManagerResponse

SCARCE = "db.r8g.48xlarge"
FULL = "10.99.0.0/16"
MOMENTS = 4
CLOSED = "eu-west-1a"


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
    """Make a method refuse a value of a parameter, as AWS does."""
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


def know_parameters() -> None:
    """Give each parameter group the parameters that the role sets, as MySQL's engine has them."""
    original = DBParameterGroup.__init__

    def begin(self: DBParameterGroup, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        for name in ("require_secure_transport", "log_bin_trust_function_creators"):
            self.parameters[name] = {
                "ParameterName": name,
                "DataType": "boolean",
                "AllowedValues": "0,1",
                "IsModifiable": True,
            }

    DBParameterGroup.__init__ = begin


def miss_groups() -> None:
    """Answer for a parameter group that is not there as AWS does, and not with an empty list."""
    original = RDSBackend.describe_db_parameter_groups

    def describe(self: RDSBackend, asked: dict[str, Any]) -> list[DBParameterGroup]:
        found: list[DBParameterGroup] = original(self, asked)
        if not found and (name := asked.get("db_parameter_group_name")):
            raise RDSClientError("DBParameterGroupNotFound", f"DBParameterGroup not found: {name}")
        return found

    RDSBackend.describe_db_parameter_groups = describe


def take_time() -> None:
    """Keep a target `initial` and `draining` for a while, as a load balancer does."""
    health = FakeTargetGroup.health_for

    def begin(name: str) -> None:
        original = getattr(FakeTargetGroup, name)

        def changed(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
            original(self, targets)
            self.moments = {**getattr(self, "moments", {}), **{target["Id"]: MOMENTS for target in targets}}

        setattr(FakeTargetGroup, name, changed)

    def health_for(self: FakeTargetGroup, target: dict[str, Any], ec2_backend: Any) -> FakeHealthStatus:
        found: FakeHealthStatus = health(self, target, ec2_backend)
        identity = target["Id"]
        left = getattr(self, "moments", {}).get(identity, 0)
        if not left:
            return found
        self.moments[identity] = left - 1
        state, reason = ("initial", "Elb.RegistrationInProgress")
        if identity not in self.targets:
            state, reason = ("draining", "Target.DeregistrationInProgress")
        return FakeHealthStatus(identity, "80", "80", state, reason, "")

    def describe(self: ELBv2Backend, arn: str, targets: list[dict[str, Any]]) -> list[FakeHealthStatus]:
        group = self.target_groups[arn]
        leaving = [{"Id": name} for name, left in getattr(group, "moments", {}).items() if left]
        every = {target["Id"]: target for target in [*leaving, *group.targets.values()]}
        return [group.health_for(target, self.ec2_backend) for target in targets or every.values()]

    begin("register")
    begin("deregister")
    FakeTargetGroup.health_for = health_for
    ELBv2Backend.describe_target_health = describe


if __name__ == "__main__":
    for zone in EC2Backend.zones[CLOSED[:-1]]:
        zone.state = "unavailable" if zone.name == CLOSED else zone.state
    know_parameters()
    miss_groups()
    take_time()
    General.get_console_output = get_console_output
    SimpleSystemManagerResponse.start_session = start_session
    SimpleSystemManagerResponse.terminate_session = terminate_session
    sold_out = RDSClientError("InsufficientDBInstanceCapacity", "The class is not available in enough zones.")
    refusing(RDSResponse, "create_db_instance", "DBInstanceClass", SCARCE, sold_out)
    too_many = EC2ClientError("VpcLimitExceeded", "The maximum number of VPCs has been reached.")
    refusing(EC2Response, "create_vpc", "CidrBlock", FULL, too_many)
    sys.exit(main(["-H", "127.0.0.1", "-p", sys.argv[1]]))
