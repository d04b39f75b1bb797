"""Plans and runs the migrations of a release, with the Alembic of its own virtual environment.

Runs in the release's folder as the migration account, and from there in the folder of alembic.ini, as people run
Alembic. The application's `env.py` connects, as the templates of `alembic init` do it (generic or async); schema.py
holds the lock in the database. Prints one JSON object. A failure is a text on standard error and exit code 1; one in
the middle of a revision also prints a JSON object that tells what was done. An upgrade or a downgrade is marked in the
database from before its first statement until its end is known (`Mark`).

A revision that older code can work with says so by `compatible = True` beside its `revision`.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

try:
    from alembic.config import Config
    from alembic.operations import Operations
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext, MigrationStep
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
except ModuleNotFoundError as missing:
    sys.exit(
        f"the migrations cannot be run: the application has an alembic.ini, and {missing.name} is not among the "
        "packages of its lock file. Fix: add it to the application's dependencies (alembic, sqlalchemy), and commit "
        "the lock file; or remove the alembic.ini of an application that does not use Alembic any more"
    )

if TYPE_CHECKING:
    from messages import (
        AppliedStep,
        BegunMigration,
        CheckedRevision,
        Compatibility,
        Interrupted,
        Marked,
        MarkProgress,
        Migration,
        MigrationPlan,
        MigrationRun,
        Note,
        PlannedStep,
        Report,
    )

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
# Alembic's word for a database before the first revision.
BASE = "base"
# The parts of a database's address in SQLAlchemy's words, and in those of the release.
URL_PARTS = (
    ("username", "user"),
    ("password", "password"),
    ("host", "host"),
    ("port", "port"),
    ("database", "name"),
)
# What is the application's, and not a package that it needs.
OWN = re.compile(r"^(?!.*/(?:\.venv|site-packages)/)")

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

    def __init__(self, report: Report) -> None:
        super().__init__(report["text"])
        self.report = report


@dataclass
class Recorder:
    """Keeps what is executed for each revision."""

    steps: list[AppliedStep] = field(default_factory=list)
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

    def progress(self) -> MarkProgress:
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

    # What it said when it was made.
    backup: str | None
    begun: BegunMigration

    def __init__(self, engine: Engine) -> None:
        self.engine, self.writing = engine, False

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

    def read(self) -> Marked | None:
        """Return what the mark says; None if there is none."""
        with self.connected() as connection:
            if not inspect(connection).has_table(self.TABLE.name):
                return None
            row = connection.execute(select(self.TABLE)).first()
        if row is None:
            return None
        begun: BegunMigration = json.loads(row.begun)
        progress: MarkProgress = json.loads(row.progress)
        return {"backup": row.backup, **begun, **progress}

    def begin(self, backup: str | None, begun: BegunMigration) -> None:
        """Make the mark."""
        self.backup, self.begun = backup, begun
        with self.connected() as connection:
            self.TABLE.create(connection, checkfirst=True)
            first = Recorder().progress()
            connection.execute(
                self.TABLE.insert(), {"backup": backup, "begun": json.dumps(begun), "progress": json.dumps(first)}
            )

    def save(self, progress: MarkProgress) -> None:
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
    # The driver's own connection: what stands for one of asyncio's does not answer this.
    asked = getattr(connection.connection.driver_connection, "get_autocommit", None)
    return bool(asked and asked())


@contextlib.contextmanager
def observed(recorder: Recorder) -> Iterator[None]:
    """Give the recorder every statement that any engine executes until then."""
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


@dataclass(frozen=True)
class Release:
    """What the release in the current folder states of its migrations (application.py has all of it)."""

    alembic: str = "alembic.ini"
    folder: str = ""
    database: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Release:
        """Return that of the current folder; what it does not state is Alembic's own custom."""
        file = Path("release.json")
        stated = json.loads(file.read_text()).get("application", {}) if file.exists() else {}
        return cls(**{name: stated[name] for name in ("alembic", "folder", "database") if stated.get(name)})

    def url_line(self) -> str:
        """Return the line of env.py that takes the database's address from the release's settings."""
        names = self.database
        if url := names.get("url"):
            value = f'os.environ["{url}"]'
        else:
            parts = ", ".join(
                f'{word}=int(os.environ["{names[key]}"])' if key == "port" else f'{word}=os.environ["{names[key]}"]'
                for word, key in URL_PARTS
                if key in names
            )
            value = f'sqlalchemy.URL.create("mysql+pymysql", {parts}).render_as_string(hide_password=False)'
        return f'config.set_main_option("sqlalchemy.url", {value}.replace("%", "%%"))'


