"""What the API accepts and returns."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, EmailStr, Field, StringConstraints

# Control characters, line breaks among them, have no place in a name.
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=50, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"),
]
Email = Annotated[EmailStr, Field(max_length=100)]


class UserInput(BaseModel):
    """A user as a client sends it."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(examples=["Alice"])
    email: Email = Field(examples=["alice@example.com"])


class User(BaseModel):
    """A user as the database holds it; rows that others inserted may lack the e-mail address."""

    id: int
    name: str
    email: str | None


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Unavailable(Problem):
    """Why a request cannot be answered at the moment; `Retry-After` says when to try again."""

    reason: str


class Health(BaseModel):
    """True if this process can do its work."""

    status: str
    reason: str | None = None


class Version(BaseModel):
    """What is running here, as measured and not as intended."""

    release: str
    commit: str | None
    frontend: str | None = Field(description="Commit of a front end from a repository of its own")
    artefact: str | None
    environment: str
    lock: str | None
    schema_: str | None = Field(serialization_alias="schema", description="Revision of the database's schema")
    started_at: str
    worker: int
