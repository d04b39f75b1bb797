"""nginx: its configuration, its port, what it may read, what it passes on; its certificates; its requests."""

from __future__ import annotations

import http.client
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.doctor.findings import NOT_FOUND, Area, call, properties
from ansible_collections.waffle.iron.plugins.module_utils.doctor.service import SECONDS, get, parsed

CONFIGURATION = Path("/etc/nginx/nginx.conf")
ACCESS_LOG = "/var/log/nginx/access.log"
LOG_BYTES = 8 << 20
# What the server of each release answers to its own host (roles/nginx), whatever the application is.
VERSION = "/.waffle/version"
DAYS_BEFORE_EXPIRY = 21


def account_of(text: str) -> str:
    """Return the account of nginx's workers by its configuration."""
    found = re.search(r"^\s*user\s+([\w-]+)", text, re.MULTILINE)
    return found[1] if found else "www-data"


def may(told: os.stat_result, user: int, groups: set[int], bits: int) -> bool:
    """Return True if an account has rights (4 read, 2 write, 1 enter; their sum) on something by its mode and owner."""
    shift = 6 if told.st_uid == user else 3 if told.st_gid in groups else 0
    return told.st_mode >> shift & bits == bits


def obstacle(path: str, user: str, bits: int) -> str:
    """Return what keeps an account from using a path, in words; nothing if it may.

    Args:
        path: a file, with symlinks or without.
        user: the account.
        bits: the rights that it needs on the file itself, as in a mode's last digit.
    """
    account = pwd.getpwnam(user)
    groups = set(os.getgrouplist(user, account.pw_gid))
    real = Path(os.path.realpath(path))
    for part in (*reversed(real.parents), real):
        try:
            told = part.stat()
        except OSError as error:
            return f"{part}: {os.strerror(error.errno or 0)}"
        if not may(told, account.pw_uid, groups, bits if part == real else 1):
            verb = "enter" if stat.S_ISDIR(told.st_mode) else "use" if stat.S_ISSOCK(told.st_mode) else "read"
            return f"{user} may not {verb} {part} (mode {stat.S_IMODE(told.st_mode):04o})"
    return ""


def listeners(port: int) -> list[str]:
    """Return the names of the programs that listen on a TCP port."""
    out = call("ss", "-Hltnp", f"sport = :{port}").out
    return sorted(set(re.findall(r'\("([^"]+)",pid=', out)))


def ports_of(text: str) -> list[int]:
    """Return the TCP ports that a whole configuration (``nginx -T``) listens on."""
    found = re.findall(r"(?:^|[;{])[ \t]*listen\s+(?:\S*:)?(\d+)\b", text, re.MULTILINE)
    return sorted({int(port) for port in found}) or [80]


def running(area: Area, ports: list[int], target: str) -> bool:
    """Note why nginx does not run; tell whether it does."""
    web = f"ansible-playbook playbooks/web.yml {target}"
    shown = properties("nginx.service", "ActiveState", "UnitFileState")
    state, file_state = shown.get("ActiveState", "unknown"), shown.get("UnitFileState", "")
    foreign = {port: names for port in ports if (names := [one for one in listeners(port) if one != "nginx"])}
    if state != "active" and foreign:
        port, names = next(iter(foreign.items()))
        command = f"on the host: systemctl disable --now {names[0]} (or who started it); then: {web}"
        area.add("port", f"nginx is {state}: its port {port} is taken by {', '.join(names)}", command)
    elif file_state.startswith("masked"):
        area.add("service", "nginx is masked, so nothing can start it", web)
    elif state != "active":
        area.add("service", f"nginx is {state}", f"on the host: journalctl -n 20 -u nginx; then: {web}")
    else:
        return True
    return False


def public(area: Area, config: Mapping[str, Any], release: Path, target: str) -> None:
    """Note what the public address answers: the front end, if there is one, and the release's server."""
    host = str(config["public_url"]).removeprefix("http://").partition("/")[0]
    name = host if config["public_host"] == "_" else str(config["public_host"])
    web, site = f"ansible-playbook playbooks/web.yml {target}", f"ansible-playbook site.yml {target}"
    if has_page(release):
        status, body = get(http.client.HTTPConnection(host, timeout=SECONDS), "/", name)
        if status != 200:
            words = f"the front end answers {status or body}"
            area.add("frontend", words, web, follows=("application.live",))
    status, body = get(http.client.HTTPConnection(host, timeout=SECONDS), VERSION, name)
    if status in (0, 502, 503, 504):
        words = f"nginx does not reach the application ({VERSION} answers {status or body})"
        command = f"on the host: tail -n 5 /var/log/nginx/error.log; then: {web}"
        area.add("upstream", words, command, follows=("application", "nginx.socket"))
    elif states_its_application(release) and (answering := parsed(body).get("release")) != release.name:
        words = f"{VERSION} answers {status}, release {answering or 'unknown'}, where {release.name} is live"
        area.add("upstream", words, site, follows=("application",))


def has_page(release: Path) -> bool:
    """Return True if a release has a front end of its own."""
    return (release / "frontend").is_dir()


def states_its_application(release: Path) -> bool:
    """Return True if a release has a server that answers for it; one of an older version of Waffle Iron has none."""
    try:
        return "application" in parsed((release / "release.json").read_text(errors="replace"))
    except OSError:
        return False


