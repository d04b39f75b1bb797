"""What the release program of a host answers (roles/app/files/release.py), by command.

Fields that are not here are dropped, so a new one of the program must stand here, too.
"""

from __future__ import annotations

from typing import Literal

from ansible_collections.waffle.iron.plugins.plugin_utils.answers.fields import (
    Answer,
    Count,
    Hex,
    Id,
    IdOrNothing,
    Line,
    Name,
    Number,
    Path,
    Seconds,
    Text,
)
from msgspec import field

Phase = Literal["migrated", "ready", "downgraded", "switched", "confirmed", "done"]


class Release(Answer):
    """A release on the host."""

    id: Id
    state: Line | None = None
    at: Seconds | None = None
    artefact: Hex | None = None
    commit: Hex | None = None
    subject: Text | None = None
    schema: Line | None = None


class PublicApplication(Answer):
    """Where the world finds the application of the live release."""

    health_path: Path
    ready_answers: Literal["success", "any"]
    page: bool = False


class Status(Answer):
    """The live release, what is wrong with it, and the other releases."""

    live: IdOrNothing
    slot: IdOrNothing | None = None
    problems: list[Text] | None = None
    damaged: bool | None = None
    running: Line | None = None
    workers: Count | None = None
    settings: dict[Name, Hex] | None = None
    releases: list[Release] | None = None
    application: PublicApplication | None = None


class Proof(Answer):
    """The proof that an artefact was live and healthy on the host."""

    proven: bool
    release: Id | None = None
    at: Seconds | None = None


class RollbackTarget(Answer):
    """What a rollback would go to."""

    live: IdOrNothing
    release: Id
    downgrade: IdOrNothing
    unacknowledged: bool


class Revision(Answer):
    """A revision that would be applied."""

    revision: Line
    message: Text
    statements: list[Text]
    warnings: list[Text]
    compatible: bool = False


class Migrations(Answer):
    """What would be done to the database."""

    current: Line | None
    head: Line | None
    pending: list[Revision]
    stops: list[Text] = field(default_factory=list)


class Connections(Answer):
    """The check that the connections of all hosts fit the database server."""

    checked: bool
    needed: Number | None = None
    free: Number | None = None
    sums: Text | None = None
    problem: Text | None = None


class Preview(Answer):
    """What a release would do."""

    migrations: Migrations | None
    connections: Connections


class AppliedStep(Answer):
    """A revision that was applied."""

    revision: Line
    statements: Count | None = None
    seconds: Seconds | None = None


class Migration(Answer, rename={"start": "from", "end": "to"}):
    """What was done to the database; of a restore, the backups."""

    plan: list[Text] | None = None
    backup: IdOrNothing | None = None
    restored: Id | None = None
    start: Line | None = None
    end: Line | None = None
    applied: list[AppliedStep] | None = None


class Step(Answer):
    """A step of a run, and how long it took."""

    step: Line
    seconds: Seconds


class Sample(Answer):
    """An answer of the release's own health check."""

    path: Line
    status: Number
    milliseconds: Seconds


class Receipt(Answer):
    """What a run did (roles/app/files/receipts.py)."""

    kind: IdOrNothing | None = None
    outcome: Line | None = None
    release: IdOrNothing | None = None
    before: IdOrNothing | None = None
    by: Line | None = None
    host: Line | None = None
    began: Seconds | None = None
    seconds: Seconds | None = None
    artefact: Hex | None = None
    lock: Hex | None = None
    commit: Hex | None = None
    subject: Text | None = None
    frontend: Hex | None = None
    dirty: bool | None = None
    settings: dict[Name, Hex] | None = None
    settings_changed: list[Name] | None = None
    schema_before: Line | None = None
    schema: Line | None = None
    migration: Migration | None = None
    steps: list[Step] | None = None
    health: list[Sample] | None = None
    notes: list[Text] | None = None
    promotion_override: Text | None = None
    error: Text | None = None


class Outcome(Answer):
    """How far a run came, and what was live before and is now."""

    changed: bool | None = None
    release: IdOrNothing | None = None
    phase: Phase | None = None
    before: IdOrNothing | None = None
    live: IdOrNothing | None = None
    running: Line | None = None
    unfinished: Text | None = None
    receipt: Receipt | None = None
