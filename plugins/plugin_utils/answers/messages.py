"""The messages of a host, by type: what its release program answers, keeps, and tells its own parts.

Both ends have these types. The release program (roles/app/files) names them in its annotations. The control node
decodes with them, and so checks what a host answers: fields that are not here are dropped. A host has the standard
library alone, so its programs import this file for type checkers only, and it is not installed there.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, Required, TypedDict

from msgspec import Meta

# --- single fields: their length, and the characters that they may have ---

# Of a release, a backup, a revision, a slot: it may become a word of a command.
Id = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=128)]
IdOrNothing = Annotated[str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9._-]*)?\Z", max_length=128)]
Hex = Annotated[str, Meta(pattern=r"\A[0-9a-f]*\Z", max_length=64)]
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_.-]*\Z", max_length=128)]
# Of a public address: it becomes a part of a request.
Path = Annotated[str, Meta(pattern=r"\A/([A-Za-z0-9._~-][A-Za-z0-9._~/-]*)?\Z", max_length=256)]
Line = Annotated[str, Meta(max_length=4096)]
Text = Annotated[str, Meta(max_length=1 << 20)]
Count = Annotated[int, Meta(ge=0, le=1 << 20)]
Number = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
Seconds = Annotated[float, Meta(ge=-1e12, le=1e12)]
Phase = Literal["migrated", "ready", "downgraded", "switched", "confirmed", "done"]

# --- commands of the release program ---

Command = Literal[
    "activate", "rollback", "go-back", "repair", "migrate", "restore",
    "confirm", "prepare", "status", "list", "log", "proven", "preview", "plan", "rollback-target",
    "stamp", "exec", "revert", "serve", "probe",
]  # fmt: skip

# --- releases ---


class KnownRelease(TypedDict, total=False):
    """What is known of a release."""

    state: Line
    at: Seconds
    artefact: Hex | None
    commit: Hex | None
    subject: Text | None
    schema: Line | None


class Release(KnownRelease):
    """A release on the host."""

    id: Id


class ReleaseState(KnownRelease, total=False):
    """What the host keeps of a release (state/<id>.json)."""

    turn: int
    preparation: float
    seconds: float
    by: str
    lock: str | None
    frontend: str | None
    dirty: bool | None


class PublicApplication(TypedDict):
    """Where the world finds the application of the live release."""

    health_path: Path
    ready_answers: Literal["success", "any"]
    page: NotRequired[bool]


class Source(TypedDict, total=False):
    """What a release was made of, beside its artefact."""

    lock: Hex | None
    commit: Hex | None
    subject: Text | None
    frontend: Hex | None
    dirty: bool | None


class ReleaseFacts(Source, total=False):
    """What the control node tells of a release (its release.json); application.py reads the rest of `application`."""

    release: Id
    artefact: Hex
    settings: dict[Name, Hex]
    application: PublicApplication


class Status(TypedDict, total=False):
    """The live release, what is wrong with it, and the other releases."""

    live: Required[IdOrNothing]
    slot: IdOrNothing | None
    problems: list[Text] | None
    damaged: bool | None
    running: Line | None
    workers: Count | None
    settings: dict[Name, Hex] | None
    releases: list[Release] | None
    application: PublicApplication | None


class Version(TypedDict, total=False):
    """What the server of a release says of itself (server/waffle_asgi.py)."""

    release: str
    worker: int


class Proof(TypedDict, total=False):
    """The proof that an artefact was live and healthy on the host."""

    proven: Required[bool]
    release: Id
    at: Seconds


class RollbackChoice(TypedDict):
    """The release to go back to, and the revision that the database has to go back to; empty if it stays."""

    release: Id
    downgrade: IdOrNothing


class RollbackTarget(RollbackChoice):
    """What a rollback would go to."""

    live: IdOrNothing
    unacknowledged: bool


# --- the database ---


class Revision(TypedDict):
    """A revision that would be applied."""

    revision: Line
    message: Text
    statements: list[Text]
    warnings: list[Text]
    compatible: NotRequired[bool]


class Migrations(TypedDict):
    """What would be done to the database."""

    current: Line | None
    head: Line | None
    pending: list[Revision]
    stops: NotRequired[list[Text]]


class Plan(Migrations):
    """The same, as the host has it; what was interrupted is among its stops."""

    interrupted: None


class Connections(TypedDict, total=False):
    """The check that the connections of all hosts fit the database server."""

    checked: Required[bool]
    needed: Number | None
    free: Number | None
    sums: Text | None
    problem: Text | None


class Preview(TypedDict):
    """What a release would do."""

    migrations: Migrations | None
    connections: Connections


class AppliedStep(TypedDict, total=False):
    """A revision that was applied."""

    revision: Required[Line]
    statements: Count | None
    seconds: Seconds | None


# What was done to the database; of a restore, the backups.
Migration = TypedDict(
    "Migration",
    {
        "plan": list[Text] | None,
        "backup": IdOrNothing | None,
        "restored": Id | None,
        "from": Line | None,
        "to": Line | None,
        "applied": list[AppliedStep] | None,
    },
    total=False,
)


# --- runs ---


class Step(TypedDict):
    """A step of a run, and how long it took."""

    step: Line
    seconds: Seconds


class Sample(TypedDict):
    """An answer of the release's own health check."""

    path: Line
    status: Number
    milliseconds: Seconds


