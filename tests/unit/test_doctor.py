"""The doctor's host part: what is seen, and what it is called."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from ansible_collections.waffle.iron.plugins.module_utils import database_settings
from ansible_collections.waffle.iron.plugins.module_utils.doctor import database, machine, service, web
from ansible_collections.waffle.iron.plugins.module_utils.doctor.findings import Area, Done, Finding, arranged, call

from tests.support import AWKWARD, module_at

SUPPORTED = {"debian": ["12", "13"], "ubuntu": ["24.04"]}
SERVER = database.Server("db.example.com", 3306, "shop", "", "-l dev")


# --- order ---


def test_the_most_basic_cause_comes_first_and_what_follows_from_it_last() -> None:
    found = arranged(
        [
            Finding("nginx.upstream", "502", "", follows=("application",)),
            Finding("host.apt", "locked", "", urgent=False),
            Finding("application.health", "database", "", follows=("database",)),
            Finding("certificate.expired", "expired", ""),
            Finding("database.password", "1045", ""),
        ]
    )
    assert [(one["key"], one["follows_from"]) for one in found] == [
        ("database.password", ""),
        ("certificate.expired", ""),
        ("host.apt", ""),
        ("application.health", "database.password"),
        ("nginx.upstream", "application.health"),
    ]


def test_what_cannot_wait_is_no_consequence_of_what_can() -> None:
    apt = Finding("host.apt", "locked", "", urgent=False)
    stopped = Finding("application.service", "inactive", "", follows=("host",))
    assert [(one["key"], one["follows_from"]) for one in arranged([apt, stopped])] == [
        ("application.service", ""),
        ("host.apt", ""),
    ]


def test_a_command_that_hangs_ends() -> None:
    assert call("sleep", "60", seconds=0.1).code == 124
    assert call("no-such-program").code == 127


# --- the machine ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('ID=debian\nVERSION_ID="13"\n', 0),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', 0),
        ('ID=debian\nVERSION_ID="11"\n', 1),
        ("ID=arch\n", 1),
    ],
)
def test_systems(text: str, found: int) -> None:
    assert len(machine.system(text, SUPPORTED)[1]) == found


def disk(**told: int) -> Any:
    sizes = {"f_frsize": 4096, "f_blocks": 10_000_000, "f_bavail": 5_000_000, "f_flag": 0}
    return SimpleNamespace(**{"f_bfree": told.get("f_bavail", sizes["f_bavail"]), **sizes, **told})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, None),
        ({"f_bavail": 400_000}, "is full: 1562 MiB are free"),
        ({"f_blocks": 100_000, "f_bavail": 20_000}, "is full: 78 MiB are free"),
        ({"f_flag": os.ST_RDONLY}, "can only be read"),
    ],
)
def test_disks(told: dict[str, int], words: str | None) -> None:
    found = machine.disk("/srv", disk(**told))
    assert [one.key for one in found] == ([] if words is None else ["host.disk"])
    assert words is None or words in found[0].words


def test_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: disk(f_files=1000, f_favail=3))
    _, found = machine.disks([str(tmp_path), str(tmp_path), str(tmp_path / "nowhere")])
    assert [one.key for one in found] == ["host.inodes"]


@pytest.mark.parametrize(("available", "found"), [(2_000_000, 0), (30_000, 1)])
def test_memory(available: int, found: int) -> None:
    text = f"MemTotal:       4000000 kB\nMemFree:  1 kB\nMemAvailable:   {available} kB\n"
    assert len(machine.memory(text)[1]) == found


@pytest.mark.parametrize(("ahead", "words"), [(2.0, ""), (-29, ""), (3600.2, "3600 s ahead"), (-90, "90 s behind")])
def test_clocks(ahead: float, words: str) -> None:
    assert words in "".join(one.words for one in machine.clock(ahead))
    assert bool(words) == bool(machine.clock(ahead))


def test_the_holder_of_a_lock_is_named_and_nothing_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert machine.holder(str(path)) == 0
    program = f"import fcntl; f = open({str(path)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        assert machine.holder(str(path)) == process.pid
        (found,) = machine.packages([str(path)])
        assert (found.key, found.urgent) == ("host.apt", False)
        assert f"process {process.pid}" in found.words
        process.communicate("\n")
    with path.open("w") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_units_that_have_an_area_of_their_own_are_left_to_it() -> None:
    listing = (
        "nginx.service loaded failed failed x\nshop@blue.service loaded failed failed x\ncron.service loaded failed\n"
    )
    (found,) = machine.units(listing, "shop")
    assert found.words.endswith("failed units: cron.service")
    assert machine.units("", "shop") == []


# --- the database ---


@pytest.mark.parametrize(
    ("number", "kind", "words", "command"),
    [
        (1040, "connections", "no connection left", "workers_max"),
        (1203, "connections", "no connection left", "workers_max"),
        (1226, "connections", "no connection left", "workers_max"),
        (1044, "grant", "account app lacks rights in shop (MySQL's error 1044)", "playbooks/database.yml -l dev"),
        (1142, "grant", "account app lacks rights in shop (MySQL's error 1142)", "playbooks/database.yml -l dev"),
        (1045, "password", "refuses the password of account app (MySQL's error 1045)", "site.yml -l dev"),
        (1049, "missing", "has no database shop", "playbooks/restore.yml -l dev"),
        (1129, "refused", "refuses this host", "FLUSH HOSTS"),
        (1130, "refused", "refuses this host", "FLUSH HOSTS"),
        (1146, "schema", "shop has no schema", "playbooks/migrate.yml -l dev"),
        (2002, "port", "nobody answers on db.example.com:3306", "security group"),
        (2003, "port", "nobody answers on db.example.com:3306", "security group"),
        (2005, "name", "db.example.com does not resolve", "database_host"),
        (2026, "tls", "TLS with db.example.com:3306 failed", "mysql_client_tls_ca_url"),
        (3118, "locked", "account app is locked", "ACCOUNT UNLOCK"),
        (3159, "insecure", "takes connections with TLS alone", "database_tls_ca"),
        (9999, "error", "answers account app with (MySQL's error 9999): said", "playbooks/doctor.yml -l dev"),
    ],
)
def test_errors_of_mysql_are_told_apart(number: int, kind: str, words: str, command: str) -> None:
    assert database.KINDS.get(number, "error") == kind
    key, told, following = SERVER.complaint(kind, "app", number, "said")
    assert key == kind
    assert words in told
    assert command in following


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("ERROR 1045 (28000): Access denied for user 'a'@'b' (using password: YES)", 1045, "Access denied for user"),
        ("WARNING: x\nERROR 2026 (HY000): TLS/SSL error: self-signed certificate", 2026, "TLS/SSL error"),
        ("ERROR 1142 (42000) at line 1: SELECT command denied", 1142, "SELECT command denied"),
        ("mysql: [ERROR] unknown option", 0, ""),
    ],
)
def test_the_clients_words_are_read(text: str, number: int, words: str) -> None:
    found = database.number_in(text)
    assert found[0] == number
    assert found[1].startswith(words)


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        (["GRANT USAGE ON *.* TO `a`@`%`", "GRANT SELECT, INSERT ON `shop`.* TO `a`@`%`"], []),
        (["GRANT USAGE ON *.* TO `a`@`%`", "GRANT SELECT ON `shop`.* TO `a`@`%`"], ["INSERT"]),
        (["GRANT SELECT, INSERT ON `other`.* TO `a`@`%`"], ["INSERT", "SELECT"]),
        (["GRANT ALL PRIVILEGES ON `shop`.* TO `a`@`%`"], []),
        (["GRANT SELECT, INSERT ON `sh\\_op`.* TO `a`@`%`"], ["INSERT", "SELECT"]),
    ],
)
def test_missing_rights_are_named(lines: list[str], missing: list[str]) -> None:
    assert database.lacking("SELECT,INSERT", database.rights(lines, "shop")) == missing


def test_the_settings_of_a_release_are_read_back(tmp_path: Path) -> None:
    written = module_at("plugins/filter/waffle.py").dotenv({"DATABASE_PASSWORD": AWKWARD, "DATABASE_USER": "app"})
    (tmp_path / ".env").write_text(written)
    (tmp_path / ".env.migrate").write_text("DATABASE_USER=migrate\n")
    assert database.settings_of(tmp_path, ".env") == {"DATABASE_PASSWORD": AWKWARD, "DATABASE_USER": "app"}
    assert database.settings_of(tmp_path, ".env", ".env.migrate")["DATABASE_USER"] == "migrate"


@pytest.mark.parametrize(
    ("names", "settings", "expected"),
    [
        (
            {"host": "H", "user": "U", "password": "P"},
            {"H": "db", "U": "app", "P": AWKWARD},
            ("db", "", "app", AWKWARD),
        ),
        (
            {"url": "A"},
            {"A": f"mysql+aiomysql://app:{quote(AWKWARD, safe='')}@db:3307/x"},
            ("db", "3307", "app", AWKWARD),
        ),
        ({"url": "A", "host": "H"}, {"A": "mysql://u:p@old/x", "H": "db"}, ("db", "", "u", "p")),
        ({"url": "A"}, {"A": "no address"}, ("", "", "", "")),
        ({"url": "A"}, {"A": "mysql://h:port/x"}, ("", "", "", "")),
        ({}, {"DATABASE_HOST": "db"}, ("", "", "", "")),
    ],
)
def test_the_way_to_the_database_is_read_back(
    names: dict[str, str], settings: dict[str, str], expected: tuple[str, ...]
) -> None:
    found = database_settings.way_to_database(names, settings)
    assert tuple(found.get(part, "") for part in ("host", "port", "user", "password")) == expected


@pytest.mark.parametrize("stated", [{"database": {}}, {"database": {"host": "DB_HOST"}}])
def test_without_a_database_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: dict[str, Any]
) -> None:
    monkeypatch.setattr(database, "address_of", pytest.fail)
    (tmp_path / "release.json").write_text(json.dumps({"application": stated}))
    host = "" if stated["database"] else "db"
    area = database.examine({"host": host, "port": 3306, "name": "x", "tls_ca": ""}, {}, "", tmp_path, "p")
    assert (area.findings, area.checked) == ([], ["no database"])


@pytest.mark.parametrize(
    ("code", "out", "key", "urgent"),
    [
        (0, '{"current": "1", "head": "1", "pending": []}', "", True),
        (0, '{"current": "1", "head": "2", "pending": [{"revision": "2"}]}', "database.schema", True),
        (1, "", "database.schema", True),
        (124, "", "database.busy", False),
    ],
)
def test_schemas(monkeypatch: pytest.MonkeyPatch, code: int, out: str, key: str, urgent: bool) -> None:
    monkeypatch.setattr(database, "call", lambda *_, **__: Done(code, out, "said"))
    area = Area("database")
    database.schema(area, SERVER, "nba-release", "r1")
    assert [(one.key, one.urgent) for one in area.findings] == ([(key, urgent)] if key else [])


@pytest.mark.parametrize(
    "said",
    [
        "2026/11/23 09:00:00 [emerg] 7#7: unknown directive in /a:1\nnginx: configuration file test failed",
        "nginx: [emerg] unknown directive in /a:1",
    ],
)
def test_what_nginx_refuses_is_said_without_its_numbers(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(web, "call", lambda *_: Done(1, "", said))
    monkeypatch.setattr(web, "properties", lambda *_: {})
    area, _ = web.examine(CONFIG, "blue", None, "-l dev")
    assert [one.words for one in area.findings] == ["nginx refuses its configuration: unknown directive in /a:1"]


def packet(body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + b"\0" + body


def greeting(capabilities: int = 0xFFFF) -> bytes:
    return packet(b"\x0a8.4.0\0" + b"\0" * 4 + b"12345678" + b"\0" + struct.pack("<H", capabilities) + b"\0" * 20)


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, server.getsockname()[1]


@pytest.mark.parametrize(
    ("said", "tls_ca", "kind", "words"),
    [
        (greeting(), "", "", ""),
        (packet(b"\xff" + struct.pack("<H", 1040) + b"#08004Too many connections"), "", "connections", "Too many"),
        (packet(b"\xff" + struct.pack("<H", 1130) + b"Host is not allowed"), "", "refused", "Host is not allowed"),
        (greeting(0), "ca.pem", "tls", "the server offers none"),
        (greeting(), "/no/such/ca.pem", "tls", "/no/such/ca.pem (database_tls_ca) cannot be read"),
        (b"", "", "port", "closed the connection before it had greeted"),
        (packet(b"SSH-2.0-OpenSSH"), "ca.pem", "port", ""),
    ],
    ids=["well", "1040", "1130", "no tls", "no authority", "silent", "not mysql"],
)
def test_a_server_s_greeting_is_understood(
    listening: tuple[socket.socket, int], said: bytes, tls_ca: str, kind: str, words: str
) -> None:
    server, port = listening

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(said)

    thread = threading.Thread(target=serve)
    thread.start()
    found = database.speak(database.Server("127.0.0.1", port, "shop", tls_ca, ""))
    thread.join()
    assert found[0] == kind
    assert words in found[2]


def test_a_port_that_nobody_listens_on(listening: tuple[socket.socket, int]) -> None:
    server, port = listening
    server.close()
    assert database.speak(database.Server("127.0.0.1", port, "shop", "", ""))[0] == "port"


def test_a_server_that_says_nothing_does_not_hold_the_doctor_up(
    listening: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SECONDS", 0.2)
    kind, _, words = database.speak(database.Server("127.0.0.1", listening[1], "shop", "", ""))
    assert (kind, words) == ("port", "timed out")


def test_a_resolver_that_does_not_answer_does_not_hold_the_doctor_up(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: iter([wait.wait(60)]))
    assert database.address_of("db.example.com", 3306, seconds=0.1) is None
    wait.set()


# --- the application ---


@pytest.mark.parametrize(
    ("shown", "key", "words"),
    [
        ({"ActiveState": "active", "UnitFileState": "enabled"}, "", ""),
        ({"ActiveState": "active", "UnitFileState": "masked"}, "service", "is masked"),
        ({"ActiveState": "inactive", "Result": "success"}, "service", "is inactive"),
        ({"ActiveState": "failed", "Result": "oom-kill"}, "service", "raise memory_max"),
        (
            {"ActiveState": "activating", "Result": "exit-code", "ExecMainStatus": "3"},
            "service",
            "exited with status 3",
        ),
        ({"ActiveState": "failed", "Result": "timeout"}, "service", "did not start in time"),
        ({}, "service", "is unknown"),
    ],
)
def test_units(shown: dict[str, str], key: str, words: str) -> None:
    area = Area("application")
    assert service.unit(area, shown, "shop", "blue", "-l dev") == (not key)
    assert [one.key for one in area.findings] == ([f"application.{key}"] if key else [])
    assert words in "".join(one.words for one in area.findings)


CONFIG = {"name": "shop", "root": "/srv/shop", "public_host": "shop.example"}
STATED = {"ready_path": "/ready", "ready_answers": "success", "scheme": "https"}


@pytest.mark.parametrize(
    ("version", "ready", "found"),
    [
        ((200, '{"release": "r1"}'), (200, ""), []),
        ((0, "Connection refused"), (0, ""), [("application.silent", service.RESOURCES)]),
        ((200, '{"release": "r0"}'), (200, ""), [("application.release", ())]),
        ((500, ""), (200, ""), [("application.release", ())]),
        (
            (200, '{"release": "r1"}'),
            (503, '{"reason": "database refused the account"}'),
            [("application.health", ("database", *service.RESOURCES))],
        ),
        ((200, '{"release": "r1"}'), (503, '{"reason": "queue"}'), [("application.health", service.RESOURCES)]),
    ],
)
def test_answers_of_the_application(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, str], ready: tuple[int, str], found: list[Any]
) -> None:
    assert asked(monkeypatch, STATED, {"/.waffle/version": version, "/ready": ready}) == found


def asked(monkeypatch: pytest.MonkeyPatch, stated: dict[str, str], pages: dict[str, tuple[int, str]]) -> list[Any]:
    """Return what is found about a release that states this and answers so."""

    def get(_: object, path: str, host: str = "", headers: dict[str, str] | None = None) -> tuple[int, str]:
        # An application may refuse other names, and send plain HTTP elsewhere.
        assert path == "/.waffle/version" or (host, headers) == ("shop.example", {"X-Forwarded-Proto": "https"})
        return pages[path]

    monkeypatch.setattr(service, "get", get)
    monkeypatch.setattr(service, "application_of", lambda _: stated)
    area = Area("application")
    service.answers(area, CONFIG, "blue", Path("r1"), "-l dev")
    return [(one.key, one.follows) for one in area.findings]


@pytest.mark.parametrize(("answer", "is_well"), [(404, True), (307, True), (500, False), (0, False)])
def test_an_application_without_a_health_path_is_well_below_500(
    monkeypatch: pytest.MonkeyPatch, answer: int, is_well: bool
) -> None:
    pages = {"/.waffle/version": (200, '{"release": "r1"}'), "/ready": (answer, "")}
    assert (asked(monkeypatch, {**STATED, "ready_answers": "any"}, pages) == []) is is_well


def test_a_release_of_an_older_version_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, {}, {"/.waffle/version": (404, "")}) == []


def test_the_live_release_is_what_the_links_say(tmp_path: Path) -> None:
    assert service.live_release(tmp_path) == ("", None)
    (tmp_path / "releases/r1").mkdir(parents=True)
    (tmp_path / "slots/green").mkdir(parents=True)
    (tmp_path / "live").symlink_to("slots/green")
    (tmp_path / "slots/green/release").symlink_to(tmp_path / "releases/r1")
    assert service.live_release(tmp_path) == ("green", tmp_path / "releases/r1")
    (tmp_path / "releases/r1").rmdir()
    assert service.live_release(tmp_path) == ("", None)


# --- nginx ---


def test_what_stands_in_an_account_s_way_is_named(tmp_path: Path) -> None:
    user = pwd.getpwuid(65534).pw_name
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    file = folder / "index.html"
    file.touch()
    # What lies above is the test's own, as closed as it pleases.
    for part in (*tmp_path.parents, tmp_path):
        if part.stat().st_uid == os.getuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o011)
    file.chmod(0o644)
    assert web.obstacle(str(file), user, 4) == ""
    file.chmod(0o640)
    assert web.obstacle(str(file), user, 4) == f"{user} may not read {file} (mode 0640)"
    folder.chmod(0o700)
    assert web.obstacle(str(file), user, 4) == f"{user} may not enter {folder} (mode 0700)"
    assert "No such file" in web.obstacle(str(tmp_path / "a/nowhere"), user, 4)


def test_ports_are_those_of_the_configuration() -> None:
    text = "listen 80 default_server;\n  listen [::]:80;\n listen 127.0.0.1:8443 ssl;\n listen unix:/run/x.sock;\n"
    assert web.ports_of(text) == [80, 8443]
    assert web.ports_of("") == [80]


NGINX = {"root": "/srv/shop", "public_url": "http://127.0.0.1", "public_host": "_"}


def release_at(folder: Path, *, page: bool = True, application: bool = True) -> Path:
    """Return the folder of a release."""
    release = folder / "r1"
    release.mkdir()
    if page:
        (release / "frontend").mkdir()
    (release / "release.json").write_text(json.dumps({"application": {"module": "main:app"}} if application else {}))
    return release


@pytest.mark.parametrize(
    ("page", "version", "keys"),
    [
        ((200, ""), (200, '{"release": "r1"}'), []),
        ((404, ""), (200, '{"release": "r1"}'), ["nginx.frontend"]),
        ((200, ""), (502, ""), ["nginx.upstream"]),
        ((200, ""), (200, '{"release": "r0"}'), ["nginx.upstream"]),
        ((200, ""), (404, '{"detail": "Not Found"}'), ["nginx.upstream"]),
        ((0, "refused"), (0, "refused"), ["nginx.frontend", "nginx.upstream"]),
    ],
)
def test_answers_of_nginx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: tuple[int, str], version: tuple[int, str], keys: list[str]
) -> None:
    monkeypatch.setattr(web, "get", lambda _, path, host: {"/": page, "/.waffle/version": version}[path])
    area = Area("nginx")
    web.public(area, NGINX, release_at(tmp_path), "-l dev")
    assert [one.key for one in area.findings] == keys


def test_without_a_page_the_start_page_is_the_application_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(web, "get", lambda _, path, host: {"/.waffle/version": (200, '{"release": "r1"}')}[path])
    monkeypatch.setattr(web, "obstacle", lambda path, user, bits: "not there" if path.endswith("html") else "")
    area, release = Area("nginx"), release_at(tmp_path, page=False)
    web.public(area, NGINX, release, "-l dev")
    web.rights(area, tmp_path, release, "www-data", "-l dev")
    assert area.findings == []


@pytest.mark.parametrize(("status", "keys"), [(404, []), (200, []), (502, ["nginx.upstream"])])
def test_a_release_of_an_older_version_has_to_be_reached_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, keys: list[str]
) -> None:
    monkeypatch.setattr(web, "get", lambda _, path, host: {"/": (200, ""), "/.waffle/version": (status, "")}[path])
    area = Area("nginx")
    web.public(area, NGINX, release_at(tmp_path, application=False), "-l dev")
    assert [one.key for one in area.findings] == keys


def test_certificates_are_found_once_each() -> None:
    text = "  ssl_certificate /a.pem;\n  ssl_certificate_key /a.key;\nssl_certificate /a.pem;\n ssl_certificate $x;\n"
    text += "server { listen 1; ssl_certificate /b.pem; }\n"
    assert web.certificates_in(text) == ["/a.pem", "/b.pem"]


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def printed(begin: timedelta, end: timedelta) -> str:
    return "\n".join(
        f"{name}={NOW + offset:%b %d %H:%M:%S %Y} GMT" for name, offset in (("notBefore", begin), ("notAfter", end))
    )


@pytest.mark.parametrize(
    ("text", "days", "key"),
    [
        (printed(-timedelta(days=9), timedelta(days=80)), 80, ""),
        (printed(-timedelta(days=80), timedelta(days=5)), 5, "expires"),
        (printed(-timedelta(days=90), -timedelta(hours=1)), -1, "expired"),
        (printed(timedelta(hours=1), timedelta(days=90)), 90, "early"),
        ("", None, "unreadable"),
    ],
)
def test_certificates(text: str, days: int | None, key: str) -> None:
    left, found = web.certificate("/a.pem", text, NOW, "-l dev")
    assert left == days
    assert [one[0] for one in found] == ([key] if key else [])


def test_requests_of_the_last_minutes_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    lines = [
        f'{{"time":"{NOW + timedelta(minutes=minute):%Y-%m-%dT%H:%M:%S+00:00}","status":{status}}}'
        for minute, status in ((-30, 500), (-14, 200), (-3, 502), (-1, 404))
    ]
    log.write_text("\n".join([*lines[:2], "not JSON", *lines[2:]]) + "\n")
    counted = web.requests(web.last_lines(str(log)), 15, NOW.timestamp())
    assert counted == {"minutes": 15, "count": 3, "failed": 1}
    # Only the end of a long log is read.
    assert list(web.last_lines(str(log), limit=len(lines[3]) + 5)) == [lines[3]]
    assert list(web.last_lines(str(tmp_path / "nowhere"))) == []
