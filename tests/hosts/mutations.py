"""What people do to hosts manually, one by one: the material of test_drift.py.

The files come from the roles themselves, so a file that a role gets later is damaged here, too. What is no file has its
damage written down in `DAMAGE`; tests/contract/test_drift.py holds that the tasks of the roles are all there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import ROOT, host_roles, yaml_at
from tests.unit.test_attributes import CAPABILITY, access_list

ENTRY_KEYS = {"path", "state", "mode", "content", "source", "target", "owner", "group", "recurse"}
# How the variables of the paths read on a host of prod; the digest of Poetry's pins is looked up there.
NAMES = {
    "__app_root": "/srv/nba",
    "__app_library": "/usr/local/lib/nba",
    "__app_command": "/usr/local/sbin/nba-release",
    "__app_backup_command": "/usr/local/sbin/nba-backup",
    "__app_backup_config.folder": "/var/backups/nba",
    "app_name": "nba",
    "nginx_site": "nba",
    "item.home": "/home/ada",
}
ATTRIBUTES = {
    "access list": "system.posix_acl_access",
    "inherited access list": "system.posix_acl_default",
    "capability": "security.capability",
    "attribute": "user.note",
}
FILE_KINDS = ("content", "mode", "owner", "deleted", "link", "directory", "access list", "capability")
# The program that reports the live release: what would keep it from answering is damaged in the last round alone.
ANSWERING_KINDS = ("content", "mode", "owner", "immutable", "attribute")
LINK_KINDS = ("target", "deleted", "file", "directory")
DIRECTORY_KINDS = ("mode", "owner", "immutable", "access list", "inherited access list")
ROUNDS = 3


@dataclass(frozen=True)
class Mutation:
    """One thing that somebody did to one host.

    Attributes:
        what: the resource, as drift.yml must name it: a part of a record's resource.
        kind: what was done to it.
        script: how, as a shell script that root runs on the host.
        restored: a shell script that succeeds when site.yml has repaired it.
        task: the part of the task's name that notices it; empty where any may.
        sql: statements for the database instead of the script.
    """

    what: str
    kind: str
    script: str
    restored: str = "true"
    task: str = ""
    sql: str = ""


def entries_in(node: Any) -> Iterator[dict[str, Any]]:
    """Yield everything in a YAML document that reads as an entry of managed_files."""
    if isinstance(node, dict):
        if "path" in node and set(node) <= ENTRY_KEYS and {"content", "source", "state"} & set(node):
            yield node
        for value in node.values():
            yield from entries_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from entries_in(item)


def managed(poetry: str) -> list[tuple[str, str]]:
    """Return path and state of everything that the roles' calls of managed_files make on a host."""
    found: dict[str, str] = {}
    names = {**NAMES, "__python_poetry": poetry}
    folders = [ROOT / "roles" / role / part for role in host_roles() for part in ("tasks", "vars")]
    for path in sorted(path for folder in folders for path in folder.glob("*.yml")):
        for entry in entries_in(yaml_at(path)):
            text = str(entry["path"])
            for name, value in names.items():
                text = text.replace("{{ " + name + " }}", value)
            state = entry.get("state", "file")
            if state != "absent" and "swapfile" not in text:
                found[text] = state
    assert not [path for path in found if "{{" in path], found
    return sorted(found.items())


# Prints all that a damage may change of the paths in its arguments: kind and mode, owner, content or target, flags and
# extended attributes.
STATES = """
import array, fcntl, hashlib, json, os, stat, sys
def state(path):
    try:
        status = os.lstat(path)
    except OSError:
        return None
    flags, extended = array.array("l", [0]), sorted(os.listxattr(path, follow_symlinks=False))
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    else:
        fcntl.ioctl(os.open(path, os.O_RDONLY), 0x80086601, flags)
        content = hashlib.sha256(open(path, "rb").read()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
    return [oct(status.st_mode), status.st_uid, status.st_gid, content, flags[0] & 0x30, extended]
print(json.dumps({path: state(path) for path in sys.argv[1:]}))
"""
# As `chattr +i`, which a small image does not have.
FREEZE = (
    'python3 -c \'import array,fcntl,os,sys; fd=os.open(sys.argv[1], os.O_RDONLY); flags=array.array("l",[0]); '
    "fcntl.ioctl(fd, 0x80086601, flags); flags[0]|=0x10; fcntl.ioctl(fd, 0x40086602, flags)'"
)