class Migrations:
    """The migrations of the release in the current folder."""

    def __init__(self) -> None:
        self.release, self.top = Release.here(), Path.cwd()
        # After the application's packages, as where Python adds the folder that a program is started in.
        sys.path += [str(self.top / name) for name in dict.fromkeys((self.release.folder, "", ".project"))]
        ini = self.top / self.release.alembic
        os.chdir(ini.parent)
        self.config = Config(ini.name)
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
        """
        found: list[State] = []

        def look(revision: Any, context: Any) -> list[Any]:
            version, known = joined(revision), Mark(context.connection.engine).read()
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
        if set(split(current)) <= {script.revision for script in self.script.walk_revisions()}:
            return current
        raise MigrationError(
            f"the database is at revision {current}, which this release does not have: it comes from newer code. "
            "Deploy code that has it; to go on with older code, see playbooks/rollback.yml"
        )

    def run(self, work: Callable[[Any, Any], Iterable[Any]], **options: Any) -> None:
        """Run env.py, which connects and does the work; its output goes to standard error."""
        engines: set[Engine] = set()

        def note(connection: Connection, *_others: Any) -> None:
            engines.add(connection.engine)

        event.listen(Engine, "engine_connect", note)
        try:
            with (
                contextlib.redirect_stdout(sys.stderr),
                EnvironmentContext(self.config, self.script, fn=work, **options),
            ):
                self.script.run_env()
        finally:
            event.remove(Engine, "engine_connect", note)
            for engine in engines:
                # env.py runs again, and an engine that it imports would hand out a connection of an event loop that
                # has ended; such a one cannot be closed any more.
                engine.dispose(close=not engine.dialect.is_async)

    def upward(self, revision: Any) -> list[Any]:
        """Return Alembic's steps from a revision to the head."""
        # What alembic.command.upgrade does.
        return list(self.script._upgrade_revs("head", revision)) if self.script.get_heads() else []

    def downward(self, target: str, revision: Any) -> list[Any]:
        """Return Alembic's steps from a revision back to another one, and to nothing beside that.

        Alembic's own steps would leave the other branch of a merge in the database.
        """
        kept = self.lineage(split(target))
        if foreign := sorted(set(kept) - set(self.lineage(revision))):
            raise MigrationError(
                f"the database cannot go back to {target}: it does not have {', '.join(foreign)}. "
                "Fix: deploy code that has it"
            )
        left = [script for name, script in self.lineage(revision).items() if name not in kept]
        return [MigrationStep.downgrade_from_script(self.script.revision_map, script) for script in left]

    def lineage(self, revisions: Iterable[str]) -> dict[str, Script]:
        """Return revisions and all that come before them, the last one first."""
        wanted = tuple(revisions)
        return {one.revision: one for one in self.script.iterate_revisions(wanted, "base")} if wanted else {}

    def after(self, step: Any, versions: frozenset[str]) -> frozenset[str]:
        """Return the revisions that Alembic's table has after a step."""
        left = versions - set(step.from_revisions)
        return left | (set(step.to_revisions) - set(self.lineage(left)))

    def rendered(self, steps: list[Any], start: str | None) -> dict[str, list[str] | str]:
        """Return the statements of each step's revision, or in a text why they cannot be shown.

        They are for the database that env.py connects to; what it does without a connection is not asked for, as many
        applications never tried that.
        """
        shown: dict[str, list[str] | str] = {}

        def show(_revision: Any, context: Any) -> list[Any]:
            left, versions = steps, frozenset(split(start))
            while left:
                try:
                    self.show(left, versions, context, shown)
                except Exception as error:  # noqa: BLE001 (a revision and env.py are the application's own code)
                    failed = next(step for step in left if step.revision.revision not in shown)
                    shown[failed.revision.revision] = f"{type(error).__name__}: {tidy(str(error))[:200]}"
                for step in [step for step in left if step.revision.revision in shown]:
                    versions = self.after(step, versions)
                left = [step for step in left if step.revision.revision not in shown]
            return []

        if steps:
            self.run(show, dont_mutate=True)
        return shown

    @staticmethod
    def show(steps: list[Any], versions: frozenset[str], context: Any, shown: dict[str, list[str] | str]) -> None:
        """Add the statements of steps from these versions, as far as the first one that fails."""
        recorder = Recorder()

        def follow(_revision: Any, _context: Any) -> Iterator[Any]:
            for step in recorder.follow(steps, context.version_table):
                yield step
                shown[step.revision.revision] = recorder.statements

        options = {**context.opts, "fn": follow, "starting_rev": sorted(versions), "output_buffer": recorder}
        options |= {"as_sql": True, "literal_binds": True, "dont_mutate": False}
        offline = MigrationContext.configure(
            context.connection, environment_context=context.environment_context, opts=options
        )
        stated = context.environment_context.context_opts
        stated["as_sql"] = True  # so that a revision which asks Alembic is told the truth
        try:
            with Operations.context(offline):
                offline.run_migrations()
        finally:
            del stated["as_sql"]

    def plan(self) -> MigrationPlan:
        """Return where the database is, where the release wants it, and what is to be done for that."""
        state = self.state()
        if state.interrupted:
            # This release need not have the revision that was interrupted, nor what comes before it.
            heads = ", ".join(self.script.get_heads()) or None
            return {"current": state.version, "head": heads, "pending": [], "interrupted": state.interrupted}
        head, current = self.head(), self.known(state)
        steps = self.upward(split(current))
        shown = self.rendered(steps, current)
        pending: list[CheckedRevision] = []
        new_tables = set[str]()
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

    def upgrade(self, note: Note) -> Migration:
        """Migrate the database to the release's revision, step by step.

        Raises:
            RevisionFailed: a revision failed.
        """
        self.head()
        return self.change(self.upward, note)

    def downgrade(self, target: str, note: Note) -> Migration:
        """Take the database back to an earlier revision, or to `base`, before the first one.

        Raises:
            RevisionFailed: a revision failed.
        """
        return self.change(lambda revision: self.downward(target, revision), note)

    def change(self, steps_from: Callable[[Any], list[Any]], note: Note) -> Migration:
        """Run steps, with a mark in the database for as long as their end is not known; return what was done."""
        state = self.state()
        if state.interrupted:
            raise RevisionFailed(state.interrupted)
        start = self.known(state)
        planned = self.planned(steps_from(split(start)), start)
        recorder = Recorder()

        def work(revision: Any, context: Any) -> Iterator[Any]:
            # Read again under the lock: another run may have come first.
            mark, steps = Mark(context.connection.engine), steps_from(revision)
            if known := mark.read():
                if not settled(known, version := joined(revision)):
                    raise RevisionFailed(interruption(known, version))
                mark.remove()
            if not steps:
                return
            run = cast("MigrationRun", {key: value for key, value in note.items() if key != "backup"})
            begun: BegunMigration = {"from": start, "planned": planned, **run}
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

    def planned(self, steps: list[Any], start: str | None) -> list[PlannedStep]:
        """Return for each step what a report on it needs: a later release may not have the revision."""
        shown, versions = self.rendered(steps, start), frozenset(split(start))
        planned: list[PlannedStep] = []
        for step in steps:
            statements, versions = shown[step.revision.revision], self.after(step, versions)
            planned.append(
                {
                    "revision": step.revision.revision,
                    "message": step.revision.doc.rstrip("."),
                    "file": os.path.relpath(step.revision.path, self.top),
                    "to": joined(versions),
                    "statements": shorten(statements) if isinstance(statements, list) else None,
                }
            )
        return planned

    def failure(self, recorder: Recorder, error: Exception) -> Report:
        """Return what a failed revision did and did not do; the mark goes if nothing of the revision is left."""
        assert recorder.mark is not None  # noqa: S101 (a revision has begun)
        progress, code, failed = recorder.progress(), code_of(error), recorder.running
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        progress["failed"], progress["reason"] = not lost, reason(error, failed or "")
        if failed and not lost and commits(failed) and code != SYNTAX_ERROR:
            # It commits the rows before it even where it fails itself, unless MySQL could not read it.
            progress["committed"] = len(recorder.statements) + len(recorder.rolled_back)
        known: Marked = {"backup": recorder.mark.backup, **recorder.mark.begun, **progress}
        found: list[Report] = []

        def keep(revision: Any, context: Any) -> list[Any]:
            report, mark = interruption(known, joined(revision)), Mark(context.connection.engine)
            if report["applied"] or lost:
                mark.save(progress)
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

    def interrupted(self) -> Interrupted:
        """Return the report on a migration that was interrupted, if one was."""
        return {"interrupted": self.state().interrupted}

    def stamp(self, revision: str) -> Migration:
        """Note in the database that it is at a revision, and run nothing; that settles an interrupted migration.

        Between two branches the database is at several revisions, which commas separate.
        """
        start, targets = self.current(), tuple(revision.split(","))
        several = len(targets) > 1 or len(split(start)) > 1

        # What alembic.command.stamp does.
        def note(versions: Any, _context: Any) -> list[Any]:
            return list(self.script._stamp_revs(targets, () if several else versions))

        def settle(_revision: Any, context: Any) -> list[Any]:
            Mark(context.connection.engine).remove()
            return []

        self.run(note, destination_rev=targets, purge=several)
        self.run(settle, dont_mutate=True)
        return {"from": start, "to": self.current(), "applied": []}

    def compatible(self, older: str, newer: str) -> Compatibility:
        """Return True if code of an older revision may run on a newer schema: whether each revision between is marked.

        Raises:
            MigrationError: the newer schema lacks a revision of the older one.
        """
        before, between = self.lineage(split(older)), self.lineage(split(newer))
        if lacking := sorted(set(before) - set(between)):
            raise MigrationError(
                f"the database is at {newer}, and a release on {older} takes the revision(s) {', '.join(lacking)}, "
                "which it does not have. Fix: deploy code that has them: ansible-playbook playbooks/deploy.yml -l ENV"
            )
        unmarked = [name for name, script in between.items() if name not in before and not is_compatible(script)]
        return {"compatible": not unmarked, "unmarked": unmarked}

    def explained(self, error: Exception) -> str:
        """Return in words why env.py, or what it imports, failed: what, why, and what to do about it."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            frame for frame in frames if Path(frame.filename).is_relative_to(self.top) and OWN.search(frame.filename)
        ]
        ini, place = self.release.alembic, ""
        if own:
            place = f" ({os.path.relpath(own[-1].filename, self.top)}, line {own[-1].lineno})"
        why = reason(error, "") if isinstance(error, DBAPIError) else f"{type(error).__name__}: {error}"
        return f"the migrations' env.py failed{place}: {why}. Fix: {self.way_out(error, ini)}"

    def way_out(self, error: Exception, ini: str) -> str:
        """Return what to do about an error of env.py."""
        if self.own_url and isinstance(error, SQLAlchemyError):
            return (
                f"{ini} has an address of a database of its own (sqlalchemy.url), which env.py connects to. "
                f"In env.py, below `config = context.config`, write\n    {self.release.url_line()}"
            )
        if isinstance(error, ModuleNotFoundError):
            return (
                f"add {error.name} to the application's dependencies, and commit the lock file; if it is the "
                f"application's own, name its folder in prepend_sys_path of {ini}"
            )
        if isinstance(error, KeyError):
            return f"add {error} to app_settings or app_migration_settings in group_vars"
        if "greenlet" in str(error):
            return "depend on sqlalchemy[asyncio], and commit the lock file"
        if isinstance(error, DBAPIError):
            return "ansible-playbook playbooks/doctor.yml -l ENV names what is wrong between the host and the database"
        return f"run `alembic current` in the folder of {ini} on your machine, with the same names of settings"

    @property
    def own_url(self) -> bool:
        """Return True if env.py connects to what alembic.ini says, and did not replace that."""
        section, key = self.config.config_ini_section, "sqlalchemy.url"
        file = Path(self.config.config_file_name or "")
        written = configparser.RawConfigParser()
        written.read(file)
        stated = written.get(section, key, fallback="")
        present = self.config.file_config.get(section, key, raw=True, fallback="")
        env = Path(self.script.dir, "env.py").read_text(errors="replace")
        return bool(stated) and stated == present and ("engine_from_config" in env or key in env)


@dataclass(frozen=True)
class State:
    """What a database says of itself; ``grants`` are None if its account is not limited by what they list."""

    version: str | None
    interrupted: Report | None
    version_columns: int = VERSION_COLUMNS
    grants: frozenset[str] | None = None
    logged: bool = False

    @classmethod
    def of(cls, context: Any, version: str | None, interrupted: Report | None) -> State:
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


def joined(versions: Iterable[str]) -> str | None:
    """Return the revisions of Alembic's table as one word; None if there are none.

    They are several between the branches of a merge.
    """
    return ",".join(sorted(versions)) or None


def split(version: str | None) -> tuple[str, ...]:
    """Return the revisions of one word; none for `base`, which is before the first one."""
    return tuple(version.split(",")) if version and version != BASE else ()


def settled(known: Marked, version: str | None) -> bool:
    """Return True if the database is at a whole revision, by the mark of a migration and by Alembic's table.

    The last of a revision's rows, its version and the commit are one transaction.
    """
    step = next((one for one in known["planned"] if one["revision"] == known["revision"]), None)
    return step is None or step["to"] == version


def interruption(known: Marked, version: str | None) -> Report:
    """Return the report on a revision that has not come to its end, by the mark of its migration."""
    names = [one["revision"] for one in known["planned"]]
    place = names.index(str(known["revision"]))
    step, running, failed = known["planned"][place], known["running"], known.get("failed", False)
    kept = max(0, known["committed"] - known["omitted"])
    applied, left = known["executed"][:kept], known["executed"][kept:]
    unknown: list[str] = []
    if running and not failed:
        unknown, left = ([*left, running], []) if commits(running) else ([running], left)
    statements = step["statements"]
    report: Report = {
        "revision": step["revision"],
        "message": step["message"],
        "file": step["file"],
        "to": step["to"],
        "backup": known["backup"],
        "release": known.get("release"),
        "host": known.get("host"),
        "at": known.get("at"),
        "reason": known.get("reason"),
        "omitted": known["omitted"],
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
    report["text"] = in_words(report)
    return report


def is_compatible(script: Script) -> bool:
    """Return True if a revision says that older code works on its schema."""
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


def in_words(report: Report) -> str:
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
    commands.add_parser("current", help="tell the revision that the database is at")
    commands.add_parser("head", help="tell the revision that the release's code wants")
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
    # So would what a driver says when a connection of an event loop that has ended is thrown away.
    sys.unraisablehook = lambda _: None
    migrations = None
    result: object
    try:
        migrations = Migrations()
        if options.command == "plan":
            result = migrations.plan()
        elif options.command == "upgrade":
            result = migrations.upgrade(options.note)
        elif options.command == "downgrade":
            result = migrations.downgrade(options.revision, options.note)
        elif options.command == "current":
            result = {"revision": migrations.current() or BASE}
        elif options.command == "head":
            result = {"revision": migrations.head() or BASE}
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
    except Exception as error:  # noqa: BLE001 (env.py and what it imports are the application's own code)
        # env.py may have put an error of the database into words of its own.
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        if isinstance(cause, DBAPIError) and code_of(cause) == ACCESS_DENIED:
            print(json.dumps({"denied": True}))
        worded = isinstance(error, MigrationError | CommandError | RevisionError)
        print(error if worded or migrations is None else migrations.explained(error), file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
