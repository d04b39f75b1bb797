#!/usr/bin/python
"""Reads what a host is made of, so that it can be compared with other hosts; changes nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
import http.client
import json
import os
import platform
import pwd
import re
import shutil
import socket
import stat
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.waffle.iron.plugins.module_utils.attributes import attributes_of, in_tree
from ansible_collections.waffle.iron.plugins.module_utils.database_settings import application_of, way_to_database
from ansible_collections.waffle.iron.plugins.module_utils.environment import FILES
from ansible_collections.waffle.iron.plugins.module_utils.host_state.digests import SENSITIVE, SecretDigests
from ansible_collections.waffle.iron.plugins.module_utils.host_state.handshakes import certificate_of, handshakes
from ansible_collections.waffle.iron.plugins.module_utils.host_state.parsing import (
    Facts,
    accounts_in,
    as_text,
    assignments,
    blocks_of,
    dotenv_settings,
    fingerprint,
    groups_in,
    kernel_family,
    lines_of,
    listeners_in,
    literal,
    nginx_files,
    option_settings,
    sysctl_name,
    unescaped,
    unix_listeners_in,
    without_counters,
    without_hash,
    without_own_path,
)
from ansible_collections.waffle.iron.plugins.module_utils.host_state.reading import (
    Unreadable,
    group,
    installed,
    json_at,
    names_in,
    owner,
    run,
    text_of,
)
from ansible_collections.waffle.iron.plugins.module_utils.host_state.scope import (
    CONTENT_ELSEWHERE,
    SCHEMA_QUERIES,
    SERVER_VARIABLES,
    kept,
    left_out,
)
from ansible_collections.waffle.iron.plugins.module_utils.redactor import secrets_in
from ansible_collections.waffle.iron.plugins.module_utils.sandbox import opened

DOCUMENTATION = r"""
module: host_state
short_description: Reads what a host is made of, so that it can be compared with other hosts
description:
  - One call reads everything, its sections beside each other, and changes nothing, in check mode or out of it.
  - A fact is C(section / key -> text). Secrets leave the host as digests only, under a key that the run makes.
options:
  name:
    description: Name of the application, as the role app has it.
    type: str
    required: true
  key:
    description: Secret. Keys the digests; hosts that are compared get the same one.
    type: str
    required: true
  master_options:
    description: >-
      Secret. An option file of MySQL's client for the account that may read all accounts. It reaches no disk. Without
      it, accounts and their grants are not read.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Read the state
  waffle.iron.host_state:
    name: nba
    key: "{{ a_random_key }}"
  register: state
"""

RETURN = r"""
state:
  description: >-
    JSON text of an object, C(facts) by section and key, C(gaps) with the reason for each section that could not be
    read, C(identity) with the texts that are this host's own and what they stand for, C(left_out) with what is not
    compared and why, C(about) for people.
  type: str
  returned: always
