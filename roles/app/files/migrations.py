"""Plans and runs the migrations of a release, with the Alembic of its own virtual environment.

Runs in the release's folder as the migration account; the release's `migrations/env.py` connects and holds the lock in
the database. Prints one JSON object. A failure is a text on standard error and exit code 1; one in the middle of a
revision also prints a JSON object that tells what was done. An upgrade or a downgrade is marked in the database from
before its first statement until its end is known (`Mark`).

A revision that older code can work with says so by `compatible = True` beside its `revision`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

# The rows that these change wait for the transaction's end. MySQL commits every other statement by itself, and with it
# the rows that were changed before it.
TRANSACTIONAL = re.compile(r"(INSERT|UPDATE|DELETE|REPLACE|WITH|DO)\b", re.IGNORECASE)
READING = re.compile(
    r"(SELECT|SHOW|DESC|DESCRIBE|EXPLAIN|SET(?! *(@@)?(SESSION)?[ .]*AUTOCOMMIT)|SAVEPOINT|RELEASE|ROLLBACK)\b",
    re.IGNORECASE,
)
# Errors of MySQL that name tables, columns and keys, and never what is in them.
WITHOUT_VALUES = {
    *(1005, 1007, 1008, 1046, 1049, 1050, 1051, 1054, 1059, 1060, 1061, 1064, 1068, 1069, 1070, 1071, 1072, 1075),
    *(1091, 1101, 1118, 1138, 1142, 1143, 1146, 1170, 1171, 1205, 1213, 1215, 1265, 1364, 1451, 1553, 1822, 1824),
    *(1825, 1826, 1828, 1829, 1830, 1832, 1833, 3750, 3780, 3819, 3820, 3940, 3942),
}
SYNTAX_ERROR = 1064
ACCESS_DENIED = 1045
# What Alembic makes unless the application makes the table itself.
VERSION_COLUMNS = 32
# A statement of the application's own may be as long as the data that it inserts.
SHOWN_STATEMENTS, SHOWN_CHARACTERS = 100, 2000
QUOTED = re.compile(r"'.*'", re.DOTALL)
# In "Duplicate entry 'x' for key 'y'" the second one is a name.
QUOTED_BEFORE_NAME = re.compile(r"'.*'(?= for (?:key|column) )", re.DOTALL)
NAME = r"[`\"]?([\w$]+)[`\"]?"

# What an account needs for a statement, and what takes SUPER while the server writes a binary log.
DEFINER = r"(?:OR REPLACE )?(?:ALGORITHM ?= ?\w+ )?(?:DEFINER ?= ?\S+ )?(?:SQL SECURITY \w+ )?"
PRIVILEGES = (
    (rf"(?:CREATE {DEFINER}|DROP )TRIGGER\b", "TRIGGER"),
    (rf"(?:CREATE|ALTER) {DEFINER}VIEW\b", "CREATE VIEW"),
    (rf"CREATE {DEFINER}(?:AGGREGATE )?(?:PROCEDURE|FUNCTION)\b", "CREATE ROUTINE"),
    (r"(?:ALTER|DROP) (?:PROCEDURE|FUNCTION)\b", "ALTER ROUTINE"),
    (rf"(?:CREATE {DEFINER}|ALTER {DEFINER}|DROP )EVENT\b", "EVENT"),
    (r"(?:CREATE|ALTER|DROP|RENAME) (?:USER|ROLE)\b", "CREATE USER"),
    (r"CREATE TEMPORARY TABLE\b", "CREATE TEMPORARY TABLES"),
    (r"LOCK TABLES?\b", "LOCK TABLES"),
    (r"CALL\b", "EXECUTE"),
    (r"CREATE TABLE\b", "CREATE"),
    (r"ALTER TABLE\b", "ALTER"),
    (r"(?:DROP TABLE|DROP VIEW|TRUNCATE)\b", "DROP"),
    (r"(?:CREATE (?:UNIQUE |FULLTEXT |SPATIAL )?|DROP )INDEX\b", "INDEX"),
)
LOGGED = rf"CREATE {DEFINER}(?:AGGREGATE )?(?:TRIGGER|FUNCTION)\b"

DESTRUCTIVE = (
    (r"\bDROP TABLE\b", "drops a table with all that is in it"),
    (r"^ALTER TABLE .*\bDROP (?:COLUMN )?(?!INDEX|KEY|CONSTRAINT|FOREIGN|PRIMARY|CHECK|DEFAULT|PARTITION)[`\w]",
     "drops a column with all that is in it"),
    (r"\bDROP (?:INDEX|KEY|CONSTRAINT|FOREIGN KEY|PRIMARY KEY|CHECK)\b", "drops an index or a constraint"),
    (r"\bDROP VIEW\b", "drops a view that the running release may read"),
    (r"\bTRUNCATE\b", "removes every row of a table"),
    (r"^DELETE\b", "removes rows"),
    (r"\bRENAME\b", "renames what the running release knows by its old name"),
    (r"\bADD (?:CONSTRAINT \S+ )?UNIQUE\b|\bCREATE UNIQUE INDEX\b", "fails where rows share a value"),
)  # fmt: skip


class MigrationError(Exception):
    """The migrations cannot be planned or run; the message says why and what to do."""


class RevisionFailed(MigrationError):
    """A revision failed while it ran; `report` tells what was done, as JSON takes it."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report["text"])
        self.report = report


