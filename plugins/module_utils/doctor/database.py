"""The database, step by step: its name, its port, its greeting, TLS, the accounts, their grants, the schema."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.database_settings import application_of, way_to_database
from ansible_collections.waffle.iron.plugins.module_utils.doctor.findings import NOT_FOUND, TIMED_OUT, Area, call
from ansible_collections.waffle.iron.plugins.module_utils.environment import dotenv_values

SECONDS = 4.0
SECONDS_FOR_ALEMBIC = 20.0
CLIENT_SSL = 1 << 11
# PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH and SSL: what a client says before TLS begins.
CAPABILITIES = 1 << 9 | 1 << 15 | 1 << 19 | CLIENT_SSL

# MySQL's and its clients' error numbers: what they are called here.
KINDS = {
    **dict.fromkeys((1040, 1203, 1226), "connections"),
    **dict.fromkeys((1045, 1698, 1820, 1862, 2061), "password"),
    **dict.fromkeys((1044, 1142, 1143, 1227), "grant"),
    **dict.fromkeys((3118, 4151), "locked"),
    1049: "missing",
    **dict.fromkeys((1129, 1130), "refused"),
    1146: "schema",
    **dict.fromkeys((2002, 2003, 2006, 2013), "port"),
    2005: "name",
    2026: "tls",
    3159: "insecure",
}


@dataclass(frozen=True)
class Server:
    """The database as the service is told to reach it; ``target`` are the options of the next command."""

    host: str
    port: int
    database: str
    tls_ca: str
    target: str

    @property
    def place(self) -> str:
        """Return host and port."""
        return f"{self.host}:{self.port}"

    def complaint(self, kind: str, account: str, number: int, words: str) -> tuple[str, str, str]:
        """Return key, words and next command for a kind of error."""
        who = f"account {account}" if account else "this host"
        code = f" (MySQL's error {number})" if number else ""
        site, doctor = (
            f"ansible-playbook site.yml {self.target}",
            f"ansible-playbook playbooks/doctor.yml {self.target}",
        )
        known = {
            "name": (
                f"the name {self.host} does not resolve on this host",
                f"correct database_host in the inventory, then: {site}",
            ),
            "port": (
                f"nobody answers on {self.place}: {words}",
                f"start the server, let its security group take port {self.port} from this host, or correct "
                f"database_host and database_port in the inventory; then: {doctor}",
            ),
            "tls": (
                f"TLS with {self.place} failed: {words}",
                "set mysql_client_tls_ca_url in the inventory to the certificates of the server's authority (for RDS "
                f"its global bundle), then: ansible-playbook playbooks/database.yml {self.target}",
            ),
            "insecure": (
                f"{self.place} takes connections with TLS alone{code}, and database_tls_ca is empty",
                f"set database_tls_ca in group_vars/<environment>/vars.yml, then: {site}",
            ),
            "connections": (
                f"{self.place} has no connection left for {who}{code}: {words}",
                "lower workers_max in group_vars/<environment>/vars.yml or the application's own pool, or raise the "
                f"server's max_connections; who has them: SHOW PROCESSLIST as its master account; then: {site}",
            ),
            "password": (
                f"{self.place} refuses the password of {who}{code}, or has no such account",
                f"give it the vault's: {site}",
            ),
            "locked": (
                f"{who} is locked on {self.place}{code}",
                f"as the server's master account: ALTER USER '{account}'@'%' ACCOUNT UNLOCK",
            ),
            "refused": (
                f"{self.place} refuses this host{code}: {words}",
                f"as the server's master account: FLUSH HOSTS; then: {doctor}",
            ),
            "missing": (
                f"{self.place} has no database {self.database}{code}",
                f"ansible-playbook playbooks/restore.yml {self.target} lists the backups; a new and empty one: {site}",
            ),
            "grant": (
                f"{who} lacks rights in {self.database}{code}: {words}",
                f"ansible-playbook playbooks/database.yml {self.target}",
            ),
            "schema": (
                f"{self.database} has no schema{code}",
                f"ansible-playbook playbooks/migrate.yml {self.target}",
            ),
        }
        told = known.get(kind, (f"{self.place} answers {who} with{code or ' an error'}: {words}", doctor))
        return (kind, *told)


def settings_of(folder: Path, *names: str) -> dict[str, str]:
    """Return the settings of a release's files; the later file wins."""
    found: dict[str, str] = {}
    for name in names:
        path = folder / name
        if path.is_file():
            found.update(dotenv_values(path.read_text()))
    return found