class Receipt(Source, total=False):
    """What a run did (roles/app/files/receipts.py); the audit log has a part of it (records.py)."""

    kind: IdOrNothing
    outcome: Line | None
    release: IdOrNothing
    before: IdOrNothing
    by: Line
    host: Line
    began: Seconds
    seconds: Seconds | None
    artefact: Hex | None
    settings: dict[Name, Hex]
    settings_changed: list[Name]
    schema_before: Line | None
    schema: Line | None
    migration: Migration
    steps: list[Step]
    health: list[Sample]
    notes: list[Text]
    promotion_override: Text
    error: Text


class Reached(TypedDict, total=False):
    """How far a run came, what was live before it and, where it has ended, its receipt."""

    release: IdOrNothing
    phase: Phase
    before: IdOrNothing
    receipt: Receipt


class Outcome(Reached, total=False):
    """The same as an answer: with the release that is live now."""

    changed: bool
    live: IdOrNothing
    running: Line
    unfinished: Text


class RunProgress(Reached, total=False):
    """What a run tells those who wait for it (activation.py)."""

    token: str
    request: str
    kind: str
    by: str
    began: float
    ended: float
    error: str


# --- between migrations.py, which has the Alembic of a release, and schema.py, on one host ---


class MigrationRun(TypedDict, total=False):
    """Which run a migration is a part of, for reports on it."""

    release: str
    host: str
    at: float


class Note(MigrationRun, total=False):
    """What schema.py tells of a migration that it begins."""

    backup: str | None


class PlannedStep(TypedDict):
    """What a report on a revision needs: a later release may not have the revision."""

    revision: str
    message: str
    file: str
    to: str | None
    statements: list[str] | None


Begun = TypedDict("Begun", {"from": str | None, "planned": list[PlannedStep]})


class BegunMigration(Begun, MigrationRun):
    """What the mark of a migration says from its beginning."""


class MarkProgress(TypedDict):
    """How far a marked migration has come, and why its revision failed."""

    revision: str | None
    executed: list[str]
    omitted: int
    committed: int
    running: str | None
    failed: NotRequired[bool]
    reason: NotRequired[str]


class Marked(BegunMigration, MarkProgress):
    """All that the mark of a migration says."""

    backup: str | None


# The report on a revision that failed or was interrupted.
Report = TypedDict(
    "Report",
    {
        "revision": str,
        "message": str,
        "file": str,
        "from": str | None,
        "to": str | None,
        "backup": str | None,
        "release": str | None,
        "host": str | None,
        "at": float | None,
        "reason": str | None,
        "before": list[str],
        "after": list[str],
        "applied": list[str],
        "omitted": int,
        "rolled_back": list[str],
        "unknown": list[str],
        "failed": str | None,
        "missing": list[str] | None,
        "version": str | None,
        "interrupted": bool,
        "text": NotRequired[str],
    },
)


class Interrupted(TypedDict):
    """The report on a migration that has not come to its end, if there is one."""

    interrupted: Report | None


class CheckedRevision(Revision):
    """A revision that would be applied, and why it would fail."""

    problems: list[str]


class MigrationPlan(Interrupted):
    """What migrations.py answers to `plan`."""

    current: str | None
    head: str | None
    pending: list[CheckedRevision]


class Compatibility(TypedDict):
    """The answer whether older code works on a newer schema, and the revisions that do not say so."""

    compatible: bool
    unmarked: list[str]
