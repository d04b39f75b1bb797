"""Checks on a host of another environment that an artefact was live and healthy there."""

from __future__ import annotations

import re
import shlex
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.inventory.helpers import get_group_vars
from ansible.inventory.manager import InventoryManager
from ansible.playbook.play_context import PlayContext
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import become_loader, connection_loader
from ansible.utils.vars import combine_vars, load_extra_vars
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.messages import Proof, Status
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import HostAction, answer_in, known, words_of
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import printable

REASON_LENGTH = 8
PASSWORD = re.compile(r"ansible_\w*pass(word)?")
OVERRIDE = """or say why it must go without: -e 'promotion_override="the reason"'"""


def checked_reason(reason: str) -> str:
    """Return why an artefact goes without proof; raise `AnsibleActionFail` if that says nothing."""
    text = reason.strip()
    if reason and (len(text) < REASON_LENGTH or not text.isprintable()):
        raise AnsibleActionFail(
            f"promotion_override: must be one line of at least {REASON_LENGTH} characters that say why, as in "
            """-e 'promotion_override="dev is down, ticket 4711"'"""
        )
    return text


def live_there(status: dict[str, Any]) -> str:
    """Return what a host says is live on it, in words."""
    live = str(status.get("live") or "")
    there: dict[str, Any] = next((release for release in status.get("releases", []) if release.get("id") == live), {})
    if not live:
        return "no release"
    return f"{live} (commit {str(there.get('commit') or 'unknown')[:12]}, {there.get('subject') or 'no subject'})"


class ActionModule(HostAction):
    """Reads on one host of another environment, and changes nothing anywhere.

    That host is reached by what the inventory alone says of it. Its group's variables stay closed: they hold the
    other environment's vault, whose password a run that is limited to this environment does not need.

    Arguments:
        group: the other environment, as a group of the inventory; its first host is asked.
        command: path of the release program there.
        artefact: digest, commit and subject of what shall be proven; frontend, the commit of a front end from a
            repository of its own, may be left out.
        override: why it goes without proof; empty to ask.

    Fails if the artefact was never good there, or the host cannot be asked; in check mode that is a warning.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("group", "command", "artefact", "override"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the proof as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        group, artefact = str(arguments["group"]), dict(arguments["artefact"])
        if reason := checked_reason(str(arguments.get("override", ""))):
            result.update(changed=False, proven=False, override=reason)
            return result
        variables = task_vars or {}
        host = variables["groups"][group][0]
        versions = {"app_version": artefact["commit"], "app_frontend_version": artefact.get("frontend")}
        chosen = " ".join(f"-e {name}={commit}" for name, commit in versions.items() if commit)
        deploy = f"`ansible-playbook playbooks/deploy.yml -l {group} {chosen}`"
        try:
            proof = self._asked(host, variables, str(arguments["command"]), artefact["digest"])
        except AnsibleError as error:
            self._refuse(
                f"{host} ({group}) could not be asked whether {artefact['commit'][:12]} was live and healthy there: "
                f"{printable(str(error))}\n"
                f"Fix that and run the same command again (if {group} has no releases yet: {deploy}), {OVERRIDE}"
            )
            proof = {}
        else:
            if not proof["proven"]:
                self._refuse(
                    f"the artefact {artefact['digest']} of commit {artefact['commit'][:12]} ({artefact['subject']}) "
                    f"was never live and healthy on {group}; {host} runs {live_there(proof)}.\n"
                    f"Bring it there first: {deploy}, then run the same command again, {OVERRIDE}"
                )
        result.update(changed=False, proven=proof.get("proven", False), proof=proof)
        return result

    def _refuse(self, message: str) -> None:
        if not self._task.check_mode:
            raise AnsibleActionFail(f"nothing was switched: {message}")
        self._display.warning(f"a run without --check would end here: {message}")

    def _asked(self, host: str, variables: dict[str, Any], command: str, digest: str) -> dict[str, Any]:
        """Return what the host says of the artefact, and of its releases where it was not good there."""
        self._connection = self._connect(host, variables["hostvars"]._inventory)
        proof = known(self._read([command, "proven", digest], Proof))
        return proof if proof["proven"] else {**known(self._read([command, "status"], Status)), **proof}

    def _read[T](self, command: list[str], model: type[T]) -> T:
        """Run a command there and return its answer; raise `AnsibleError` with its own words."""
        done = self._low_level_execute_command(shlex.join(command))
        if done["rc"] != 0:
            raise AnsibleActionFail(f"`{shlex.join(command)}` exited with status {done['rc']}: {words_of(done)}")
        return answer_in(done["stdout"], model, f"`{shlex.join(command)}`")

    def _connect(self, host: str, inventory: InventoryManager) -> ConnectionBase:
        """Return a connection to a host as Ansible makes one, from the inventory's variables and the command line's."""
        known = inventory.get_host(host)
        values = combine_vars(get_group_vars(known.get_groups()), known.get_vars())
        # Never a password that was given for this run: it is this environment's, and the other host may be compromised.
        extra = {name: value for name, value in load_extra_vars(self._loader).items() if not PASSWORD.fullmatch(name)}
        values = combine_vars({**values, "inventory_hostname": host}, extra)
        templar = self._templar.copy_with_new_env(available_variables=values)

        def options(kind: str, plugin: str) -> dict[str, Any]:
            names = constants.config.get_plugin_vars(kind, plugin)
            return {name: templar.template(values[name]) for name in names if name in values}

        keys = {**self._task.dump_attrs(), "timeout": self._play_context.timeout}
        del keys["retries"]  # the task's, not the connection's
        kind = templar.template(values.get("ansible_connection", context.CLIARGS["connection"]))
        connection = connection_loader.get(kind, PlayContext(play=None))
        if self._task.become:
            method = templar.template(values.get("ansible_become_method", self._task.become_method))
            connection.set_become_plugin(become_loader.get(method))
            connection.become.set_options(keys, options("become", connection.become.name))
        connection.set_options(keys, options("connection", connection.transport))
        if connection.has_option("use_tty"):
            connection.set_option("use_tty", False)  # a terminal would mix output and errors
        connection._shell.set_options(keys, options("shell", connection._shell._load_name))
        return connection
