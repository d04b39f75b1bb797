"""One engine for each process, and a session for each request."""

import ssl
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from club.settings import get_settings


def make_engine() -> AsyncEngine:
    settings = get_settings()
    tls = ssl.create_default_context(cafile=settings.database_tls_ca) if settings.database_tls_ca else None
    return create_async_engine(
        settings.database_url, connect_args={"ssl": tls} if tls else {}, pool_pre_ping=True, pool_recycle=1800
    )


engine = make_engine()
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session
