"""compose.yaml on a bare lab host, which stands for a laptop: Compose itself, with podman for Docker's engine.

No registry can be reached. The images that compose.yaml names are made here, of the host's own system and of the lab's
MySQL, and the latter reads the variables that the official image documents.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from lab.images import ensure_database
from tests.hosts.world import CHECKOUT, World, await_true, world

pytestmark = pytest.mark.lab
HOST = "dev1"
LEFT_OUT = [f"--exclude=./{path}" for path in ("usr/share/doc", "usr/share/man", "proc", "sys", "dev", "var/lib/mysql")]
# A lab host's disk is an overlay already, it has no controllers of control groups, and it cannot raise its own limits.
CONFIGURATION = """
[containers]
pids_limit = 0
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""
INSTALL = """
mkdir -p /var/lib/containers && mount -t tmpfs -o mode=700 tmpfs /var/lib/containers
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
  podman crun netavark aardvark-dns nftables buildah docker-compose nginx-light python3-venv
systemctl disable --now nginx
systemctl start podman.socket
"""
# What the image's variables say to somebody who reads about them: a database, and an account that may use it.
MYSQL = r"""
FROM localhost/mysql
RUN rm -rf /etc/mysql && mkdir -p /var/lib/mysql /run/mysqld && chown mysql: /var/lib/mysql /run/mysqld
RUN printf '%s\n' 'set -eu' \
  'mysqld --user=mysql --initialize-insecure' \
  'echo "CREATE DATABASE $MYSQL_DATABASE;" >/tmp/first.sql' \
  "echo \"CREATE USER '\$MYSQL_USER'@'%' IDENTIFIED BY '\$MYSQL_PASSWORD';\" >>/tmp/first.sql" \
  "echo \"GRANT ALL ON \$MYSQL_DATABASE.* TO '\$MYSQL_USER'@'%';\" >>/tmp/first.sql" \
  'exec mysqld --user=mysql --init-file=/tmp/first.sql' >/first
VOLUME /var/lib/mysql
CMD ["sh", "-c", "if [ -d /var/lib/mysql/mysql ]; then exec mysqld --user=mysql; else exec sh /first; fi"]
"""
NGINX = r"""
FROM localhost/system
RUN rm -f /etc/nginx/sites-enabled/* && mkdir -p /usr/share/nginx/html
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
"""
PYTHON = r"""
FROM localhost/system
RUN printf '[global]\nindex-url = %s\n' '{index}' >/etc/pip.conf
"""
IMAGES = {"mysql:8.4": MYSQL, "nginx:stable": NGINX, "python:3.13-slim": PYTHON}
RENAME = "UPDATE users SET name = 'Carol' WHERE name = 'Bob'"
COMPOSE = "cd /root/app && DOCKER_HOST=unix:///run/podman/podman.sock DOCKER_BUILDKIT=0 docker-compose"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a lab whose dev1 has Compose, the application and the images that it begins with."""
    with world(tmp_path_factory.mktemp("laptop"), "scale") as here:
        here.write(HOST, "/root/containers.conf", CONFIGURATION)
        here.shell(HOST, f"mkdir /etc/containers; mv /root/containers.conf /etc/containers/; {INSTALL}")
        root = str(ensure_database().root)
        send(here, ["tar", "-C", root, "-c", *LEFT_OUT, "."], "podman import - localhost/mysql")
        system = "tar -C / -c --one-file-system bin lib lib64 sbin usr etc var/lib/dpkg var/lib/nginx var/log/nginx"
        here.shell(HOST, f"{system} | podman import - localhost/system")
        listing = json.loads((here.root / f".lab/{here.name}/inventory.json").read_text())
        ask = ["scripts/index-url", ".tools/poetry/bin/python"]
        index = (
            listing["all"]["vars"].get("python_index_url")
            or subprocess.check_output(ask, cwd=CHECKOUT, text=True).strip()
        )
        for name, text in IMAGES.items():
            here.write(HOST, "/root/Containerfile", text.replace("{index}", index))
            here.shell(HOST, f"cd /root && podman build --quiet --network=host --tag=docker.io/library/{name} .")
        send(here, ["git", "archive", "HEAD", "app"], "tar -C /root -x")
        yield here


def send(here: World, source: list[str], sink: str) -> None:
    """Connect a program of this machine to one of the host."""
    with subprocess.Popen(source, cwd=here.root, stdout=subprocess.PIPE) as process:
        subprocess.run(
            [sys.executable, "-m", "lab", "exec", HOST, "--", "sh", "-c", sink],
            cwd=here.root, env=here.environment, stdin=process.stdout, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    assert process.returncode == 0


def get(here: World, path: str) -> tuple[int, str]:
    """Request the page's port from the laptop itself: nobody else may."""
    script = (
        "import sys, urllib.request, urllib.error\n"
        "try: answer = urllib.request.urlopen('http://127.0.0.1:8080' + sys.argv[1])\n"
        "except urllib.error.HTTPError as error: answer = error\n"
        "print(answer.status, answer.read().decode())"
    )
    status, _, text = here.execute(HOST, "python3", "-c", script, path).partition(" ")
    return int(status), text.strip()


@pytest.mark.long
def test_one_command_brings_database_application_and_page(laptop: World) -> None:
    up = partial(laptop.shell, HOST, f"{COMPOSE} up --build --detach 2>&1")
    up()
    await_true(lambda: get(laptop, "/api/health/ready")[0] == 200, 60, "the application is ready")
    assert json.loads(get(laptop, "/api/")[1]) == {"Hello": "MySQL"}
    users: list[dict[str, Any]] = json.loads(get(laptop, "/api/users")[1])
    assert [user["name"] for user in users] == ["Alice", "Bob"]
    assert json.loads(get(laptop, "/api/version")[1])["environment"] == "laptop"
    assert "<title>" in get(laptop, "/")[1] and get(laptop, "/missing.js")[0] == 404
    # The image's own health check, in its own container: it fails by its exit code.
    laptop.shell(HOST, f'podman healthcheck run "$({COMPOSE} ps --quiet app)"')
    with pytest.raises(OSError):
        socket.create_connection((laptop.address(HOST), 8080), timeout=5)

    # A changed page needs no command, and what is in the database stays over `down`.
    laptop.shell(HOST, "echo '<!-- changed -->' >>/root/app/frontend/index.html")
    assert "<!-- changed -->" in get(laptop, "/")[1]
    laptop.shell(HOST, f'{COMPOSE} exec -T mysql mysql nba -e "{RENAME}"')
    laptop.shell(HOST, f"{COMPOSE} down 2>&1")
    up()
    await_true(lambda: get(laptop, "/api/health/ready")[0] == 200, 60, "the application is ready again")
    assert [user["name"] for user in json.loads(get(laptop, "/api/users")[1])] == ["Alice", "Carol"]

    laptop.shell(HOST, f"{COMPOSE} down --volumes 2>&1")
    left = laptop.shell(HOST, "podman ps --all --quiet; podman volume ls --quiet; podman network ls --format={{.Name}}")
    assert left.split() == ["podman"]
