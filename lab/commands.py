"""Runs programs, waits for conditions and does things in parallel: all of it can be interrupted."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.errors import InterruptedByUserError, LabError

_interrupted = threading.Event()
_children: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


def interrupt() -> None:
    """Stop every program that runs now and every wait; later ones do not start."""
    _interrupted.set()
    with _lock:
        for child in _children:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    """Send a program and its children what a terminal sends at Ctrl-C, which apt and dpkg know to handle."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str = "",
    check: bool = True,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it wrote, or append that to the file `log`.

    LabError with the last lines of its output if it fails and `check` is true.
    """
    command = [str(part) for part in argv]
    with _lock:
        if _interrupted.is_set():
            raise InterruptedByUserError("interrupted")
        output = log.open("a") if log else None
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output or subprocess.PIPE,
                stderr=subprocess.STDOUT if output else subprocess.PIPE,
                text=True,
                env=env,
                # A group of its own: Ctrl-C reaches this process alone, which then ends its children.
                process_group=0,
            )
        except FileNotFoundError:
            raise LabError(f"the program {command[0]!r} is not installed") from None
        finally:
            if output:
                output.close()
        _children.add(child)
    try:
        stdout, stderr = child.communicate(stdin)
    except BaseException:
        _end(child)
        child.wait()
        raise
    finally:
        with _lock:
            _children.discard(child)
    if _interrupted.is_set():
        raise InterruptedByUserError("interrupted")
    if check and child.returncode != 0:
        said = tail(log) if log else (stderr or stdout or "").strip()
        raise LabError(f"`{shlex.join(command)}` failed with exit code {child.returncode}:\n{indent(said)}")
    return subprocess.CompletedProcess(command, child.returncode, stdout or "", stderr or "")


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Return True if a program ends with exit code 0."""
    return run(argv, check=False).returncode == 0


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Check `condition` every `interval` seconds until it holds; return False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        if _interrupted.wait(interval):
            raise InterruptedByUserError("interrupted")
    return True


def parallel(jobs: Iterable[Callable[[], object]], workers: int = 16) -> None:
    """Run all jobs; LabError with every failure once all have ended."""
    pool = ThreadPoolExecutor(workers)
    futures = [pool.submit(job) for job in jobs]
    try:
        errors = [error for future in futures if (error := future.exception())]
    except BaseException:
        interrupt()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    for error in errors:
        if not isinstance(error, LabError) or len(errors) == 1:
            raise error
    if errors:
        raise LabError("\n".join(str(error) for error in errors))


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a text file."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def indent(text: str) -> str:
    """Return `text` moved to the right."""
    return "\n".join(f"    {line}" for line in text.splitlines())
