"""Plans and runs the migrations of a release, with the Alembic of its own virtual environment.

Runs in the release's folder as the migration account; the release's `migrations/env.py` connects and holds the lock in
the database. Prints one JSON object. A failure is a text on standard error and exit code 1; one in the middle of a
revision also prints a JSON object that tells what was done.

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
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

# MySQL commits these by themselves, and whatever rows were changed before them.
COMMITTING = re.compile(r"(CREATE|ALTER|DROP|RENAME|TRUNCATE|GRANT|REVOKE|OPTIMIZE|ANALYZE|REPAIR)\b", re.IGNORECASE)
READING = re.compile(r"(SELECT|SHOW|DESC|DESCRIBE|EXPLAIN|SET|BEGIN|COMMIT|ROLLBACK)\b", re.IGNORECASE)
# Errors of MySQL that name tables, columns and keys, and never what is in them.
WITHOUT_VALUES = {
    *(1005, 1007, 1008, 1046, 1049, 1050, 1051, 1054, 1059, 1060, 1061, 1064, 1068, 1069, 1070, 1071, 1072, 1075),
    *(1091, 1101, 1118, 1138, 1142, 1143, 1146, 1170, 1171, 1205, 1213, 1215, 1265, 1364, 1451, 1553, 1822, 1824),
    *(1825, 1826, 1828, 1829, 1830, 1832, 1833, 3750, 3780, 3819, 3820, 3940, 3942),
}
SYNTAX_ERROR = 1064
# What an earlier run that was cut off would have left: the thing is there, or gone, already.
DONE_ALREADY = {1050, 1051, 1060, 1061, 1068, 1091, 1826, 3822}
QUOTED = re.compile(r"'.*'", re.DOTALL)
# In "Duplicate entry 'x' for key 'y'" the second one is a name.
QUOTED_BEFORE_NAME = re.compile(r"'.*'(?= for (?:key|column) )", re.DOTALL)
NAME = r"[`\"]?([\w$]+)[`\"]?"

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
        super().__init__(in_words(report))
        self.report = report


@dataclass
class Recorder:
    """Keeps what is executed for each revision."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    running: str | None = None
    revision: Script | None = None
    version_table: str = "alembic_version"

    def follow(self, steps: Iterable[Any], version_table: str) -> Iterator[Any]:
        """Hand out Alembic's steps one by one; when it asks for the next one, the one before is committed."""
        self.version_table = version_table
        for step in steps:
            begin = time.monotonic()
            self.revision, self.statements, self.running = step.revision, [], None
            yield step
            seconds = round(time.monotonic() - begin, 2)
            count = len(self.statements)
            self.steps.append({"revision": step.revision.revision, "statements": count, "seconds": seconds})
            self.revision = None

    def counts(self, statement: str) -> bool:
        """Tell whether a statement is one of the revision's own changes."""
        of_alembic = re.search(rf"\b{re.escape(self.version_table)}\b", statement) is not None
        return self.revision is not None and not of_alembic and READING.match(statement.lstrip()) is None

    def before(self, _connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        """Note a statement that begins."""
        if self.counts(statement):
            self.running = tidy(statement)

    def after(self, _connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        """Note that it ended well."""
        # After a failure, env.py still asks things such as the release of its lock: they are not the one that failed.
        if self.counts(statement):
            self.statements.append(tidy(statement))
            self.running = None

    # Alembic writes here what it would execute, one piece at a time.
    def write(self, text: str) -> None:
        """Note a statement that is not executed but shown."""
        text = tidy(text.strip().removesuffix(";"))
        if not text.startswith("--") and self.counts(text):
            self.statements.append(text)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


@contextlib.contextmanager
def observed(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder of every statement that any engine executes meanwhile."""
    listeners = (("before_cursor_execute", recorder.before), ("after_cursor_execute", recorder.after))
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

    def current(self) -> str | None:
        """Return the revision that the database is at; None for a database without one.

        Raises:
            MigrationError: it is at several.
        """
        found: list[str] = []

        def look(revision: Any, _context: Any) -> list[Any]:
            found.extend((revision,) if isinstance(revision, str) else revision)
            return []

        self.run(look, dont_mutate=True)
        if len(found) > 1:
            raise MigrationError(f"the database is at {len(found)} revisions at once: {', '.join(found)}")
        return found[0] if found else None

    def known(self) -> str | None:
        """Return the revision that the database is at, which this release must have.

        Raises:
            MigrationError: this release does not have it.
        """
        current = self.current()
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
        head, current = self.head(), self.known()
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
                }
            )
        return {"current": current, "head": head, "pending": pending}

    def upgrade(self) -> dict[str, Any]:
        """Bring the database to the release's revision, step by step.

        Raises:
            RevisionFailed: a revision failed.
        """
        self.head()
        return self.change(self.known(), self.upward)

    def downgrade(self, target: str) -> dict[str, Any]:
        """Take the database back to an earlier revision, or to `base`, before the first one.

        Raises:
            RevisionFailed: a revision failed.
        """
        return self.change(self.known(), lambda revision: self.downward(target, revision))

    def change(self, start: str | None, steps_from: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """Run steps; return what was done."""
        planned = steps_from(start)
        recorder = Recorder()

        def work(revision: Any, context: Any) -> Iterator[Any]:
            # Asked again under the lock: another run may have done it meanwhile.
            return recorder.follow(steps_from(revision), context.version_table)

        try:
            with observed(recorder):
                self.run(work)
        except Exception as error:
            if recorder.revision is None:
                raise
            raise RevisionFailed(self.report(recorder, planned, start, error)) from error
        return {"from": start, "to": self.current(), "applied": recorder.steps}

    def report(self, recorder: Recorder, planned: list[Any], start: str | None, error: Exception) -> dict[str, Any]:
        """Return what a failed revision did and did not do."""
        script = recorder.revision
        assert script is not None  # noqa: S101 (the caller asked)
        executed, failed = recorder.statements, recorder.running
        kept = committed(executed, failed, code_of(error))
        all_of_it = self.rendered(planned, start).get(script.revision)
        try:
            version: str | None = self.current()
        except Exception:  # noqa: BLE001 (the report of the first failure must not be lost by a second one)
            version = "unknown, as the database cannot be asked"
        return {
            "revision": script.revision,
            "message": script.doc.rstrip("."),
            "file": os.path.relpath(script.path),
            "before": [step["revision"] for step in recorder.steps],
            "applied": executed[:kept],
            "rolled_back": executed[kept:],
            "failed": failed,
            "reason": reason(error, failed or ""),
            "missing": rest(all_of_it, executed, failed) if isinstance(all_of_it, list) else None,
            "version": version,
            "done_already": kept == 0 and code_of(error) in DONE_ALREADY,
        }

    def stamp(self, revision: str) -> dict[str, Any]:
        """Note in the database that it is at a revision, and run nothing."""
        start = self.current()
        with contextlib.redirect_stdout(sys.stderr):
            command.stamp(self.config, revision)
        return {"from": start, "to": self.current(), "applied": []}

    def compatible(self, older: str, newer: str) -> dict[str, Any]:
        """Tell whether code of an older revision may run on a newer schema: whether each revision between is marked."""
        between = list(self.script.iterate_revisions(newer, older))
        unmarked = [script.revision for script in between if not is_compatible(script)]
        return {"compatible": not unmarked, "unmarked": unmarked}


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
    committing = sum(bool(COMMITTING.match(statement)) for statement in statements)
    if committing > 1:
        found.append(
            f"{committing} statements change the schema, and MySQL commits each by itself: a failure between them "
            "leaves the revision half applied. One such statement in one revision is safe"
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


def committed(executed: list[str], failed: str | None, code: int) -> int:
    """Return how many of the executed statements MySQL has committed; the transaction's end rolls the others back."""
    # What changes the schema commits the rows before it even where it fails itself, unless MySQL could not read it.
    if failed is not None and COMMITTING.match(failed) and code != SYNTAX_ERROR:
        return len(executed)
    return max((number for number, statement in enumerate(executed, 1) if COMMITTING.match(statement)), default=0)


def rest(statements: list[str], executed: list[str], failed: str | None) -> list[str]:
    """Return the statements of a revision that come after the one that failed."""
    begin = len(executed)
    if failed in statements:
        begin = statements.index(failed)
    return statements[begin + 1 if failed else begin :]


def in_words(report: dict[str, Any]) -> str:
    """Return the report of a failed revision as a text."""

    def listed(statements: list[str]) -> list[str]:
        return [f"    {statement}" for statement in statements] or ["    none"]

    lines = [f"revision {report['revision']} ({report['message']}) failed: {report['reason']}"]
    if report["before"]:
        lines.append(f"  before it, these went through whole: {', '.join(report['before'])}")
    lines += ["  applied, and committed:", *listed(report["applied"])]
    if report["rolled_back"]:
        lines += ["  rolled back:", *listed(report["rolled_back"])]
    lines += ["  failed:", *listed([report["failed"]] if report["failed"] else [])]
    if report["missing"] is None:
        lines.append("  not applied: cannot be told, as the revision asks the database while it runs")
    else:
        lines += ["  not applied:", *listed(report["missing"])]
    lines.append(f"  alembic_version says: {report['version'] or 'nothing'}")
    if report["done_already"]:
        lines.append(
            "  It looks as if an earlier run had been cut off in this revision: compare the schema with its SQL."
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="migrations", description=__doc__.splitlines()[0] if __doc__ else "")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", help="tell what would be done")
    commands.add_parser("upgrade", help="bring the database to the newest revision")
    commands.add_parser("downgrade", help="take it back to an earlier one").add_argument("revision")
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
            result = migrations.upgrade()
        elif options.command == "downgrade":
            result = migrations.downgrade(options.revision)
        elif options.command == "stamp":
            result = migrations.stamp(options.revision)
        else:
            result = migrations.compatible(options.older, options.newer)
    except RevisionFailed as error:
        print(json.dumps({"failure": error.report}))
        print(error, file=sys.stderr)
        return 1
    except (MigrationError, CommandError, RevisionError) as error:
        print(error, file=sys.stderr)
        return 1
    except DBAPIError as error:
        print(reason(error, ""), file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
