"""A role alone on a bare host, from another repository that has installed the collection."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.world import World
from tests.support import install_collection

pytestmark = pytest.mark.lab

HOST, NAME = "bare1", "collection.example"
PLAY = """
- name: Set up a reverse proxy
  hosts: all
  become: true
  roles:
    - role: waffle.iron.nginx
      vars:
        nginx_site: other
        nginx_server_names: [collection.example]
        nginx_default: false
        nginx_document_root: /srv/other
"""
# The host may serve a release of other tests already.
KEEP = """
mkdir /srv/other && echo 'from a collection' >/srv/other/index.html
if [ -d /etc/nginx ]; then tar -C / -cf /root/nginx.tar etc/nginx etc/systemd/system/nginx.service.d; fi
"""
RESTORE = """
rm -rf /srv/other
if [ -f /root/nginx.tar ]; then
    rm -rf /etc/nginx /etc/systemd/system/nginx.service.d
    tar -C / -xf /root/nginx.tar && rm /root/nginx.tar
    systemctl daemon-reload && systemctl reload nginx
else
    apt-get -qq -y purge nginx nginx-common >/dev/null
    rm -rf /etc/nginx /etc/systemd/system/nginx.service.d && systemctl daemon-reload
fi
"""


@pytest.fixture
def other(here: World, tmp_path: Path) -> Iterator[World]:
    """Return a repository that has nothing but the collection, an inventory with one host, and a playbook."""
    root = tmp_path / "repository"
    root.mkdir()
    install_collection(here.root, root)
    program = [sys.executable, str(here.root / "inventory/lab/hosts.py"), "--list"]
    known = json.loads(subprocess.check_output(program, env=here.environment, text=True))["_meta"]["hostvars"][HOST]
    (root / "hosts.json").write_text(json.dumps({"all": {"hosts": {HOST: known}}}))
    (root / "site.yml").write_text(PLAY)
    here.shell(HOST, KEEP)
    try:
        yield World(root, here.name)
    finally:
        here.shell(HOST, RESTORE)


def test_a_role_alone_converges_a_host(here: World, other: World) -> None:
    run = other.ansible("-i", "hosts.json", "site.yml").succeeded()
    assert run.changed()[HOST] > 0
    answer = here.get(HOST, "/", Host=NAME)
    assert (answer.status, answer.text) == (200, "from a collection\n")
    assert other.ansible("-i", "hosts.json", "site.yml").succeeded().changed() == {HOST: 0}
