"""Examines the ssh connection to a host with the real client, and then the host itself."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.host import Diagnosis
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import HostAction, known, of_module
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import cleaned

SECONDS_TO_CONNECT = 5
SECONDS_IN_ALL = 20
TIMED_OUT = 255
MOST_SAID = 1 << 20
# The accounts that the images of Debian, Ubuntu and Amazon bring.
IMAGE_ACCOUNTS = ("admin", "ubuntu", "debian", "ec2-user", "root")
# These win over the same options further on, as the first one counts. A shared connection would hide what is wrong now.
PROBE = {
    "BatchMode": "yes",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ConnectTimeout": str(SECONDS_TO_CONNECT),
    "ConnectionAttempts": "1",
}
# What the login account sees; `python` stands for the interpreter of the modules.
DOORSTEP = """LC_ALL=C; export LC_ALL
if [ "$(id -u)" = 0 ] || said=$(sudo -n true 2>&1); then echo 'sudo: yes'; else echo "$said"; fi
command -v {python} >/dev/null && echo 'python: yes'
df -Pk / /tmp | awk 'NR > 1 && $4 < 1024 {{ print "full: " $6 }}'
df -Pi / /tmp | awk 'NR > 1 && $2 > 0 && $4 < 10 {{ print "inodes: " $6 }}'
date '+clock: %s'
echo 'door: open'"""


@dataclass(frozen=True)
class Target:
    """A host as the inventory has it."""

    host: str
    user: str
    port: int
    key: str

    @property
    def login(self) -> str:
        """Return a command that logs in manually."""
        options = [*(["-i", self.key] if self.key else []), *(["-p", str(self.port)] if self.port != 22 else [])]
        return shlex.join(["ssh", *options, f"{self.user}@{self.host}" if self.user else self.host])


def finding(key: str, words: str, command: str) -> dict[str, str]:
    """Return a finding as the module of this name does."""
    return {"key": key, "words": words, "command": command, "follows_from": ""}


def about_ssh(said: str, target: Target, others: Iterable[str] = ()) -> dict[str, str]:
    """Return what kept ssh from logging in, by what ``ssh -v`` said.

    Args:
        said: its standard error.
        target: the host.
        others: accounts that the host lets in with the same key.
    """
    lines = [line for line in said.splitlines() if not line.startswith(("debug", "OpenSSH_", "Warning: Permanently"))]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no words at all")
    return (
        about_way(said, last, target) or about_host_key(said, target) or about_login(said, last, target, list(others))
    )


def about_way(said: str, last: str, target: Target) -> dict[str, str] | None:
    """Return what is wrong with the name, the address or the port."""
    place = f"{target.host}, port {target.port}"
    if "Could not resolve hostname" in said:
        command = "correct ansible_host in the inventory"
        return finding("ssh.name", f"the name {target.host} does not resolve on this machine", command)
    if "Connection refused" in said:
        command = (
            "on the machine's console: systemctl enable --now ssh; or correct ansible_host, ansible_port (inventory)"
        )
        return finding("ssh.port", f"{place}: the machine is there, and no ssh server answers on that port", command)
    if re.search(
        r"connect to .*(timed out|No route to host|Network is unreachable)|^ssh: timed out", said, re.MULTILINE
    ):
        command = (
            "is the machine running, does its security group let in port "
            f"{target.port} from here, is ansible_host (inventory) right?"
        )
        return finding("ssh.unreachable", f"{place}: nothing answers ({last.rpartition(': ')[2]})", command)
    return None


def about_host_key(said: str, target: Target) -> dict[str, str] | None:
    """Return what is wrong with the host's key."""
    if "IDENTIFICATION HAS CHANGED" in said:
        place = re.search(r"^Offending \S+ key in (.+):\d+", said, re.MULTILINE)
        seen = re.search(r"^(SHA256:\S+?)\.?$", said, re.MULTILINE)
        file = f" -f {shlex.quote(place[1])}" if place else ""
        name = target.host if target.port == 22 else f"'[{target.host}]:{target.port}'"
        return finding(
            "ssh.host_key_changed",
            f"{target.host} shows another host key than the one that is known, {seen[1] if seen else 'unknown'}: "
            "another machine has its address, or somebody stands between",
            f"only if the machine was replaced: ssh-keygen{file} -R {name}; then compare and accept: {target.login}",
        )
    if re.search(r"No \S+ host key is known|Host key verification failed", said):
        return finding(
            "ssh.host_key_unknown",
            f"the host key of {target.host} is not known on this machine",
            f"compare its fingerprint with the machine's console, and accept it: {target.login}",
        )
    return None