def address_of(host: str, port: int, seconds: float = SECONDS) -> list[Any] | None:
    """Return the addresses of a name, or None if it has none; a resolver that does not answer counts as none."""
    found: list[Any] = []

    def look() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError:
            found.clear()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    return list(found) or None


def error_in(packet: bytes) -> tuple[int, str]:
    """Return number and words of an error that the server greets with; 0 if it greets as it should."""
    if packet[:1] != b"\xff":
        return 0, ""
    words = packet[3:].decode(errors="replace")
    return struct.unpack("<H", packet[1:3])[0], words[6:] if words.startswith("#") else words


def offers_tls(packet: bytes) -> bool:
    """Return True if a server's greeting offers TLS."""
    rest = packet[packet.index(b"\0", 1) + 1 :]
    # Thread id (4), first part of the challenge (8), a filler (1), then the lower half of the capabilities.
    return bool(struct.unpack("<H", rest[13:15])[0] & CLIENT_SSL)


def read(connection: socket.socket) -> bytes:
    """Return one packet of MySQL's protocol."""
    head = exactly(connection, 4)
    return exactly(connection, int.from_bytes(head[:3], "little"))


def exactly(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes; raise `ConnectionError` if the other side ends before."""
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the server closed the connection before it had greeted")
        data += part
    return data


def speak(server: Server) -> tuple[str, int, str]:
    """Greet a server and begin TLS; return the kind of error, its number and words, or nothing if all is well."""
    try:
        with socket.create_connection((server.host, server.port), timeout=SECONDS) as connection:
            packet = read(connection)
            number, words = error_in(packet)
            if number:
                return KINDS.get(number, "error"), number, words
            if not server.tls_ca:
                return "", 0, ""
            if not offers_tls(packet):
                return "tls", 0, "the server offers none"
            return begin_tls(server, connection)
    except (OSError, ValueError, IndexError, struct.error) as error:
        return "port", 0, getattr(error, "strerror", None) or str(error) or type(error).__name__


def begin_tls(server: Server, connection: socket.socket) -> tuple[str, int, str]:
    """Verify the server's certificate and name as the application does."""
    try:
        context = ssl.create_default_context(cafile=server.tls_ca)
    except (OSError, ValueError) as error:
        return "tls", 0, f"{server.tls_ca} (database_tls_ca) cannot be read on this host: {error}"
    # Python 3.13 began to refuse authorities without extensions that MySQL's own and older RDS ones lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    body = struct.pack("<IIB23x", CAPABILITIES, 1 << 24, 45)
    try:
        connection.sendall(len(body).to_bytes(3, "little") + b"\x01" + body)
        with context.wrap_socket(connection, server_hostname=server.host):
            return "", 0, ""
    except ssl.SSLCertVerificationError as error:
        return "tls", 0, error.verify_message
    except (OSError, ValueError) as error:
        return "tls", 0, str(error) or "the server closed the connection"


def option_file(server: Server, user: str, password: str) -> str:
    """Return the text of an option file for the client of MySQL or MariaDB."""
    options = {
        "host": server.host,
        "port": str(server.port),
        "user": user,
        "password": password,
        "ssl-ca": server.tls_ca,
        "loose-ssl-mode": "VERIFY_IDENTITY" if server.tls_ca else "PREFERRED",
        "loose-ssl-verify-server-cert": "1" if server.tls_ca else "0",
        "loose-get-server-public-key": "1",
        "connect-timeout": f"{SECONDS:.0f}",
    }
    escaped = {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in options.items() if value}
    return "[client]\n" + "".join(f'{key} = "{value}"\n' for key, value in escaped.items())


def ask(server: Server, user: str, password: str, statement: str) -> tuple[int, str, list[str]]:
    """Query the database as an account; return the error's number and message, and the lines of the answer."""
    client = shutil.which("mariadb") or shutil.which("mysql") or "mysql"
    # In memory alone, and for root's eyes.
    with tempfile.TemporaryDirectory(dir="/run", prefix="doctor-") as folder:
        path = Path(folder, "options.cnf")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(option_file(server, user, password))
        fixed = ("--batch", "--skip-column-names", "--default-character-set=utf8mb4", f"--database={server.database}")
        done = call(client, f"--defaults-file={path}", *fixed, f"--execute={statement}")
    if done.code == 0:
        return 0, "", done.out.splitlines()
    if done.code == NOT_FOUND:
        return -1, "its client is not installed", []
    number, words = number_in(done.err)
    return number, words or done.last, []


def number_in(text: str) -> tuple[int, str]:
    """Return number and words of an error as the clients print it; 0 and nothing if there is none."""
    found = re.search(r"ERROR (\d+)(?: \([0-9A-Z]+\))?(?: at line \d+)?: (.*)", text)
    return (int(found[1]), found[2].strip()) if found else (0, "")


def rights(lines: list[str], database: str) -> set[str]:
    """Return the privileges that ``SHOW GRANTS`` lists for a database, upper case."""
    found: set[str] = set()
    for line in lines:
        match = re.match(r"GRANT (.+?) ON (\S+) TO ", line)
        if match and match[2].replace("\\", "") in ("*.*", f"`{database}`.*"):
            found |= {part.strip().upper() for part in match[1].split(",")}
    return found


def lacking(wanted: str, found: set[str]) -> list[str]:
    """Return the privileges of a comma separated list that are not there."""
    if found & {"ALL", "ALL PRIVILEGES"}:
        return []
    return sorted({part.strip().upper() for part in wanted.split(",") if part.strip()} - found)


def schema(area: Area, server: Server, program: str, release: str) -> None:
    """Compare the database's schema with that of a release, by the release's own Alembic."""
    done = call(program, "plan", release, seconds=SECONDS_FOR_ALEMBIC)
    try:
        plan = json.loads(done.out or "{}") if done.code == 0 else {}
    except ValueError:
        plan = {}
    if done.code == TIMED_OUT:
        # A busy host says nothing of its schema; that is no fault of the schema.
        busy = f"the schema could not be asked for within {SECONDS_FOR_ALEMBIC:.0f} s"
        area.add("busy", busy, "on the host: uptime; then the same command again", urgent=False)
        return
    if not plan:
        deploy = f"ansible-playbook playbooks/deploy.yml {server.target}"
        area.add("schema", f"the schema does not fit the live release: {done.last}", deploy)
        return
    area.facts["schema"] = plan["current"]
    if plan["pending"]:
        names = ", ".join(step["revision"] for step in plan["pending"])
        area.add(
            "schema",
            f"the database is at revision {plan['current'] or 'none'}, and the live release wants {plan['head']}: "
            f"{names} not applied",
            f"ansible-playbook playbooks/migrate.yml {server.target}",
        )
        return
    area.checked.append(f"schema {plan['current']}")


def examine(
    defaults: Mapping[str, Any], accounts: Mapping[str, str], target: str, release: Path | None, program: str
) -> Area:
    """Return the first thing that is wrong between this host and the database.

    Args:
        defaults: ``host``, ``port``, ``name`` and ``tls_ca``, where no release says otherwise; no host: no database.
        accounts: privileges of each account, separated by commas.
        target: options for the next command, such as ``-l dev``.
        release: the folder of the live release, whose accounts are tried; None if there is none.
        program: path of the release program, which knows the schema.
    """
    area = Area("database")
    application = application_of(release) if release else {}
    names = application.get("database", {})
    if not defaults["host"] or (application and not names):
        area.checked.append("no database")
        return area
    service = settings_of(release, ".env") if release else {}
    way = way_to_database(names, service)
    server = Server(
        way.get("host") or str(defaults["host"]),
        int(way.get("port") or defaults["port"]),
        way.get("name") or str(defaults["name"]),
        # An application that is told of no authority leaves that to its driver: the host's is as good.
        way.get("tls_ca", "") if "tls_ca" in names else str(defaults["tls_ca"]),
        target,
    )
    if not address_of(server.host, server.port):
        return area.add(*server.complaint("name", "", 0, ""))
    kind, number, words = speak(server)
    if kind:
        return area.add(*server.complaint(kind, "", number, words))
    area.checked += [server.place, "TLS" if server.tls_ca else "no TLS"]
    if release is None or not application:
        return area
    pair = (service, settings_of(release, ".env", ".env.migrate"))
    for settings in pair if pair[0] != pair[1] else pair[:1]:
        own = way_to_database(names, settings)
        account = own.get("user", "")
        number, words, lines = ask(server, account, own.get("password", ""), "SHOW GRANTS")
        if number == -1:
            command = f"ansible-playbook playbooks/database.yml {target}"
            return area.add("client", "the client of MySQL is not installed", command)
        if words:
            return area.add(*server.complaint(KINDS.get(number, "error"), account, number, words))
        if missing := lacking(accounts.get(account, ""), rights(lines, server.database)):
            return area.add(*server.complaint("grant", account, 0, f"{', '.join(missing)} missing"))
        area.checked.append(f"account {account}")
    if application.get("alembic"):
        schema(area, server, program, release.name)
    else:
        area.checked.append("no migrations")
    return area
