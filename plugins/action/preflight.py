"""Checks a run before any host is touched: the limit, the tags, and the values and secrets of the environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars
from ansible_collections.waffle.iron.plugins.module_utils import sandbox
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery import system_packages

HOLD_TASKS = ("block", "rescue", "always", "pre_tasks", "tasks", "post_tasks", "handlers", "roles")
SPECIAL_TAGS = {"all", "always", "never", "tagged", "untagged"}
PLACEHOLDER = re.compile(r"change-?me", re.IGNORECASE)
VAULT_HEADER = "$ANSIBLE_VAULT;"
# Values that release code gets from its host: what stands for none, why a container has no use for one, and the check.
OF_THE_HOST: dict[str, tuple[object, str, Callable[[object], Iterator[str]]]] = {
    "app_sandbox": (
        {},
        "opens the unit's sandbox, and a container has podman's. Fix: remove it, or set app_runtime: venv",
        sandbox.findings,
    ),
    "app_packages": (
        [],
        "installs on the host, and a container has a system of its own. Fix: remove it, and install them in the "
        "Containerfile",
        system_packages.findings,
    ),
}


def is_integer(value: object) -> bool:
    """Return True if a value is a whole number of zero or more."""
    return not isinstance(value, bool) and str(value).isdecimal()


def matches(pattern: str) -> Callable[[object], bool]:
    """Return a check that a value is text of a form."""
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


# The forms that a value can have: what they are called in a finding, and how to tell.
FORMS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "name": ("a short lower-case name, as in `dev`", matches(r"[a-z][a-z0-9]{0,15}")),
    "optional_name": ("the name of another environment, or empty", matches(r"([a-z][a-z0-9]{0,15})?")),
    "identifier": ("a MySQL name of letters, digits and _, at most 32", matches(r"[A-Za-z0-9_]{1,32}")),
    "host": ("a host name or an address", matches(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")),
    "possible_host": (
        "a host name or an address, or not set for an application without a database",
        matches(r"([A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?)?"),
    ),
    "optional_host": ("a host name, or empty", matches(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)?")),
    "optional_arn": ("the ARN of a certificate, or empty", matches(r"(arn:aws[\w-]*:acm:\S+)?")),
    "optional_bucket": ("the name of a bucket of S3, or empty", matches(r"([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?")),
    "region": ("a region of AWS, as in `eu-west-1`", matches(r"[a-z]{2}(-[a-z]+)+-\d")),
    "network": ("a network, as in `10.10.0.0/16`, or default", matches(r"\d+(\.\d+){3}/\d+|default")),
    "instance_type": ("a type of EC2, as in `t3.micro`", matches(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")),
    "database_class": ("a class of RDS, as in `db.t4g.micro`", matches(r"db\.[a-z][a-z0-9-]*\.[a-z0-9-]+")),
    "image": ("debian-12, debian-13 or ubuntu-24.04", matches(r"debian-12|debian-13|ubuntu-24\.04")),
    "address": ("public or private", matches("public|private")),
    "preview_database": ("own or live", matches("own|live")),
    "version": ('two or three numbers in quotes, as in `"8.4"`', matches(r"\d+\.\d+(\.\d+)?")),
    "path": ("an absolute path, or empty", matches(r"(/\S+)?")),
    "size": ("a size such as 512M or 1G", matches(r"\d+[KMGT]?")),
    "web_size": ("a size such as 512k or 1m", matches(r"\d+[kmg]?")),
    "level": ("DEBUG, INFO, WARNING or ERROR", matches("DEBUG|INFO|WARNING|ERROR")),
    "secret": (
        "printable text of at least 12 characters",
        lambda value: isinstance(value, str) and len(value) >= 12 and value.isprintable(),
    ),
    # Ansible's MySQL modules log in with the master password, and their driver sends anything else as Latin-1.
    "optional_ascii_secret": (
        "printable ASCII text of at least 12 characters, or empty for one that RDS keeps",
        lambda value: (
            value == "" or (isinstance(value, str) and len(value) >= 12 and value.isprintable() and value.isascii())
        ),
    ),
    "integer": ("a whole number, 0 or more", is_integer),
    "positive": ("a whole number, 1 or more", lambda value: is_integer(value) and int(str(value)) > 0),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, list)),
    "names": ("a list with at least one name", lambda value: isinstance(value, list) and len(value) > 0),
}


def tags_in(node: object) -> Iterator[str]:
    """Yield every tag in a playbook's YAML."""
    if isinstance(node, dict):
        tags = node.get("tags", [])
        yield from tags.split(",") if isinstance(tags, str) else tags
        for key in HOLD_TASKS:  # not the arguments of a module: a machine of AWS has tags, too
            yield from tags_in(node.get(key))
    elif isinstance(node, list):
        for item in node:
            yield from tags_in(item)