def give(path: str, kind: str) -> str:
    """Return a shell command that gives a file an attribute as `setfacl` and `setcap` do: a small image has neither."""
    value = {"capability": repr(CAPABILITY), "attribute": 'b"edited"'}.get(kind, "access_list(os.stat(path).st_mode)")
    program = f'{inspect.getsource(access_list)}os.setxattr(path, "{ATTRIBUTES[kind]}", {value})'.replace("'", '"')
    return f"python3 -c 'import os, struct, sys\npath = sys.argv[1]\n{program}' {path}"


def damage(path: str, kind: str) -> str:
    """Return a shell script that damages a file, link or directory in a way."""
    if kind in ATTRIBUTES:
        return give(f"'{path}'", kind)
    aside = f"mv '{path}' '/root/aside-'$(echo '{path}' | tr / _)"
    return {
        "content": f"printf '\\n' >>'{path}'",
        "mode": f"chmod g+w,o+x '{path}'",
        "owner": f"chown daemon '{path}'",
        "deleted": f"rm '{path}'",
        "link": f"{aside} && ln -s '/root/aside-'$(echo '{path}' | tr / _) '{path}'",
        "directory": f"rm '{path}' && mkdir '{path}'",
        "file": f"rm '{path}' && echo edited manually >'{path}'",
        "target": f"ln -sfn /root/elsewhere '{path}'",
        "immutable": f"{FREEZE} '{path}'",
    }[kind]


def answers(path: str) -> bool:
    """Return True if a file belongs to the program that reports the live release, or to its imports."""
    return path.startswith(NAMES["__app_library"])


def of_files(poetry: str, host: int, number: int) -> list[Mutation]:
    """Return the damage to files of one host (0 or 1) in one round: every file, each time in another way."""
    found = []
    taken = {mutation.what for mutation in DAMAGE[host, number]}
    silenced = (host, number) == (1, ROUNDS - 1)
    for index, (path, state) in enumerate(managed(poetry)):
        if path in taken:
            continue
        if path == NAMES["__app_command"]:
            if silenced:
                found.append(Mutation(path, "file", damage(path, "file")))
            continue
        answering = answers(path) and not silenced
        kinds = {"link": LINK_KINDS, "directory": DIRECTORY_KINDS}.get(state, FILE_KINDS)
        if answering and state == "file":
            kinds = ANSWERING_KINDS
        kind = kinds[(index + host * ROUNDS + number) % len(kinds)]
        found.append(Mutation(path, kind, damage(path, kind)))
    # A folder that is immutable would keep the others from their damage.
    return sorted(found, key=lambda one: one.kind == "immutable")


POETRY = "/opt/poetry-*/venv/lib/python3*/site-packages"
LIVE = "$(readlink -f /srv/nba/live)"
SLOT = "$(basename $(readlink /srv/nba/live))"
OTHER = "$(readlink /srv/nba/live | grep -q blue && echo green || echo blue)"
RUNS = f"systemctl is-active --quiet nba@{SLOT}.service && systemctl is-enabled --quiet nba@{SLOT}.service"
# Prints the extended attributes of its arguments.
LISTED = "python3 -c 'import os, sys; print(*(name for path in sys.argv[1:] for name in os.listxattr(path)), end=\"\")'"
WELL = "nba-release status | python3 -c 'import json,sys; sys.exit(bool(json.load(sys.stdin)[\"problems\"]))'"
RULES = "nft list table inet waffle_iron"
REDIRECTS = "net.ipv4.conf.all.accept_redirects"
PARAMETERS = "/etc/sysctl.d/60-waffle-iron.conf"


