"""Sends requests to a host's public address from the control node, as a browser does."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import one_line

SECONDS = 15.0
MOST_BYTES = 4 << 20
MOST_LINKS = 50
REDIRECTS = (301, 302, 307, 308)
LINK = re.compile(r'(?:src|href)="(?!//)([^":#?\s]+)"')


class Site:
    """A public address. No redirect is followed: a host sends nobody elsewhere."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self._headers = address, {"Host": name} if name else {}
        self._place = urlsplit(address)

    def get(self, path: str, expected: Callable[[int, str], bool], what: str) -> str:
        """Return what is at a path.

        Args:
            path: of the address.
            expected: returns True for the status and the `Location` of a good answer.
            what: that is, in words.

        Raises:
            AnsibleActionFail: there is no such answer.
        """
        connection = http.client.HTTPConnection(self._place.netloc, timeout=SECONDS)
        try:
            connection.request("GET", self._place.path + path, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._fail(path, f"did not answer: {one_line(str(error)) or type(error).__name__}")
        finally:
            connection.close()
        text = body.decode(errors="replace")
        if not expected(answer.status, answer.getheader("Location") or ""):
            self._fail(path, f"answered {answer.status}, expected {what}: {one_line(text[:1000])[:200]}")
        if len(body) > MOST_BYTES:
            self._fail(path, f"answered with more than {MOST_BYTES} bytes")
        return text

    def has(self, path: str, status: int = 200) -> str:
        """Return what is at a path; raise `AnsibleActionFail` if it does not answer with this status."""
        return self.get(path, lambda found, _: found == status, str(status))

    def _fail(self, path: str, why: str) -> Any:
        raise AnsibleActionFail(f"{self.address}{path} {why}. Fix: `ansible-playbook playbooks/doctor.yml` says more")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Changes nothing, and needs no login.

    Arguments:
        address: where the host answers, with ``http://``.
        name: the Host header; empty for the address itself.
        scheme: of public addresses; with https, an application may redirect to that.
        page: whether there is a page at /.
        health_path: the public address that says if the application is able to serve.
        answers: what a good answer is there, ``success`` (2xx) or ``any`` (below 500).

    Fails if the page, a file that it names or the health path does not answer.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("address", "name", "scheme", "page", "health_path", "answers"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        site = Site(str(arguments["address"]), str(arguments["name"]))
        if boolean(arguments["page"]):
            for link in list(dict.fromkeys(LINK.findall(site.has("/"))))[:MOST_LINKS]:
                site.has(f"/{link}")
            site.has("/no-such-file.js", 404)
        is_any, is_https = arguments["answers"] == "any", arguments["scheme"] == "https"

        def is_well(status: int, location: str) -> bool:
            """Return True for a good answer of the health path."""
            redirected = is_https and status in REDIRECTS and location.startswith("https://")
            return redirected or (status < 500 if is_any else 200 <= status < 300)

        site.get(str(arguments["health_path"]), is_well, "below 500" if is_any else "2xx")
        return {**result, "changed": False}
