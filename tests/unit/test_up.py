"""What `make up` shows of the hosts that it made."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest

from tests.support import ROOT

VERSION = {"release": "r1", "artefact": "a" * 64, "commit": "c0ffee", "environment": "dev"}


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    loader = SourceFileLoader("up", str(ROOT / "scripts/up"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = module_from_spec(spec_from_loader("up", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


@pytest.fixture
def host() -> Iterator[HTTPServer]:
    """Return a host that answers with its attribute ``body``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.body)  # type: ignore[attr-defined]

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_release_of_a_host_is_shown(up: Any, host: Any) -> None:
    host.body = json.dumps({**VERSION, "more": 1}).encode()
    assert up.answering(f"127.0.0.1:{host.server_port}").release == "r1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        json.dumps({**VERSION, "release": "\x1b]0;owned\x07"}).encode(),
        b'{"release": "r1"}',
        b"{" + b" " * (1 << 20),
    ],
    ids=["nothing", "list", "escapes", "part", "long"],
)
def test_any_other_answer_is_one_error(up: Any, host: Any, body: bytes) -> None:
    host.body = body
    with pytest.raises(up.Failed, match=r"/api/version does not answer \(.*ansible-playbook site\.yml -l dev"):
        up.answering(f"127.0.0.1:{host.server_port}")