"""

LARGE_BYTES = 16 << 20
# The files of a release that hold settings and secrets.
SETTINGS = ((".env", dotenv_settings), (".env.migrate", dotenv_settings), (".mysql.cnf", option_settings))


class Host:
    """This host, section by section; each section is a method that returns its facts or raises `Unreadable`."""

    def __init__(self, name: str, digests: SecretDigests, master_options: str) -> None:
        self.name, self.digests, self._master_options = name, digests, master_options
        self.root, self.library = f"/srv/{name}", f"/usr/local/lib/{name}"
        self.release = os.path.realpath(f"{self.root}/live/release")
        self._asking = threading.Lock()
        self._shown: list[Facts] | None = None
        self.certificate_days: int | None = None
        self.answer: dict[str, Any] = {}
        if not os.path.isdir(self.release):
            self.release = ""
        venv = os.path.realpath(f"{self.release}/.venv")
        self.live_environment = venv if self.release and os.path.isdir(venv) else ""
        self.settings = {
            file: parse(text_of(f"{self.release}/{file}")) if self.release else {} for file, parse in SETTINGS
        }
        self.stated = application_of(self.release) if self.release else {}
        self.ways = {
            file: way_to_database(self.stated.get("database", {}), self.settings[file])
            for file in (".env", ".env.migrate")
        }
        self.secret_files = secret_files_in(f"{self.release}/{FILES}") if self.release else {}
        for content in self.secret_files.values():
            digests.add(*secrets_in(content))
        digests.add(*(way["password"] for way in self.ways.values() if "password" in way))
        for settings in self.settings.values():
            digests.add(*(value for key, value in settings.items() if re.fullmatch(SENSITIVE, key, re.IGNORECASE)))

    def sections(self) -> dict[str, Callable[[], Facts]]:
        """Return the sections in the order of the report."""
        known: dict[str, Callable[[], Facts]] = {
            "system": self.system,
            "packages": self.packages,
            "python": self.python,
            "environment": self.environment,
            "application": self.application,
            "schema": self.schema,
            "database": self.database,
            "accounts": self.accounts,
            "nginx": self.nginx,
            "tls": self.tls,
            "units": self.units,
            "enabled": self.enabled,
            "listening": self.listening,
            "sysctl": self.sysctl,
            "limits": self.limits,
            "firewall": self.firewall,
            "users": self.users,
            "sudoers": self.sudoers,
            "sshd": self.sshd,
            "files": self.files,
        }
        if not self._master_options:
            del known["accounts"]  # not a gap: one host of an environment reads them for all
        return known

    def system(self) -> Facts:
        """Read release, kernel, time zone, locale and swap."""
        release = assignments(text_of("/etc/os-release"))
        swaps = [line.split() for line in text_of("/proc/swaps").splitlines()[1:]]
        return {
            "release": release.get("PRETTY_NAME", "unknown"),
            "point release": text_of("/etc/debian_version").strip(),
            "kernel family": f"{platform.system()} {kernel_family(platform.release())}",
            "architecture": platform.machine(),
            "time zone": os.path.realpath("/etc/localtime").removeprefix("/usr/share/zoneinfo/"),
            "time zone by name": text_of("/etc/timezone").strip() or "not set",
            "locale": lines_of(text_of("/etc/default/locale") or text_of("/etc/locale.conf")) or "not set",
            "locales": " ".join(run("locale", "-a").split()),
            **{f"swap {columns[0]}": f"{columns[1]} of {int(columns[2]) // 1024} MiB" for columns in swaps},
        }

    def packages(self) -> Facts:
        """Read each package and its version; a state other than installed is added."""
        listing = run("dpkg-query", "--show", "--showformat=${binary:Package}\t${Version}\t${db:Status-Abbrev}\n")
        rows = [line.split("\t") for line in listing.splitlines()]
        return {
            name: version + ("" if state.strip() == "ii" else f" ({state.strip()})") for name, version, state in rows
        }

    def python(self) -> Facts:
        """Read the interpreter, Poetry and what is in Poetry's own environment."""
        found = {"interpreter": " ".join(run("/usr/bin/python3", "-VV").split())}
        poetry = os.path.realpath("/usr/local/bin/poetry")
        if not os.path.exists(poetry):
            return {**found, "poetry": "not installed"}
        environment = os.path.dirname(os.path.dirname(poetry))
        found["poetry's environment"] = os.path.basename(os.path.dirname(environment))
        for name, (version, _) in self.distributions(environment).items():
            found["poetry" if name == "poetry" else f"poetry uses {name}"] = version
        return found

    def environment(self) -> Facts:
        """Read the distributions of the live release and of its server: version, and a digest of their files now."""
        if not self.release:
            return {"live release": "none"}
        found = {"runtime": str(json_at(f"{self.release}/release.json").get("runtime", "venv"))}
        environment = self.live_environment
        if found["runtime"] == "container":
            container, environment = self.container()
            found |= container
        found["python"] = assignments(text_of(f"{environment}/pyvenv.cfg")).get("version", "unknown")
        for name, (version, _) in self.distributions(environment).items():
            found[name] = version
        for folder in self.packages_folders(environment):
            for name in names_in(folder):
                if name != "__pycache__":
                    found[f"content of {name}"] = self.tree_digest(os.path.join(folder, name))
        found["content of bin"] = self.tree_digest(f"{environment}/bin")
        return found | self.server()

    def server(self) -> Facts:
        """Read the distributions of the live release's server: a folder of packages, and no virtual environment."""
        folder = os.path.realpath(f"{self.release}/.server")
        found = {f"server uses {name}": version for name, (version, _) in distributions_in(folder).items()}
        for name in names_in(folder):
            if name != "__pycache__":
                found[f"content of the server's {name}"] = self.tree_digest(f"{folder}/{name}")
        return found

    def container(self) -> tuple[Facts, str]:
        """Read what podman says of the live container's image; return it, and where the environment in it is seen."""
        (container,) = json.loads(run("podman", "container", "inspect", f"{self.name}-{self.slot()}"))
        (image,) = json.loads(run("podman", "image", "inspect", container["Image"]))
        said = {**(image.get("Labels") or {}), **(image.get("Annotations") or {})}
        found = {"podman": run("podman", "--version").strip(), **{f"image: {key}": said[key] for key in said}}
        process = container["State"]["Pid"]
        program = text_of(f"/proc/{process}/cmdline").partition("\0")[0]
        return found, f"/proc/{process}/root{os.path.dirname(os.path.dirname(program))}"

    @staticmethod
    def packages_folders(environment: str) -> list[str]:
        """Return the site-packages folders of a virtual environment."""
        library = f"{environment}/lib"
        return [f"{library}/{name}/site-packages" for name in names_in(library) if name.startswith("python")]

    def distributions(self, environment: str) -> dict[str, tuple[str, str]]:
        """Return the distributions of a virtual environment."""
        folders = self.packages_folders(environment)
        return {name: found for folder in folders for name, found in distributions_in(folder).items()}

    def tree_digest(self, path: str) -> str:
        """Return a digest of all files below a path, with their names; compiled ones are left out.

        The live environment's own path is left out, too: one that was made anew has another.
        """
        parts = []
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(set(folders) - {"__pycache__"})
            for name in sorted(files):
                place = os.path.join(folder, name)
                parts.append(f"{os.path.relpath(place, path)} {self.content(place)}")
        return self.digests.content("\n".join(parts)) if os.path.isdir(path) else self.content(path)

    @staticmethod
    def attributes(folder: str) -> str:
        """Return what the files in a folder have beside content, mode and owner; a line for each that has something."""
        found = in_tree(folder)
        return (
            "\n".join(sorted(f"{os.path.relpath(path, folder)}: {', '.join(found[path])}" for path in found)) or "none"
        )

    def content(self, path: str) -> str:
        """Return a digest of a file's content, or a link's target; of a very large one the size stands for it."""
        if os.path.islink(path):
            return f"-> {os.readlink(path)}"
        if (size := os.lstat(path).st_size) > LARGE_BYTES:
            return f"{size} bytes"
        with open(path, "rb") as stream:
            data = stream.read()
        if self.live_environment and path.startswith(f"{self.live_environment}/"):
            data = without_own_path(data, os.path.basename(path), self.live_environment)
        digest: str = self.digests.content(data)
        return digest

    def application(self) -> Facts:
        """Read the live release, the one that answers, its digests, its settings and what the programs are told."""
        found: Facts = {}
        for file in ("release.json", "backup.json"):
            for key, value in json_at(f"{self.library}/{file}").items():
                # A mapping has a line for each key, since lines are compared one by one.
                indent = 1 if isinstance(value, dict) else None
                found[f"{file}: {key}"] = value if isinstance(value, str) else json.dumps(value, indent=indent)
        for assignment, words in opened(json_at(f"{self.library}/sandbox.json")).items():
            found[f"sandbox: {assignment}"] = words
        if not self.release:
            return {**found, "live release": "none"}
        facts = json_at(f"{self.release}/release.json")
        self.answer = self.asked("/.waffle/version")
        for key, value in self.stated.items():
            found[f"stated: {key}"] = value if isinstance(value, str) else json.dumps(value)
        live = os.path.basename(self.release)
        found["live release"] = live
        found["what answers"] = "the live release" if self.answer.get("release") == live else str(self.answer)
        for key in ("artefact", "lock"):
            found[f"digest of the {key}"] = str(facts.get(key))
        found["from a clean tree"] = "no" if facts.get("dirty") else "yes"
        for file, settings in self.settings.items():
            for key, value in settings.items():
                found[f"{file}: {key}"] = self.digests.secret(f"{key}={value}")
        for name, content in self.secret_files.items():
            found[f"{FILES}: {name}"] = self.digests.secret(f"{name}={content}")
        return found

    def asked(self, path: str) -> dict[str, Any]:
        """Return what the live slot says of itself."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(5)
            try:
                stream.connect(f"{self.root}/live/socket")
                stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                answer = http.client.HTTPResponse(stream)
                answer.begin()
                found = json.loads(answer.read(1 << 16))
            except (OSError, http.client.HTTPException, ValueError) as error:
                return {"nothing": f"{type(error).__name__}: {error}"}
        return found if isinstance(found, dict) else {"nothing": "no JSON object"}

    # --- the database ---

    def ask(self, statements: str, option_file: str = "", descriptors: tuple[int, ...] = ()) -> list[list[str]]:
        """Return the rows of statements; the account is the migrations', unless another option file is given."""
        option_file = option_file or f"{self.release}/.mysql.cnf"
        if not descriptors and not (self.release and os.path.exists(option_file)):
            raise Unreadable("no release with an option file for the database is live")
        client = "mariadb" if installed("mariadb") else "mysql"
        out = run(
            client, f"--defaults-file={option_file}", "--batch", "--skip-column-names",
            "--default-character-set=utf8mb4", f"--execute={statements}",
            descriptors=descriptors,
        )  # fmt: skip
        return [line.split("\t") for line in out.splitlines()]

    @property
    def has_no_database(self) -> bool:
        """Return True if the live release states that it has none."""
        return bool(self.stated) and not self.stated.get("database")

    def schema(self) -> Facts:
        """Read the schema's head, tables, columns, indexes, constraints, views, triggers and routines."""
        if self.has_no_database:
            return {"head": "no database"}
        queries = [
            f"SELECT '{kind}', {columns} FROM information_schema.{source} WHERE {condition}"  # noqa: S608 (constants)
            for kind, columns, source, condition in SCHEMA_QUERIES
        ]
        found = {}
        for kind, table, name, *words in self.ask("SET SESSION group_concat_max_len = 65536; " + "; ".join(queries)):
            place = f"{table}.{name}".strip(".")
            found[f"{kind} {place}".strip()] = " ".join(word for word in words if word not in ("NULL", ""))
        head = self.ask("SELECT version_num FROM alembic_version") if "table alembic_version" in found else []
        return {"head": " ".join(sorted(row[0] for row in head)) or "none", **found}

    def database(self) -> Facts:
        """Read the server's version, the variables that matter, and how the connection is encrypted."""
        if self.has_no_database:
            return {"server": "no database"}
        names = ", ".join(literal(name) for name in SERVER_VARIABLES.split())
        rows = self.ask(
            f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names}); "
            "SHOW SESSION STATUS WHERE Variable_name IN ('Ssl_version', 'Ssl_cipher')"
        )
        return {row[0]: row[1] if len(row) > 1 else "" for row in rows}

    def accounts(self) -> Facts:
        """Read the server's accounts and their grants, as the master account; its options are in memory alone."""
        descriptor = os.memfd_create("options")
        try:
            os.write(descriptor, self._master_options.encode())
            os.fchmod(descriptor, 0o600)  # the client passes over a file that others could have written

            def ask(statements: str) -> list[list[str]]:
                return self.ask(statements, f"/proc/self/fd/{descriptor}", (descriptor,))

            known = [(row[0], row[1] if len(row) > 1 else "") for row in ask("SELECT user, host FROM mysql.user")]
            # A hash may hold any byte, unless MySQL is asked for hexadecimal digits; MariaDB passes over the request.
            statements = ["SET @unused = 0 /*!80017 , SESSION print_identified_with_as_hex = ON */"]
            for user, host in known:
                name = f"{literal(user)}@{literal(host)}" if host else literal(user)
                statements += [f"SELECT '@', {literal(f'{user}@{host}')}", f"SHOW GRANTS FOR {name}"]
                statements += [f"SHOW CREATE USER {name}"] if host else []  # MariaDB's roles have no host
            found: dict[str, list[str]] = {}
            for row in ask("; ".join(statements)):
                if row[0] == "@":
                    lines = found.setdefault(row[1], [])
                else:
                    lines.append(without_hash(unescaped(" ".join(row))))
        finally:
            os.close(descriptor)
        # Environments may share a server; then only these tell one's accounts from the other's.
        for name, own in (
            ("the application's account", self.ways[".env"].get("user")),
            ("the migrations' account", self.ways[".env.migrate"].get("user")),
            ("the master account", option_settings(self._master_options).get("user")),
        ):
            found[name] = [line for account in known if account[0] == own for line in found["@".join(account)]]
        return {name: "\n".join(sorted(lines)) for name, lines in found.items()}

    # --- services ---

    def nginx(self) -> Facts:
        """Read the configuration that nginx has, all included files of it."""
        if not installed("nginx"):
            return {"nginx": "not installed"}
        found = nginx_files(run("nginx", "-T", "-q"))
        # It names both slots, whichever of them is live, so neither name stands for that (see `identity`).
        texts = {path: re.sub(r"slots/(blue|green)\b", r"slots/<\1>", text) for path, text in found.items()}
        return {path: self.digests.redact(text) for path, text in texts.items()}

    def tls(self) -> Facts:
        """Read which protocols and ciphers nginx accepts, and what its certificate is, by shaking hands with it."""
        if not installed("nginx"):
            return {"nginx": "not installed"}
        text = "\n".join(nginx_files(run("nginx", "-T", "-q")).values())
        ports = sorted(
            {int(port) for port in re.findall(r"^\s*listen\s+(?:\S+:)?(\d+)\b[^;]*\bssl\b", text, re.MULTILINE)}
        )
        names = [
            name for line in re.findall(r"^\s*server_name\s+([^;]+);", text, re.MULTILINE) for name in line.split()
        ]
        name = next((name for name in names if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", name)), "")
        found = {} if ports else {"port": "none listens with TLS"}
        for port in ports:
            for key, value in handshakes(port, name).items():
                found[f"port {port}: {key}"] = value
            certificate = certificate_of(port, name)
            self.certificate_days = min(
                (days for days in (self.certificate_days, certificate.pop("days", None)) if days is not None),
                default=None,
            )
            found.update({f"port {port}: certificate's {key}": str(value) for key, value in certificate.items()})
        return found

    def units(self) -> Facts:
        """Read the text of each enabled unit and of those in /etc, with drop-ins, and systemd's own configuration."""
        found, loaded = {}, set()
        for unit in self.shown():
            paths = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", "").split()]
            loaded.update(paths)
            texts = [f"# {path}\n{lines_of(text_of(path), '[#;]')}" for path in paths if path]
            found[unit["Id"]] = self.digests.redact("\n".join(texts)) or unit.get("LoadState", "unknown")
        for folder, _, names in os.walk("/etc/systemd"):
            for path in (f"{folder}/{name}" for name in names):
                # A drop-in that systemd has not read yet is here, too.
                if path.endswith((".conf", ".network", ".link", ".netdev")) and path not in loaded:
                    found[path] = self.digests.redact(lines_of(text_of(path), "[#;]"))
        return found

    def shown(self) -> list[Facts]:
        """Return what systemd says of the units that are enabled or written for this host; it is asked once."""
        with self._asking:
            if self._shown is None:
                self._shown = self.ask_systemd()
            return self._shown

    def ask_systemd(self) -> list[Facts]:
        """Return systemd's answer as `shown` does."""
        decided = ("enabled", "linked", "masked")
        names = {name for name, state in map(str.split, self.unit_files()) if state.startswith(decided)}
        for folder in ("/etc/systemd/system", "/run/systemd/system"):
            for name in names_in(folder):
                names |= set(names_in(f"{folder}/{name}")) if name.endswith((".wants", ".requires")) else {name}
                names |= {name.removesuffix(".d")} if name.endswith(".d") else set()
        wanted = sorted(
            name for name in names if re.fullmatch(r".+[^@]\.(service|socket|timer|path|mount|swap|target)", name)
        )
        properties = "Id,LoadState,ActiveState,FragmentPath,DropInPaths,MainPID"
        shown = blocks_of(run("systemctl", "show", f"--property={properties}", "--", *wanted))
        return list({unit["Id"]: unit for unit in shown if "Id" in unit}.values())

    @staticmethod
    def unit_files() -> list[str]:
        """Return name and state of each unit file that somebody decided on."""
        listing = run("systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain").splitlines()
        own = ("static", "generated", "transient", "alias", "indirect")
        pairs = [line.split()[:2] for line in listing if len(line.split()) > 1]
        return [f"{name} {state}" for name, state in pairs if state not in own]

    def enabled(self) -> Facts:
        """Read which unit files are enabled, what the enabled units do, and which units failed."""
        found = dict(line.split() for line in self.unit_files())
        for unit in self.shown():
            if unit["Id"].endswith((".service", ".socket", ".timer", ".path", ".swap")):
                found[f"{unit['Id']} is"] = unit.get("ActiveState", "unknown")
        failed = run("systemctl", "list-units", "--failed", "--no-legend", "--no-pager", "--plain").splitlines()
        return {**found, "failed units": " ".join(sorted(line.split()[0] for line in failed)) or "none"}

    def listening(self) -> Facts:
        """Read what listens, and which programs hold it."""
        holders = self.holders()
        low, _, high = text_of("/proc/sys/net/ipv4/ip_local_port_range").partition("\t")
        ephemeral = range(int(low or 0), int(high or -1) + 1)
        seen: dict[str, set[str]] = {}
        for protocol in ("tcp", "udp"):
            for file in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
                for name, inode in listeners_in(text_of(file), protocol, ephemeral):
                    seen.setdefault(name, set()).update(holders.get(inode, ()))
        for name, inode in unix_listeners_in(text_of("/proc/net/unix")):
            seen.setdefault(name, set()).update(holders.get(inode, ()))
        return {name: ", ".join(sorted(programs)) or "nobody" for name, programs in seen.items()}

    @staticmethod
    def holders() -> dict[str, set[str]]:
        """Return the names of the programs that hold a socket, by its inode."""
        found: dict[str, set[str]] = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # a process may end while it is looked at
                program = text_of(f"/proc/{pid}/comm").strip()
                for descriptor in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                        if target.startswith("socket:["):
                            found.setdefault(target[8:-1], set()).add(program)
        return found

    def sysctl(self) -> Facts:
        """Read every setting of the kernel that can be read, those of single network interfaces left out."""
        found = {}
        interfaces = set(names_in("/sys/class/net")) - {"lo"}
        for folder, folders, files in os.walk("/proc/sys"):
            folders[:] = [name for name in folders if name not in interfaces]
            for name in files:
                with contextlib.suppress(OSError):  # some can only be written
                    found[sysctl_name(f"{folder}/{name}")] = " ".join(text_of(f"{folder}/{name}").split())
        return found

    def limits(self) -> Facts:
        """Read the limits of logins, systemd's defaults, and those of the enabled services as they run."""
        folder = "/etc/security/limits.d"
        paths = ["/etc/security/limits.conf", *(f"{folder}/{name}" for name in names_in(folder))]
        found = {path: text for path in paths if (text := lines_of(text_of(path)))}
        for name, value in assignments(run("systemctl", "show")).items():
            if re.match("Default(Limit|Tasks|Timeout|Memory|CPU)", name):
                found[f"systemd {name}"] = value
        for unit in self.shown():
            if (pid := unit.get("MainPID", "0")) != "0":
                for line in text_of(f"/proc/{pid}/limits").splitlines()[1:]:
                    found[f"{unit['Id']} {line[:25].strip()}"] = " ".join(line[25:].split())
        return found

    def firewall(self) -> Facts:
        """Read the rules of nftables and iptables."""
        found = {}
        for name, command in (
            # Numbers of groups are the host's own.
            ("nftables", ("nft", "--guid", "list", "ruleset")),
            ("iptables", ("iptables-save",)),
            ("ip6tables", ("ip6tables-save",)),
        ):
            found[name] = (without_counters(run(*command)) or "no rules") if installed(command[0]) else "not installed"
        return found

    # --- people and files ---

    def users(self) -> Facts:
        """Read the accounts, the groups, and the keys that open the accounts."""
        found = {
            f"user {name}": words for name, words in accounts_in(text_of("/etc/passwd"), text_of("/etc/shadow")).items()
        }
        found.update({f"group {name}": words for name, words in groups_in(text_of("/etc/group")).items()})
        for account in pwd.getpwall():
            for file in ("authorized_keys", "authorized_keys2"):
                for line in lines_of(text_of(f"{account.pw_dir}/.ssh/{file}")).splitlines():
                    found[f"key of {account.pw_name} {fingerprint(line)}"] = line
        return found

    def sudoers(self) -> Facts:
        """Read who may become root."""
        paths = ["/etc/sudoers", *(f"/etc/sudoers.d/{name}" for name in names_in("/etc/sudoers.d"))]
        # Only with a space or a word after it is # a comment there: #include and a user's number are none.
        comment = r"#(?!include|\d)"
        return {path: self.digests.redact(lines_of(text_of(path), comment)) for path in paths if os.path.isfile(path)}

    def sshd(self) -> Facts:
        """Read the configuration that sshd has."""
        if not installed("sshd"):
            return {"sshd": "not installed"}
        found: dict[str, list[str]] = {}
        for line in run("/usr/sbin/sshd", "-T").splitlines():
            key, _, value = line.partition(" ")
            found.setdefault(key, []).append(value)
        return {key: "\n".join(sorted(values)) for key, values in found.items()}

    def files(self) -> Facts:
        """Read kind, mode, owner, attributes and content of what is in folders that roles and people write to."""
        found: Facts = {}
        for tree in ("/etc", "/usr/local", "/opt"):
            for folder, folders, names in os.walk(tree):
                for name in [*folders, *names]:
                    self.add_file(found, f"{folder}/{name}", f"{folder}/{name}")
                # The environments' content is compared by distribution.
                folders[:] = [name for name in folders if name not in ("venv", "__pycache__")]
        for path in (self.root, "/var/log/nginx", f"/var/log/{self.name}", f"/run/{self.name}", "/swapfile"):
            if os.path.lexists(path):
                self.add_file(found, path, path)
        for folder in (self.root, f"{self.root}/slots", f"{self.root}/slots/blue", f"{self.root}/slots/green"):
            for name in names_in(folder):
                if (folder, name) != (f"{self.root}/slots/{self.other_slot()}", "release"):  # history, or nothing yet
                    self.add_file(found, f"{folder}/{name}", f"{folder}/{name}")
        for folder, folders, names in os.walk(self.release) if self.release else ():
            for name in [*folders, *names]:
                path = f"{folder}/{name}"
                self.add_file(found, path, f"{self.root}/releases/<release>{path.removeprefix(self.release)}")
            folders[:] = [name for name in folders if name != "__pycache__"]
        poetry = os.path.dirname(os.path.dirname(os.path.realpath("/usr/local/bin/poetry")))
        for folder in (self.root, f"/var/backups/{self.name}", f"/var/log/{self.name}", poetry):
            if os.path.isdir(folder):
                found[f"{folder}: attributes"] = self.attributes(folder)
        return found

    def other_slot(self) -> str:
        """Return the name of the slot that is not live, nothing if none is."""
        return {"blue": "green", "green": "blue"}.get(self.slot(), "")

    def slot(self) -> str:
        """Return the name of the live slot, nothing if none is."""
        try:
            return os.path.basename(os.readlink(f"{self.root}/live"))
        except OSError:
            return ""

    def add_file(self, found: Facts, path: str, shown: str) -> None:
        """Add the fact of one file, directory or link."""
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            found[shown] = f"link to {os.readlink(path)}"
            return
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "file" if stat.S_ISREG(status.st_mode) else "special"
        words = [kind, f"{stat.S_IMODE(status.st_mode):04o}", f"{owner(status.st_uid)}:{group(status.st_gid)}"]
        words += attributes_of(path)
        if kind == "file" and not any(fnmatch.fnmatchcase(shown, pattern) for pattern, _ in CONTENT_ELSEWHERE):
            words.append(self.content(path))
        found[shown] = " ".join(words)

    # --- about this host ---

    def identity(self) -> list[tuple[str, str]]:
        """Return the texts that are this host's own, and what they stand for."""
        found = [(socket.gethostname(), "<host>"), (socket.gethostname().partition(".")[0], "<host>")]
        found += [(address, "<address>") for address in self.addresses()]
        cards = (text_of(f"/sys/class/net/{name}/address").strip() for name in names_in("/sys/class/net"))
        found += [(card, "<network card>") for card in cards if card.strip("0:")]
        if self.release:
            found.append((os.path.basename(self.release), "<release>"))
            found.append((os.path.basename(self.live_environment), "<environment>"))
            # A folder of the same packages that was made anew has another name.
            if os.path.isdir(f"{self.release}/.server"):
                found.append((os.path.basename(os.path.realpath(f"{self.release}/.server")), "<server>"))
        for slot, word in ((self.slot(), "<live>"), (self.other_slot(), "<idle>")):
            if slot:
                found.append((f"{self.name}@{slot}", f"{self.name}@{word}"))
                found.append((f"slots/{slot}", f"slots/{word}"))
                found.append((f"/run/{self.name}/{slot}.sock", f"/run/{self.name}/{word}.sock"))
        return [(text, word) for text, word in dict(found).items() if text and text != "localhost"]

    @staticmethod
    def addresses() -> list[str]:
        """Return this host's addresses, those of the loopback left out."""
        trie = text_of("/proc/net/fib_trie")
        found = set(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", trie))
        rows = [line.split() for line in text_of("/proc/net/if_inet6").splitlines()]
        found |= {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0])) for row in rows}
        return sorted(address for address in found if not address.startswith("127.") and address != "::1")

    def about(self, facts: dict[str, Facts]) -> dict[str, Any]:
        """Return what people want to know of this host."""
        memory = re.search(r"MemTotal:\s+(\d+)", text_of("/proc/meminfo"))
        disk = shutil.disk_usage("/")
        released = json_at(f"{self.release}/release.json") if self.release else {}
        return {
            "system": facts.get("system", {}).get("release", "unknown"),
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "memory_mib": int(memory[1]) // 1024 if memory else None,
            "disk_used_percent": round(100 * disk.used / disk.total),
            "uptime_seconds": int(float(text_of("/proc/uptime").split()[0])),
            "release": os.path.basename(self.release) or None,
            "commit": released.get("commit"),
            "subject": released.get("subject"),
            "answers": self.answer.get("release"),
            "schema": facts.get("schema", {}).get("head"),
            "python": platform.python_version(),
            "database": facts.get("database", {}).get("version"),
            "certificate_days": self.certificate_days,
        }


