"""What `make up` shows of the hosts that it made."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT


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
    """Return a host that answers with its attribute ``status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.name = self.headers["Host"]  # type: ignore[attr-defined]
            self.send_response(self.server.status)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 404, 421])
def test_any_application_that_answers_is_up(up: Any, host: Any, status: int) -> None:
    host.status = status
    assert up.answering(f"127.0.0.1:{host.server_port}") == status


def test_a_host_is_asked_by_the_name_that_it_answers_to(up: Any, host: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(up, "ROOT", tmp_path)
    values = tmp_path / "group_vars/dev/vars.yml"
    values.parent.mkdir(parents=True)
    for names, wanted in (('["dev.club.example", "x"]', "dev.club.example"), ('["_"]', ""), ('"{{ names }}"', "")):
        values.write_text(f"server_names: {names}\n")
        assert up.public_name("dev") == wanted
    host.status = 200
    assert up.answering(f"127.0.0.1:{host.server_port}", "dev.club.example") == 200
    assert host.name == "dev.club.example"


def test_an_error_of_the_server_is_one_error(up: Any, host: Any) -> None:
    host.status = 502
    with pytest.raises(up.Failed, match=r"/ answers 502: ansible-playbook playbooks/doctor\.yml -l dev"):
        up.answering(f"127.0.0.1:{host.server_port}")


def test_a_host_that_does_not_answer_is_one_error(up: Any, host: Any) -> None:
    with pytest.raises(up.Failed, match=r"/ does not answer \(.*ansible-playbook site\.yml -l dev"):
        up.answering("127.0.0.1:1")
