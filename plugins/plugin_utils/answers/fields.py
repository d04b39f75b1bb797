"""The types of single fields of an answer: their length, and the characters that they may have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

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


class Answer(Struct, omit_defaults=True):
    """What a host answers: unknown fields are dropped, and one that is missing is missing in the task's result, too."""