def about_login(said: str, last: str, target: Target, others: list[str]) -> dict[str, str]:
    """Return what is wrong with the key or the account."""
    if mode := re.search(r"Permissions (\d+) for '(.+)' are too open", said):
        words = f"the key {mode[2]} can be read by others (mode {mode[1]}), so ssh does not use it"
        return finding("ssh.key_mode", words, f"chmod 600 {shlex.quote(mode[2])}")
    if gone := re.search(r"no such identity: (.+?): No such file", said):
        words = f"the key {gone[1]} does not exist"
        return finding(
            "ssh.key_missing", words, "put it there, or correct ansible_ssh_private_key_file in the inventory"
        )
    if damaged := re.search(r'Load key "(.+?)": (.+)', said):
        words = f"the key {damaged[1]} cannot be used: {damaged[2].strip()}"
        return finding("ssh.key_unusable", words, f"ssh-add {shlex.quote(damaged[1])} where it has a passphrase")
    renamed = re.search(r'Please login as the user "(\S+)" rather than', said)
    if others or renamed:
        user = renamed[1] if renamed else others[0]
        words = f"{target.host} does not let in {target.user or 'this account'}, and {user} with the same key"
        return finding("ssh.user", words, f"set ansible_user: {user} in the inventory")
    if "Permission denied" in said or "Too many authentication failures" in said:
        keys = re.findall(r"Offering public key: (\S+)", said)
        offered = ", ".join(dict.fromkeys(keys)) or "no key at all"
        return finding(
            "ssh.key",
            f"{target.host} refuses {target.user or 'this account'} with {offered}",
            "set ansible_ssh_private_key_file (or ansible_user) in the inventory to the key that the machine was "
            f"started with; try: {target.login}",
        )
    return finding("ssh.other", f"ssh to {target.host} failed: {last}", f"{target.login} -v")


def about_door(out: str, target: Target, sudo: bool, python: str) -> list[dict[str, str]]:
    """Return what is wrong on the doorstep, by what the login account sees.

    Args:
        out: what `DOORSTEP` printed.
        target: the host.
        sudo: whether the login account has to become root without a password.
        python: the interpreter that the modules need.
    """
    lines = out.splitlines()
    found = []
    if sudo and "sudo: yes" not in lines:
        said = next((line for line in lines if "sudo" in line), "sudo is not installed")
        asks = "password is required" in said
        why = "sudo asks for a password" if asks else f"sudo refuses: {said}"
        rule = f"'{target.user} ALL=(ALL) NOPASSWD: ALL' into /etc/sudoers.d/{target.user} (visudo)"
        way = "give it with -K, or put" if asks else "on the host, as root, put"
        found.append(finding("ssh.sudo", f"{target.user} cannot become root on {target.host}: {why}", f"{way} {rule}"))
    if "python: yes" not in lines:
        command = f"{target.login} sudo apt-get install python3"
        found.append(finding("host.python", f"{python} is not installed on {target.host}", command))
    for kind, words in (("full", "is full"), ("inodes", "has no room for more files")):
        for line in lines:
            if line.startswith(f"{kind}: "):
                path = line.partition(": ")[2]
                command = f"on the host: du -xh {path} | sort -h | tail"
                key = "host.disk" if kind == "full" else "host.inodes"
                found.append(finding(key, f"the file system of {path} {words}", command))
    return found


def ahead_of(out: str, begin: float, end: float) -> float:
    """Return by how many seconds a host's clock is ahead of this machine's, by what it said between two moments."""
    said = re.search(r"^clock: (\d+)$", out, re.MULTILINE)
    there = float(said[1]) if said else begin
    return there - end if there > end else min(0.0, there + 1 - begin)


def command_options(environment: str, sources: Iterable[str]) -> str:
    """Return the options with which the next command, in the same folder, reaches the same hosts."""
    here = f"{Path.cwd()}/"
    return shlex.join([part for source in sources for part in ("-i", source.removeprefix(here))] + ["-l", environment])


def report(findings: list[dict[str, str]], checked: Mapping[str, str]) -> str:
    """Return what was found, the most basic cause first, and what was looked at, by area, as text for people."""
    lines = []
    causes = [one for one in findings if not one["follows_from"]]
    for number, one in enumerate(causes, 1):
        lines += [f"{number}. {one['key'].partition('.')[0]}: {one['words']}", f"   next: {one['command']}"]
        for other in findings:
            if other["follows_from"] == one["key"]:
                lines.append(f"   follows from it: {other['key'].partition('.')[0]}: {other['words']}")
    if not lines:
        lines.append("all is well")
    looked = [f"  {area}: {words}" for area, words in checked.items() if words]
    return "\n".join([*lines, *(["checked:"] if looked else []), *looked])


