"""What all tests have in common."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Tests interrupt what they start, and what they start inherits this: a shell's background job ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a machine that is at work any example may take long, and that is no failure of what it looks at.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Put the umask back: the hosts' programs set theirs, and tests call them in this process."""
    before = os.umask(0o022)
    yield
    os.umask(before)
