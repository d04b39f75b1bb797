"""Asks a host's public address from the control node, as a browser does."""

from __future__ import annotations

import http.client
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible loads an action by its file, so this folder is no package that could be imported from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from answers.reading import converted, known
from answers.release import Version
from answers.text import one_line

SECONDS = 15.0
MOST_BYTES = 4 << 20
MOST_LINKS = 50
LINK = re.compile(r'(?:src|href)="(?!//)([^":#?\s]+)"')


class Site:
    """A public address. No redirect is followed: a host sends nobody elsewhere."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self._headers = address, {"Host": name} if name else {}
        self._place = urlsplit(address)

    def get(self, path: str, status: int = 200) -> str:
        """Return what is at a path; raise `AnsibleActionFail` if it does not answer with this status."""
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
        if answer.status != status:
            self._fail(path, f"answered {answer.status}, expected {status}: {one_line(text[:1000])[:200]}")
        if len(body) > MOST_BYTES:
            self._fail(path, f"answered with more than {MOST_BYTES} bytes")
        return text

    def _fail(self, path: str, why: str) -> Any:
        raise AnsibleActionFail(f"{self.address}{path} {why}. Fix: `ansible-playbook playbooks/doctor.yml` says more")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Changes nothing, and needs no login.

    Arguments:
        address: where the host answers, with ``http://``.
        name: what is asked for there; empty for the address itself.

    Returns ``version``, what the release says that it is (plugins/lib/answers/release.py). Fails if the page, a file
    that it names, the health check or the version does not answer.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("address", "name"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the version as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        site = Site(str(self._task.args["address"]), str(self._task.args["name"]))
        for link in list(dict.fromkeys(LINK.findall(site.get("/"))))[:MOST_LINKS]:
            site.get(f"/{link}")
        site.get("/no-such-file.js", 404)
        site.get("/api/health/ready")
        version = converted(site.get("/api/version"), Version, f"{site.address}/api/version")
        return {**result, "changed": False, "version": known(version)}
