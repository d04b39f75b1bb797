"""Compares a run with its approved plan: the plan is made again, and must be the same."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import BOOLEANS
from ansible.plugins.action import ActionBase

PLANNED = "site.yml"
PLANS = "playbooks/plan.yml"
# It has a switch of the same name: whether it only shows the migrations.
SHOWS = "migrate.yml"
LINES_OF_FAILURE = 30


def changes_of(basis: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """Return what would be changed, by host, task and resource."""
    return {
        (host, change["task"], change["resource"]): change["text"]
        for change in basis["changes"]
        for host in change["hosts"]
    }


def differences(approved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is not as it was when a plan was made, in words; nothing if the plan still holds."""
    if approved["environment"] != now["environment"]:
        yield f"it is a plan for {approved['environment']}, and this run is for {now['environment']}"
        return
    if approved["digest"] == now["digest"]:
        return
    old, new = approved["basis"], now["basis"]
    for host in dict.fromkeys([*old["live"], *new["live"]]):
        if host not in new["live"] or host not in old["live"]:
            yield f"{host} is {'new' if host in new['live'] else 'no longer'} in this run"
        elif old["live"][host] != new["live"][host]:
            yield f"{host}: {new['live'][host] or 'nothing'} is live, and it was {old['live'][host] or 'nothing'}"
    if old["release"] != new["release"]:
        why = "code, a setting or a unit changed here"
        yield f"the release would be {new['release']}, and it was {old['release']}: {why}"
    if old["schema"] != new["schema"]:
        yield f"the database and what is wanted of it: {new['schema']}, and it was {old['schema']}"
    before, after = changes_of(old), changes_of(new)
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            host, task, resource = key
            how = "another change" if key in before and key in after else "new" if key in after else "no longer needed"
            yield f"{host}: {resource or task}: {how}"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node; playbooks/plan.yml, which it starts, looks at the hosts and changes nothing.

    Arguments:
        plan: the JSON file that playbooks/plan.yml wrote.

    Fails if the plan would come out differently now, and names what differs.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("plan",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether the plan holds, as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        plan, playbooks = str(self._task.args["plan"]), [str(name) for name in context.CLIARGS.get("args", ())]
        names = {Path(name).name for name in playbooks}
        if names == {SHOWS} and plan.lower() in {str(word).lower() for word in BOOLEANS}:
            return {**result, "changed": False}
        if names != {PLANNED}:
            raise AnsibleActionFail(
                f"nothing was changed: -e plan={plan} holds {PLANNED} to a plan, and {', '.join(playbooks)} has none"
            )
        variables = task_vars or {}
        if set(variables["ansible_run_tags"]) != {"all"} or variables["ansible_skip_tags"]:
            raise AnsibleActionFail(
                "nothing was changed: a plan is for the whole site.yml; leave out --tags, or the plan"
            )
        approved = self._read(Path(plan).expanduser())
        if strangers := [host for host in variables["ansible_play_hosts_all"] if host not in approved["basis"]["live"]]:
            raise AnsibleActionFail(
                f"nothing was changed: {plan} says nothing of {', '.join(strangers)}, and this run may change them"
            )
        root = Path(str(variables["playbook_dir"]))
        root = root.parent if root.name == "playbooks" else root
        with tempfile.TemporaryDirectory(prefix="waffle-plan-") as folder:
            now = self._made_again(playbooks, root, Path(folder), str(variables["environment_name"]))
        if found := list(differences(approved, now)):
            lines = "\n".join(f"  - {difference}" for difference in found)
            raise AnsibleActionFail(
                f"nothing was changed: {plan} is no longer what would happen:\n{lines}\n"
                f"Fix: make a new plan and get an approval: ansible-playbook {PLANS} -l {now['environment']}"
            )
        result.update(changed=False, digest=now["digest"])
        return result

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found: Any = json.loads(path.read_text())
        except OSError as error:
            raise AnsibleActionFail(
                f"plan: {path} cannot be read ({error.strerror}). Fix: ansible-playbook {PLANS} -l ENV"
            ) from None
        except ValueError:
            found = None
        if not isinstance(found, dict) or not {"environment", "digest", "basis"} <= set(found):
            raise AnsibleActionFail(f"plan: {path} is not a plan in JSON. Fix: ansible-playbook {PLANS} -l ENV")
        return found

    def _made_again(self, playbooks: list[str], root: Path, folder: Path, environment: str) -> dict[str, Any]:
        """Run playbooks/plan.yml with this run's own options, and return what it writes."""
        options = [word for word in sys.argv[1:] if word not in playbooks]
        own = json.dumps({"plan": "", "plan_folder": str(folder)})
        done = subprocess.run(
            [sys.executable, sys.argv[0], str(root / PLANS), *options, "-e", own],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            words = "\n".join(done.stdout.strip().splitlines()[-LINES_OF_FAILURE:])
            raise AnsibleActionFail(f"nothing was changed: the plan could not be made again:\n{words}")
        return self._read(folder / f"plan-{environment}.json")
