"""Checks the application's settings against its own schema, on the control node, before any host is touched."""

from __future__ import annotations

import difflib
import importlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.module_utils.environment import variable_of
from ansible_collections.waffle.iron.plugins.plugin_utils import secret_files
from ansible_collections.waffle.iron.plugins.plugin_utils.setting_values import as_text, exported, wiring

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

SCHEMA = "settings.schema.json"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What steers a process, its loader, its shell or its service manager: as a variable it would do more than set.
RESERVED = re.compile(
    r"PATH|HOME|SHELL|USER|LOGNAME|PWD|IFS|ENV|BASH_\w*|TMPDIR|LD_\w*|PYTHON\w*|LISTEN_\w+|NOTIFY_SOCKET|WATCHDOG_\w+|MAINPID"
    r"|MANAGERPID|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_\w+|GUNICORN_CMD_ARGS|WEB_CONCURRENCY|(RUNTIME|STATE|CACHE|LOGS|"
    r"CONFIGURATION|CREDENTIALS)_DIRECTORY"
)
# The variables that hold the way to the database, and what migrations have in its place.
WAY = ("app_database", "app_migration_database")
# As `.env` has them: what pydantic takes for a boolean.
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), False),
}
# A schema's words about a value, and ours. jsonschema's own would show the value.
WORDS: dict[str, Callable[[Any], str]] = {
    "type": lambda wanted: f"should be of the type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}",
    "enum": lambda wanted: f"should be one of {', '.join(str(value) for value in wanted)}",
    "const": lambda wanted: f"should be {wanted}",
    "pattern": lambda wanted: f"should match {wanted}",
    "minLength": lambda wanted: f"should have {wanted} or more characters",
    "maxLength": lambda wanted: f"should have {wanted} or fewer characters",
    "minimum": lambda wanted: f"should be {wanted} or more",
    "maximum": lambda wanted: f"should be {wanted} or less",
    "exclusiveMinimum": lambda wanted: f"should be more than {wanted}",
    "exclusiveMaximum": lambda wanted: f"should be less than {wanted}",
    "minItems": lambda wanted: f"should have {wanted} or more items",
    "maxItems": lambda wanted: f"should have {wanted} or fewer items",
}


def types_of(part: Any, schema: Mapping[str, Any]) -> set[str]:
    """Return the types that a part of a schema takes, through its alternatives and references."""
    if not isinstance(part, Mapping):
        return set()
    found = {part["type"]} if isinstance(part.get("type"), str) else set(part.get("type", ()))
    for alternative in (each for word in ("anyOf", "oneOf", "allOf") for each in part.get(word, ())):
        found |= types_of(alternative, schema)
    reference = str(part.get("$ref", ""))
    if reference.startswith("#/"):
        target: Any = schema
        for name in reference.removeprefix("#/").split("/"):
            target = target.get(name.replace("~1", "/").replace("~0", "~"), {})
        found |= types_of(target, schema)
    return found


def value_of(text: str, types: set[str]) -> Any:
    """Return what a text of `.env` stands for where one of ``types`` is wanted; itself where it is none of them."""
    if "boolean" in types and text.strip().lower() in BOOLEANS:
        return BOOLEANS[text.strip().lower()]
    readers: tuple[tuple[set[str], Callable[[str], Any]], ...] = (
        ({"integer"}, int),
        ({"number"}, float),
        ({"array", "object"}, json.loads),
    )
    for wanted, read in readers:
        if wanted & types:
            try:
                return read(text)
            except ValueError:
                continue
    if "array" in types and text.strip()[:1] != "[":
        return [item.strip() for item in text.split(",") if item.strip()]
    return None if "null" in types - {"string"} and not text else text


