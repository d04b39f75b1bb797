"""`python -m tests.bench.servers`: what can start an ASGI application, beside each other; prints a table for the docs.

Takes no lab: Linux, wrk, and what scripts/test makes in .tools (the server's packages, the application's environment).
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT, free_port

PYTHON = str(ROOT / ".tools/app/bin/python")
SERVER = ROOT / ".tools/server"
LAUNCHER = str(ROOT / "roles/app/files/server/launch.py")
APPLICATION = Path(__file__).with_name("application.py")
# The worker that the hosts had before, in the last commit that has it.
PROMPT = "7ed023b:roles/app/files/server/prompt_worker.py"
GUNICORN = (
    "-m", "gunicorn", "--workers=2", "--graceful-timeout=10", "--keep-alive=75", "--forwarded-allow-ips=*",
    "--no-control-socket", "--worker-tmp-dir=/dev/shm",
)  # fmt: skip
OURS = (LAUNCHER, f"--server={SERVER}", "--workers=2", "--graceful-timeout=10", "--release=bench")
UVICORN = ("-m", "uvicorn", "--workers=2", "--timeout-graceful-shutdown=10", "--no-access-log")
CONTENDERS = {
    "Waffle Iron": OURS,
    "`UvicornWorker`, httptools, uvloop": (*GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker"),
    "`UvicornH11Worker`": (*GUNICORN, "--worker-class=uvicorn_worker.UvicornH11Worker"),
    "gunicorn's `asgi`": (*GUNICORN, "--worker-class=asgi"),
    "PromptWorker (before)": (*GUNICORN, "--worker-class=prompt_worker.PromptWorker"),
    "`uvicorn --workers`": (*UVICORN, "--forwarded-allow-ips=*"),
}
BROUGHT = {
    "Waffle Iron": "by the host",
    "`uvicorn --workers`": "by the lock, or the host; no systemd notification",
    "PromptWorker (before)": "gunicorn by the lock",
}
COLUMNS = (
    "lost at a restart",
    "task of 5 s ends: server told to end, client gone",
    "client's address",
    "exception in the log",
    "WebSocket with a cookie of 9 KB, closed with",
    "query, header of 16 KB, 30 KB in all",
    "start",
    "end",
    "memory",
    "requests",
    "brought",
)
ROUNDS, SECONDS, PAIRS = 3, 6, 3
STARTED = 120.0


@dataclass
class Running:
    """A server at work in a folder of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    address: str | tuple[str, int]

    def connect(self) -> socket.socket:
        """Return a connection."""
        made = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        made.settimeout(60)
        made.connect(self.address)
        return made

    def ask(self, path: str, headers: str = "") -> bytes:
        """Return the whole answer to a request; nothing if the connection ends before."""
        with self.connect() as connection:
            answer = b""
            with suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n{headers}\r\n".encode())
                while part := connection.recv(65536):
                    answer += part
        return answer

    def status(self, path: str, headers: str = "") -> int:
        """Return the status of an answer, 0 for none."""
        words = self.ask(path, headers).split(maxsplit=2)
        return int(words[1]) if len(words) > 1 else 0

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text()


