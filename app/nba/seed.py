"""`python -m nba.seed`: insert the sample users that are not there yet."""

from __future__ import annotations

import sys

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from nba.database import DATABASE_ERRORS, DUPLICATE_KEY, Database, build_engine, unavailable_reason
from nba.models import users
from nba.settings import load_or_exit

SAMPLES = {"alice@example.com": "Alice", "bob@example.com": "Bob"}


def seed(database: Database) -> int:
    """Insert the sample users that are missing and return how many these were.

    Raises:
        DBAPIError: the database refused a statement or cannot be reached.
    """
    rows = database.read(select(users.c.email).where(users.c.email.in_(SAMPLES)))
    present = {row["email"] for row in rows}
    added = 0
    for email, name in SAMPLES.items():
        if email in present:
            continue
        try:
            database.write(insert(users).values(name=name, email=email))
        except IntegrityError as error:
            if not error.orig or error.orig.args[0] != DUPLICATE_KEY:
                raise
            continue  # another host was quicker
        added += 1
    return added


def main() -> None:
    """Seed the database of `.env`.

    Raises:
        SystemExit: 1 with one line on standard error, if the settings or the database are not usable.
    """
    database = Database(build_engine(load_or_exit()))
    try:
        added = seed(database)
    except DATABASE_ERRORS as error:
        print(f"seed: {unavailable_reason(error) or error.args[0]}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        database.engine.dispose()
    print(f"seed: {added} row(s) added")


if __name__ == "__main__":
    main()
