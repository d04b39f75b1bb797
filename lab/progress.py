"""Reports the current step and its duration, so that no minute is silent."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

REPEAT = 10.0  # seconds between two signs of life of one step

_lock = threading.Lock()


def say(text: str) -> None:
    """Print one line at once."""
    with _lock:
        print(text, file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """Print something that the user should not miss."""
    say(f"NOTICE: {text}")


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Report `name` every REPEAT seconds while the block runs, and how long it took in all."""
    started = time.monotonic()
    done = threading.Event()

    def report() -> None:
        while not done.wait(REPEAT):
            say(f"  ... {name}: {time.monotonic() - started:.0f} s")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    say(f"  {name}")
    try:
        yield
    finally:
        done.set()
        reporter.join()
    say(f"  {name}: done in {time.monotonic() - started:.1f} s")