def added(path: str, text: str = "# edited manually", mode: str = "0644", what: str = "") -> Mutation:
    """Return a file that somebody added beside those of the roles."""
    folder = Path(path).parent
    made = f"test -d '{folder}' || {{ mkdir -p '{folder}' && echo '{folder}' >>/root/folders; }}"
    script = f"{made}; echo '{text}' >'{path}' && chmod {mode} '{path}'"
    return Mutation(what or path, "added", script, f"test ! -e '{path}'")


def package(name: str, task: str) -> Mutation:
    """Return a package that somebody removed, and the task that notices it."""
    gone = f"DEBIAN_FRONTEND=noninteractive apt-get remove -y -q {name}"
    there = f"dpkg-query -W -f '${{db:Status-Status}}' {name} | grep -qx installed"
    return Mutation(name, "removed", gone, there, task)


# A package of a lower version than the one that is there, without files, made on the host.
TAKEN_BACK = """
cd "$(mktemp -d)" && mkdir -p old/DEBIAN && dpkg-query -W -f '${Version}' default-mysql-client >/root/version
printf 'Package: default-mysql-client\\nVersion: 0.1\\nArchitecture: all\\nMaintainer: me\\nDescription: old\\n' \
  >old/DEBIAN/control
dpkg-deb --build old >/dev/null && dpkg -i --force-downgrade old.deb && apt-mark hold default-mysql-client
"""

