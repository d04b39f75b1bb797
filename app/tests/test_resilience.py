"""Connections that die, a database that goes away and comes back, one that will not have us."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi.testclient import TestClient

from tests.conftest import MakeClient, Server
from tests.proxy import Proxy

pytestmark = pytest.mark.database

ALICE = {"name": "Alice", "email": "alice@example.com"}


def kill_connections(server: Server, database: str) -> int:
    rows = server.query("SELECT id FROM information_schema.processlist WHERE db = %s", database)
    for (connection_id,) in rows:
        server.query(f"KILL {connection_id}")
    deadline = time.monotonic() + 5
    while server.query("SELECT id FROM information_schema.processlist WHERE db = %s", database):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return len(rows)


def test_ready_and_schema(client: TestClient) -> None:
    assert client.get("/health/ready").json() == {"status": "ready"}
    assert client.get("/version").json()["schema"] == "0001"


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 201)])
def test_killed_connections_are_not_noticed(
    client: TestClient, server: Server, database: str, method: str, status: int
) -> None:
    assert client.get("/users").status_code == 200
    assert kill_connections(server, database) >= 1
    assert client.request(method, "/users", json=ALICE).status_code == status


def test_away_and_back(proxied_client: TestClient, proxy: Proxy) -> None:
    assert proxied_client.get("/users").status_code == 200
    proxy.close()
    for path in ("/users", "/health/ready"):
        response = proxied_client.get(path)
        assert (response.status_code, response.json()["reason"]) == (503, "database unreachable")
    assert proxied_client.get("/health/live").status_code == 200
    assert proxied_client.get("/version").json()["schema"] is None
    proxy.reopen()
    assert proxied_client.post("/users", json=ALICE).status_code == 201
    assert proxied_client.get("/health/ready").status_code == 200


def test_a_read_is_repeated_when_the_connection_breaks_under_it(proxied_client: TestClient, proxy: Proxy) -> None:
    assert proxied_client.get("/users").status_code == 200
    proxy.break_after_next_send = True
    assert proxied_client.get("/users").status_code == 200
    assert not proxy.break_after_next_send


def test_a_write_is_not(proxied_client: TestClient, proxy: Proxy) -> None:
    assert proxied_client.get("/users").status_code == 200
    proxy.break_after_next_send = True
    response = proxied_client.post("/users", json=ALICE)
    assert (response.status_code, response.json()["reason"]) == (503, "database unreachable")
    assert len(proxied_client.get("/users").json()) <= 1


def test_a_silent_database_does_not_hold_up_the_health_check(proxied_client: TestClient, proxy: Proxy) -> None:
    proxy.silent = True
    for path, status in (("/health/ready", 503), ("/version", 200)):
        started = time.monotonic()
        assert proxied_client.get(path).status_code == status
        assert time.monotonic() - started < 4
    proxy.cut()  # ends the threads that still wait


def test_refused_account(make_client: MakeClient, server: Server, database: str) -> None:
    response = make_client({**server.env(database), "DATABASE_PASSWORD": "wrong"}).get("/health/ready")
    assert response.json() == {"status": "unavailable", "reason": "database refused the account"}


def test_no_database(make_client: MakeClient, server: Server, database: str) -> None:
    response = make_client({**server.env(database), "DATABASE_NAME": "nba_test_missing"}).get("/health/ready")
    assert response.json()["reason"] == "database does not exist"


def test_no_schema(make_client: MakeClient, server: Server, empty_database: str) -> None:
    client = make_client(server.env(empty_database))
    assert client.get("/health/ready").json()["reason"] == "database has no schema"
    assert client.get("/users").json()["reason"] == "database has no schema"
    assert client.get("/version").json()["schema"] is None


def test_another_authority(make_client: MakeClient, server: Server, database: str, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(self_signed())
    response = make_client({**server.env(database), "DATABASE_TLS_CA": str(ca)}).get("/health/ready")
    assert response.json()["reason"] in {"database certificate refused", "database offered no TLS"}


def test_tls(make_client: MakeClient, server: Server, database: str) -> None:
    """With TEST_DATABASE_TLS_CA the connection is encrypted, without it it is not."""
    client = make_client(server.env(database))
    with client.app.state.database.engine.connect() as connection:  # type: ignore[attr-defined]
        ((_, cipher),) = connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").all()
    assert bool(cipher) == bool(server.tls_ca)


def self_signed() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody's authority")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
