"""The smoke test: what a site that works answers, and what a host may not make of it."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
import yaml

from tests.contract.conftest import Project
from tests.contract.jobs import DIGEST


class Site(BaseHTTPRequestHandler):
    """A host as the world sees it."""

    pages: dict[str, str]
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.pages.get(self.path)
        elsewhere = (body or "").removeprefix("-> ") if (body or "").startswith("-> ") else ""
        self.send_response(302 if elsewhere else 200 if body is not None else 404)
        if elsewhere:
            self.send_header("Location", elsewhere)
        self.send_header("Content-Type", "application/json" if "/api/" in self.path else "text/html")
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Stay silent."""


@pytest.fixture
def site(project: Project) -> Iterator[type[Site]]:
    pages = {
        "/": '<link href="style.css"><script src="app.js"></script><a href="#users"><script src="//cdn.test/a.js">',
        "/style.css": "", "/app.js": "", "/api/health/ready": "{}",
    }  # fmt: skip
    tell(project, LIVE)
    handler = type("Mine", (Site,), {"pages": pages})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hosts = f"127.0.0.1:{server.server_port}"
    inventory = project.root / "inventory/test/hosts.yml"
    local = "ansible_connection: local, ansible_become: false"
    inventory.write_text(inventory.read_text().replace("192.0.2.1", f'"{hosts}", {local}'))
    yield handler
    server.shutdown()
    server.server_close()


LIVE: dict[str, Any] = {
    "live": "r-1",
    "releases": [{"id": "r-1", "artefact": DIGEST}],
    "application": {"page": True, "health_path": "/api/health/ready", "ready_answers": "success", "module": "a:b"},
}


def tell(project: Project, status: dict[str, Any]) -> None:
    """Make the release program of the hosts, which are this machine, answer so."""
    program = project.root / "release"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(status)}\nEND\n")
    program.chmod(0o755)


def smoke(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run playbooks/smoke.yml on dev."""
    words = ("-i", "inventory/test", "-l", "dev", "-e", f"smoke_program={project.root / 'release'}")
    return project.run("ansible-playbook", "playbooks/smoke.yml", *words, *arguments)


def test_a_site_that_works_is_told_apart_by_what_answers(project: Project, site: type[Site]) -> None:
    done = smoke(project, "-e", f"artefact={DIGEST}")
    assert done.returncode == 0, done.stdout
    assert not (project.root / ".results").exists(), "nothing that a host says becomes an output of a job"
    assert re.search(r"changed=0 .* failed=0", done.stdout), done.stdout
    other = smoke(project, "-e", f"artefact={'1' * 64}")
    assert other.returncode == 2
    assert f"Expected: dev with {'1' * 64}" in " ".join(other.stdout.split())


def test_an_api_without_a_page_is_asked_for_its_health_alone(project: Project, site: type[Site]) -> None:
    site.asked.clear()
    site.pages.clear()
    told = {**LIVE, "application": {"page": False, "health_path": "/", "ready_answers": "any"}}
    tell(project, told)
    done = smoke(project)
    assert (done.returncode, site.asked) == (0, ["/"]), done.stdout
    told["application"]["ready_answers"] = "success"
    tell(project, told)
    assert "answered 404, expected 2xx" in smoke(project).stdout


def test_an_application_may_send_plain_http_to_https(project: Project, site: type[Site]) -> None:
    site.pages["/api/health/ready"] = "-> https://shop.example/api/health/ready"
    assert "answered 302, expected 2xx" in smoke(project).stdout
    done = smoke(project, "-e", "public_scheme=https")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("digest", ["", f"{DIGEST}\n"])
def test_what_is_meant_is_a_digest(project: Project, site: type[Site], digest: str) -> None:
    """Empty is what a job's output is where the step before did not write it."""
    done = smoke(project, "-e", json.dumps({"artefact": digest}))
    assert (done.returncode, "artefact: should be a digest of 64 characters" in done.stdout) == (2, True), done.stdout


def test_a_host_sends_nobody_elsewhere(project: Project, site: type[Site]) -> None:
    """One redirects to an address that no host may choose, one never comes to an end."""
    inventory = project.root / "inventory/test/hosts.yml"
    known = yaml.safe_load(inventory.read_text())
    (host,) = known["all"]["children"]["dev"]["hosts"].values()
    known["all"]["children"]["dev"]["hosts"] = {
        lie: {**host, "ansible_host": f"{host['ansible_host']}/{lie}"} for lie in ("away", "huge")
    }
    inventory.write_text(yaml.safe_dump(known))
    for path, page in list(site.pages.items()):
        site.pages |= {f"/{lie}{path}": page for lie in ("away", "huge")}
    site.pages["/away/"] = "-> /secret"
    site.pages["/huge/app.js"] = "x" * (5 << 20)
    done = smoke(project)
    assert done.returncode == 2, done.stdout
    said = " ".join(done.stdout.split())
    assert "/away/ answered 302, expected 200" in said
    assert "/huge/app.js answered with more than" in said
    assert "/secret" not in site.asked


@pytest.mark.parametrize("path", ["//evil.example/", "/a b", "/{{ 7 * 7 }}", "x"])
def test_a_host_names_no_other_address(project: Project, site: type[Site], path: str) -> None:
    tell(project, {**LIVE, "application": {"page": False, "health_path": path, "ready_answers": "any"}})
    done = smoke(project)
    assert done.returncode == 2, done.stdout
    assert "at `$.application.health_path`" in done.stdout


@pytest.mark.parametrize(
    ("path", "body"),
    [("/app.js", None), ("/no-such-file.js", "<html>"), ("/api/health/ready", None), ("/", None)],
)
def test_a_site_that_does_not_work_ends_the_run(
    project: Project, site: type[Site], path: str, body: str | None
) -> None:
    if body is None:
        del site.pages[path]
    else:
        site.pages[path] = body
    done = smoke(project)
    assert done.returncode == 2, done.stdout
