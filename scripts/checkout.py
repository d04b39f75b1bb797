"""What the scripts beside this file know of the checkout. Standard library alone: a runner's own Python starts some."""

from __future__ import annotations

import signal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def reset_signals() -> None:
    """Reset the signals that this program inherits, as its children would: a shell's background jobs ignore Ctrl-C.

    With SIGCHLD ignored, a child that failed would count as one that did not. SIGHUP stays, which nohup ignores.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def environments() -> list[str]:
    """Return the names of the environments: each has a folder of values in group_vars."""
    return sorted(path.parent.name for path in ROOT.glob("group_vars/*/vars.yml") if path.parent.name != "all")
