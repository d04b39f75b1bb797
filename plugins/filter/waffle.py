"""Filters: a value as .env or an option file of MySQL takes it, and the id of a release."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.waffle.iron.plugins.module_utils.sandbox import findings, opened
from ansible_collections.waffle.iron.plugins.plugin_utils import secret_files
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery import system_packages
from ansible_collections.waffle.iron.plugins.plugin_utils.setting_values import as_text, exported

# Control characters, line and paragraph separators, and halves of characters that UTF-8 cannot hold.
UNPRINTABLE = {"Cc", "Zl", "Zp", "Cs"}
# The clients read a line into a buffer of 4 KiB.
OPTION_LINE_BYTES = 4000
# A line for each account: name, home, shell, groups, and L where it has no password.
ACCOUNT_REPORT = """
for name in {names}; do
    entry=$(getent passwd "$name" | cut -d: -f1,6,7)
    groups=$(id -nG "$name" | tr ' ' ,)
    password=$(passwd -S "$name" | cut -d' ' -f2)
    printf 'account=%s:%s:%s\\n' "$entry" "$groups" "$password"
done 2>/dev/null
"""
PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,-]*")


def dotenv_value(value: object, key: str = "value") -> str:
    r"""Return ``value`` as the right-hand side of a ``.env`` line that python-dotenv reads back unchanged.

    python-dotenv (1.x, the parser behind pydantic-settings) expands ``${NAME}`` even inside single quotes, and its
    pattern for quoted values takes a backslash before the closing quote for an escape. Neither has an escape of its
    own, but ``${:-X}``, a name that cannot exist with ``X`` as its default, stands for ``X``: so every ``$`` and every
    backslash is written in that way. Plain values stay as they are; lists and mappings are JSON.

    Raises:
        AnsibleFilterError: the value holds a line break or another control character; ``key`` is named, not the value.
    """
    text = as_text(value)
    if any(unicodedata.category(character) in UNPRINTABLE for character in text):
        raise AnsibleFilterError(f"{key}: a line break or control character cannot be written to .env")
    if PLAIN.fullmatch(text):
        return text
    stand_ins = {"\\": r"${:-\}", "$": "${:-$}", "'": r"\'"}
    return "'" + "".join(stand_ins.get(character, character) for character in text) + "'"


def dotenv(settings: Mapping[str, Any]) -> str:
    """Return the text of a ``.env`` file: one ``KEY=value`` line per setting, sorted by key."""
    return "".join(f"{key}={dotenv_value(value, key)}\n" for key, value in sorted(settings.items()))


def option_file(options: Mapping[str, Any]) -> str:
    r"""Return the text of an option file for the clients of MySQL and MariaDB; nothing for no options.

    Inside double quotes they take a backslash for an escape, and nothing else is special. ``database`` is known to
    ``mysql`` alone: ``mysqldump`` would refuse a group that holds it. Empty options are left out.

    Raises:
        AnsibleFilterError: a value holds a control character, or is longer than the clients read; the key is named.
    """
    if not options:
        return ""
    groups: dict[str, list[str]] = {"client": [], "mysql": []}
    for key, value in sorted(options.items()):
        text = str(value)
        if any(unicodedata.category(character) in UNPRINTABLE for character in text):
            raise AnsibleFilterError(f"{key}: a line break or control character cannot be written to .mysql.cnf")
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        line = f'{key} = "{escaped}"\n'
        if len(line.encode()) > OPTION_LINE_BYTES:
            raise AnsibleFilterError(f"{key}: too long for .mysql.cnf")
        if text:
            groups["mysql" if key == "database" else "client"].append(line)
    return "".join(f"[{group}]\n{''.join(lines)}" for group, lines in groups.items())


def release_id(parts: Mapping[str, Any], key: str, label: str) -> str:
    """Return ``<label>-<digest>``, the name of the release that consists of ``parts``.

    ``parts`` may be any JSON value; the digest is an HMAC-SHA-256 under ``key``, cut to 8 hexadecimal digits, so that
    nobody can guess a weak secret from the name. The same parts always give the same name.
    """
    if not key:
        raise AnsibleFilterError(
            "app_fingerprint_key is empty: set vault_fingerprint_key in the environment's vault.yml"
        )
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{label}-{hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()[:8]}"


def fingerprints(settings: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return an HMAC-SHA-256 of each setting under ``key``, cut to 16 hexadecimal digits: equal values look equal."""
    return {
        name: hmac.new(key.encode(), f"{name}={as_text(value)}".encode(), hashlib.sha256).hexdigest()[:16]
        for name, value in settings.items()
    }


