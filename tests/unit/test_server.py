"""The server of a release (roles/app/files/server) with the packages that hosts have, around small applications."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support import ROOT

# Takes no lab, but the application's environment and the server's packages, which scripts/test makes.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]
PYTHON = str(ROOT / ".tools/app/bin/python")
LAUNCHER = str(ROOT / "roles/app/files/server/launch.py")
# A request takes as long as the test keeps it waiting. Lines that it prints tell the test how far it is.
APPLICATION = """
import asyncio
import atexit
import json
import os
from pathlib import Path

print("imported", flush=True)
atexit.register(lambda: os.write(1, b"at exit\\n"))

class Left:  # in a cycle: it says so when that is looked for
    def __del__(self):
        os.write(1, b"looked for\\n")

left = Left()
left.itself = left

async def until_released():
    while not Path("released").exists():
        await asyncio.sleep(0.01)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            print(event, flush=True)
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(len(dict(scope["headers"]).get(b"cookie", b"")))})
        print("closed with", (await receive())["code"], flush=True)
        return
    path = scope["path"].removeprefix(scope["root_path"])
    if path.startswith("/boom"):
        raise RuntimeError("it fell over")
    if path == "/slow":
        print("asked", flush=True)
        await until_released()
    told = {name: scope[name] for name in ("path", "root_path", "client", "scheme")}
    body = json.dumps({**told, "headers": sum(len(name) + len(value) for name, value in scope["headers"])}).encode()
    if path == "/print":
        print("printed")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
    if path == "/task":
        print("in the background", flush=True)
        try:
            await until_released()
            print("task done", flush=True)
        except asyncio.CancelledError:
            print("task cancelled", flush=True)
            raise