@contextmanager
def running(name: str, listener: socket.socket | None = None, tcp: bool = False) -> Iterator[Running]:
    """Run a server until the block ends: on a socket of a file, on TCP, or on one that is listened to already."""
    with tempfile.TemporaryDirectory(prefix="wi-") as place:
        folder = Path(place)
        shutil.copy(APPLICATION, folder)
        address: str | tuple[str, int] = ("127.0.0.1", free_port()) if tcp else f"{folder}/s"
        bind = f"unix:{address}" if not tcp else f"127.0.0.1:{address[1]}"
        handed_over: list[str] = []
        words = list(CONTENDERS[name])
        if listener:
            address = str(listener.getsockname())
            # As systemd does it.
            handed_over = ["sh", "-c", f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{listener.fileno()}', "sh"]
            words += ["--fd=3"] if words[1] == "uvicorn" else []
        elif words[1] != "uvicorn":
            words.append(f"--bind={bind}")
        else:
            words += [f"--port={address[1]}"] if tcp else [f"--uds={address}"]
        paths = [str(SERVER), str(folder)]
        if "prompt" in name.lower():
            text = subprocess.run(["git", "show", PROMPT], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            (folder / "prompt_worker.py").write_text(text)
        isolated = ["-I"] if name == "Waffle Iron" else []
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*handed_over, PYTHON, *isolated, "-u", *words, "application:app"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": ":".join(paths)},
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()] if listener else [],
                start_new_session=True,
            )
        server = Running(folder, process, address)
        try:
            await_true(lambda: answers(server), f"{name} does not start:\n{server.log()[-3000:]}")
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(server: Running) -> bool:
    """Return True if it answers."""
    try:
        return server.status("/") == 200
    except OSError:
        return False


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition is true.

    Raises:
        SystemExit: it is not within two minutes.
    """
    deadline = time.monotonic() + STARTED
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(what)
        time.sleep(0.02)


def ended(server: Running) -> float:
    """Stop a server; return the seconds that it took."""
    begin = time.monotonic()
    server.process.terminate()
    server.process.wait()
    return time.monotonic() - begin


def restarted(name: str) -> str:
    """Return how many requests were lost when it was restarted under load on a socket that stays, as systemd does."""
    with tempfile.TemporaryDirectory(prefix="wi-") as place, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/s")
        listener.listen(2048)
        sent, lost, stop = [0], [0], threading.Event()

        def load(server: Running) -> None:
            while not stop.is_set():
                sent[0] += 1
                lost[0] += server.status("/worker") != 200

        for _ in range(4):
            with running(name, listener) as server:
                threads = [threading.Thread(target=load, args=[server]) for _ in range(4)]
                for thread in threads:
                    thread.start()
                time.sleep(1)
                server.process.terminate()
                server.process.wait()
                stop.set()
                with running(name, listener):
                    for thread in threads:
                        thread.join()
                stop.clear()
    return f"{lost[0]} of {sent[0]:,}"


def background(name: str) -> str:
    """Return whether a task of 5 s runs to its end: when its client is gone, and when the server is told to end."""
    with running(name) as server:
        assert server.status("/task") == 200
        server.process.terminate()
        server.process.wait()
        task = (server.folder / "task-done").exists()
    with running(name) as server:
        with server.connect() as connection:
            connection.sendall(b"GET /left HTTP/1.1\r\nHost: bench\r\n\r\n")
            time.sleep(0.5)
        time.sleep(6)
        left = (server.folder / "left-done").exists()
    return f"{'yes' if task else '**no**'}, {'yes' if left else '**no**'}"


def facts(name: str) -> list[str]:
    """Return what is true or not, without load."""
    with running(name) as server:
        client = server.ask("/client", "X-Forwarded-For: 192.0.2.7\r\n").rpartition(b"\r\n")[2]
        server.ask("/crash")
        time.sleep(0.2)
        logged = "RuntimeError: it fell over" in server.log()
        query = server.status("/?" + "q" * 16000)
        header = server.status("/", f"X-Long: {'x' * 16000}\r\n")
        both = server.status("/", f"A: {'x' * 15000}\r\nB: {'x' * 15000}\r\n")
        opened, code = websocket(server)
    words = "yes" if logged else "**no**"
    return [
        client.decode().strip('"') if b"192" in client else "**none**",
        words,
        f"{opened}, {code}",
        f"{query}, {header}, {both}",
    ]


def websocket(server: Running) -> tuple[str, str]:
    """Return the status of a WebSocket's opening, and the code that it is closed with at the end of the server."""
    with server.connect() as connection, connection.makefile("rb") as answer:
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET /chat HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Cookie: {'c' * 9000}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        connection.settimeout(20)
        try:
            words = answer.readline().split()
        except TimeoutError:
            return "**no answer**", "-"
        if len(words) < 2 or words[1] != b"101":
            return f"**{words[1].decode() if len(words) > 1 else 'none'}**", "-"
        while answer.readline() != b"\r\n":
            pass
        server.process.terminate()
        frame = answer.read(4)
        return "101", str(int.from_bytes(frame[2:4], "big")) if frame[:1] == b"\x88" else "**cut off**"


def idle(name: str) -> list[str]:
    """Return seconds to the first answer and to the end when idle, and the memory of all processes."""
    starts, ends, memory = [], [], []
    for _ in range(ROUNDS):
        begin = time.monotonic()
        with running(name) as server:
            starts.append(time.monotonic() - begin)
            for _ in range(50):
                server.ask("/")
            memory.append(sum(map(size, group(server.process.pid))))
            ends.append(ended(server))
    return [
        f"{statistics.median(starts):.2f} s",
        f"{statistics.median(ends):.2f} s",
        f"{statistics.median(memory) / 1024:.0f} MiB",
    ]


def group(pid: int) -> list[int]:
    """Return the processes of a session."""
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def size(pid: int) -> int:
    """Return the proportional set size of a process, in KiB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])


def rate(server: Running, path: str) -> float:
    """Return requests per second."""
    assert not isinstance(server.address, str)
    command = [
        "wrk",
        "-t1",
        "-c16",
        f"-d{SECONDS}",
        "-H",
        "Connection: close",
        f"http://127.0.0.1:{server.address[1]}{path}",
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out, out
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", out)[0])


def rates() -> dict[str, str]:
    """Return the requests per second of each, and beside those of the first, which is measured before each of them."""
    first, found = next(iter(CONTENDERS)), dict[str, str]()
    with running(first, tcp=True) as ours:
        for name in CONTENDERS:
            with running(name, tcp=True) as other:
                for server in (ours, other):
                    rate(server, "/")
                pairs = [(rate(ours, "/"), rate(other, "/")) for _ in range(PAIRS)]
            ratio = statistics.median(theirs / mine for mine, theirs in pairs)
            print(name, pairs, file=sys.stderr, flush=True)
            found[name] = f"{statistics.median(pair[1] for pair in pairs):,.0f}/s, {ratio:.2f} x"
    return found


def main() -> None:
    """Measure and print."""
    measured = rates() if "quick" not in sys.argv else dict.fromkeys(CONTENDERS, "-")
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name in CONTENDERS:
        row = [name, restarted(name), background(name), *facts(name), *idle(name), measured[name]]
        print("| " + " | ".join([*row, BROUGHT.get(name, "by the lock, or the host")]) + " |", flush=True)


if __name__ == "__main__":
    main()
