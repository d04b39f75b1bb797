"""What the health gate sees, and which reason it gives (roles/app/files/gate.py, reasons.py)."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support import ROOT, yaml_at
from tests.unit.releases import APPLICATION, Clock, ReleaseError, Slot, Systemd, deploy, put

reasons = sys.modules["reasons"]
Application = sys.modules["application"].Application

BOOT = """
[2026-12-01 03:51:20 +0000] [7] [ERROR] Exception in worker process
Traceback (most recent call last):
  File "/usr/local/lib/club/server/waffle_server.py", line 97, in load_wsgi
    super().load_wsgi()
{error}
[2026-12-01 03:51:20 +0000] [7] [INFO] Worker exiting (pid: 7)
[2026-12-01 03:51:20 +0000] [5] [ERROR] Worker (pid:7) exited with code 3.
[2026-12-01 03:51:20 +0000] [5] [ERROR] Reason: Worker failed to boot.
"""
PYDANTIC = """pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings
database_url
  Field required [type=missing, input_value={}, input_type=dict]"""
MYSQL = "OperationalError: (1045, \"Access denied for user 'club'@'10.0.0.4' (using password: YES)\")"
REFUSED = "OperationalError: (2003, \"Can't connect to MySQL server on 'localhost' ([Errno 111] Connection refused)\")"


def application(**stated: Any) -> Any:
    return Application(**{"module": "club.main:app", "ready_path": "/healthz", **stated})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "ModuleNotFoundError: No module named 'club.typo'",
            ["No module named 'club.typo'", "lock file", "app_module"],
        ),
        ("AttributeError: module 'main' has no attribute 'app'", ["has no attribute 'app'", "app_module"]),
        ("KeyError: 'SECRET_KEY'", ["KeyError: 'SECRET_KEY'", "app_settings"]),
        (PYDANTIC, ["1 validation error for Settings\ndatabase_url\n  Field required", "app_settings"]),
        (f"pymysql.err.{MYSQL}", ["1045", "TLS", "docs/applications.md"]),
        (f"sqlalchemy.exc.OperationalError: (pymysql.err.{MYSQL})\n(Background on this error at: https://x)", ["TLS"]),
        (f"pymysql.err.{REFUSED}", ["'localhost'", "database_host"]),
    ],
)
def test_the_exception_that_ended_it_is_the_reason(error: str, words: list[str]) -> None:
    reason = reasons.start_reason(BOOT.format(error=error))
    assert reason.startswith(error.splitlines()[0]), reason
    assert [word for word in words if word not in reason] == []
    assert "Worker" not in reason


def test_the_last_of_several_exceptions_is_the_reason() -> None:
    error = "KeyError: 'a'\n\nDuring handling of the above exception, another exception occurred:\n\n"
    error += 'Traceback (most recent call last):\n  File "main.py", line 3\nImportError: cannot import name x'
    assert reasons.start_reason(BOOT.format(error=error)).startswith("ImportError: cannot import name x")


def test_a_log_of_json_has_a_reason_too() -> None:
    traceback = BOOT.format(error="RuntimeError: on purpose")
    line = json.dumps({"level": "ERROR", "message": "Exception in worker process", "traceback": traceback})
    assert reasons.start_reason(f'{{"message": "Booting"}}\n{line}\non purpose\n').startswith(
        "RuntimeError: on purpose"
    )


def test_a_server_that_does_not_answer_is_a_reason() -> None:
    told = "the server did not answer within 30 s (timed out). Fix: raise app_start_timeout_seconds"
    assert reasons.start_reason(f"[2026-12-01 12:16:19 +0000] [5] [INFO] Booting\n{told}\n[2026 ...] bye\n") == told


def test_a_log_without_a_reason_gives_none() -> None:
    assert reasons.start_reason("[2026-12-01 03:51:20 +0000] [5] [INFO] Starting gunicorn 27.0.1\n") == ""
    assert reasons.lasting_reason("GET /healthz 503\nwarning: no module of that name\n") == ""


def test_an_import_that_does_not_end_is_named() -> None:
    log = 'Timeout (0:00:30)!\nThread 0x1 (most recent call first):\n  File "uvicorn/server.py", line 1 in run\n'
    assert "importing the application does not end" in reasons.start_reason(log)
    assert "exited with status no DB_HOST" in reasons.start_reason(
        "[2026] [ERROR] the application exited with status no DB_HOST while it was imported"
    )


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, '{"detail": "Not Found"}', ["answered 404", "no such path", "app_ready_path"]),
        (
            400,
            "Invalid host header",
            ["answered 400", "Invalid host header", "add nba.example.com to its allowed hosts"],
        ),
        (307, "https://nba.example.com/healthz", ["answered 307", "redirect to https://nba", "public_scheme: https"]),
        (308, "http://nba.example.com/healthz/", ["redirect to http://nba", "app_ready_path: /healthz/"]),
        (303, "/login", ["app_ready_path: /login"]),
        (401, "", ["asks for a login", "app_ready_path"]),
        (405, "Method Not Allowed", ["answered 405: Method Not Allowed", "app_ready_path"]),
        (0, "ConnectionRefusedError: [Errno 111] Connection refused", ["nothing accepts connections", "111"]),
    ],
)
def test_what_no_waiting_repairs_is_a_reason(status: int, body: str, words: list[str]) -> None:
    reason = reasons.final_reason(status, body, application(), "nba.example.com")
    assert [word for word in words if word not in reason] == [], reason


@pytest.mark.parametrize(("status", "body"), [(200, ""), (503, "{}"), (500, ""), (429, ""), (0, "TimeoutError: ")])
def test_what_may_get_better_is_waited_for(status: int, body: str) -> None:
    assert reasons.final_reason(status, body, application(), "nba.example.com") == ""


def test_without_a_health_path_any_answer_of_the_application_is_one() -> None:
    any_answer = application(ready_path="/", ready_answers="any")
    for status in (200, 401, 404, 302):
        assert reasons.healthy(status, any_answer)
        assert reasons.final_reason(status, "/login", any_answer, "nba.example.com") == ""
    assert not reasons.healthy(500, any_answer)
    # These tell that no public request would be answered.
    assert "allowed hosts" in reasons.final_reason(400, "Invalid host header", any_answer, "nba.example.com")
    assert "public_scheme" in reasons.final_reason(307, "https://nba.example.com/", any_answer, "nba.example.com")


def test_a_redirect_to_https_of_what_came_by_https_is_not_the_scheme_s_fault() -> None:
    reason = reasons.final_reason(307, "https://other/healthz", application(scheme="https"), "nba.example.com")
    assert "public_scheme" not in reason and "app_ready_path: /healthz" in reason


# --- the gate itself ---


def refused(host: Any, name: str = "r1") -> str:
    """Return why a release is refused."""
    put(host, name)
    with pytest.raises(ReleaseError) as refusal:
        deploy(host, name)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, ""), "no such path"),
        ((400, "Invalid host header"), "add localhost"),
        ((307, "https://x/"), "to https://x/"),
    ],
)
def test_a_release_is_refused_at_once(  # noqa: PLR0917
    host: Any, systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch, answer: Any, words: str
) -> None:
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: answer)
    assert words in refused(host)
    assert clock.now < 1


def test_it_asks_as_a_proxy_does(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def ask(_slot: Any, path: str, **options: str) -> tuple[int, str]:
        asked.append((path, options))
        return 200, json.dumps({"release": "r1", "worker": 1})

    folder = put(host, "r1")
    stated = {**APPLICATION, "scheme": "https"}
    (folder / "release.json").write_text(json.dumps({"release": "r1", "application": stated}))
    monkeypatch.setattr(Slot, "ask", ask)
    deploy(host, "r1")
    assert ("/health/ready", {"host": "localhost", "scheme": "https"}) in asked
    assert ("/.waffle/version", {}) in asked


@pytest.mark.parametrize(("log", "words"), [(MYSQL, "requires TLS"), (REFUSED, "refuses the connection")])
def test_the_log_of_one_that_is_not_ready_is_a_reason_at_once(  # noqa: PLR0917
    host: Any, systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch, log: str, words: str
) -> None:
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (500, "Internal Server Error"))
    systemd.log = f"Traceback (most recent call last):\n{log}\n"
    reason = refused(host)
    assert "answered 500: Internal Server Error" in reason and words in reason
    assert clock.now < 1


def test_the_exception_of_one_that_ended_comes_first(host: Any, systemd: Systemd) -> None:
    systemd.broken.add("r1")
    systemd.log = BOOT.format(error="ModuleNotFoundError: No module named 'club.typo'")
    assert "still is: ModuleNotFoundError: No module named 'club.typo'" in refused(host)


def test_a_release_of_an_older_version_is_not_started(host: Any, systemd: Systemd) -> None:
    folder = put(host, "r1")
    (folder / "release.json").write_text('{"release": "r1"}')
    with pytest.raises(ReleaseError, match="made by an older version of Waffle Iron"):
        deploy(host, "r1")


def test_a_release_of_an_older_version_is_live_until_the_next_one_is(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    (host.releases.folder("old") / "release.json").write_text('{"release": "old"}')
    paths: list[str] = []

    def ask(slot: Any, path: str, **_: str) -> tuple[int, str]:
        paths.append(path)
        return systemd.ask(slot)

    monkeypatch.setattr(Slot, "ask", ask)
    assert host.inspection.problems() == []
    assert set(paths) == {"/version"}
    put(host, "new")
    deploy(host, "new")
    assert host.releases.live.release == "new"


def test_every_module_of_the_program_is_installed() -> None:
    installed = {str(entry.get("source")) for entry in yaml_at("roles/app/vars/main.yml")["__app_installed"]}
    folder = ROOT / "roles/app/files"
    ours = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if "__pycache__" not in path.parts}
    # Annotations alone need that one.
    assert ours - installed == {"messages.py"}


@pytest.mark.parametrize("answers", ["success", "any"])
def test_a_load_balancer_of_aws_accepts_the_answers_of_the_gate(answers: str) -> None:
    """A target group takes 200 to 499."""
    first, last = yaml_at("roles/aws/vars/main.yml")["__aws_health_codes"][answers].split("-")
    accepted = [status for status in range(200, 600) if reasons.healthy(status, application(ready_answers=answers))]
    assert accepted == list(range(int(first), int(last) + 1))
    (group,) = [task for task in yaml_at("roles/aws/tasks/balancer.yml") if "community.aws.elb_target_group" in task]
    codes = group["community.aws.elb_target_group"]["successful_response_codes"]
    assert codes == "{{ __aws_health_codes[aws_health_answers] }}"
