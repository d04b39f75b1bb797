"""Logs as lines of JSON on standard output, all with the id of their request."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from datetime import datetime, timezone

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("nba")
access_logger = logging.getLogger("nba.access")
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

SLOW_SECONDS = 1.0
SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time (UTC), level, logger, message, and what else the record carries."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str) -> None:
    """Send this process's logs, the server's own included, to standard output as JSON.

    Args:
        level: name of the least severe level to log.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("gunicorn.error", "uvicorn", "uvicorn.error"):
        server_logger = logging.getLogger(name)
        server_logger.handlers.clear()
        server_logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # ours says more


class RequestLog:
    """ASGI middleware: gives each request an id, logs it, and turns an unexpected error into a 500.

    The id is taken from `X-Request-ID` if that is sane, so that it is the reverse proxy's, and sent back.
    Query strings are not logged: they may carry what nobody wants in a log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; what is not HTTP passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        current = _request_id(scope)
        token = request_id.set(current)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = current
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("unexpected error")
            if status:  # too late to answer otherwise: let the server cut the connection
                raise
            problem = JSONResponse({"detail": "Internal server error", "request_id": current}, status_code=500)
            await problem(scope, receive, send_with_id)
        finally:
            _log_request(scope, status, time.perf_counter() - started)
            request_id.reset(token)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log a request that failed or was slow at INFO, every other one at DEBUG: nginx has a line for each anyway."""
    level = logging.INFO if status >= 400 or status == 0 or seconds >= SLOW_SECONDS else logging.DEBUG
    if access_logger.isEnabledFor(level):
        fields = {"method": scope["method"], "path": scope["path"], "status": status}
        access_logger.log(level, "request", extra={"fields": {**fields, "duration_ms": round(seconds * 1000, 1)}})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_REQUEST_ID.fullmatch(value):
            sane: bytes = value
            return sane.decode("ascii")
    return uuid.uuid4().hex