def tag_findings(root: Path, run_tags: list[str], skip_tags: list[str]) -> Iterator[str]:
    """Yield a finding for each tag that nothing carries; Ansible itself does nothing then, and calls it success."""
    asked = [tag for tag in (*run_tags, *skip_tags) if tag not in SPECIAL_TAGS]
    if not asked:
        return  # as a rule; reading all playbooks takes a tenth of a second
    known = set(SPECIAL_TAGS)
    for path in [*root.glob("playbooks/*.yml"), *root.glob("roles/*/tasks/*.yml")]:
        known.update(tags_in(yaml.safe_load(path.read_text())))
    for tag in asked:
        if tag not in known:
            yield f"tag {tag!r}: nothing carries it. Known: {', '.join(sorted(known - SPECIAL_TAGS))}"


def placeholder_in(value: object) -> bool:
    """Return True if a value still holds a placeholder."""
    return isinstance(value, str) and PLACEHOLDER.search(value) is not None


class Environment:
    """One environment as a run sees it, through its first host."""

    def __init__(self, name: str, host: str, root: Path, read: Callable[[str, str], tuple[bool, Any]]) -> None:
        self.name, self.host, self._root, self._read = name, host, root, read

    def place_of(self, variable: str, form: str) -> str:
        """Return where a variable is set."""
        if form.endswith("secret"):
            return f"vault_{variable} in group_vars/{self.name}/vault.yml"
        return "the inventory" if variable == "database_host" else f"group_vars/{self.name}/vars.yml"

    def template_findings(self, templates: Iterable[str]) -> Iterator[str]:
        """Yield a finding for each secret that Ansible takes for a template, and so would change or not understand."""
        for variable in templates:
            yield (
                f"{variable} (group_vars/{self.name}/vault.yml): holds {{{{, {{% or {{#, with which a template begins. "
                f"Write !unsafe before the value, {variable}: !unsafe '...': "
                f"ansible-vault edit group_vars/{self.name}/vault.yml"
            )

    def value_findings(self, contract: Mapping[str, str]) -> Iterator[str]:
        """Yield a finding for each value that is missing, empty, a placeholder or of the wrong form."""
        for variable, form in contract.items():
            text, right = FORMS[form]
            where = f"{variable} ({self.place_of(variable, form)})"
            then = f". Fix: ansible-vault edit group_vars/{self.name}/vault.yml" if form.endswith("secret") else ""
            known, value = self._read(self.host, variable)
            if not known and form == "possible_host":
                continue
            if not known:
                yield f"{where}: is not set, or what it refers to is not{then}"
            elif placeholder_in(value):
                yield f"{where}: still holds the placeholder{then}"
            elif not right(value):
                yield f"{where}: must be {text}{then}"

    def promotion_findings(self, groups: Mapping[str, list[str]]) -> Iterator[str]:
        """Yield a finding when the code comes by way of an environment that is not in the inventory, or is this one."""
        known, source = self._read(self.host, "promote_from")
        if not known or not isinstance(source, str) or not source:
            return
        where = f"promote_from (group_vars/{self.name}/vars.yml)"
        if source == self.name:
            yield f'{where}: is the environment itself. Fix: set another one, or "" for none'
        elif not groups.get(source):
            yield f'{where}: the inventory has no group {source!r} with hosts. Fix: add them there, or set "" for none'

    def index_findings(self) -> Iterator[str]:
        """Yield a finding when the index of packages is named with credentials, which every account could read."""
        known, index = self._read(self.host, "python_index_url")
        if known and isinstance(index, str) and "@" in index.partition("://")[2].partition("/")[0]:
            yield (
                "python_index_url (where it is set): holds credentials, and every account of a host could read them. "
                "Leave them out, and put them into /root/.netrc on the hosts, mode 0600"
            )

    def host_findings(self) -> Iterator[str]:
        """Yield a finding for each value about the host that a release gets, if it cannot be one or would not count."""
        container = self._read(self.host, "app_runtime") == (True, "container")
        for name, (nothing, in_a_container, findings) in OF_THE_HOST.items():
            known, value = self._read(self.host, name)
            if not known or value == nothing:
                continue
            if container:
                yield f"{name} (where it is set): {in_a_container}"
            yield from (f"{name} (where it is set): {words}" for words in findings(value))

    def vault_findings(self) -> Iterator[str]:
        """Yield a finding when the vault is missing or lies there in clear."""
        path = self._root / "group_vars" / self.name / "vault.yml"
        if not path.is_file():
            yield f"group_vars/{self.name}/vault.yml: does not exist. Fix: make secrets ENV={self.name}"
        elif not path.read_text(errors="replace").startswith(VAULT_HEADER):
            yield (
                f"group_vars/{self.name}/vault.yml: is not encrypted. Encrypt it: "
                f"ansible-vault encrypt --encrypt-vault-id {self.name} group_vars/{self.name}/vault.yml"
            )

    def secrets(self, names: list[str]) -> dict[str, str]:
        """Return the secrets that can be read."""
        read = {name: self._read(self.host, name) for name in names}
        return {name: value for name, (known, value) in read.items() if known}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Arguments:
        contract: name and form of each variable that an environment must set.
        any_limit: whether the run may span several environments, or have no limit: it changes nothing.
        account: whether the playbook works on an AWS account, as `inventory/account` has it, and not on hosts.
        looks_only: whether the playbook imports site.yml to look and change nothing (plugins/callback/changes.py).

    Fails with every finding at once: names, files and commands, never values.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("contract", "account", "any_limit", "looks_only"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the findings as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        self._hostvars, self._groups = variables["hostvars"], variables["groups"]
        if boolean(self._task.args.get("looks_only", False)) and not self._task.check_mode:
            raise AnsibleActionFail("plugins/callback/changes.py was not loaded, so this run could change something")
        contract: dict[str, str] = dict(self._task.args["contract"])
        root = Path(variables["playbook_dir"])
        root = root.parent if root.name == "playbooks" else root

        findings = list(tag_findings(root, list(variables["ansible_run_tags"]), list(variables["ansible_skip_tags"])))
        if words := load_extra_vars(self._loader).get("_raw_params"):
            findings.append(
                f"-e: {words!r} belongs to no variable. A value with spaces takes quotes inside of the shell's: "
                "-e 'name=\"some words\"'"
            )
        environments, unplaced = self._environments(variables["ansible_play_hosts_all"], root)
        findings += unplaced
        if not boolean(self._task.args.get("any_limit", False)):
            findings += self._limit_findings(variables, sorted(environments))
        findings += self._account_findings(environments, boolean(self._task.args.get("account", False)))
        for environment in environments.values():
            vault = list(environment.vault_findings())
            templates = [] if vault else self._templates(environment.host)
            findings += environment.template_findings(templates)
            plain = {name: form for name, form in contract.items() if f"vault_{name}" not in templates}
            findings += vault or list(environment.value_findings(plain))
            findings += [] if vault else environment.promotion_findings(self._groups)
            findings += [] if vault else environment.index_findings()
            findings += [] if vault else environment.host_findings()
        notes: list[str] = []
        if not findings:
            secrets = [name for name, form in contract.items() if form.endswith("secret")]
            everywhere, _ = self._environments(variables["groups"]["all"], root)
            findings += self._reuse_findings(everywhere, secrets, notes)
        if findings:
            lines = "\n".join(f"  - {finding}" for finding in findings)
            raise AnsibleActionFail(f"nothing was changed on any host; {len(findings)} finding(s):\n{lines}")
        result.update(changed=False, notes=notes)
        return result

    def _read(self, host: str, variable: str) -> tuple[bool, Any]:
        try:
            return True, self._templar.copy_with_new_env(available_variables=self._hostvars[host]).template(
                self._hostvars[host][variable]
            )
        except (AnsibleError, KeyError):
            # Not set, or it refers to something that is not: the same finding for both.
            return False, None

    def _templates(self, host: str) -> list[str]:
        """Return the names of the secrets that are templates as they stand in the vault."""
        values = self._hostvars.raw_get(host)
        secrets = sorted(name for name in values if name.startswith("vault_"))
        return [name for name in secrets if self._templar.is_template(values[name])]

    def _environments(self, hosts: list[str], root: Path) -> tuple[dict[str, Environment], list[str]]:
        environments: dict[str, Environment] = {}
        findings = []
        for host in hosts:
            groups = [group for group in self._groups_of(host) if (root / "group_vars" / group).is_dir()]
            if len(groups) != 1:
                found = " and ".join(groups) or "none"
                findings.append(f"{host} (the inventory): must be in one environment's group, is in {found}")
                continue
            known, name = self._read(host, "environment_name")
            if not known and (root / "group_vars" / groups[0] / "vault.yml").is_file():
                findings.append(
                    f"environment_name: group_vars/{groups[0]} was not loaded for {host}. The inventory has lost its "
                    "link: ln -s ../../group_vars inventory/<name>/group_vars"
                )
                continue
            if known and name != groups[0]:
                findings.append(
                    f"environment_name (group_vars/{groups[0]}/vars.yml): is not the group's name, {groups[0]}"
                )
            environments.setdefault(groups[0], Environment(groups[0], host, root, self._read))
        return environments, findings

    def _groups_of(self, host: str) -> list[str]:
        # Not by the host's own variables: reading one opens the vault of its environment.
        return [str(name) for name, members in self._groups.items() if name != "all" and host in members]

    def _limit_findings(self, variables: Mapping[str, Any], environments: list[str]) -> Iterator[str]:
        if variables.get("all_environments", False) in (True, "true", "True", "yes"):
            return
        command = " ".join(["ansible-playbook", *context.CLIARGS.get("args", ()), "-l"])
        each = " or ".join(f"`{command} {name}`" for name in environments)
        if not variables.get("ansible_limit"):
            yield f"no limit: say which environment is meant, {each}"
        elif len(environments) > 1:
            yield f"the limit spans {' and '.join(environments)}: run them one after the other, {each}"

    def _account_findings(self, environments: Mapping[str, Environment], wanted: bool) -> Iterator[str]:
        for name, environment in environments.items():
            known, value = self._read(environment.host, "account")
            if (known and boolean(value)) != wanted:
                kind, other = ("a host", "account") if wanted else ("an AWS account, not a host", "aws")
                command = " ".join(["ansible-playbook", "-i", f"inventory/{other}", *context.CLIARGS.get("args", ())])
                yield f"{environment.host} is {kind}: `{command} -l {name}`"

    def _reuse_findings(
        self, environments: Mapping[str, Environment], secrets: list[str], notes: list[str]
    ) -> Iterator[str]:
        seen: dict[tuple[str, str], str] = {}
        for name, environment in environments.items():
            try:
                values = environment.secrets(secrets)
            except AnsibleError:
                values = {}
            if not values:
                notes.append(f"the secrets of {name} were not compared: its vault cannot be opened from here")
            for variable, value in values.items():
                if not value:  # of an optional secret
                    continue
                other = seen.setdefault((variable, value), name)
                if other != name:
                    command = f"ansible-vault edit group_vars/{name}/vault.yml"
                    yield f"{variable}: is the same in {other} and {name}. Change one: {command}"
