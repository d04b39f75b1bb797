"""Compares the states of hosts: which facts are equal, which differ because group_vars say so, and which just differ.

A state is what the module `host_state` reads: facts by section and key, all of them texts. In the facts of each host

1. what is the host's own (its name, its addresses, its release, its live slot) is replaced by a word for it, and
2. the values in which its environment differs from another one are replaced by the names of their variables.

A fact that is equal after the first step is equal. One that is equal only after the second is declared, by those
variables. Every other one is undeclared. No fact has a rule of its own.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Facts = Mapping[str, Mapping[str, str]]
# Shorter values stand for themselves in too many places.
WORD_LENGTH = 5
NAMED = re.compile(r"\{\{ (\w+(?: or \w+)*) \}\}")
DIGEST = re.compile(r"<(hidden|content) ([0-9a-f]{16})>")


def secret_digest(key: str, text: str) -> str:
    """Return what stands for a secret in a fact: the same as the module `host_state` makes of it under this key."""
    keyed = hashlib.blake2b(text.encode(), key=hashlib.sha256(key.encode()).digest(), digest_size=8)
    return f"<hidden {keyed.hexdigest()}>"


def whole(text: str) -> str:
    """Return a pattern that finds a text where it is not a part of a longer word; a number may have a unit."""
    part = r"\d" if text.isdigit() else r"\w"
    return rf"(?<!{part}){re.escape(text)}(?!{part})"


@dataclass(frozen=True)
class Rules:
    """What is replaced in the facts of one host."""

    own: Mapping[str, str] = field(default_factory=dict)
    """The host's own texts, and the word for each."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Values that are replaced wherever they stand as a whole word, and what names them."""
    places: tuple[tuple[str, str, str], ...] = ()
    """Values that are replaced in some lines only: a pattern of ``section/key: line``, value, name."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of values, and the names of their variables."""
    switches: tuple[tuple[str, str], ...] = ()
    """Lines that are there, or are not, because of a variable: a pattern of ``section/key: line``, the variable."""
    things: frozenset[str] = frozenset()
    """Variables that list things (as accounts): a line that names one may be missing elsewhere."""

    @cached_property
    def plain(self) -> Callable[[str], str]:
        """Return what takes the host's own out of a text."""
        return replacing(self.own)

    @cached_property
    def _in_words(self) -> Callable[[str], str]:
        return replacing({**self.words, **self.digests})

    def named(self, text: str, where: str = "") -> str:
        """Return a line with the names of variables in the place of their values."""
        text = self._in_words(text)
        for pattern, value, name in self.places:
            if fnmatch.fnmatchcase(where + text, pattern):
                text = re.sub(whole(value), lambda _, name=name: name, text)  # type: ignore[misc]
        return text

    def dropped(self, line: str, where: str) -> str:
        """Return the variable because of which a line is there or not; nothing for a line that must be equal."""
        for name in variables_in(line):
            if name in self.things:
                return name
        return next((name for pattern, name in self.switches if fnmatch.fnmatchcase(where + line, pattern)), "")


def variables_in(line: str) -> list[str]:
    """Return the variables that are named in a line in the place of their values."""
    return [name for names in NAMED.findall(line) for name in names.split(" or ")]


