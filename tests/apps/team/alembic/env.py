"""Runs the migrations with the application's own engine."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from club.database import make_engine
from club.models import Base


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    engine = make_engine()
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