"""


@contextmanager
def serving(
    folder: Path, *options: str, program: str = APPLICATION, until: str = "lifespan.startup", **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Run the server on a socket, from the moment in which it says something."""
    (folder / "program.py").write_text(program)
    command = [PYTHON, "-I", "-u", LAUNCHER, f"--server={ROOT}/.tools/server", "--bind=unix:socket", "--release=r1"]
    with subprocess.Popen(
        [*command, *options, "program:app"],
        cwd=folder,
        env={**os.environ, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            await_line(process, until)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def await_line(process: subprocess.Popen[str], words: str) -> str:
    """Read what the server says until a line has these words; return what follows them."""
    assert process.stdout
    seen = []
    for said in process.stdout:
        seen.append(said)
        if words in said:
            return said.partition(words)[2].strip()
    raise AssertionError(f"it never said {words!r}: {''.join(seen)}")


def rest(process: subprocess.Popen[str]) -> str:
    """Return all that the server still says until it has ended."""
    assert process.stdout
    return process.stdout.read()


@contextmanager
def connected(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        while True:
            try:
                connection.connect(str(folder / "socket"))
                break
            except ConnectionRefusedError:
                time.sleep(0.01)  # it is bound, and not yet listened to
        yield connection


@contextmanager
def asking(folder: Path, path: str, **headers: str) -> Iterator[IO[bytes]]:
    """Send a request; what comes back can be read."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with connected(folder) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: club\r\nConnection: close\r\n{lines}\r\n".encode())
        with connection.makefile("rb") as answer:
            yield answer


def got(folder: Path, path: str, **headers: str) -> tuple[int, dict[str, object]]:
    """Return status and body of an answer."""
    with asking(folder, path, **headers) as answer:
        head, _, body = answer.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else {"body": body.decode()}


# --- what it adds ---


def test_it_says_which_release_and_worker_answers_whatever_the_application_has(tmp_path: Path) -> None:
    with serving(tmp_path, "--root-path=/api") as process:
        status, version = got(tmp_path, "/.waffle/version")
        assert (status, version["release"]) == (200, "r1")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert [str(version["worker"])] == children
        assert got(tmp_path, "/.waffle/live") == (200, {"status": "ok"})
        assert got(tmp_path, "/.waffle/secret")[0] == 404


def test_an_application_knows_its_client_its_scheme_and_its_prefix(tmp_path: Path) -> None:
    with serving(tmp_path, "--root-path=/api"):
        _, told = got(tmp_path, "/users", X_Forwarded_For="192.0.2.7", X_Forwarded_Proto="https")
    assert told["client"] == ["192.0.2.7", 0]
    assert (told["scheme"], told["path"], told["root_path"]) == ("https", "/api/users", "/api")


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import logging.config\nlogging.config.dictConfig({'version': 1})\n",  # disables all loggers that there are
    ],
)
def test_an_exception_is_logged_with_its_request(tmp_path: Path, first: str) -> None:
    with serving(tmp_path, program=first + APPLICATION) as process:
        status, _ = got(tmp_path, "/boom%0Aforged?token=secret", X_Request_ID="c0ffee")
        assert status == 500
        await_line(process, "Traceback")
        await_line(process, "RuntimeError: it fell over")
        assert await_line(process, "request c0ffee: GET /boom%0Aforged") == ""
        process.terminate()
        assert "secret" not in rest(process)


def test_what_it_prints_is_said_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as process:
        got(tmp_path, "/print")
        await_line(process, "printed")


# --- limits ---


def test_it_takes_whatever_nginx_lets_through(tmp_path: Path) -> None:
    with serving(tmp_path):
        status, told = got(tmp_path, "/users?" + "q" * 16_000, Cookie="a=" + "c" * 9000, X_Long="x" * 16_000)
        assert status == 200
        assert int(str(told["headers"])) > 25_000


def frame(connection: IO[bytes]) -> tuple[int, bytes]:
    """Return opcode and payload of the next frame of a WebSocket."""
    first, length = struct.unpack("!BB", connection.read(2))
    return first & 15, connection.read(length)


def test_a_websocket_with_large_cookies_opens_and_is_told_of_the_end(tmp_path: Path) -> None:
    with serving(tmp_path) as process, connected(tmp_path) as connection:
        key = base64.b64encode(os.urandom(16)).decode()
        cookies = f"a={'1' * 4500}; b={'2' * 4500}"
        connection.sendall(
            f"GET /chat HTTP/1.1\r\nHost: club\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: {cookies}\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = connection.makefile("rb")
        assert b" 101 " in answer.readline()
        while answer.readline() != b"\r\n":
            pass
        assert frame(answer) == (1, str(len(cookies)).encode())
        process.terminate()
        opcode, payload = frame(answer)
        assert (opcode, struct.unpack("!H", payload[:2])[0]) == (8, 1012), "the service restarts"
        assert await_line(process, "closed with") == "1012"


# --- the end ---


def test_it_ends_soon_and_the_application_may_tidy_up(tmp_path: Path) -> None:
    with serving(tmp_path) as process:
        got(tmp_path, "/users")
        begin = time.monotonic()
        process.terminate()
        said = rest(process)
        assert process.wait() == 0
        seconds = time.monotonic() - begin
    assert "lifespan.shutdown" in said and "at exit" in said
    assert "looked for" not in said, "Python searched all of it for cycles"
    assert seconds < 2


def test_a_request_in_hand_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as process, asking(tmp_path, "/slow") as answer:
        await_line(process, "asked")
        process.terminate()
        await_line(process, "Shutting down")
        (tmp_path / "released").touch()
        assert answer.read().startswith(b"HTTP/1.1 200")
        await_line(process, "lifespan.shutdown")


def test_what_was_accepted_and_not_yet_sent_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as process, connected(tmp_path) as connection:
        got(tmp_path, "/users")  # the worker has accepted the first of the two by then
        worker = int(str(got(tmp_path, "/.waffle/version")[1]["worker"]))
        sender = threading.Timer(0.1, connection.sendall, [b"POST /users HTTP/1.0\r\ncontent-length: 0\r\n\r\n"])
        os.kill(worker, signal.SIGTERM)
        sender.start()
        with connection.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 200")
        process.terminate()


def test_a_background_task_runs_to_its_end(tmp_path: Path) -> None:
    with serving(tmp_path) as process:
        assert got(tmp_path, "/task")[0] == 200
        await_line(process, "in the background")
        process.terminate()
        await_line(process, "Waiting for background tasks")
        (tmp_path / "released").touch()
        await_line(process, "task done")
        await_line(process, "lifespan.shutdown")


def test_what_outlives_the_limit_is_cancelled_before_it_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--graceful-timeout=1") as process, asking(tmp_path, "/task") as answer:
        answer.readline()
        await_line(process, "in the background")
        process.terminate()
        await_line(process, "task cancelled")
        await_line(process, "at exit")
        assert process.wait() == 0


# --- the start ---


def test_a_library_is_imported_once_by_the_main_process(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("import os\nprint(os.getpid(), file=open('imported', 'a'))")
    with serving(tmp_path, "--workers=2", "--preload=json,library") as process:
        await_line(process, "lifespan.startup")  # that of the other worker
        assert (tmp_path / "imported").read_text() == f"{process.pid}\n"


def test_a_library_that_is_not_there_is_told_and_left_out(tmp_path: Path) -> None:
    with serving(tmp_path, "--preload=nowhere,json", until="app_preload_modules: nowhere is not in") as process:
        await_line(process, "lifespan.startup")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import club.nowhere\n", "ModuleNotFoundError: No module named 'club'"),
        ("import sys\nsys.exit('DB_HOST is missing')\n", "the application exited with status DB_HOST is missing"),
        ("application = 1\n", "AttributeError: module 'program' has no attribute 'app'"),
        ("app = 1\n", "TypeError: program:app is int, not an ASGI application"),
        ("raise SystemExit(1)\n", "the application exited with status 1"),
        (
            "async def app(scope, receive, send):\n"
            "    await receive()\n    await send({'type': 'lifespan.startup.failed', 'message': 'no queue'})\n",
            "no queue",
        ),
    ],
)
def test_one_that_cannot_start_ends_at_once(tmp_path: Path, program: str, words: str) -> None:
    with serving(tmp_path, "--workers=2", program=program, until=words) as process:
        # 3 is gunicorn's word for it; it is 1 if the second worker ends while gunicorn does.
        assert process.wait(timeout=10) in (1, 3)


def test_the_server_is_ours_and_what_it_needs_the_application_s(tmp_path: Path) -> None:
    for name in ("gunicorn", "uvicorn", "waffle_asgi", "waffle_server"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} of the application')\n")
    # An old one without what uvicorn needs: the application stays with it, and has no WebSockets.
    (tmp_path / "websockets.py").write_text("version = 'of the application'\n")
    (tmp_path / "httptools.py").write_text("raise ImportError('of another Python')\n")
    program = APPLICATION + "\nimport websockets\nprint('websockets', websockets.version, flush=True)\n"
    with serving(tmp_path, program=program, until="websockets") as process:
        await_line(process, "lifespan.startup")
        assert got(tmp_path, "/users")[0] == 200


def test_the_application_s_own_configuration_of_gunicorn_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("raise RuntimeError('read')\n")
    variables = {"GUNICORN_CMD_ARGS": "--workers=9 --bind=0.0.0.0:8000", "WEB_CONCURRENCY": "9", "PORT": "8000"}
    with serving(tmp_path, **variables) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        assert got(tmp_path, "/users")[0] == 200


def test_a_factory_and_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "src/club").mkdir(parents=True)
    (tmp_path / "src/club/main.py").write_text(APPLICATION + "\ndef create():\n    return app\n")
    command = [PYTHON, "-I", "-u", LAUNCHER, f"--server={ROOT}/.tools/server", "--bind=unix:socket", "--folder=src"]
    with subprocess.Popen(
        [*command, "club.main:create()"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        await_line(process, "lifespan.startup")
        assert got(tmp_path, "/users")[0] == 200
        process.terminate()
        rest(process)


# --- the check before the start ---


def checked(folder: Path, program: str, seconds: int = 20) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    return subprocess.run(
        [PYTHON, "-I", LAUNCHER, f"--check={seconds}", "program:create.app"],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("", "AttributeError: module 'program' has no attribute 'create'"),
        ("import os\nos.environ['NOWHERE']\n", "KeyError: 'NOWHERE'"),
        ("import sys\nsys.exit('DB_HOST is missing')\n", "importing program exits with status DB_HOST is missing"),
        ("import time\ntime.sleep(100)\n", "Timeout (0:00:01)!"),
    ],
)
def test_a_module_that_can_never_be_imported_is_refused(tmp_path: Path, program: str, words: str) -> None:
    done = checked(tmp_path, program, seconds=1)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    "program",
    [
        "class create:\n    app = 1\n",
        "raise ConnectionRefusedError('the database')\n",
        "class create:\n    app = 1\nimport threading, time\nthreading.Thread(target=time.sleep, args=[100]).start()\n",
    ],
)
def test_a_module_that_may_be_imported_later_is_not(tmp_path: Path, program: str) -> None:
    done = checked(tmp_path, program)
    assert done.returncode == 0, done.stderr
