"""What all tests have in common."""

from __future__ import annotations

import signal

from hypothesis import settings

# Tests interrupt what they start, and what they start inherits this: a shell's background job ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a machine that is at work any example may take long, and that is no failure of what it looks at.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
