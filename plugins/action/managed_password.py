"""Makes RDS create the master password of a database and keep it in Secrets Manager."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import boto3
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from botocore.exceptions import BotoCoreError, ClientError

PAUSE_SECONDS = 10.0


def await_secret(
    ask: Callable[[], Mapping[str, Any]], seconds: float, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Return True if a database's secret can be read within ``seconds``; its description is read until then."""
    deadline = time.monotonic() + seconds
    while ask().get("MasterUserSecret", {}).get("SecretStatus") != "active":
        if time.monotonic() >= deadline:
            return False
        sleep(min(PAUSE_SECONDS, seconds))
    return True


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone. The module ``amazon.aws.rds_instance`` has no option for it.

    Arguments:
        region: region of the database.
        database: its identifier.
        wait_seconds: how long to wait for the secret.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("region", "database", "wait_seconds"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether RDS was told to; the password itself is not read."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        client = boto3.client("rds", region_name=self._task.args["region"])
        name = self._task.args["database"]

        def ask() -> dict[str, Any]:
            found: dict[str, Any] = client.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]
            return found

        try:
            result["changed"] = "MasterUserSecret" not in ask()
            if self._task.check_mode:
                return result
            if result["changed"]:
                client.modify_db_instance(
                    DBInstanceIdentifier=name, ManageMasterUserPassword=True, ApplyImmediately=True
                )
            ready = await_secret(ask, float(self._task.args.get("wait_seconds", 600)))
        except (BotoCoreError, ClientError) as error:
            raise AnsibleActionFail(str(error)) from error
        if not ready:
            raise AnsibleActionFail(f"RDS has not finished the secret of {name} yet. Fix: run the same command again")
        return result
