"""Reads what a host printed: within a size, in a type, and whatever stands around it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.host import Answer
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import cleaned, printable

# Ten times the state of a host with 5000 packages; a program's answer has some kilobytes.
LIMIT = 16 << 20
WORDS = 20_000
# Null for a database without a schema, and for an application without migrations.
NULLABLE = {"current", "head", "migrations"}
FIX = (
    "Fix: `ansible-playbook site.yml` for that host installs the programs of this checkout; a host that answers so "
    "after it is damaged or compromised: do not trust it"
)


class HostAction(ActionBase):  # type: ignore[misc]
    """An action whose host may print anything."""

    def _low_level_execute_command(self, cmd: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return what a command printed on the host, if it is not too much.

        Ansible runs modules by this method, too, so their results are held to the size before they are parsed.
        """
        done: dict[str, Any] = super()._low_level_execute_command(cmd, *arguments, **options)
        size = len(done["stdout"]) + len(done["stderr"])
        if size > LIMIT:
            raise AnsibleActionFail(f"the host's answer was not read: it has {size} characters, limit {LIMIT}. {FIX}")
        return done


def json_in(printed: str) -> str:
    """Return the last line that begins as a JSON object, else that of the last line with one in it; else nothing."""
    lines = printed.split("\n")[::-1]
    whole = (line for line in lines if line.startswith("{"))
    # A login shell that ends its noise with no line break, such as the title of a terminal.
    behind = (line[line.index('{"') :] for line in lines if '{"' in line)
    return next(whole, "") or next(behind, "")


def answer_in[T](printed: str, model: type[T], what: str) -> T:
    """Return the answer to ``what``: the last line that begins as a JSON object does.

    What a login shell prints before or after it (an ``echo`` in .bashrc) is passed over.

    Raises:
        AnsibleActionFail: there is none, or it does not have the type.
    """
    line = json_in(printed)
    if not line:
        raise AnsibleActionFail(f"{what} gave no answer: no line of JSON. {FIX}")
    return converted(line, model, what)


def converted[T](line: str, model: type[T], what: str) -> T:
    """Return JSON text as the type; raise `AnsibleActionFail` if it does not have that."""
    try:
        return msgspec.json.decode(line, type=model)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise AnsibleActionFail(f"{what} gave a wrong answer: {printable(str(error))}. {FIX}") from None


def of_module[T](result: dict[str, Any], model: type[T], what: str) -> T:
    """Return a module's result as the type; raise `AnsibleActionFail` if it does not have that."""
    return converted(json.dumps(result, default=str), model, what)


def known(answer: Answer | Mapping[str, object]) -> dict[str, Any]:
    """Return the fields that an answer has, for a task's result; its texts are printable.

    An optional field that is null is missing there, so that a template's `default` takes its place.
    """
    found: dict[str, Any] = without_nulls(cleaned(msgspec.to_builtins(answer)))
    return found


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the keys of objects that are null, but those that an answer must have."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None or key in NULLABLE}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def words_of(done: dict[str, Any]) -> str:
    """Return a failed command's own words, printable and cut."""
    text = printable(str(done["stderr"] or done["stdout"])).strip()
    return text if len(text) <= WORDS else f"{text[:WORDS]} ... (cut)"
