"""The worker that ends as soon as it is told to, in the gunicorn of the application's lock file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT

# Takes no lab, but the application's environment, which scripts/test makes.
pytestmark = pytest.mark.lab
GUNICORN = str(ROOT / ".tools/app/bin/gunicorn")
WORKERS = ROOT / "roles/app/files/server"
# Between two heartbeats it sleeps for good here, and a request takes as long as somebody keeps it waiting.
APPLICATION = """
import asyncio
from pathlib import Path
from gunicorn.workers import gasgi

class Patient:
    sleep = staticmethod(lambda seconds: asyncio.sleep(3600 if seconds == 1 else seconds))
    def __getattr__(self, name):
        return getattr(asyncio, name)

gasgi.asyncio = Patient()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            print(event, flush=True)
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    print("asked", flush=True)
    while not Path("answer").exists():
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


@contextmanager
def serving(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the server on a socket, until it has started."""
    (folder / "program.py").write_text(APPLICATION)
    command = [
        GUNICORN, f"--pythonpath={WORKERS}", "--worker-class=prompt_worker.PromptWorker", "--no-control-socket",
        "--bind=unix:socket", "--workers=1", "--graceful-timeout=600", "program:app",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert line(process) == "lifespan.startup"
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.timeout(60)
def test_it_ends_without_waiting_for_its_next_heartbeat(tmp_path: Path) -> None:
    with serving(tmp_path) as process, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / "socket"))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert line(process) == "asked"
        process.send_signal(signal.SIGTERM)
        # A request that runs is answered first.
        (tmp_path / "answer").touch()
        with connection.makefile("rb") as answer:
            assert answer.read().endswith(b"ok")
        assert line(process) == "lifespan.shutdown"
        assert process.wait() == 0
