"""nginx as the role configures it, with an application of the tests behind it.

It runs on this machine if that has nginx, else on a lab host, beside the one that is there.
"""

from __future__ import annotations

import http.client
import json
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts.world import await_true
from tests.support import rendered

UPSTREAM = Path(__file__).with_name("upstream.py")
ASK = """
import http.client, json, sys
port, path, headers = json.load(sys.stdin)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
connection.request("GET", path, headers=headers)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.getheaders(), answer.read().decode()]))
"""
PAGES = {"index.html": "the page", ".secret": "s", ".well-known/secret": "s", "assets/index-DiwrgTda.js": "0"}


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; the names of its headers are in lower case."""

    status: int
    headers: list[tuple[str, str]]
    text: str

    @property
    def asked(self) -> Any:
        """Return what the application was asked, as it says itself."""
        return json.loads(self.text)

    def all(self, name: str) -> list[str]:
        """Return each value of a header."""
        return [value for key, value in self.headers if key == name]

    def got(self, name: str) -> list[str]:
        """Return each value of a header that the application got."""
        return [value for key, value in self.asked["headers"] if key == name]


@dataclass(frozen=True)
class Edge:
    """A running nginx."""

    shell: Callable[[str, str], str]
    """Runs a shell script where nginx is, with an input, as root."""
    address: str
    port: int

    def connect(self, timeout: float = 20) -> socket.socket:
        """Return a connection from outside."""
        return socket.create_connection((self.address, self.port), timeout=timeout)

    def ask(self, host: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        """Send a request from outside under a name; in names of headers _ stands for -."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Host": host, **named})
        answer = connection.getresponse()
        reply = Reply(
            answer.status, [(name.lower(), value) for name, value in answer.getheaders()], answer.read().decode()
        )
        connection.close()
        return reply

    def ask_there(self, host: str, path: str, **headers: str) -> Reply:
        """Send a request from nginx's own host."""
        named = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        said = self.shell(f"python3 -c {shlex.quote(ASK)}", json.dumps([self.port, path, named]))
        status, received, text = json.loads(said)
        return Reply(status, [(name.lower(), value) for name, value in received], text)

    def counts(self) -> dict[str, int]:
        """Return how often the application got each request."""
        found: dict[str, int] = self.ask("root.test", "/counts").asked
        return found


def files_of(folder: str, whole: dict[str, Any], sites: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the files of nginx with some sites, as the role writes them, for a folder of their own."""
    temporary = "".join(
        f"{name}_temp_path {folder}/temporary-{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    made = {"nginx.conf": rendered("nginx", "nginx.conf.j2", **whole), "mime.types": "types { text/html html; }\n"}
    made["snippets/security-headers.conf"] = rendered("nginx", "security-headers.conf.j2")
    for name, values in sites.items():
        own = {**whole, **values, "nginx_site": name}
        made[f"sites-enabled/{name}.conf"] = rendered("nginx", "site.conf.j2", **own)
        made[f"snippets/{name}-proxy.conf"] = rendered("nginx", "proxy.conf.j2", **own)
    paths = {
        "/etc/nginx": folder, "/var/log/nginx": folder, "/run/nginx.pid": f"{folder}/pid",
        "http {": f"http {{\n{temporary}",
    }  # fmt: skip
    for before, after in paths.items():
        made["nginx.conf"] = made["nginx.conf"].replace(before, after)
    return made


@contextmanager
def edge(
    shell: Callable[[str, str], str], address: str, port: int, whole: dict[str, Any], sites: dict[str, dict[str, Any]]
) -> Iterator[Edge]:
    """Run nginx with some sites, and the application; `whole` is what all sites share, `sites` their own values."""
    folder = shell("mktemp -d /run/edge-XXXXXX", "").strip()
    here = Edge(shell, address, port)
    common = {
        "nginx_http_port": port, "nginx_upstream_socket": f"{folder}/app.sock", "nginx_older_document_roots": [],
        "nginx_document_root": f"{folder}/page", **whole,
    }  # fmt: skip
    files = files_of(folder, common, sites)
    files |= {f"page/{name}": text for name, text in PAGES.items()}
    files["upstream.py"] = UPSTREAM.read_text()
    try:
        shell(f"chmod 755 {folder} && mkdir {folder}/modules-enabled {folder}/conf.d", "")
        for name, text in files.items():
            target = shlex.quote(f"{folder}/{name}")
            shell(f"umask 022 && mkdir -p $(dirname {target}) && cat >{target}", text)
        started = f"python3 {folder}/upstream.py {folder}/app.sock"
        shell(f"umask 0; setsid {started} >{folder}/upstream.log 2>&1 </dev/null & echo $! >{folder}/upstream.pid", "")
        await_true(lambda: shell(f"test -S {folder}/app.sock && echo yes || echo no", "") == "yes\n", 20, "it listens")
        shell(f"nginx -e stderr -c {folder}/nginx.conf 2>&1", "")
        yield here
    finally:
        shell(f"kill $(cat {folder}/upstream.pid); nginx -e stderr -c {folder}/nginx.conf -s stop", "")
        await_true(lambda: shell(f"test -e {folder}/pid || echo gone", "") == "gone\n", 20, "nginx has ended")
        shell(f"rm -r {folder}", "")
