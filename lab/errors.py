"""What the lab raises when it cannot go on."""


class LabError(Exception):
    """A failure that the user can act on: its text says what failed and what to do next."""


class InterruptedByUserError(LabError):
    """Work was abandoned because the user interrupted it."""
