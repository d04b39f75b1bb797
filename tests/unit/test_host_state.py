"""The module that reads what a host is made of: its parsers, and that no secret leaves it."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ansible_collections.waffle.iron.plugins.module_utils import attributes
from ansible_collections.waffle.iron.plugins.module_utils.host_state import handshakes, parsing, reading
from ansible_collections.waffle.iron.plugins.module_utils.host_state.digests import SecretDigests
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.compare import secret_digest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support import AWKWARD, module_at
from tests.unit.test_attributes import OF_FILES, give

host_state = module_at("plugins/modules/host_state.py")
filters = module_at("plugins/filter/waffle.py")

PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=40)


@pytest.fixture
def redactor() -> Any:
    return SecretDigests("a key of this run")


# --- secrets ---


def test_a_digest_is_equal_for_equal_secrets_of_one_run_alone(redactor: Any) -> None:
    again, other = SecretDigests("a key of this run"), SecretDigests("the key of another run")
    assert redactor.secret(AWKWARD) == again.secret(AWKWARD) != other.secret(AWKWARD)
    assert redactor.secret(AWKWARD) != redactor.secret(AWKWARD + " ")
    assert AWKWARD not in redactor.secret(AWKWARD)


@given(PRINTABLE)
def test_the_control_node_makes_the_same_digest(text: str) -> None:
    assert SecretDigests("key").secret(text) == secret_digest("key", text)


@pytest.mark.parametrize(
    "line",
    [
        "Environment=DATABASE_PASSWORD=hunter2-hunter2",
        'Environment="API_TOKEN=hunter2-hunter2"',
        "secret_key: hunter2-hunter2",
        '        proxy_set_header Authorization "Basic hunter2-hunter2";',
        "proxy_set_header X-Api-Key hunter2-hunter2;",
        "set $client_secret hunter2-hunter2;",
        "proxy_pass http://user:hunter2-hunter2@backend/;",
        'SetCredential="passphrase:hunter2-hunter2"',
    ],
)
def test_what_looks_like_a_secret_is_covered(redactor: Any, line: str) -> None:
    covered = redactor.redact(f"one\n{line}\ntwo")
    assert "hunter2" not in covered
    assert covered.startswith("one\n")
    assert covered.endswith("\ntwo")
    assert covered == redactor.redact(f"one\n{line}\ntwo") != redactor.redact(f"one\n{line.replace('2', '3')}\ntwo")


@pytest.mark.parametrize("line", ["server_tokens off;", "ExecStart=/bin/ask-password --watch", "passwd:", "a=b"])
def test_what_does_not_is_left_alone(redactor: Any, line: str) -> None:
    assert redactor.redact(line) == line


def test_a_secret_of_the_host_is_found_in_any_text(redactor: Any) -> None:
    redactor.add("correct horse battery", "short")
    assert "horse" not in redactor.redact("# the word is correct horse battery, they say")
    assert redactor.redact("a short word") == "a short word"


# --- the files that the project writes ---


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,9}", fullmatch=True), PRINTABLE, max_size=4))
def test_settings_come_back_from_the_filter_s_quoting(settings: dict[str, str]) -> None:
    assert parsing.dotenv_settings(filters.dotenv(settings)) == settings


@given(st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,9}", fullmatch=True), PRINTABLE.filter(bool), max_size=4))
def test_options_come_back_from_the_filter_s_quoting(options: dict[str, str]) -> None:
    assert parsing.option_settings(filters.option_file(options)) == options


# --- parsers ---


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ("6.12.41+deb13-amd64", "6.12 amd64"),
        ("6.12.41+deb13-cloud-amd64", "6.12 cloud-amd64"),
        ("6.8.0-1031-aws", "6.8 aws"),
        ("6.1.0-9-rt-amd64", "6.1 rt-amd64"),
        ("6.18.5", "6.18"),
        ("odd", "odd"),
    ],
)
def test_the_family_of_a_kernel(release: str, family: str) -> None:
    assert parsing.kernel_family(release) == family


def test_the_files_of_nginx() -> None:
    text = (
        "# configuration file /etc/nginx/nginx.conf:\nuser a;  \n\n  # a comment\nhttp {\n}\n\n"
        "# configuration file /etc/nginx/b.conf:\n# nothing\n"
    )
    assert parsing.nginx_files(text) == {"/etc/nginx/nginx.conf": "user a;\nhttp {\n}", "/etc/nginx/b.conf": ""}


def test_what_listens() -> None:
    head = "  sl  local_address rem_address   st tx rx tr tm retrnsmt   uid  timeout inode\n"
    tcp = head + (
        "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 101 1\n"
        "   1: 0100007F:0CEA 0100007F:1234 01 00000000:00000000 00:00000000 00000000 0 0 102 1\n"
    )
    tcp6 = head + "   0: 00000000000000000000000001000000:0016 0:0 0A 0:0 0:0 0 0 0 103 1\n"
    udp = head + "   0: 00000000:0044 0:0 07 0:0 0:0 0 0 0 104 1\n   1: 00000000:9000 0:0 07 0:0 0:0 0 0 0 105 1\n"
    ephemeral = range(32768, 61000)
    assert list(parsing.listeners_in(tcp, "tcp", ephemeral)) == [("tcp 0.0.0.0:80", "101")]
    assert list(parsing.listeners_in(tcp6, "tcp", ephemeral)) == [("tcp [::1]:22", "103")]
    assert list(parsing.listeners_in(udp, "udp", ephemeral)) == [
        ("udp 0.0.0.0:68", "104"),
        ("udp 0.0.0.0:<any port>", "105"),
    ]
    unix = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "00000000: 00000002 00000000 00010000 0001 01 201 /run/nba/blue.sock\n"
        "00000000: 00000002 00000000 00010000 0001 01 202 @abstract\n"
        "00000000: 00000002 00000000 00010000 0001 01 203 /run/user/1000/bus\n"
        "00000000: 00000003 00000000 00000000 0001 03 204 /run/connected\n"
        "00000000: 00000003 00000000 00000000 0001 03 205\n"
    )
    assert list(parsing.unix_listeners_in(unix)) == [("unix /run/nba/blue.sock", "201")]


def test_accounts_and_groups() -> None:
    passwd = (
        "root:x:0:0:root:/root:/bin/bash\nnba:x:998:998::/srv/nba:/usr/sbin/nologin\nbob:x:1:1:Bob:/home/bob:/bin/sh\n"
    )
    found = parsing.accounts_in(passwd, "root:*:1:0:9:7:::\nnba:!:1::::::\nbob:$y$hash:1:0:9:7::20000:\n")
    assert found["nba"] == "uid 998, gid 998, /srv/nba, /usr/sbin/nologin, locked, ''"
    assert "has a password, expires on day 20000" in found["bob"]
    assert "hash" not in found["bob"]
    assert "no password" in parsing.accounts_in(passwd, "root::1:0:9:7:::\n")["root"]
    assert parsing.groups_in("sudo:x:27:b,a\n") == {"sudo": "gid 27: a, b"}


def test_firewall_rules_have_no_counters() -> None:
    nft = "table inet f {\n chain i {\n  tcp dport 22 counter packets 12 bytes 720 accept\n }\n}\n"
    assert parsing.without_counters(nft) == parsing.without_counters(nft.replace("12", "99"))
    saved = "# Generated by iptables-save on Monday\n*filter\n:INPUT ACCEPT [9:9]\n[3:4] -A INPUT -j ACCEPT\nCOMMIT\n"
    assert parsing.without_counters(saved) == "*filter\n:INPUT ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT"


@pytest.mark.parametrize(
    "text",
    [
        "CREATE USER `a`@`%` IDENTIFIED WITH 'caching_sha2_password' AS 'SALT\\'and''hash' REQUIRE SSL",
        "CREATE USER `a`@`%` IDENTIFIED WITH 'caching_sha2_password' AS 0x53414C54 REQUIRE SSL",
        "GRANT USAGE ON *.* TO `a`@`%` IDENTIFIED BY PASSWORD '*SALT' REQUIRE SSL",
    ],
)
def test_an_account_has_no_hash(text: str) -> None:
    shown = parsing.without_hash(text)
    assert "SALT" not in shown
    assert "53414C54" not in shown
    assert shown.endswith("<hash> REQUIRE SSL")


def test_a_name_that_is_no_text_can_be_compared_as_well(tmp_path: Path) -> None:
    """The boundary of the control node takes no JSON with half a character in it."""
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    state = {"attributes": {"paths": reading.names_in(str(tmp_path))}, "owners": {"caf\udce9": 1}}
    printed = json.dumps(parsing.as_text(state))
    assert json.loads(printed) == {"attributes": {"paths": ["caf\\xe9"]}, "owners": {"caf\\xe9": 1}}
    assert msgspec.json.decode(printed) == json.loads(printed)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(json.dumps(state))


def test_a_grant_names_its_database_as_the_environment_does() -> None:
    # The client doubles backslashes.
    shown = parsing.unescaped(r"GRANT SELECT ON `nba\\_dev`.* TO `nba_dev`@`%`")
    assert shown == "GRANT SELECT ON `nba_dev`.* TO `nba_dev`@`%`"


def test_sysctl_names() -> None:
    assert parsing.sysctl_name("/proc/sys/vm/swappiness") == "vm.swappiness"
    assert parsing.sysctl_name("/proc/sys/net/ipv4/conf/eth0.5/mtu") == "net.ipv4.conf.eth0/5.mtu"


def test_a_key_has_the_fingerprint_that_ssh_shows() -> None:
    key = base64.b64encode(b"\0\0\0\x0bssh-ed25519 and more").decode()
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(key)).digest()).decode().rstrip("=")
    assert parsing.fingerprint(f'from="10.0.0.1" ssh-ed25519 {key} me@home') == f"SHA256:{digest}"


def test_distributions_by_their_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "Foo_Bar-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\n\nName: no header\n")
    assert host_state.distributions_in(str(tmp_path)) == {"foo-bar": ("1.0", folder.name)}


def test_an_environment_that_was_made_anew_under_another_path_is_the_same() -> None:
    def files(path: str, digest: str) -> list[bytes]:
        script = f"#!{path}/bin/python\nprompt={path.rpartition('/')[2]}\n".encode()
        record = f"foo.py,sha256=1,2\n../../../bin/foo,sha256={digest},3\n".encode()
        return [parsing.without_own_path(script, "foo", path), parsing.without_own_path(record, "RECORD", path)]

    assert files("/srv/nba/venvs/33ae", "a") == files("/srv/nba/venvs/33ae.1", "b")
    assert files("/srv/nba/venvs/33ae", "a")[1] == b"foo.py,sha256=1,2\n"


def test_image_and_packages_of_a_container(tmp_path: Path, redactor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "proc/root/venv/lib/python3.13/site-packages"
    (packages / "foo-1.0.dist-info").mkdir(parents=True)
    (packages / "foo-1.0.dist-info/METADATA").write_text("Name: foo\nVersion: 1.0\n\n")
    (tmp_path / "release.json").write_text('{"runtime": "container"}')
    (tmp_path / "proc/root/venv/pyvenv.cfg").write_text("version = 3.13.5\n")
    host = host_state.Host("nba", redactor, "")
    host.release = str(tmp_path)
    answers = {
        "podman --version": "podman version 5.4.2\n",
        "podman container inspect nba-": json.dumps([{"Image": "1a", "State": {"Pid": 7}}]),
        "podman image inspect 1a": json.dumps([{"Labels": {"io.waffle-iron.lock": "10c4"}, "Annotations": None}]),
    }
    text_of, names_in = host_state.text_of, host_state.names_in

    def here(path: str) -> str:
        return path.replace("/proc/7", f"{tmp_path}/proc")

    monkeypatch.setattr(host_state, "run", lambda *words: answers[" ".join(words)])
    monkeypatch.setattr(host_state, "names_in", lambda path: names_in(here(path)))
    monkeypatch.setattr(
        host_state, "text_of", lambda path: "/venv/bin/python3\0" if path == "/proc/7/cmdline" else text_of(here(path))
    )
    monkeypatch.setattr(host_state.Host, "tree_digest", lambda host, path: path)
    assert host.environment() == {
        "runtime": "container",
        "podman": "podman version 5.4.2",
        "image: io.waffle-iron.lock": "10c4",
        "python": "3.13.5",
        "foo": "1.0",
        "content of foo-1.0.dist-info": "/proc/7/root/venv/lib/python3.13/site-packages/foo-1.0.dist-info",
        "content of bin": "/proc/7/root/venv/bin",
    }


def test_the_packages_of_the_server_are_read(tmp_path: Path, redactor: Any) -> None:
    """The server's folder is a link of the release, and no virtual environment: it has its packages at the top."""

    def host_with(key: str, version: str, program: str) -> Any:
        folder = tmp_path / key
        metadata = folder / f"gunicorn-{version}.dist-info"
        for path in (folder / "gunicorn", folder / "__pycache__", metadata, tmp_path / f"release-{key}"):
            path.mkdir(parents=True)
        (folder / "gunicorn/app.py").write_text(program)
        (metadata / "METADATA").write_text(f"Name: gunicorn\nVersion: {version}\n\n")
        (tmp_path / f"release-{key}/.server").symlink_to(folder)
        host = host_state.Host("nba", redactor, "")
        host.release = str(tmp_path / f"release-{key}")
        assert dict(host.identity())[key] == "<server>"
        return host.environment()

    first = host_with("3f2a", "27.0.1", "run()")
    assert first["server uses gunicorn"] == "27.0.1" and "content of the server's __pycache__" not in first
    assert host_with("3f2a.1", "27.0.1", "run()") == first, "one that was made anew"
    name = "content of the server's gunicorn"
    assert host_with("77c0", "27.0.1", "changed()")[name] != first[name]


