"""What our modules answer from a host: `managed_files`, `diagnosis`, `host_state`. Other fields are dropped."""

from __future__ import annotations

from typing import Annotated

from ansible_collections.waffle.iron.plugins.plugin_utils.answers.messages import (
    Count,
    IdOrNothing,
    Line,
    Number,
    Seconds,
    Text,
)
from msgspec import Meta, Struct, field

# A section of a state becomes the id of an element of HTML.
Section = Annotated[str, Meta(pattern=r"\A[a-z][a-z_]*\Z", max_length=64)]
Key = Annotated[str, Meta(pattern=r"\A[a-z]+\.[a-z_0-9]+\Z", max_length=64)]


class Answer(Struct, omit_defaults=True):
    """What a module answers: a field that is missing is missing in the task's result, too."""


class Diff(Answer):
    """A file before and after."""

    before_header: Line
    after_header: Line
    before: str
    after: str


class ManagedFiles(Answer):
    """What was changed."""

    changed: bool
    changed_paths: list[Line]
    diff: list[Diff] | None = None
    failed: bool | None = None
    msg: Text | None = None


class Finding(Answer):
    """Something that is wrong."""

    key: Key
    words: Text
    command: Text
    follows_from: Annotated[str, Meta(max_length=64)]


class Requests(Answer):
    """The requests of the last minutes."""

    minutes: Count
    count: Number
    failed: Number


class Disk(Answer):
    """The fullest file system."""

    used_percent: Count


class HostFacts(Answer):
    """What is shown of a host."""

    release: IdOrNothing | None = None
    slot: IdOrNothing | None = None
    commit: Line | None = None
    subject: Text | None = None
    since: Seconds | None = None
    running: Line | None = None
    schema: Line | None = None
    health: Text | None = None
    requests: Requests | None = None
    disk: Disk | None = None
    certificate_days: Number | None = None


class Diagnosis(Answer):
    """What was found on a host."""

    findings: list[Finding]
    checked: dict[Section, Text]
    facts: HostFacts


class About(Answer):
    """What people want to know of a host."""

    system: Line | None = None
    kernel: Line | None = None
    processors: Number | None = None
    memory_mib: Number | None = None
    disk_used_percent: Number | None = None
    uptime_seconds: Number | None = None
    release: Line | None = None
    commit: Line | None = None
    subject: Text | None = None
    answers: Line | None = None
    schema: Line | None = None
    python: Line | None = None
    database: Line | None = None
    certificate_days: Number | None = None


class HostState(Answer):
    """What a host is made of. Facts keep their control characters, so that none is lost to the comparison."""

    facts: dict[Section, dict[Line, str]]
    gaps: dict[Section, Text] = field(default_factory=dict)
    identity: list[tuple[Line, Line]] = field(default_factory=list)
    left_out: list[tuple[Line, Line]] = field(default_factory=list)
    about: About = field(default_factory=About)


class Stated(Answer):
    """The result of the module `host_state`."""

    state: str