# By host (0: the environment's first) and round.
DAMAGE: dict[tuple[int, int], list[Mutation]] = {
    (0, 0): [
        Mutation("inet waffle_iron", "flushed", "nft flush ruleset", f"{RULES} | grep -q 'policy drop'",
                 "Load the firewall"),
        Mutation("nginx", "stopped", "systemctl stop nginx", "systemctl is-active --quiet nginx", "Run nginx"),
        Mutation("systemd-timesyncd", "disabled", "systemctl disable systemd-timesyncd",
                 "systemctl is-enabled --quiet systemd-timesyncd", "Synchronise the clock"),
        Mutation("service is inactive", "stopped", f"systemctl stop nba@{SLOT}.socket nba@{SLOT}.service", RUNS),
        Mutation("frontend/index.html was changed", "release edited",
                 f"echo >>{LIVE}/release/frontend/index.html", WELL),
        Mutation("nba", "shell", "usermod -s /bin/bash nba", "getent passwd nba | grep -q nologin",
                 "application's accounts"),
        Mutation("nba-migrate", "groups", "usermod -aG adm nba-migrate", "! id -nG nba-migrate | grep -qw adm",
                 "application's accounts"),
        Mutation("ada", "shell", "usermod -s /bin/sh ada", "getent passwd ada | grep -q /bin/bash", "login accounts"),
        Mutation("Create the account nba_prod", "grant revoked", "",
                 sql=r"REVOKE DELETE ON `nba\_prod`.* FROM nba_prod"),
        Mutation("Create the account nba_prod_migrate", "grant added", "",
                 sql="GRANT PROCESS ON *.* TO nba_prod_migrate"),
        Mutation("install", "Poetry edited", f"echo '# edited manually' >>$(ls {POETRY}/poetry/__main__.py)",
                 f"! grep 'edited manually' {POETRY}/poetry/__main__.py", "Install Poetry in"),
        added("/etc/nginx/conf.d/mine.conf"), added("/etc/nginx/sites-enabled/mine"),
        added("/etc/sudoers.d/99-mine", mode="0440"), added("/etc/cron.d/mine"), added("/srv/nba/notes.txt"),
        added("/etc/systemd/system/nba@.service.d/mine.conf", "[Service]\nNice=5", what="nba@.service.d"),
    ],
    (1, 0): [
        Mutation("inet waffle_iron", "rule added", "nft add rule inet waffle_iron input tcp dport 9000 accept",
                 f"! {RULES} | grep 9000", "Load the firewall"),
        Mutation("nftables", "disabled", "systemctl disable nftables", "systemctl is-enabled --quiet nftables",
                 "Load the firewall at boot"),
        Mutation("nginx", "disabled", "systemctl disable nginx", "systemctl is-enabled --quiet nginx", "Run nginx"),
        Mutation("systemd-timesyncd", "masked", "systemctl mask systemd-timesyncd",
                 "systemctl is-enabled --quiet systemd-timesyncd", "Synchronise the clock"),
        Mutation("service is disabled", "disabled", f"systemctl disable nba@{SLOT}.service", RUNS),
        Mutation("the virtual environment of", "venv edited",
                 f"cd $(dirname {LIVE}/release/.venv/lib/python3*/site-packages/sqlalchemy/__init__.py); "
                 f"echo >>__init__.py; {FREEZE} __init__.py", WELL),
        Mutation("has the attribute system.posix_acl_access", "access list",
                 give(f"{LIVE}/release/.env", "access list"),
                 f"{WELL} && test -z \"$({LISTED} {LIVE}/release/.env)\""),
        Mutation("/srv/nba/state", "access list", give("$(ls -d /srv/nba/state/*.json | head -n 1)", "access list"),
                 f"test -z \"$({LISTED} /srv/nba/state/*.json)\""),
        Mutation("nba", "groups", "usermod -aG adm nba", "! id -nG nba | grep -qw adm", "application's accounts"),
        Mutation("the group nba has members", "member added", "usermod -aG nba games", "! id -nG games | grep -qw nba"),
        Mutation("ada", "groups", "usermod -aG adm ada", "! id -nG ada | grep -qw adm", "login accounts"),
        package("default-mysql-client", "Install the MySQL client"),
        added("/etc/nginx/snippets/mine.conf"), added("/etc/nginx/modules-enabled/99-mine.conf"),
        added("/etc/systemd/journald.conf.d/99-mine.conf", "[Journal]"),
        added("/home/ada/.ssh/authorized_keys2", "ssh-ed25519 AAAA mine"),
        added("/var/spool/cron/crontabs/nba", "# edited manually", "0600"),
        added("/run/systemd/system.control/nginx.service.d/mine.conf", "[Service]\nNice=5", what="nginx.service.d"),
        added("/srv/nba/releases/copy/note", what="copy is no release"),
    ],
    (0, 1): [
        Mutation("nftables", "masked", "systemctl mask nftables", "systemctl is-enabled --quiet nftables",
                 "Load the firewall at boot"),
        Mutation(REDIRECTS, "running value changed", f"sysctl --write {REDIRECTS}=1",
                 f"sysctl --values {REDIRECTS} | grep -qx 0", "Set the kernel's parameters"),
        Mutation("nginx", "masked", "systemctl mask nginx", "! systemctl is-enabled nginx | grep -q masked",
                 "Run nginx"),
        Mutation("/etc/systemd/system/nba@", "masked", f"systemctl mask nba@{SLOT}.service", RUNS),
        Mutation("the virtual environment of", "venv file deleted",
                 f"rm $(ls {LIVE}/release/.venv/lib/python3*/site-packages/fastapi/applications.py)", WELL),
        Mutation("systemd-journald.service is older", "process older than its files",
                 "touch /etc/systemd/journald.conf.d"),
        Mutation("nba-migrate", "shell", "usermod -s /bin/sh nba-migrate",
                 "getent passwd nba-migrate | grep -q nologin", "application's accounts"),
        Mutation("/home/ada/.ssh/authorized_keys", "key added",
                 "echo ssh-ed25519 AAAA me >>/home/ada/.ssh/authorized_keys",
                 "! grep -q AAAA.me /home/ada/.ssh/authorized_keys"),
        Mutation("Create the account nba_prod_migrate", "password changed", "",
                 sql="ALTER USER nba_prod_migrate IDENTIFIED WITH caching_sha2_password BY 'Other-word-1'"),
        Mutation("Create the account nba_prod", "TLS no longer required", "", sql="ALTER USER nba_prod REQUIRE NONE"),
        added("/etc/systemd/system.conf.d/99-mine.conf", "[Manager]"), added("/etc/cron.daily/mine", mode="0755"),
        added("/var/spool/cron/crontabs/root", "# edited manually", "0600"), added("/usr/local/lib/nba/mine.py"),
        added("/srv/nba/slots/blue/mine"),
    ],
    (1, 1): [
        Mutation("inet waffle_iron", "table deleted", "nft delete table inet waffle_iron", f"{RULES} >/dev/null",
                 "Load the firewall"),
        Mutation("inet nba", "rule deleted", "nft flush chain inet nba output",
                 "nft list chain inet nba output | grep -q skgid", "Load the firewall of the application"),
        Mutation(REDIRECTS, "value at boot changed", f"sed -i s/0$/1/ {PARAMETERS}",
                 f"grep -qx {REDIRECTS}=0 {PARAMETERS}", "Set the kernel's parameters"),
        Mutation(".socket is ", "disabled", f"systemctl disable nba@{SLOT}.socket", RUNS),
        Mutation("uvicorn has the attribute security.capability", "capability",
                 give(f"{LIVE}/release/.venv/bin/uvicorn", "capability"), WELL),
        Mutation("runs as the account", "uid changed",
                 f"sed -i \"s/^nba-{SLOT}:x:[0-9]*:/nba-{SLOT}:x:$((6000 + $$ % 1000)):/\" /etc/passwd",
                 f"grep -q \"^Uid:.$(id -u nba-{SLOT})\" /proc/$(systemctl show -P MainPID nba@{SLOT}.service)/status"),
        Mutation("added.py was added", "release file added", f"echo >{LIVE}/release/nba/added.py",
                 f"test ! -e {LIVE}/release/nba/added.py"),
        Mutation("default-mysql-client is 0.1", "downgraded", TAKEN_BACK,
                 "test $(dpkg-query -W -f '${Version}' default-mysql-client) = $(cat /root/version)",
                 "Restore downgraded packages"),
        Mutation("nginx.service is older", "process older than its files", "touch /etc/nginx/mime.types"),
        added("/etc/systemd/system/nginx.service.d/mine.conf", "[Service]\nNice=5", what="nginx.service.d"),
        added("/run/systemd/system/nba@blue.service.d/mine.conf", "[Service]\nNice=5", what="nba@blue.service.d"),
        added("/srv/nba/slots/mine"),
    ],
    (0, 2): [
        Mutation("nftables", "stopped", "systemctl stop nftables", f"{RULES} >/dev/null", "Load the firewall at boot"),
        Mutation(REDIRECTS, "file deleted", f"rm {PARAMETERS}", f"grep -qx {REDIRECTS}=0 {PARAMETERS}",
                 "Set the kernel's parameters"),
        Mutation("no release is live", "live link replaced", "rm /srv/nba/live && mkdir /srv/nba/live", WELL),
        Mutation("Create the account nba_prod", "account locked", "", sql="ALTER USER nba_prod ACCOUNT LOCK"),
        Mutation("Create the account nba_prod_migrate", "account dropped", "", sql="DROP USER nba_prod_migrate"),
        Mutation("Create the account nba_prod_read", "grant added", "",
                 sql="GRANT INSERT ON nba_prod.* TO nba_prod_read"),
        Mutation("nginx.service is older", "process older than its files", "touch /etc/nginx/mime.types"),
    ],
    (1, 2): [
        package("nginx", "Install nginx"),
        package("systemd-timesyncd", "Install the base packages"),
        package("python3-venv", "Install Python"),
        package("python3-pymysql", "Install the MySQL client"),
        added("/etc/sudoers.d/98-mine", mode="0440"),
    ],
}  # fmt: skip