class ActionModule(HostAction):
    """Runs the ssh client first, then the module of the same name; changes nothing.

    Arguments are the module's, without ``ahead`` and ``target``; ``environment`` is the group for the next command.

    Returns the module's result, and ``report`` for people; a host that cannot be reached is a finding, no failure.
    """

    TRANSFERS_FILES = False
    _ahead = 0.0

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what was found as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        given = context.CLIARGS.get("inventory") or ()
        options = command_options(str(arguments.pop("environment")), self._named(given))
        found: dict[str, Any] = {"findings": [], "checked": {}, "facts": {}}
        is_ssh = self._connection.transport == "ssh" and not self._connection.get_option("password")
        door = self._knock(str(self._connection.get_option("host")), variables) if is_ssh else []
        found["reached"] = not any(one["key"].startswith("ssh.") for one in door)
        if found["reached"] and not any(one["key"] == "host.python" for one in door):
            arguments.update(target=options, ahead=self._ahead)
            door += self._examined(arguments, variables, found, door)
        seen = {one["key"] for one in door}
        found["findings"] = door + [one for one in found["findings"] if one["key"] not in seen]
        if found["reached"] and is_ssh:
            found["checked"] = {"ssh": "name, port, host key, login, sudo", **found["checked"]}
        found["report"] = report(found["findings"], found["checked"])
        return {**result, **cleaned(found), "changed": False}

    def _named(self, sources: Iterable[str]) -> list[str]:
        """Return the inventories that were named on the command line, as they were."""
        typed = [str(source) for source in sources]
        configured = [str(source) for source in constants.config.get_config_value("DEFAULT_HOST_LIST")]
        return [] if typed == configured else typed

    def _examined(
        self, arguments: dict[str, Any], variables: dict[str, Any], found: dict[str, Any], door: list[dict[str, str]]
    ) -> list[dict[str, str]]:
        """Run the module and take its result into ``found``; return a finding if it could not run."""
        try:
            done = self._execute_module("waffle.iron.diagnosis", arguments, task_vars=variables)
            if not done.get("failed"):
                found.update(known(of_module(done, Diagnosis, "the diagnosis")))
                return []
        except AnsibleError as error:
            done = {"failed": True, "msg": str(error)}
        # A full disk has no room for the module, either, and was seen from the doorstep.
        if door:
            return []
        words = f"the host part could not run: {str(done.get('module_stderr') or done.get('msg', '')).strip()[-300:]}"
        return [finding("host.module", words, "the same command with -vvv")]

    def _knock(self, host: str, variables: dict[str, Any]) -> list[dict[str, str]]:
        connection = self._connection
        python = str(variables.get("ansible_python_interpreter") or "/usr/bin/python3")
        script = DOORSTEP.format(python=shlex.quote(python if python.startswith("/") else "/usr/bin/python3"))
        target = Target(
            host,
            str(connection.get_option("remote_user") or ""),
            int(connection.get_option("port") or 22),
            str(connection.get_option("private_key_file") or ""),
        )
        begin = time.time()
        _, out, said = self._ssh(host, {}, f"sh -c {shlex.quote(script)}")
        self._ahead = ahead_of(out, begin, time.time())
        if "door: open" not in out.splitlines():
            # One after the other: an ssh server drops logins that come in a crowd.
            refused = "Permission denied" in said and "Offering public key" in said
            users = [user for user in IMAGE_ACCOUNTS if user != target.user] if refused else []
            others = [next((user for user in users if self._ssh(host, {"User": user}, "true")[0] == 0), "")]
            return [about_ssh(said + out, target, list(filter(None, others)))]
        sudo = self._task.become and not self._play_context.become_pass
        return about_door(out, target, bool(sudo) and "ansible_become_password" not in variables, python)

    def _ssh(self, host: str, options: dict[str, str], command: str) -> tuple[int, str, str]:
        """Run a command by ssh as Ansible would, on a connection of its own; return code, output and words."""
        built = self._connection._build_command(
            self._connection.get_option("ssh_executable"), "ssh", "-v", host, command
        )
        program, *rest = [part.decode() if isinstance(part, bytes) else str(part) for part in built]
        own = [part for key, value in {**PROBE, **options}.items() for part in ("-o", f"{key}={value}")]
        try:
            done = subprocess.run(
                [program, *own, *rest],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=SECONDS_IN_ALL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return TIMED_OUT, "", f"ssh: timed out after {SECONDS_IN_ALL} s"
        except OSError as error:
            return TIMED_OUT, "", f"{program}: {error.strerror}"
        return done.returncode, done.stdout[:MOST_SAID], done.stderr[:MOST_SAID]