def rights(area: Area, root: Path, release: Path, user: str, target: str) -> None:
    """Note what nginx's workers may not read or connect to."""
    site = f"ansible-playbook site.yml {target}"
    page = f"{root}/live/release/frontend/index.html"
    if has_page(release) and (words := obstacle(page, user, 4)):
        fix = f"on the host: namei -l {os.path.realpath(page)}; a release with the right modes: {site}"
        area.add("permission", f"nginx cannot serve the front end: {words}", fix, follows=("application.live",))
    if words := obstacle(f"{root}/live/socket", user, 6):
        area.add("socket", f"nginx cannot connect to the application: {words}", site, follows=("application",))


def examine(config: Mapping[str, Any], slot: str, release: Path | None, target: str) -> tuple[Area, str]:
    """Return what is wrong with nginx, and its whole configuration as ``nginx -T`` prints it."""
    service = f"{config['name']}@{slot}.service"
    service_runs = properties(service, "ActiveState").get("ActiveState") == "active"
    area, web = Area("nginx"), f"ansible-playbook playbooks/web.yml {target}"
    tested = call("nginx", "-T")
    if tested.code == NOT_FOUND:
        return area.add("package", "nginx is not installed", web), ""
    if tested.code != 0:
        said = [line for line in tested.err.splitlines() if "[emerg]" in line] or [tested.last]
        refused = re.sub(r"^.*\[emerg\] (\d+#\d+: )?", "", said[0])
        area.add("configuration", f"nginx refuses its configuration: {refused}", f"on the host: nginx -t; then: {web}")
        # What runs may go on with the configuration that it has read; only a restart would end it.
        if properties("nginx.service", "ActiveState").get("ActiveState") != "active":
            return area, ""
    elif not running(area, ports_of(tested.out), target):
        return area, tested.out
    if release:
        before = len(area.findings)
        rights(area, Path(str(config["root"])), release, account_of(CONFIGURATION.read_text()), target)
        # A request would start a service that does not run; the doctor changes nothing.
        if len(area.findings) == before and service_runs:
            public(area, config, release, target)
    area.checked = ["configuration", "port", *(["front end"] if not release or has_page(release) else []), "API"]
    return area, tested.out


# --- certificates ---


def certificates_in(text: str) -> list[str]:
    """Return the certificate files that a whole configuration names, each once."""
    found = re.findall(r"(?:^|[;{])[ \t]*ssl_certificate\s+\"?([^\";]+)\"?\s*;", text, re.MULTILINE)
    return sorted({path for path in found if not path.startswith("data:") and "$" not in path})


def dates(text: str) -> tuple[datetime, datetime] | None:
    """Return the two dates that ``openssl x509 -startdate -enddate`` prints; None if there are none."""
    found = dict(re.findall(r"^(notBefore|notAfter)=(.+)$", text, re.MULTILINE))
    try:
        return moment(found["notBefore"]), moment(found["notAfter"])
    except (KeyError, ValueError, TypeError):
        return None


def moment(text: str) -> datetime:
    """Return a date as openssl prints it, such as ``Nov 23 08:00:00 2026 GMT``."""
    return datetime.strptime(" ".join(text.split()), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc)


def certificate(
    path: str, text: str, now: datetime, target: str
) -> tuple[int | None, list[tuple[str, str, str, bool]]]:
    """Return the days that a certificate has left, and what is wrong with it: key, words, command, urgent."""
    web, found = f"ansible-playbook site.yml {target}", dates(text)
    if not found:
        return None, [
            (
                "unreadable",
                f"the certificate {path} cannot be read",
                f"on the host: openssl x509 -in {path}; {web}",
                True,
            )
        ]
    begin, end = found
    days = int((end - now).total_seconds() // 86400)
    if now < begin:
        return days, [("early", f"the certificate {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC", web, True)]
    if days < 0:
        return days, [("expired", f"the certificate {path} expired on {end:%Y-%m-%d}", f"renew it, then: {web}", True)]
    if days < DAYS_BEFORE_EXPIRY:
        words = f"the certificate {path} expires in {days} days, on {end:%Y-%m-%d}"
        return days, [("expires", words, f"renew it, then: {web}", False)]
    return days, []


def examine_certificates(configuration: str, target: str) -> Area:
    """Return what is wrong with the certificates of nginx."""
    area, left = Area("certificate"), []
    for path in certificates_in(configuration):
        text = call("openssl", "x509", "-noout", "-startdate", "-enddate", "-in", path).out
        days, findings = certificate(path, text, datetime.now(timezone.utc), target)
        left += [] if days is None else [days]
        for key, words, command, urgent in findings:
            area.add(key, words, command, urgent=urgent)
    area.facts["certificate_days"] = min(left, default=None)
    area.checked = [f"{min(left)} days left" if left else "none"]
    return area


# --- requests ---


def last_lines(path: str, limit: int = LOG_BYTES) -> Iterator[str]:
    """Yield the whole lines in the last ``limit`` bytes of a file, the newest first."""
    try:
        with Path(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit))
            lines = stream.read(limit).decode(errors="replace").splitlines()
    except OSError:
        return
    yield from reversed(lines if size <= limit else lines[1:])


def requests(lines: Iterator[str], minutes: int, now: float) -> dict[str, Any]:
    """Return how many requests the access log has of the last minutes, and how many of them failed (5xx)."""
    count = failed = 0
    for line in lines:
        entry = parsed(line)
        try:
            at = datetime.fromisoformat(str(entry["time"])).timestamp()
            status = int(entry["status"])
        except (KeyError, ValueError):
            continue
        if at < now - minutes * 60:
            break
        count, failed = count + 1, failed + (status >= 500)
    return {"minutes": minutes, "count": count, "failed": failed}


def recent_requests(minutes: int) -> dict[str, Any]:
    """Return the requests of the last minutes on this host."""
    return requests(last_lines(ACCESS_LOG), minutes, time.time())