# --- the whole ---


def test_comments_of_sudoers_are_not_its_directives() -> None:
    text = "# a comment\n#includedir /etc/sudoers.d\n#1000 ALL=(ALL) ALL\n#comment\n"
    assert parsing.lines_of(text, r"#(?!include|\d)") == "#includedir /etc/sudoers.d\n#1000 ALL=(ALL) ALL"


def test_files_have_mode_owner_and_content(tmp_path: Path, redactor: Any) -> None:
    host, found = host_state.Host("nba", redactor, ""), dict[str, str]()
    path = tmp_path / "a"
    path.write_text("content")
    path.chmod(0o640)
    host.add_file(found, str(path), "a")
    before = found["a"]
    assert before.startswith("file 0640 ")
    for change in (lambda: path.chmod(0o644), lambda: path.write_text("other")):
        change()
        host.add_file(found, str(path), "a")
        assert found["a"] != before
        before = found["a"]
    (tmp_path / "b").symlink_to("a")
    host.add_file(found, str(tmp_path / "b"), "b")
    assert found["b"] == "link to a"
    host.add_file(found, str(path), "/srv/nba/releases/<release>/.env")
    assert "<content" not in found["/srv/nba/releases/<release>/.env"]


@pytest.mark.parametrize("name", OF_FILES)
def test_files_have_attributes(tmp_path: Path, redactor: Any, name: str) -> None:
    host, found = host_state.Host("nba", redactor, ""), dict[str, str]()
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub/a"
    path.touch(mode=0o640)
    assert host.attributes(str(tmp_path)) == "none"
    give(path, name)
    try:
        host.add_file(found, str(path), "a")
        assert found["a"].split()[3] == name
        assert host.attributes(str(tmp_path)) == f"sub/a: {name}"
    finally:
        attributes.clear_tree(str(tmp_path))


