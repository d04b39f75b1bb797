"""Put together what the other modules hold: routes, middleware, errors, the pool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nba import health, users
from nba.database import DATABASE_ERRORS, Database, build_engine, unavailable_reason
from nba.logs import RequestLog, logger
from nba.settings import Settings

RETRY_AFTER_SECONDS = 2
# A user takes a tenth of it. Validation blocks the event loop, and takes as long as the body is large.
BODY_LIMIT_BYTES = 16 * 1024
FINDINGS_LIMIT = 20
FINDING_TEXT_LIMIT = 200


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    # As many threads as the pool keeps connections: a request beyond these waits for a thread. With more threads,
    # overflow connections would be opened and closed all the time, which measured a third of the throughput.
    anyio.to_thread.current_default_thread_limiter().total_tokens = settings.database_pool_size
    app.state.health_threads = anyio.CapacityLimiter(2)
    logger.info("started release %s in %s", app.state.release["release"], settings.environment)
    yield
    app.state.database.engine.dispose()


async def _database_failed(_request: Request, error: Exception) -> JSONResponse:
    """Answer 503 if the database is at fault; anything else is an error of ours."""
    reason = unavailable_reason(error)
    if reason is None:
        raise error
    logger.warning("%s: %s", reason, error.args[0])
    return JSONResponse(
        {"detail": "The database is unavailable", "reason": reason},
        status_code=503,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _finding(loc: Sequence[int | str], msg: str, kind: str) -> dict[str, Any]:
    """Return one finding of a 422 answer; texts of the client in it are cut."""
    cut = [part[:FINDING_TEXT_LIMIT] if isinstance(part, str) else part for part in loc]
    return {"loc": cut, "msg": msg[:FINDING_TEXT_LIMIT], "type": kind}


async def _bad_request(_request: Request, error: RequestValidationError) -> Response:
    """Answer 422 without repeating the input, which need not even be encodable (a lone surrogate is not)."""
    errors = error.errors()
    findings = [_finding(item["loc"], item["msg"], item["type"]) for item in errors[:FINDINGS_LIMIT]]
    if more := len(errors) - len(findings):
        findings.append(_finding([], f"and {more} more", "too_many_findings"))
    return Response(json.dumps({"detail": findings}), status_code=422, media_type="application/json")


class BodyLimit:
    """ASGI middleware: answers 413 to a request whose body is larger than any that the API takes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; count its body while the application reads it, whatever its headers claim."""
        left = self.limit

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # To its end, which the edge limits: a proxy that cannot send all of it may not read the answer.
                while message.get("more_body"):
                    message = await receive()
                raise HTTPException(413, f"The request body exceeds {self.limit} bytes")
            return message

        await self.app(scope, counted, send)


async def hello() -> dict[str, str]:
    """Greet; the first thing that anybody asks."""
    return {"Hello": "MySQL"}


def create_app(settings: Settings) -> FastAPI:
    """Return the application for these settings; it connects to the database on the first request."""
    app = FastAPI(
        title="Waffle Iron sample API",
        description="Users in MySQL.",
        version="1.0.0",
        docs_url="/docs" if settings.docs_enabled else None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.release = {"release": "development", **health.read_release()}
    app.state.database = Database(build_engine(settings))
    app.get("/", tags=["operations"])(hello)
    app.include_router(health.router)
    app.include_router(users.router)
    app.exception_handler(RequestValidationError)(_bad_request)
    for error in DATABASE_ERRORS:
        app.add_exception_handler(error, _database_failed)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Content-Type", "X-Request-ID"],
            expose_headers=["Link", "Location", "Retry-After", "X-Request-ID"],
        )
    app.add_middleware(BodyLimit, limit=BODY_LIMIT_BYTES)
    app.add_middleware(RequestLog)  # added last: the outermost
    return app
