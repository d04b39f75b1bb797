"""What Waffle Iron adds to an application: who answers, and which request an exception belongs to.

It answers `/.waffle/live` (200 as soon as the application is imported and its start-up is over) and `/.waffle/version`
(the id of the release, and the worker) before the application sees the request. nginx lets nobody but the host ask.
"""

from __future__ import annotations

import importlib
import json
import logging
import operator
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN = "/.waffle/"
# What a client may have written into a header or a path does not begin a line of the journal.
UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
LOGGERS = ("gunicorn.error", "uvicorn", "uvicorn.error")


def load(module: str) -> ASGI:
    """Return the ASGI application of `module:attribute` or `module:function()`.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such attribute.
        TypeError: it is no application.
    """
    name, _, attribute = module.partition(":")
    found = operator.attrgetter(attribute.removesuffix("()"))(importlib.import_module(name))
    application = found() if attribute.endswith("()") else found
    if not callable(application):
        raise TypeError(f"{module} is {type(application).__name__}, not an ASGI application")
    return application  # type: ignore[no-any-return]


def described(scope: Scope) -> str:
    """Return the words that name a request: its id, method and path; no query, which may hold what nobody wants."""
    headers = dict(scope["headers"])
    raw = scope.get("raw_path") or scope["path"].encode()
    words = (
        f"request {headers.get(b'x-request-id', b'-').decode('latin-1')}:",
        scope.get("method", "WebSocket"),
        raw.partition(b"?")[0].decode("latin-1"),
    )
    return UNPRINTABLE.sub("?", " ".join(words))[:500]


def add_request(error: BaseException, scope: Scope) -> None:
    """Add the request to an exception, so that the traceback in the log names it."""
    logger = logging.getLogger("uvicorn.error")
    # `logging.config` disables the loggers that it is not told of, and the exception would leave no trace.
    for name in LOGGERS:
        logging.getLogger(name).disabled = False
    if hasattr(error, "add_note"):
        error.add_note(described(scope))
    else:  # Python 3.10
        logger.error("exception in %s", described(scope))


class Wrapper:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGI, release: str) -> None:
        self.app = app
        self.release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is asked of the server; hand everything else on."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path.startswith(OWN):
                return await self.answer(path.removeprefix(OWN), send)
        try:
            return await self.app(scope, receive, send)
        except Exception as error:
            add_request(error, scope)
            raise

    async def answer(self, what: str, send: Send) -> None:
        """Answer `live` or `version`."""
        answers: dict[str, dict[str, str | int]] = {
            "live": {"status": "ok"},
            "version": {"release": self.release, "worker": os.getpid()},
        }
        body = json.dumps(answers.get(what, {"detail": "Not Found"})).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        status = 200 if what in answers else 404
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
