"""What needs no database: routes, documentation, CORS, request ids, logs, and a database that is not there."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nba.logs import JsonFormatter, RequestLog, configure_logging
from tests.conftest import NOWHERE, MakeClient, run, write_env


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_hello(make_client: MakeClient) -> None:
    assert make_client().get("/").text == '{"Hello":"MySQL"}'


def test_alive_without_a_database(make_client: MakeClient) -> None:
    client = make_client()
    assert client.get("/health/live").status_code == 200
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "unavailable", "reason": "database unreachable"})


@pytest.mark.parametrize(("method", "path"), [("GET", "/users"), ("DELETE", "/users/1")])
def test_requests_without_a_database(make_client: MakeClient, method: str, path: str) -> None:
    response = make_client().request(method, path)
    assert response.status_code == 503
    assert response.json() == {"detail": "The database is unavailable", "reason": "database unreachable"}
    assert int(response.headers["Retry-After"]) > 0


def test_version(make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    development = make_client().get("/version").json()
    assert (development["release"], development["commit"], development["schema"]) == ("development", None, None)
    assert (development["environment"], development["worker"]) == ("test", os.getpid())
    assert development["frontend"] is None
    written = {"release": "r1", "commit": "c1", "frontend": "f1", "artefact": "sha256:a", "lock": "sha256:l"}
    (tmp_path / "release.json").write_text(json.dumps({**written, "by": "someone"}))
    release = make_client().get("/version").json()
    assert {key: release[key] for key in written} == written
    assert "by" not in release


def test_docs(make_client: MakeClient) -> None:
    client = make_client()
    assert "url: '/openapi.json'" in client.get("/docs").text.replace('"', "'")
    assert "/users" in client.get("/openapi.json").json()["paths"]


def test_docs_off(make_client: MakeClient) -> None:
    client = make_client(docs_enabled=False)
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3


def test_cors(make_client: MakeClient) -> None:
    origin = {"Origin": "http://localhost:5500", "Access-Control-Request-Method": "PUT"}
    on = make_client(cors_origins="http://localhost:5500")
    preflight = on.options("/users/1", headers=origin)
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:5500"
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert on.get("/users", headers=origin).headers["access-control-allow-origin"] == "http://localhost:5500"  # a 503
    for client, headers in ((make_client(), origin), (on, {**origin, "Origin": "https://evil.example"})):
        assert "access-control-allow-origin" not in client.options("/users/1", headers=headers).headers
        assert "access-control-allow-origin" not in client.get("/", headers=headers).headers


def test_request_id(make_client: MakeClient) -> None:
    client = make_client()
    assert client.get("/", headers={"X-Request-ID": "abc-123"}).headers["X-Request-ID"] == "abc-123"
    for insane in ("a" * 65, "a b", "a\tb", '"}', ""):
        made = client.get("/", headers={"X-Request-ID": insane}).headers["X-Request-ID"]
        assert len(made) == 32
        assert made != client.get("/").headers["X-Request-ID"]


def test_an_ordinary_request_is_logged_at_debug_only(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")
    client = make_client()
    capsys.readouterr()
    client.get("/health/live")
    client.get("/nowhere")
    (line,) = [entry for entry in lines(capsys) if entry["logger"] == "nba.access"]
    assert (line["level"], line["path"], line["status"]) == ("INFO", "/nowhere", 404)


def test_access_line(make_client: MakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG")
    client = make_client()
    capsys.readouterr()
    client.get("/health/live?token=secret", headers={"X-Request-ID": "id-1"})
    (line,) = [entry for entry in lines(capsys) if entry["logger"] == "nba.access"]
    assert {key: line[key] for key in ("level", "request_id", "method", "path", "status")} == {
        "level": "DEBUG",
        "request_id": "id-1",
        "method": "GET",
        "path": "/health/live",
        "status": 200,
    }
    assert isinstance(line["duration_ms"], float)


def test_a_database_error_is_logged_with_the_id_and_no_password(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("DEBUG")
    make_client().get("/users", headers={"X-Request-ID": "id-2"})
    output = capsys.readouterr().out
    assert NOWHERE["DATABASE_PASSWORD"] not in output  # type: ignore[operator]
    (line,) = [entry for entry in map(json.loads, output.splitlines()) if entry["level"] == "WARNING"]
    assert line["request_id"] == "id-2"
    assert line["message"].startswith("database unreachable")


def test_an_unexpected_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    app = FastAPI()

    @app.get("/")
    def fail() -> None:
        raise RuntimeError("a\nb")

    app.add_middleware(RequestLog)
    response = TestClient(app, raise_server_exceptions=False).get("/", headers={"X-Request-ID": "id-3"})
    assert (response.status_code, response.headers["X-Request-ID"]) == (500, "id-3")
    assert response.json() == {"detail": "Internal server error", "request_id": "id-3"}
    error, access = (entry for entry in lines(capsys) if str(entry["logger"]).startswith("nba"))
    assert "RuntimeError: a\nb" in str(error["traceback"])
    assert (error["level"], error["request_id"], access["status"]) == ("ERROR", "id-3", 500)


def test_format() -> None:
    record = logging.LogRecord("nba", logging.INFO, "", 0, "two\nlines: %s", ("é",), None)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert list(json.loads(text)) == ["time", "level", "logger", "message"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "not json",
        '{"name": "A"}',
        '{"name": "", "email": "a@b.co"}',
        '{"name": "   ", "email": "a@b.co"}',
        '{"name": "a\\u0000b", "email": "a@b.co"}',
        '{"name": "\\ud800", "email": "a@b.co"}',
        '{"name": "A", "email": "a@b.co", "\\ud800": 1}',
        '{"name": "A", "email": "a@b.co", "id": 1}',
        json.dumps({"name": "x" * 51, "email": "a@b.co"}),
        json.dumps({"name": "A", "email": "x" * 60 + "@" + "y" * 40 + ".example"}),
        *(json.dumps({"name": "A", "email": email}) for email in ("", "a", "a@", "@b.co", "a b@c.co")),
    ],
)
def test_bad_users(make_client: MakeClient, body: str) -> None:
    client = make_client()
    headers = {"Content-Type": "application/json"}
    for method, path in (("POST", "/users"), ("PUT", "/users/1")):
        response = client.request(method, path, content=body, headers=headers)
        assert response.status_code == 422
        assert all(set(item) == {"loc", "msg", "type"} for item in response.json()["detail"])


def test_a_refusal_stays_small_whatever_was_sent(make_client: MakeClient) -> None:
    client = make_client()
    headers = {"Content-Type": "application/json"}
    # As many findings as fit, and one name that takes all of the room.
    for keys in ([f"k{number}" for number in range(1500)], ["k" * 16000]):
        body = json.dumps(dict.fromkeys(keys, 1), separators=(",", ":"))
        response = client.post("/users", content=body, headers=headers)
        assert response.status_code == 422
        assert len(response.content) < 4000
    assert client.post("/users", content=body[:-1] + "}" * 500, headers=headers).status_code == 413
    response = client.post("/users", content=json.dumps({f"k{n}": 1 for n in range(1500)}), headers=headers)
    assert response.status_code == 413


def test_the_findings_that_are_left_out_are_counted(make_client: MakeClient) -> None:
    response = make_client().post("/users", json={f"k{number}": 1 for number in range(100)})
    findings = response.json()["detail"]
    # 100 unknown names, and the two fields that are missing.
    assert (len(findings), findings[-1]["msg"]) == (21, "and 82 more")


def test_a_body_that_claims_to_be_smaller_is_refused(make_client: MakeClient) -> None:
    """And read to its end: a proxy whose request is cut off does not always see the answer."""
    chunks = iter([b'{"name": "', *[b"x" * 4096] * 300, b'"}'])
    response = make_client().post("/users", content=chunks, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert next(chunks, None) is None


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "offset=-1", "offset=1000001", "limit=1e2"])
def test_bad_pages(make_client: MakeClient, query: str) -> None:
    assert make_client().get(f"/users?{query}").status_code == 422


@pytest.mark.parametrize("user_id", ["0", "-1", "2147483648", "9" * 30, "x", "1.5"])
def test_bad_ids(make_client: MakeClient, user_id: str) -> None:
    client = make_client()
    assert [client.get(f"/users/{user_id}").status_code, client.delete(f"/users/{user_id}").status_code] == [422, 422]


def test_the_front_end_keeps_to_the_content_security_policy() -> None:
    frontend = Path(__file__).resolve().parents[1] / "frontend"
    page = (frontend / "index.html").read_text()
    assert "style=" not in page and "<style" not in page and "<script>" not in page and " on" + "click" not in page
    for file in frontend.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, f"{file.name} refers to another host"
        assert "data:" not in text, f"{file.name} has a data: address"


def test_start_up_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """Each of these would add a good part of a second to every deploy."""
    write_env(tmp_path / ".env", NOWHERE)
    (tmp_path / "modules.py").write_text("import sys, nba.main\nprint(' '.join(sys.modules))\n")
    modules = run(tmp_path, "modules").stdout.split()
    assert "nba.main" in modules
    assert not {"alembic", "sqlalchemy.orm", "dns.resolver", "cryptography.x509"} & set(modules)
