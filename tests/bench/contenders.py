"""What else can serve the users, put beside the service on the same host, behind the same nginx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.hosts.world import World, await_true

TUTORIAL = Path(__file__).parent / "tutorial/main.py"
PORTS = {"tutorial": 8001, "tls-once": 8004}
VENV = "/srv/nba/live/release/.venv/bin"
UNIT = """
[Service]
User=nba
WorkingDirectory=/srv/bench
ExecStart={command}
"""
SITE = """
server {{
    listen 80;
    server_name {name};
    location / {{
        proxy_pass http://127.0.0.1:{private};
        {headers}
    }}
}}
"""
REMOVE = """
systemctl stop 'bench-*'
rm -rf /srv/bench /etc/systemd/system/bench-*.service /etc/nginx/sites-enabled/bench.conf
systemctl daemon-reload
systemctl reload nginx
"""
TUTORIAL_HEADERS = "proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;"


def server_name(name: str) -> str:
    """Return the name by which nginx tells a contender from the service: the firewall has no other port open."""
    return f"{name}.bench"


def commands() -> dict[str, str]:
    """Return the command of each contender."""
    tutorial = f"{VENV}/uvicorn main:app --reload --port="
    return {
        "tutorial": f"{tutorial}{PORTS['tutorial']}",
        "tls-once": f"/usr/bin/env TLS_ONCE=1 {tutorial}{PORTS['tls-once']}",
    }


@contextmanager
def installed(here: World, dotenv: str) -> Iterator[None]:
    """Install the contenders; remove them at the end, so that later measurements find the host as it was."""
    try:
        install(here, dotenv)
        yield
    finally:
        here.shell("dev1", REMOVE)


def install(here: World, dotenv: str) -> None:
    """Start the contenders and wait until each answers with the same two users."""
    here.execute("dev1", "mkdir", "-p", "/srv/bench")
    here.write("dev1", "/srv/bench/main.py", TUTORIAL.read_text())
    here.write("dev1", "/srv/bench/.env", dotenv)
    here.execute("dev1", "chown", "-R", "nba:", "/srv/bench")
    sites = ""
    for name, command in commands().items():
        here.write("dev1", f"/etc/systemd/system/bench-{name}.service", UNIT.format(command=command))
        sites += SITE.format(name=server_name(name), private=PORTS[name], headers=TUTORIAL_HEADERS)
    here.write("dev1", "/etc/nginx/sites-enabled/bench.conf", sites)
    units = " ".join(f"bench-{name}" for name in PORTS)
    here.shell("dev1", f"systemctl daemon-reload && systemctl start {units} && nginx -t -q && systemctl reload nginx")
    users = here.get("dev1", "/api/users").json()
    assert [user["name"] for user in users] == ["Alice", "Bob"]
    for name in PORTS:
        await_true(partial(lists, here, name, users), 30, f"{name} lists the users")


def lists(here: World, name: str, users: object) -> bool:
    """Return True if a contender lists these users."""
    answer = here.get("dev1", "/users", Host=server_name(name))
    return answer.status == 200 and bool(answer.json() == users)
