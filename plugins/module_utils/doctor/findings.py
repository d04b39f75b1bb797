"""What was found: a problem in words, the next command, and what it may follow from."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# From the most basic to what stands on all the others.
AREAS = ("ssh", "host", "database", "application", "nginx", "certificate")
SECONDS_FOR_A_COMMAND = 8.0
TIMED_OUT, NOT_FOUND = 124, 127


@dataclass(frozen=True)
class Finding:
    """One problem.

    Args:
        key: ``area.what``, as in ``database.password``.
        words: what is wrong, for people; never a secret.
        command: what to do next.
        follows: keys or areas; where one of them has a finding, too, this one is its consequence.
        urgent: False where nothing stands still for it.
    """

    key: str
    words: str
    command: str
    follows: tuple[str, ...] = ()
    urgent: bool = True

    @property
    def area(self) -> str:
        """Return the part of the host that it is about."""
        return self.key.partition(".")[0]


@dataclass
class Area:
    """What was found in one area, and what was looked at, in a few words."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, *arguments: Any, **options: Any) -> Area:
        """Note a finding; the key is given without the area."""
        key, *rest = arguments
        self.findings.append(Finding(f"{self.name}.{key}", *rest, **options))
        return self


def arranged(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings for JSON, the most basic cause first; consequences last, each with the key of its cause."""
    listed = sorted(findings, key=lambda one: (not one.urgent, AREAS.index(one.area)))
    causes = {one.key: one for one in listed if one.urgent}

    def cause_of(finding: Finding) -> str:
        for key, other in causes.items():
            if other is not finding and (key in finding.follows or other.area in finding.follows):
                return key
        return ""

    found = [
        {"key": one.key, "words": one.words, "command": one.command, "follows_from": cause_of(one)} for one in listed
    ]
    return sorted(found, key=lambda one: bool(one["follows_from"]))


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """Return the last line that it said."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


def call(*command: str, seconds: float = SECONDS_FOR_A_COMMAND, **options: Any) -> Done:
    """Run a command for some seconds at most; 124 is the code of one that took longer, 127 of one that is not there."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            **{
                "env": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                **options,
            },
        )
    except subprocess.TimeoutExpired:
        return Done(TIMED_OUT, "", f"`{command[0]}` did not end within {seconds:.0f} s")
    except OSError as error:
        return Done(NOT_FOUND, "", str(error))
    return Done(done.returncode, done.stdout, done.stderr)


def properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd has them."""
    out = call("systemctl", "show", unit, "--property", ",".join(names)).out
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
