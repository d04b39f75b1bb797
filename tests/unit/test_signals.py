"""What a parent ignores or blocks holds for no program of this checkout, nor for what that starts."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.support import ROOT

PROGRAM = """
import signal, subprocess, checkout
checkout.reset_signals()
assert subprocess.run(["false"]).returncode == 1
print(subprocess.check_output(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], text=True))
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
RESET = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD)


def test_inherited_signals_are_reset() -> None:
    def inherit() -> None:
        for number in RESET:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, RESET)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT / "scripts",
        preexec_fn=inherit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("interrupted\n"), done.stderr
    blocked, ignored = (int(line.split()[1], 16) for line in done.stdout.splitlines()[:2])
    assert not [number.name for number in RESET if (blocked | ignored) >> (number - 1) & 1]