def test_a_changed_file_changes_the_digest_of_its_folder(tmp_path: Path, redactor: Any) -> None:
    host = host_state.Host("nba", redactor, "")
    (tmp_path / "package/__pycache__").mkdir(parents=True)
    (tmp_path / "package/a.py").write_text("1")
    before = host.tree_digest(str(tmp_path))
    (tmp_path / "package/__pycache__/a.pyc").write_text("compiled")
    assert host.tree_digest(str(tmp_path)) == before
    (tmp_path / "package/a.py").write_text("2")
    assert host.tree_digest(str(tmp_path)) != before


def test_a_section_that_cannot_be_read_is_a_gap(redactor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[str, str]:
        raise reading.Unreadable("no such luck")

    host = host_state.Host("nba", redactor, "")
    monkeypatch.setattr(host, "sections", lambda: {"a": refuse, "sysctl": lambda: {"vm.x": "1", "fs.file-nr": "9"}})
    state = host_state.read(host)
    assert state["gaps"] == {"a": "no such luck"}
    assert state["facts"] == {"sysctl": {"vm.x": "1"}}
    assert ("sysctl/fs.*-nr", "changes by itself") in state["left_out"]
    assert json.loads(json.dumps(state))["about"]["uptime_seconds"] > 0


def test_accounts_are_read_only_with_the_master_s_options(redactor: Any) -> None:
    assert "accounts" not in host_state.Host("nba", redactor, "").sections()
    assert "accounts" in host_state.Host("nba", redactor, "[client]\n").sections()


# --- TLS ---


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """Return a port that speaks TLS 1.2 with one cipher, and TLS 1.3."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=30, hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("nba.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = server.accept()
            except OSError:
                return
            try:
                context.wrap_socket(plain, server_side=True).close()
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(timeout=5)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_protocols_ciphers_and_certificate(tls_port: int) -> None:
    found = handshakes.handshakes(tls_port, "nba.example.com")
    assert found["TLSv1"] == found["TLSv1.1"] == "refused"
    assert found["TLSv1.2"] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert found["TLSv1.3"].startswith("TLS_")
    certificate = handshakes.certificate_of(tls_port, "nba.example.com")
    assert certificate["names"] == "DNS:nba.example.com"
    assert certificate["days"] == 30
    assert certificate["key"].startswith("id-ecPublicKey, 256 bit")
    assert "Test authority" in certificate["issuer"]


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(reading.Unreadable, match="no-such-program is not installed"):
        reading.run("no-such-program")
    with pytest.raises(reading.Unreadable, match="exited with status 1"):
        reading.run("false")
