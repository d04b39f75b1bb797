"""Requests confirmation of a change: on a terminal by typing the environment's name, else by ``-e confirm=NAME``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail, AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

# A run of this playbook alone looks at values and changes no host.
LOOKS_ONLY = "preflight.yml"


def unconfirmed(
    hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], removes: bool = False
) -> dict[str, list[str]]:
    """Return the environments whose changes must be confirmed, each with those of ``hosts`` that are in it.

    What ``removes`` machines is confirmed on every environment.
    """
    found: dict[str, list[str]] = {}
    for host in hosts:
        values = hostvars[host]
        if removes or (boolean(values["confirm_changes"]) and not boolean(values.get("confirmed_inventory", False))):
            found.setdefault(str(values["environment_name"]), []).append(host)
    return found


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Arguments:
        confirm: the names of environments that were confirmed beforehand, separated by commas.
        removes: whether the run removes machines; then every environment's name must be typed.

    Asks for each environment of the run whose ``confirm_changes`` is true, unless the inventory says of the host that
    it needs none (``confirmed_inventory``). Fails if the answer is another one, or if there is no terminal.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("confirm", "removes"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what was confirmed as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        given = {name for part in str(self._task.args["confirm"]).split(",") if (name := part.strip())}
        removes = boolean(self._task.args.get("removes", False))
        self._may = "removes the machines of" if removes else "may change"
        wanted = unconfirmed(variables["ansible_play_hosts_all"], variables["hostvars"], removes)
        if {Path(name).name for name in context.CLIARGS.get("args", ())} == {LOOKS_ONLY}:
            wanted = {}
        for environment, hosts in wanted.items():
            if environment in given:
                continue
            if given:
                raise AnsibleActionFail(
                    f"nothing was changed on any host: confirm is {','.join(sorted(given))!r}, and this run "
                    f"{self._may} {environment} ({', '.join(hosts)}). If it is meant: -e confirm={','.join(wanted)}"
                )
            self._ask(environment, hosts, ",".join(wanted))
        result.update(changed=False, confirmed=sorted(wanted))
        return result

    def _ask(self, environment: str, hosts: list[str], names: str) -> None:
        question = f"This run {self._may} {environment} ({', '.join(hosts)}). Type the environment's name to go on:"
        try:
            answer = self._display.prompt_until(question).decode(errors="replace").strip()
        except AnsiblePromptNoninteractive:
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:], "-e", f"confirm={names}"])
            raise AnsibleActionFail(
                f"nothing was changed on any host: this run {self._may} {environment} ({', '.join(hosts)}), and there "
                f"is no terminal to confirm that on. If it is meant: {command}"
            ) from None
        except AnsiblePromptInterrupt:
            answer = ""
        if answer != environment:
            raise AnsibleActionFail(
                f"nothing was changed on any host: the answer was not {environment!r}. Fix: run the same command, and "
                "type that word if the change is meant"
            )
