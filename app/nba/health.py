"""Is it alive, can it work, and what is it: for load balancers, deployments and people."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request, Response, status
from sqlalchemy import text

from nba.database import DATABASE_ERRORS, Database, unavailable_reason
from nba.logs import logger
from nba.schemas import Health, Version
from nba.settings import Settings

STARTED_AT = datetime.now(timezone.utc).isoformat(timespec="seconds")
REVISION = text("SELECT version_num FROM alembic_version")

router = APIRouter(tags=["operations"])


def read_release(path: Path = Path("release.json")) -> dict[str, Any]:
    """Return what the deployment wrote about this release; on a laptop it wrote nothing.

    Raises:
        ValueError: the file is not a JSON object.
        OSError: the file exists but cannot be read.
    """
    if not path.exists():
        return {"release": "development"}
    release = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(release, dict):
        raise ValueError(f"{path} should hold a JSON object")
    return release


@router.get("/health/live", response_model_exclude_none=True)
async def live() -> Health:
    """Answer that the process runs, whatever the database does."""
    return Health(status="ok")


@router.get("/health/ready", response_model_exclude_none=True, responses={503: {"model": Health}})
async def ready(request: Request, response: Response) -> Health:
    """Answer whether requests can be served: the database is there, lets us in, and has a schema."""
    _, reason = await _schema(request)
    if reason is None:
        return Health(status="ready")
    response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Health(status="unavailable", reason=reason)


@router.get("/version")
async def version(request: Request) -> Version:
    """Return the running release, its commit and digests, and the schema of the database."""
    revision, _ = await _schema(request)
    settings: Settings = request.app.state.settings
    release: dict[str, Any] = request.app.state.release
    return Version(
        release=release["release"],
        commit=release.get("commit"),
        frontend=release.get("frontend"),
        artefact=release.get("artefact"),
        environment=settings.environment,
        lock=release.get("lock"),
        schema_=revision,
        started_at=STARTED_AT,
        worker=os.getpid(),
    )


async def _schema(request: Request) -> tuple[str | None, str | None]:
    """Return the schema's revision and None, or None and the reason why it cannot be had; always within seconds.

    Threads of its own: those of the other requests may all be waiting for the database.
    """
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    try:
        with anyio.fail_after(settings.database_connect_timeout_seconds + 1):
            rows = await anyio.to_thread.run_sync(
                database.read, REVISION, abandon_on_cancel=True, limiter=request.app.state.health_threads
            )
    except TimeoutError:
        reason: str | None = "database unreachable"
    except DATABASE_ERRORS as error:
        reason = unavailable_reason(error)
        if reason is None:
            raise
        logger.warning("%s: %s", reason, error.args[0])
    else:
        if rows:
            return rows[0]["version_num"], None
        reason = "database has no schema"
    return None, reason