def replacing(pairs: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces each key by its value, the longest key first."""
    known = {text: word for text, word in pairs.items() if text}
    if not known:
        return lambda text: text
    # A digest begins and ends with a sign that is no part of a word.
    pattern = re.compile("|".join(whole(text) for text in sorted(known, key=len, reverse=True)))
    return lambda text: pattern.sub(lambda found: known[found[0]], text)


@dataclass(frozen=True)
class Member:
    """A host of the comparison."""

    name: str
    environment: str
    facts: Facts
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Row:
    """One fact on all hosts."""

    section: str
    key: str
    kind: str
    """``equal``, ``declared``, ``accepted`` or ``undeclared``."""
    values: Mapping[str, str | None]
    """By host; None if the fact is not there. What is the host's own is replaced."""
    variables: tuple[str, ...] = ()
    reason: str = ""

    @property
    def fact(self) -> str:
        """Return the name of the fact, as patterns match it."""
        return f"{self.section}/{self.key.lstrip('/')}"


def compare(members: Iterable[Member], accepted: Iterable[Mapping[str, str]] = ()) -> tuple[list[Row], list[str]]:
    """Compare the facts of hosts.

    Args:
        members: the hosts, each with its facts and the rules of its environment.
        accepted: differences that are no fault: ``fact``, a pattern of section/key, and the ``reason``.

    Returns:
        A row for each fact, in the order of sections and keys, and the patterns of ``accepted`` that matched no
        difference. A section that a host does not have is not compared with that host, nor one that one host alone has.
    """
    members, accepted = list(members), list(accepted)
    used: set[str] = set()
    rows = []
    for section in dict.fromkeys(section for member in members for section in member.facts):
        present = [member for member in members if section in member.facts]
        if len(present) < 2:
            continue
        everywhere = set.intersection(
            *({member.rules.plain(key) for key in member.facts[section]} for member in present)
        )
        keyed = {member.name: by_common_key(member, section, everywhere) for member in present}
        for key in sorted({key for facts in keyed.values() for key in facts}):
            row = classify(section, key, present, {member.name: keyed[member.name].get(key) for member in present})
            if row.kind == "undeclared":
                for entry in accepted:
                    if fnmatch.fnmatchcase(row.fact, entry["fact"]):
                        used.add(entry["fact"])
                        row = Row(section, key, "accepted", row.values, row.variables, entry["reason"])
                        break
            rows.append(row)
    return rows, [entry["fact"] for entry in accepted if entry["fact"] not in used]


def by_common_key(member: Member, section: str, everywhere: set[str]) -> dict[str, tuple[str, str]]:
    """Return a section's facts by the key that all hosts have in common: the key as it is here, and the value.

    A key that is ``everywhere`` is what it is; in others the names of variables replace their values.
    """
    found: dict[str, tuple[str, str]] = {}
    for raw, value in member.facts[section].items():
        key = member.rules.plain(raw)
        common = key if key in everywhere else member.rules.named(key)
        while common in found:  # two that look alike once their names are replaced stay two
            common += " "
        found[common] = (key, member.rules.plain(value))
    return found


def classify(section: str, key: str, members: list[Member], found: Mapping[str, tuple[str, str] | None]) -> Row:
    """Return the row of one fact; ``found`` has its key and value on each host, None if it is not there."""
    values = {name: pair[1] if pair else None for name, pair in found.items()}
    if len(set(found.values())) == 1:
        return Row(section, key, "equal", values)
    texts = [pair[1] for pair in found.values() if pair]
    # A line that all have alike stays as it is: a value may stand in it by chance.
    shared = set.intersection(*(set(text.split("\n")) for text in texts))
    where = f"{section}/{key.lstrip('/')}: "
    names = set(variables_in(key))
    inside: dict[str, set[tuple[str, ...] | None]] = {}
    across: set[tuple[str, ...]] = set()
    for member in members:
        pair = found[member.name]
        lines = None
        if pair:
            lines = tuple(line if line in shared else member.rules.named(line, where) for line in pair[1].split("\n"))
            for before, line in zip(pair[1].split("\n"), lines, strict=True):
                names |= set(variables_in(line)) if before != line else set()
        inside.setdefault(member.environment, set()).add(lines)
        kept, causes = without_dropped(member.rules, key, lines, where)
        across.add(kept)
        names |= causes
    alike_inside = all(len(variants) == 1 for variants in inside.values())
    if names and alike_inside and len(across) == 1:
        return Row(section, key, "declared", values, tuple(sorted(names)))
    return Row(section, key, "undeclared", values)


def without_dropped(
    rules: Rules, key: str, lines: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], set[str]]:
    """Return lines without those that depend on a variable, and these variables.

    A fact that is not there, and one whose key or whole value depends on a variable, is an empty list of lines.
    """
    if lines is None:
        return (), set()
    if cause := rules.dropped(key, "") or rules.dropped("", where.removesuffix(": ")):
        return (), {cause}
    causes = [rules.dropped(line, where) for line in lines]
    kept = tuple(line for line, cause in zip(lines, causes, strict=True) if not cause)
    return kept, {cause for cause in causes if cause}


# --- the values of the environments ---


def texts_of(value: Any) -> list[str]:
    """Return the texts that a value can be written as, a list's elements and mappings' values included."""
    if isinstance(value, Mapping):
        return [text for part in value.values() for text in texts_of(part)]
    if isinstance(value, (list, tuple)):
        scalars = [str(part) for part in value if not isinstance(part, (Mapping, list, tuple))]
        joined = [separator.join(scalars) for separator in (" ", ",", ", ")] if len(scalars) > 1 else []
        return joined + [text for part in value for text in texts_of(part)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def differing(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the variables that are not the same in all environments; ``values`` has each environment's."""
    names = dict.fromkeys(name for known in values.values() for name in known)
    return [name for name in names if len({repr(known.get(name)) for known in values.values()}) > 1]


def labels(values: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what each differing variable is called in a fact.

    Variables that have the same text in some environment (as a database and its account) cannot be told apart there,
    so they have one label: ``database_name or database_user``.
    """
    groups: list[tuple[set[str], set[tuple[str, str]]]] = []
    for name in differing(values):
        names, texts = {name}, {(env, text) for env, known in values.items() for text in texts_of(known.get(name))}
        texts = {(env, text) for env, text in texts if len(text) >= WORD_LENGTH}
        for other in [group for group in groups if group[1] & texts]:
            groups.remove(other)
            names, texts = names | other[0], texts | other[1]
        groups.append((names, texts))
    return {name: " or ".join(sorted(names)) for names, _ in groups for name in names}


def rules_for(
    environment: str,
    values: Mapping[str, Mapping[str, Any]],
    places: Mapping[str, list[str]],
    switches: Mapping[str, list[str]],
) -> Rules:
    """Return the rules that follow from the values of the environments, for a host of one of them.

    Args:
        environment: the host's.
        values: name and value of each variable that an environment sets, by environment.
        places: for values that are too short or too common to be looked for everywhere, such as numbers: the patterns
            of ``section/key: line`` that hold them, by variable.
        switches: for variables that decide whether something is there at all: the same.
    """
    label = labels(values)
    different = list(label)
    words: dict[str, str] = {}
    for name in different:
        for text in texts_of(values[environment].get(name)):
            if len(text) >= WORD_LENGTH and not re.fullmatch(r"[\d.]+", text):
                words[text] = f"{{{{ {label[name]} }}}}"
    own = values[environment]
    return Rules(
        words=words,
        places=tuple(
            (pattern, text, f"{{{{ {name} }}}}")
            for name in different
            for pattern in places.get(name, [])
            for text in texts_of(own.get(name))
        ),
        switches=tuple((pattern, name) for name in different for pattern in switches.get(name, [])),
        things=frozenset(name for name in different if any(lists_things(known.get(name)) for known in values.values())),
    )


def lists_things(value: Any) -> bool:
    """Return True if a value is a list of mappings."""
    return isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value)
