"""What all tests have in common."""

from __future__ import annotations

from hypothesis import settings

# On a machine that is at work any example may take long, and that is no failure of what it looks at.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