def findings(schema: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield a key and what is wrong with it, in words that hold no value, for each setting that the schema refuses.

    Args:
        schema: JSON Schema of an object whose properties are the keys of `.env`.
        texts: the settings, as they are written to `.env`.

    Raises:
        AnsibleActionFail: the schema itself is none.
    """
    # Importing it takes a tenth of a second, and Ansible imports this file also where the task is skipped.
    jsonschema = importlib.import_module("jsonschema")
    validator = jsonschema.validators.validator_for(schema)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as refusal:
        raise AnsibleActionFail(f"{SCHEMA} of the application is not a JSON Schema: {refusal.message}") from None
    properties = schema.get("properties", {})
    values = {key: value_of(text, types_of(properties.get(key), schema)) for key, text in texts.items()}
    for error in validator(schema).iter_errors(values):
        if error.absolute_path:
            yield str(error.absolute_path[0]), in_words(jsonschema.exceptions.best_match([error]))
        elif error.validator == "required":
            # One error for each of them, whose text alone says which.
            continue
        elif error.validator == "additionalProperties":
            for key in sorted(set(texts) - set(properties)):
                close = difflib.get_close_matches(key, properties, n=1)
                yield key, "unknown setting" + (f"; did you mean {close[0]}?" if close else "")
        else:
            yield "all", f"do not satisfy the schema's {error.validator}"
    for key in schema.get("required", ()):
        if key not in texts:
            yield key, "is missing"


def in_words(nearest: ValidationError) -> str:
    """Return what is wrong with a value, without the value."""
    place = [str(part + 1) for part in list(nearest.absolute_path)[1:] if isinstance(part, int)]
    say = WORDS.get(str(nearest.validator), lambda _: f"does not satisfy the schema's {nearest.validator}")
    return (f"item {'.'.join(place)} " if place else "") + say(nearest.validator_value)


def schema_in(artefact: Path) -> dict[str, Any] | None:
    """Return the schema in an application's archive; None if it has none.

    Raises:
        AnsibleActionFail: it is not JSON, or not an object.
    """
    with tarfile.open(artefact) as tar:
        try:
            stream = tar.extractfile(SCHEMA)
        except KeyError:
            return None
        try:
            found = json.load(stream) if stream else None
        except ValueError:
            found = None
    if not isinstance(found, dict):
        raise AnsibleActionFail(f"{SCHEMA} of the application is not a JSON object; write it anew")
    return found


def reserved(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that no setting may have, and why."""
    for name in names:
        if not NAME.fullmatch(name):
            yield name, "is no name of an environment variable (letters, digits and _). Rename it"
        elif RESERVED.fullmatch(name):
            yield name, "is what the system steers processes by, and settings are exported to them. Rename it"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    The values of `app_settings`, `app_database` and what migrations have in their place are opened here, in memory:
    arguments are what some callbacks would print.

    Arguments:
        artefact: path of the application's archive, which holds `settings.schema.json`. Without that file the
            application's own code checks its settings on each host, before anything is switched.
        application: what the action `application` returned.

    Fails with every finding at once: keys, variables and files, never values.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("artefact", "application"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the findings as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._variables = task_vars or {}
        own, unset = self._texts("app_settings")
        migration, unset_too = self._texts("app_migration_settings")
        found = {**unset, **unset_too, **dict(reserved((*own, *migration)))}
        way, migration_way = self._way_to_database()
        settings, migration = {**way, **own}, {**migration_way, **migration}
        files, wrong = self._files({*settings, *migration})
        found |= wrong
        schema = schema_in(Path(str(self._task.args["artefact"])))
        # Their paths are known on the host alone; an application that reads the variables itself need not declare them.
        declared = (schema or {}).get("properties", {})
        settings |= {name: f"/{name}" for name in secret_files.by_variable(files) if name in declared}
        for texts in (settings, {**settings, **migration}) if schema is not None else ():
            for key, words in findings(schema or {}, texts):
                found.setdefault(key, words)
        if found:
            lines = "\n".join(f"  - {self._place(key)}: {words}" for key, words in sorted(found.items()))
            raise AnsibleActionFail(
                f"nothing was changed on any host; {len(found)} finding(s) about the application's settings:\n{lines}"
            )
        result.update(changed=False, checked=len(settings) if schema is not None else 0)
        return result

    def _texts(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the settings in a variable as texts, and a finding for each that cannot be read."""
        texts, unset = {}, {}
        for key, raw in self._raw(name).items():
            try:
                texts[key] = as_text(self._templar.template(raw))
            except AnsibleError:
                unset[key] = "refers to something that is not set"
        return texts, unset

    def _files(self, settings: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the secret files by name, and a finding for each that a release cannot have."""
        files, wrong = {}, {}
        for name, raw in self._raw("app_files").items():
            try:
                files[name] = self._templar.template(raw)
            except AnsibleError:
                wrong[f"app_files {name}"] = "refers to something that is not set"
        for name, words in secret_files.findings(files, settings):
            wrong.setdefault(f"app_files {name}", words)
        for name in files:
            for variable, words in reserved([variable_of(name)]):
                wrong.setdefault(f"app_files {name}", f"its variable {variable} {words}")
        return files, wrong

    def _raw(self, name: str) -> dict[str, Any]:
        """Return the settings in a variable, not yet templated."""
        found = wiring(self._variables, name)
        if isinstance(self._variables.get(name), Mapping):
            return found
        try:
            chosen = self._templar.template(self._variables.get(name) or {})
        except AnsibleError:
            return found  # one of its values refers to nothing
        return {str(key): found.get(str(key), value) for key, value in chosen.items()}

    def _way_to_database(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the settings by which the application reaches its database, and those of its migrations."""
        application = self._task.args["application"]
        names: Mapping[str, str] = application["database"]
        if not names:
            return {}, {}
        values, own = (self._templar.template(self._variables.get(name) or {}) for name in WAY)
        scheme = str(application["database_scheme"])
        return exported(names, scheme, values), exported(names, scheme, {**values, **own})

    def _place(self, key: str) -> str:
        """Return a setting's key, and the variable that its value comes from."""
        names: Mapping[str, str] = self._task.args["application"]["database"]
        part = next((part for part, name in names.items() if name == key), "")
        raw = wiring(self._variables, "app_settings").get(key) or wiring(self._variables, "app_database").get(part, "")
        source = re.search(r"\{\{\s*(\w+)", str(raw))
        return f"{key} ({source[1]})" if source else key