def database_settings(
    values: Mapping[str, Any], application: Mapping[str, Any], parts: Iterable[str] = ()
) -> dict[str, str]:
    """Return the settings by which an application reads the way to its database; with ``parts`` those of them alone.

    Args:
        values: host, port, user, password, name and tls_ca; empty for none.
        application: what the action `application` returned.
        parts: such as user, password and url.
    """
    names: Mapping[str, str] = application["database"]
    found = exported(names, str(application["database_scheme"]), values)
    return {names[part]: found[names[part]] for part in parts or names if names.get(part) in found}


def refuse(variable: str, wrong: Iterable[str]) -> None:
    """Raise AnsibleFilterError with all that is wrong with a variable's value, if anything is."""
    if message := "; ".join(f"{variable}: {words}" for words in wrong):
        raise AnsibleFilterError(message)


def secret_files_in_release(files: Mapping[str, str]) -> dict[str, str]:
    """Return the contents of secret files (`app_files`) by their paths in a release.

    Raises:
        AnsibleFilterError: one of them has a name or a content that it cannot have; the content is not in the message.
    """
    refuse("app_files", (f"{name}: {words}" for name, words in secret_files.findings(files)))
    return secret_files.placed(files)


def package_names(packages: list[str]) -> list[str]:
    """Return names of Debian packages as they are (`app_packages`).

    Raises:
        AnsibleFilterError: one of them is no such name: apt would take it for a file, a version or an address.
    """
    refuse("app_packages", system_packages.findings(packages))
    return packages


def sandbox(relaxations: Mapping[str, Any]) -> list[str]:
    """Return the assignments of a unit that open parts of its sandbox (`app_sandbox`).

    Raises:
        AnsibleFilterError: one of them cannot be opened, or not with that value.
    """
    refuse("app_sandbox", findings(relaxations))
    return list(opened(relaxations))


def unit_overrides(name: str, accounts: Iterable[str]) -> list[dict[str, str]]:
    """Return what would take the place of a part of an application's units, or of a job of theirs, as absent files.

    Those are drop-ins, masks and copies wherever systemd looks for them (`systemctl edit`, `mask`, `set-property`, each
    with and without --runtime), and the crontabs of its accounts.
    """
    paths = []
    for instance, kind in itertools.product(("@.", "@blue.", "@green."), ("service", "socket")):
        for folder in map("".join, itertools.product(("/etc", "/run"), ("/systemd/system", "/systemd/system.control"))):
            paths.append(f"{folder}/{name}{instance}{kind}.d")
            # The templates themselves are there.
            if (instance, folder) != ("@.", "/etc/systemd/system"):
                paths.append(f"{folder}/{name}{instance}{kind}")
    paths += [f"/var/spool/cron/crontabs/{account}" for account in accounts]
    return [{"path": path, "state": "absent"} for path in paths]


def account_report(accounts: Iterable[dict[str, Any]]) -> str:
    """Return a shell command that prints a line about each account, for `accounts_to_change`."""
    return ACCOUNT_REPORT.format(names=" ".join(shlex.quote(account["name"]) for account in accounts))


def accounts_to_change(accounts: Iterable[dict[str, Any]], report: str) -> list[dict[str, Any]]:
    """Return the accounts that a host lacks, or has otherwise: home, shell, groups, or a password.

    Args:
        accounts: ``name``, and optionally ``home``, ``group`` (its primary one) and ``groups`` (the others).
        report: what the command of `account_report` printed there. A line that says anything else changes the account.
    """
    found = {line.strip() for line in report.splitlines()}
    changed = []
    for account in accounts:
        home = account.get("home", "/nonexistent")
        groups = [account.get("group", account["name"]), *account.get("groups", [])]
        if f"account={account['name']}:{home}:/usr/sbin/nologin:{','.join(groups)}:L" not in found:
            changed.append(account)
    return changed


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Any]:
        """Return name and function of each filter."""
        return {
            "account_report": account_report,
            "accounts_to_change": accounts_to_change,
            "database_settings": database_settings,
            "dotenv": dotenv,
            "fingerprints": fingerprints,
            "option_file": option_file,
            "package_names": package_names,
            "release_id": release_id,
            "secret_file_settings": secret_files.by_variable,
            "secret_files": secret_files_in_release,
            "sandbox": sandbox,
            "unit_overrides": unit_overrides,
        }