def distributions_in(packages: str) -> dict[str, tuple[str, str]]:
    """Return the distributions in a site-packages folder: name to version and folder."""
    found = {}
    for name in names_in(packages):
        if name.endswith(".dist-info"):
            head = text_of(os.path.join(packages, name, "METADATA")).split("\n\n", 1)[0]
            fields = dict(re.findall(r"^(Name|Version): (.+)$", head, flags=re.MULTILINE))
            if "Name" in fields:
                title = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
                found[title] = (fields.get("Version", "unknown"), name)
    return found


def secret_files_in(folder: str) -> dict[str, str]:
    """Return the content of each file in a folder, with the ends of its lines as they are."""
    found = {}
    for name in names_in(folder):
        if os.path.isfile(f"{folder}/{name}"):
            with open(f"{folder}/{name}", encoding="utf-8", errors="replace", newline="") as stream:
                found[name] = stream.read()
    return found


def read(host: Host) -> dict[str, Any]:
    """Read all sections beside each other; return the state."""
    sections = host.sections()
    facts: dict[str, Facts] = {}
    gaps: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(len(sections)) as pool:
        waiting = {name: pool.submit(method) for name, method in sections.items()}
        for name, result in waiting.items():
            try:
                facts[name] = kept(name, result.result())
            except (Unreadable, OSError, ValueError, subprocess.SubprocessError) as error:
                gaps[name] = host.digests.redact(f"{error}")
    return {
        "facts": facts,
        "gaps": gaps,
        "identity": host.identity(),
        "left_out": left_out(),
        "about": host.about(facts),
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"required": True},
            "key": {"required": True, "no_log": True},
            "master_options": {"default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    warnings.simplefilter("ignore", DeprecationWarning)  # that old protocols are refused is what is to be seen
    options: Iterable[str] = option_settings(module.params["master_options"]).values()
    digests = SecretDigests(module.params["key"])
    digests.add(*(value for value in options if len(value) >= 12))
    state = read(Host(module.params["name"], digests, module.params["master_options"]))
    module.exit_json(changed=False, state=json.dumps(as_text(state)))


if __name__ == "__main__":
    main()