@dataclass
class Recorder:
    """Keeps what is executed for each revision."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    # The first of the statements, which no rollback takes back.
    committed: int = 0
    rolled_back: list[str] = field(default_factory=list)
    running: str | None = None
    revision: Script | None = None
    version_table: str = "alembic_version"
    mark: Mark | None = None

    def follow(self, steps: Iterable[Any], version_table: str) -> Iterator[Any]:
        """Hand out Alembic's steps one by one; when it asks for the next one, the one before is committed."""
        self.version_table = version_table
        for step in steps:
            begin = time.monotonic()
            self.revision, self.statements, self.committed, self.rolled_back = step.revision, [], 0, []
            self.running = None
            yield step
            seconds = round(time.monotonic() - begin, 2)
            count = len(self.statements)
            self.steps.append({"revision": step.revision.revision, "statements": count, "seconds": seconds})
            self.revision = None

    def counts(self, statement: str) -> bool:
        """Return True if a statement is one of the revision's own changes."""
        of_alembic = re.search(rf"\b{re.escape(self.version_table)}\b", statement) is not None
        return self.watches() and not of_alembic and READING.match(statement.lstrip()) is None

    def watches(self) -> bool:
        """Return True in a revision, unless the mark is being written."""
        return self.revision is not None and not (self.mark and self.mark.writing)

    def progress(self) -> dict[str, Any]:
        """Return how far the revision has come, as JSON takes it; of many statements, the last ones."""
        executed = self.statements + self.rolled_back
        return {
            "revision": self.revision.revision if self.revision else None,
            "executed": [statement[:SHOWN_CHARACTERS] for statement in executed[-SHOWN_STATEMENTS:]],
            "omitted": max(0, len(executed) - SHOWN_STATEMENTS),
            "committed": self.committed,
            "running": self.running[:SHOWN_CHARACTERS] if self.running else None,
        }

    def save(self) -> None:
        """Update the mark."""
        if self.mark:
            self.mark.save(self.progress())

    def before(self, _connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        """Note a statement that begins; it does not begin if that cannot be noted."""
        if self.counts(statement):
            self.running = tidy(statement)
            try:
                self.save()
            except SQLAlchemyError:
                self.running = None
                raise

    def after(self, connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        """Note that it ended well."""
        # After a failure, env.py still asks things such as the release of its lock: they are not the one that failed.
        if self.counts(statement):
            self.statements.append(tidy(statement))
            self.running = None
            if commits(statement) or in_autocommit(connection):
                self.committed = len(self.statements)
                self.save()

    def commit(self, _connection: Any) -> None:
        """Note that a transaction is about to be committed."""
        if self.watches():
            self.committed = len(self.statements)

    def rollback(self, _connection: Any) -> None:
        """Note that a transaction is about to be rolled back."""
        if self.watches():
            self.rolled_back += self.statements[self.committed :]
            del self.statements[self.committed :]

    # Alembic writes here what it would execute, one piece at a time.
    def write(self, text: str) -> None:
        """Note a statement that is not executed but shown."""
        text = tidy(text.strip().removesuffix(";"))
        if not text.startswith("--") and self.counts(text):
            self.statements.append(text)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


class Mark:
    """The mark of a migration in its database: made before the first statement, removed at an end that is known.

    It is in the database because it speaks of what is there: every host of the environment finds it, a restore
    replaces it together with the rest, and the server writes it to its disk before any statement that comes later.
    Each change is committed at once, on a connection of its own, as the migration's may be in a transaction or lost.
    """

    # backup.py has the table's name, too.
    TABLE = Table(
        "waffle_iron_migration",
        MetaData(),
        Column("backup", String(255)),
        Column("begun", Text(1 << 24), nullable=False),
        Column("progress", Text(1 << 24), nullable=False),
    )

    def __init__(self, engine: Engine) -> None:
        self.engine, self.writing, self.known = engine, False, dict[str, Any]()

    @contextlib.contextmanager
    def connected(self) -> Iterator[Connection]:
        """Yield a new connection in a transaction that is committed at the end.

        The application's own pool may be exhausted, and a connection kept from before may have been idle for too long.
        """
        engine, self.writing = create_engine(self.engine.url, pool=self.engine.pool.recreate()), True
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            self.writing = False
            engine.dispose()

    def read(self) -> dict[str, Any] | None:
        """Return what the mark says; None if there is none."""
        with self.connected() as connection:
            if not inspect(connection).has_table(self.TABLE.name):
                return None
            row = connection.execute(select(self.TABLE)).first()
        return None if row is None else {"backup": row.backup, **json.loads(row.begun), **json.loads(row.progress)}

    def begin(self, backup: str | None, begun: dict[str, Any]) -> None:
        """Make the mark."""
        self.known = {"backup": backup, **begun}
        with self.connected() as connection:
            self.TABLE.create(connection, checkfirst=True)
            first = Recorder().progress()
            connection.execute(
                self.TABLE.insert(), {"backup": backup, "begun": json.dumps(begun), "progress": json.dumps(first)}
            )

    def save(self, progress: dict[str, Any]) -> None:
        """Write how far the migration has come."""
        with self.connected() as connection:
            connection.execute(self.TABLE.update(), {"progress": json.dumps(progress)})

    def remove(self) -> None:
        """Remove the mark; the table goes, too, so that only an interrupted migration differs from what models say."""
        with self.connected() as connection:
            self.TABLE.drop(connection, checkfirst=True)


def commits(statement: str) -> bool:
    """Return True if MySQL commits a statement by itself."""
    return READING.match(statement.lstrip()) is None and TRANSACTIONAL.match(statement.lstrip()) is None


def in_autocommit(connection: Connection) -> bool:
    """Return True if each statement of a connection is a transaction of its own."""
    asked = getattr(connection.connection.dbapi_connection, "get_autocommit", None)
    return bool(asked and asked())


@contextlib.contextmanager
def observed(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder of every statement that any engine executes meanwhile."""
    listeners = (
        ("before_cursor_execute", recorder.before),
        ("after_cursor_execute", recorder.after),
        ("commit", recorder.commit),
        ("rollback", recorder.rollback),
    )
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)


def tidy(statement: str) -> str:
    """Return a statement on one line."""
    return " ".join(statement.split())


class Migrations:
    """The migrations in a release's folder."""

    def __init__(self, file: str = "alembic.ini") -> None:
        self.config = Config(file)
        self.script = ScriptDirectory.from_config(self.config)

    def head(self) -> str | None:
        """Return the revision that the release's code wants; None where it has no migrations.

        Raises:
            MigrationError: there is more than one.
        """
        heads = self.script.get_heads()
        if len(heads) > 1:
            raise MigrationError(
                f"the migrations have {len(heads)} heads: {', '.join(heads)}. Each was written without the other: "
                'on your machine, in the application\'s folder, run `alembic merge -m "merge" heads`, and commit'
            )
        return heads[0] if heads else None

    def state(self) -> State:
        """Return what the database says of itself; the mark of a migration whose end is known counts as none.

        It stays until the next `change`: between two revisions, that of a migration at work is like it.

        Raises:
            MigrationError: the database is at several revisions.
        """
        found: list[State] = []

        def look(revision: Any, context: Any) -> list[Any]:
            version, known = version_of(revision), Mark(context.connection.engine).read()
            report = interruption(known, version) if known and not settled(known, version) else None
            found.append(State.of(context, version, report))
            return []

        self.run(look, dont_mutate=True)
        return found[0]

    def current(self) -> str | None:
        """Return the revision that the database is at; None for a database without one."""
        return self.state().version

    def known(self, state: State) -> str | None:
        """Return the revision that the database is at, which this release must have.

        Raises:
            MigrationError: this release does not have it.
        """
        current = state.version
        if current is None or current in {script.revision for script in self.script.walk_revisions()}:
            return current
        raise MigrationError(
            f"the database is at revision {current}, which this release does not have: it comes from newer code. "
            "Deploy code that has it; to go on with older code, see playbooks/rollback.yml"
        )

    def run(self, work: Callable[[Any, Any], Iterable[Any]], **options: Any) -> None:
        """Let env.py connect (or not, with ``as_sql``) and do the work; its output goes to standard error."""
        with (
            contextlib.redirect_stdout(sys.stderr),
            EnvironmentContext(self.config, self.script, fn=work, **options),
        ):
            self.script.run_env()

    def upward(self, revision: Any) -> list[Any]:
        """Return Alembic's steps from a revision to the head."""
        # What alembic.command.upgrade does.
        return list(self.script._upgrade_revs("head", revision)) if self.script.get_heads() else []

    def downward(self, target: str, revision: Any) -> list[Any]:
        """Return Alembic's steps from a revision back to another one."""
        return list(self.script._downgrade_revs(target, revision))

    def rendered(self, steps: list[Any], start: str | None) -> dict[str, list[str] | str]:
        """Return the statements of each step's revision, or in a text why they cannot be shown."""
        shown: dict[str, list[str] | str] = {}
        while steps:
            recorder = Recorder()
            self.config.output_buffer = cast(TextIO, recorder)

            def work(_revision: Any, context: Any, left: list[Any] = steps, to: Recorder = recorder) -> Iterator[Any]:
                for step in to.follow(left, context.version_table):
                    yield step
                    shown[step.revision.revision] = to.statements

            try:
                self.run(work, as_sql=True, starting_rev=start)
                return shown
            except Exception as error:  # noqa: BLE001 (a revision and env.py are the application's own code)
                failed = steps[len([step for step in steps if step.revision.revision in shown])].revision
                shown[failed.revision] = f"{type(error).__name__}: {tidy(str(error))[:200]}"
            start, steps = failed.revision, [step for step in steps if step.revision.revision not in shown]
        return shown

    def plan(self) -> dict[str, Any]:
        """Return where the database is, where the release wants it, and what is to be done for that."""
        state = self.state()
        if state.interrupted:
            # This release need not have the revision that was interrupted, nor what comes before it.
            heads = ", ".join(self.script.get_heads()) or None
            return {"current": state.version, "head": heads, "pending": [], "interrupted": state.interrupted}
        head, current = self.head(), self.known(state)
        steps = self.upward(current)
        shown = self.rendered(steps, current)
        pending, new_tables = [], set[str]()
        for step in steps:
            script, statements = step.revision, shown[step.revision.revision]
            listed = statements if isinstance(statements, list) else []
            found = warnings(listed, new_tables)
            if not isinstance(statements, list):
                found = [f"its SQL cannot be shown, as it asks the database while it runs ({statements})"]
            pending.append(
                {
                    "revision": script.revision,
                    "message": script.doc.rstrip("."),
                    "compatible": is_compatible(script),
                    "statements": listed,
                    "warnings": found,
                    "problems": state.problems(script.revision, listed),
                }
            )
        return {"current": current, "head": head, "pending": pending, "interrupted": None}

    def upgrade(self, note: dict[str, Any]) -> dict[str, Any]:
        """Bring the database to the release's revision, step by step.

        Raises:
            RevisionFailed: a revision failed.
        """
        self.head()
        return self.change(self.upward, note)

    def downgrade(self, target: str, note: dict[str, Any]) -> dict[str, Any]:
        """Take the database back to an earlier revision, or to `base`, before the first one.

        Raises:
            RevisionFailed: a revision failed.
        """
        return self.change(lambda revision: self.downward(target, revision), note)

    def change(self, steps_from: Callable[[Any], list[Any]], note: dict[str, Any]) -> dict[str, Any]:
        """Run steps, with a mark in the database for as long as their end is not known; return what was done."""
        state = self.state()
        if state.interrupted:
            raise RevisionFailed(state.interrupted)
        start = self.known(state)
        planned = self.planned(steps_from(start), start)
        recorder = Recorder()

        def work(revision: Any, context: Any) -> Iterator[Any]:
            # Read again under the lock: another run may have come first.
            mark, steps = Mark(context.connection.engine), steps_from(revision)
            if known := mark.read():
                if not settled(known, version := version_of(revision)):
                    raise RevisionFailed(interruption(known, version))
                mark.remove()
            if not steps:
                return
            begun = {"from": start, "planned": planned, **{key: note[key] for key in note if key != "backup"}}
            mark.begin(note.get("backup"), begun)
            recorder.mark = mark
            yield from recorder.follow(steps, context.version_table)
            mark.remove()

        try:
            with observed(recorder):
                self.run(work)
        except RevisionFailed:
            raise
        except Exception as error:
            if recorder.revision is None:
                raise
            raise RevisionFailed(self.failure(recorder, error)) from error
        return {"from": start, "to": self.current(), "applied": recorder.steps}

    def planned(self, steps: list[Any], start: str | None) -> list[dict[str, Any]]:
        """Return for each step what a report on it needs: a later release may not have the revision."""
        shown = self.rendered(steps, start)
        return [
            {
                "revision": step.revision.revision,
                "message": step.revision.doc.rstrip("."),
                "file": os.path.relpath(step.revision.path),
                "to": next(iter(step.to_revisions), None),
                "statements": shorten(statements)
                if isinstance(statements := shown[step.revision.revision], list)
                else None,
            }
            for step in steps
        ]

    def failure(self, recorder: Recorder, error: Exception) -> dict[str, Any]:
        """Return what a failed revision did and did not do; the mark goes if nothing of the revision is left."""
        assert recorder.mark is not None  # noqa: S101 (a revision has begun)
        known, code, failed = {**recorder.mark.known, **recorder.progress()}, code_of(error), recorder.running
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        known.update(failed=not lost, reason=reason(error, failed or ""))
        if failed and not lost and commits(failed) and code != SYNTAX_ERROR:
            # It commits the rows before it even where it fails itself, unless MySQL could not read it.
            known["committed"] = len(recorder.statements) + len(recorder.rolled_back)
        found: list[dict[str, Any]] = []

        def keep(revision: Any, context: Any) -> list[Any]:
            report, mark = interruption(known, version_of(revision)), Mark(context.connection.engine)
            if report["applied"] or lost:
                mark.save({key: known[key] for key in (*recorder.progress(), "failed", "reason")})
            else:
                mark.remove()
                report["interrupted"] = False
            found.append(report)
            return []

        try:
            self.run(keep, dont_mutate=True)
        except Exception:  # noqa: BLE001 (the report of the first failure must not be lost by a second one)
            return interruption(known, "unknown, as the database cannot be asked")
        return found[0]

    def interrupted(self) -> dict[str, Any]:
        """Return the report on a migration that was interrupted, if one was."""
        return {"interrupted": self.state().interrupted}

    def stamp(self, revision: str) -> dict[str, Any]:
        """Note in the database that it is at a revision, and run nothing; that settles an interrupted migration."""
        start = self.current()
        with contextlib.redirect_stdout(sys.stderr):
            command.stamp(self.config, revision)

        def settle(_revision: Any, context: Any) -> list[Any]:
            Mark(context.connection.engine).remove()
            return []

        self.run(settle, dont_mutate=True)
        return {"from": start, "to": self.current(), "applied": []}

    def compatible(self, older: str, newer: str) -> dict[str, Any]:
        """Tell whether code of an older revision may run on a newer schema: whether each revision between is marked."""
        between = list(self.script.iterate_revisions(newer, older))
        unmarked = [script.revision for script in between if not is_compatible(script)]
        return {"compatible": not unmarked, "unmarked": unmarked}


@dataclass(frozen=True)
class State:
    """What a database says of itself; ``grants`` are None if its account is not limited by what they list."""

    version: str | None
    interrupted: dict[str, Any] | None
    version_columns: int = VERSION_COLUMNS
    grants: frozenset[str] | None = None
    logged: bool = False

    @classmethod
    def of(cls, context: Any, version: str | None, interrupted: dict[str, Any] | None) -> State:
        """Return the state of the database of Alembic's context."""
        connection, inspector = context.connection, inspect(context.connection)
        place = {"table_name": context.version_table, "schema": context.version_table_schema}
        columns = inspector.get_columns(**place) if inspector.has_table(**place) else []
        length = next((column["type"].length for column in columns if column["name"] == "version_num"), None)
        if connection.dialect.name not in ("mysql", "mariadb"):
            return cls(version, interrupted, length or VERSION_COLUMNS)
        listed = [row[0] for row in connection.execute(text("SHOW GRANTS"))]
        logged = connection.scalar(text("SELECT @@log_bin AND NOT @@log_bin_trust_function_creators"))
        return cls(version, interrupted, length or VERSION_COLUMNS, privileges_in(listed), bool(logged))

    def problems(self, revision: str, statements: list[str]) -> list[str]:
        """Return why a revision would fail, as far as it can be known before."""
        found = []
        if len(revision) > self.version_columns:
            found.append(
                f"the revision's id has {len(revision)} characters, and the column version_num of Alembic's "
                f"table holds {self.version_columns}. Fix: give {revision} a shorter id"
            )
        for statement in statements:
            if self.grants is None:
                break
            needed = next((name for pattern, name in PRIVILEGES if re.match(pattern, statement, re.IGNORECASE)), None)
            if needed and needed not in self.grants:
                found.append(
                    f"the migration account does not have the privilege {needed}. Fix: add it to the account in "
                    f"group_vars/all/vars.yml, then ansible-playbook playbooks/database.yml -l ENV: {statement}"
                )
            elif self.logged and "SUPER" not in self.grants and re.match(LOGGED, statement, re.IGNORECASE):
                found.append(
                    "the server writes a binary log and refuses this to an account without SUPER (error 1419). "
                    f"Fix: set the server's parameter log_bin_trust_function_creators to 1: {statement}"
                )
        return found


def privileges_in(grants: Iterable[str]) -> frozenset[str] | None:
    """Return the privileges that the lines of SHOW GRANTS list, for whatever object; None if they need not list all."""
    found = set[str]()
    for grant in grants:
        listed, on, _ = grant.removeprefix("GRANT ").partition(" ON ")
        # A role has privileges of its own, which are not listed here.
        if not on or listed == "ALL PRIVILEGES":
            return None
        found.update(name.strip().upper() for name in listed.split(","))
    return frozenset(found)


def version_of(revision: Any) -> str | None:
    """Return the one revision that Alembic says a database is at; None if it is at none.

    Raises:
        MigrationError: it is at several.
    """
    versions = (revision,) if isinstance(revision, str) else tuple(revision)
    if len(versions) > 1:
        raise MigrationError(f"the database is at {len(versions)} revisions at once: {', '.join(versions)}")
    return versions[0] if versions else None


def settled(known: dict[str, Any], version: str | None) -> bool:
    """Return True if the database is at a whole revision, by the mark of a migration and by Alembic's table.

    The last of a revision's rows, its version and the commit are one transaction.
    """
    step = next((one for one in known["planned"] if one["revision"] == known["revision"]), None)
    return step is None or step["to"] == version


def interruption(known: dict[str, Any], version: str | None) -> dict[str, Any]:
    """Return the report on a revision that has not come to its end, by the mark of its migration."""
    names = [one["revision"] for one in known["planned"]]
    place = names.index(known["revision"])
    step, running, failed = known["planned"][place], known["running"], known.get("failed", False)
    kept = max(0, known["committed"] - known["omitted"])
    applied, left = known["executed"][:kept], known["executed"][kept:]
    unknown = [running] if running and not failed else []
    if unknown and commits(running):
        unknown, left = left + unknown, []
    statements = step["statements"]
    report = {
        **{key: step[key] for key in ("revision", "message", "file", "to")},
        **{key: known.get(key) for key in ("backup", "release", "host", "at", "reason", "omitted")},
        "from": known["planned"][place - 1]["to"] if place else known["from"],
        "before": names[:place],
        "after": names[place + 1 :],
        "applied": applied,
        "rolled_back": left,
        "unknown": unknown,
        "failed": running if failed else None,
        "missing": None if statements is None else rest(statements, known["omitted"] + len(known["executed"]), running),
        "version": version,
        "interrupted": True,
    }
    return {**report, "text": in_words(report)}


def is_compatible(script: Script) -> bool:
    """Tell whether a revision says that older code works on its schema."""
    return getattr(script.module, "compatible", False) is True


def warnings(statements: list[str], new_tables: set[str]) -> list[str]:
    """Return what somebody should think about before these statements are run.

    ``new_tables`` are those that the plan itself has made so far, which no release uses yet; it is added to.
    """
    found = []
    for statement in statements:
        if made := re.match(rf"CREATE TABLE (?:IF NOT EXISTS )?{NAME}", statement, re.IGNORECASE):
            new_tables.add(made[1])
        table = re.search(
            rf"\b(?:ALTER TABLE|ON|INTO|FROM|UPDATE|TRUNCATE(?: TABLE)?) {NAME}", statement, re.IGNORECASE
        )
        if made or (table and table[1] in new_tables):
            continue
        text = without_literals(statement)
        found += [f"{words}: {statement}" for pattern, words in DESTRUCTIVE if re.search(pattern, text, re.IGNORECASE)]
        renamed = re.search(rf"\bCHANGE (?:COLUMN )?{NAME} {NAME}", text, re.IGNORECASE)
        if renamed and renamed[1] != renamed[2]:
            found.append(f"renames what the running release knows by its old name: {statement}")
        if re.search(r"\b(?:MODIFY|CHANGE)\b", text, re.IGNORECASE):
            found.append(f"redefines a column; values that do not fit the new type make it fail: {statement}")
        if re.search(
            r"\bADD (?!CONSTRAINT|CHECK|INDEX|KEY|UNIQUE|FOREIGN|PRIMARY).*\bNOT NULL\b", text, re.IGNORECASE
        ) and not re.search(r"\bDEFAULT\b|\bAUTO_INCREMENT\b|\bGENERATED\b", text, re.IGNORECASE):
            found.append(
                f"adds a column that must not be NULL and has no default; older code leaves it out: {statement}"
            )
    if len(statements) > 1 and any(map(commits, statements)):
        found.append(
            f"{len(statements)} statements, and MySQL commits each that changes the schema by itself: an interruption "
            "between them leaves the revision half applied. Fix: one such statement in one revision, and nothing else"
        )
    return found


def without_literals(statement: str) -> str:
    """Return a statement without the texts in it, which must not look like SQL."""
    return re.sub(r"'(?:[^'\\]|\\.|'')*'", "''", statement)


def code_of(error: Exception) -> int:
    """Return MySQL's number of an error; 0 where it is none of MySQL's."""
    arguments = getattr(getattr(error, "orig", None), "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def reason(error: Exception, statement: str) -> str:
    """Return an error's words, without what may be people's data."""
    if not isinstance(error, DBAPIError):
        return f"{type(error).__name__}: {error}"
    code, words = code_of(error), str(error.orig.args[-1] if error.orig and error.orig.args else error.orig)
    if code == SYNTAX_ERROR:
        near = re.search(r"near '(.*)' at line", words, re.DOTALL)
        if near and tidy(near[1]) not in statement:
            words = words.replace(near[1], "...")
    elif code not in WITHOUT_VALUES:
        pattern = QUOTED_BEFORE_NAME if QUOTED_BEFORE_NAME.search(words) else QUOTED
        words = pattern.sub("'...'", words)
    return f"MySQL's error {code}: {tidy(words)}" if code else tidy(words)


def shorten(statements: list[str]) -> list[str]:
    """Return the first of a revision's statements, and of each its beginning."""
    return [statement[:SHOWN_CHARACTERS] for statement in statements[:SHOWN_STATEMENTS]]


def rest(statements: list[str], executed: int, running: str | None) -> list[str]:
    """Return the statements of a revision that come after those that were executed and the one that was running."""
    begin = statements.index(running) if running in statements else executed
    return statements[begin + 1 if running else begin :]


def in_words(report: dict[str, Any]) -> str:
    """Return the report of a revision that failed or was interrupted as a text."""

    def listed(statements: list[str]) -> list[str]:
        return [f"    {statement}" for statement in statements] or ["    none"]

    named = f"revision {report['revision']} ({report['message']})"
    lines = [f"{named} failed: {report['reason']}" if report["reason"] else f"{named} was interrupted"]
    if report["at"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report["at"]))
        lines.append(f"  of the migration for release {report['release']}, begun {at} on {report['host']}")
    if report["before"]:
        lines.append(f"  before it, these went through whole: {', '.join(report['before'])}")
    first = [f"... and {report['omitted']} before these"] if report["omitted"] else []
    lines += ["  applied, and committed:", *listed(first + report["applied"])]
    if report["rolled_back"]:
        lines += ["  rolled back:", *listed(report["rolled_back"])]
    if report["unknown"]:
        lines += ["  unknown whether applied:", *listed(report["unknown"])]
    if report["failed"]:
        lines += ["  failed:", *listed([report["failed"]])]
    if report["missing"] is None:
        lines.append("  not applied: cannot be told, as the revision asks the database while it runs")
    else:
        lines += ["  not applied:", *listed(report["missing"])]
    if report["after"]:
        lines.append(f"  not begun: {', '.join(report['after'])}")
    lines.append(f"  alembic_version says: {report['version'] or 'nothing'}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="migrations", description=__doc__.splitlines()[0] if __doc__ else "")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", help="tell what would be done")
    commands.add_parser("interrupted", help="report a migration that has not come to its end")
    upgrade = commands.add_parser("upgrade", help="bring the database to the newest revision")
    downgrade = commands.add_parser("downgrade", help="take it back to an earlier one")
    for change in (upgrade, downgrade):
        change.add_argument("--note", type=json.loads, default={}, help="what reports repeat, and the backup, as JSON")
    downgrade.add_argument("revision")
    commands.add_parser("stamp", help="note that the database is at a revision").add_argument("revision")
    pair = commands.add_parser("compatible", help="tell whether older code may run on a newer schema")
    pair.add_argument("older")
    pair.add_argument("newer")
    return top


def main() -> int:
    """Parse, run, and turn a failure into one message."""
    options = parser().parse_args()
    # Alembic's and env.py's own notes would stand before the one message.
    logging.disable(logging.WARNING)
    try:
        migrations = Migrations()
        if options.command == "plan":
            result = migrations.plan()
        elif options.command == "upgrade":
            result = migrations.upgrade(options.note)
        elif options.command == "downgrade":
            result = migrations.downgrade(options.revision, options.note)
        elif options.command == "interrupted":
            result = migrations.interrupted()
        elif options.command == "stamp":
            result = migrations.stamp(options.revision)
        else:
            result = migrations.compatible(options.older, options.newer)
    except RevisionFailed as error:
        print(json.dumps({"failure": error.report}))
        print(error, file=sys.stderr)
        return 1
    except (MigrationError, CommandError, RevisionError, DBAPIError) as error:
        # env.py may have put an error of the database into words of its own.
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        if isinstance(cause, DBAPIError) and code_of(cause) == ACCESS_DENIED:
            print(json.dumps({"denied": True}))
        print(reason(error, "") if isinstance(error, DBAPIError) else error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
