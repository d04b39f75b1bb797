"""The worker that starts and ends sooner, in the gunicorn of the application's lock file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support import ROOT

# Takes no lab, but the application's environment, which scripts/test makes.
pytestmark = pytest.mark.lab
GUNICORN = str(ROOT / ".tools/app/bin/gunicorn")
WORKERS = ROOT / "roles/app/files/server"
# Between two heartbeats it sleeps for good here, and a request takes as long as somebody keeps it waiting.
APPLICATION = """
import asyncio
import gc
import os
import signal
import time
from pathlib import Path
from gunicorn.workers import gasgi

collected = gc.isenabled()
if Path("library.py").exists():
    import library

class Patient:
    sleep = staticmethod(lambda seconds: asyncio.sleep(3600 if seconds == 1 else seconds))
    def __getattr__(self, name):
        return getattr(asyncio, name)

gasgi.asyncio = Patient()

class Left:  # in a cycle: it says so when that is looked for
    def __del__(self):
        os.write(1, b"looked for\\n")

left = Left()
left.itself = left

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            print(event, flush=True)
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    if scope["path"] == "/held":
        # The next turn of the loop takes the signal in, and lasts until somebody has come. The one after finds both.
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        print("held", flush=True)
        while not Path("answer").exists():
            time.sleep(0.01)
    if scope["path"] == "/collector":
        print("collected", collected, gc.isenabled(), flush=True)
    if scope["path"] == "/slow":
        print("asked", flush=True)
        while not Path("answer").exists():
            await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


@contextmanager
def serving(folder: Path, *options: str, until: str = "lifespan.startup") -> Iterator[subprocess.Popen[str]]:
    """Run the server on a socket, from the moment in which it says something."""
    (folder / "program.py").write_text(APPLICATION)
    command = [
        GUNICORN, f"--pythonpath={WORKERS}", "--worker-class=prompt_worker.PromptWorker", "--no-control-socket",
        "--bind=unix:socket", "--workers=1", "--graceful-timeout=600", *options, "program:app",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
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
    for said in process.stdout:
        if words in said:
            return said.partition(words)[2].strip()
    raise AssertionError(f"it never said {words!r}")


@contextmanager
def asking(folder: Path, path: str) -> Iterator[IO[bytes]]:
    """Send a request; what comes back can be read."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "socket"))
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            yield answer


@pytest.mark.timeout(60)
def test_it_ends_without_waiting_for_its_next_heartbeat_once_it_has_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as process, asking(tmp_path, "/slow") as answer:
        await_line(process, "asked")
        process.send_signal(signal.SIGTERM)
        await_line(process, "Worker shutting down")
        (tmp_path / "answer").touch()
        assert answer.read().endswith(b"ok")
        await_line(process, "lifespan.shutdown")
        assert process.stdout and "looked for" not in process.stdout.read()
        assert process.wait() == 0


@pytest.mark.timeout(60)
def test_a_request_that_outlives_the_limit_is_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, "--graceful-timeout=1") as process, asking(tmp_path, "/slow") as answer:
        await_line(process, "asked")
        process.send_signal(signal.SIGTERM)
        assert answer.read() == b"", "nobody has let it answer"
        process.wait()


@pytest.mark.timeout(60)
def test_what_comes_in_the_moment_it_is_told_to_end_is_answered(tmp_path: Path) -> None:
    """By the worker that accepts it, or by the next one."""
    with serving(tmp_path) as process, asking(tmp_path, "/held") as held:
        await_line(process, "held")
        with asking(tmp_path, "/") as late:
            (tmp_path / "answer").touch()
            assert held.read().endswith(b"ok")
            assert late.read().endswith(b"ok")


@pytest.mark.timeout(60)
def test_no_garbage_is_looked_for_until_the_application_is_imported(tmp_path: Path) -> None:
    with serving(tmp_path) as process, asking(tmp_path, "/collector") as answer:
        assert answer.read().endswith(b"ok")
        assert await_line(process, "collected") == "False True"


@pytest.mark.timeout(60)
def test_a_library_is_imported_once_by_the_main_process(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("import os\nprint(os.getpid(), file=open('imported', 'a'))")
    options = "--pythonpath=" + ",".join((str(WORKERS), str(tmp_path))), "--env=APP_PRELOAD_MODULES=json,library"
    with serving(tmp_path, "--workers=2", *options) as process:
        await_line(process, "lifespan.startup")  # that of the other worker
        assert (tmp_path / "imported").read_text() == f"{process.pid}\n"


@pytest.mark.timeout(60)
def test_a_library_that_is_not_there_is_told_and_left_out(tmp_path: Path) -> None:
    option = "--env=APP_PRELOAD_MODULES=nowhere,json"
    with serving(tmp_path, option, until="app_preload_modules names nowhere") as process:
        await_line(process, "lifespan.startup")
        with asking(tmp_path, "/") as answer:
            assert answer.read().endswith(b"ok")
