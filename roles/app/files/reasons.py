"""Why a release is refused: what its health path answered, or what its log holds, and what to change."""

from __future__ import annotations

import json
import re

from application import Application

LINES = 5  # so many lines of an error are shown first; the log follows
VARIABLES = "group_vars/all/vars.yml"
GUIDE = "docs/applications.md"
# How a traceback ends: the kind of the error, without a module of Python's own before it.
ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit|Warning|NotFound)|[A-Z]\w+)(?::|$)")
# What the server's own lines begin with, or those of a log that is JSON.
LOGGED = re.compile(r"^(\[\d{4}-\d\d-\d\d |\{)")
TRACEBACK = "Traceback (most recent call last):"
NEVER = (
    (
        re.compile(r"(?:ModuleNotFound|Import)Error: No module named ['\"]?([\w.]+)"),
        "Fix: add the package that has {0} to the lock file; for a module of the application's own, state "
        f"app_module in {VARIABLES}",
    ),
    (
        re.compile(r"(?:^|\D)1045\D.*Access denied|Access denied for user"),
        "MySQL refuses the account (error 1045): it requires TLS, and refuses a client without TLS in the same words "
        f"as a wrong password. Fix: give the driver the CA file ({GUIDE}), or correct the password",
    ),
    (
        re.compile(r"Can't connect to MySQL server on '?([\w.:-]+)|ConnectionRefusedError|Connection refused"),
        "The application connects to something that refuses the connection. Fix: have the code read the host name and "
        f"the port from its settings (database_host in {VARIABLES}); a fixed localhost is the host itself",
    ),
)
ABOUT_START = (
    (
        re.compile(r"^AttributeError: module '[\w.]+' has no attribute"),
        f"Fix: state app_module as module:attribute in {VARIABLES}",
    ),
    (re.compile(r"^KeyError: "), f"Fix: if this is a setting, add it to app_settings in {VARIABLES}"),
    (re.compile(r"ValidationError"), f"Fix: correct app_settings in {VARIABLES}"),
    (
        re.compile(r"^Attribute \"app\" not found|is not an ASGI application|not an ASGI application"),
        f"Fix: state app_module as module:attribute in {VARIABLES}; module:function() for a factory",
    ),
)


def unpacked(line: str) -> str:
    """Return the traceback in a line of a log that is JSON, under whatever key; any other line as it is."""
    if not line.startswith("{") or TRACEBACK not in line:
        return line
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return next((value for value in record.values() if isinstance(value, str) and TRACEBACK in value), line)


def last_error(log: str) -> str:
    """Return the error at the end of the last traceback in a log; an empty text if there is none."""
    lines = "\n".join(map(unpacked, log.splitlines())).splitlines()
    starts = [number for number, line in enumerate(lines) if TRACEBACK in line]
    if not starts:
        return ""
    found: list[str] = []
    for line in lines[starts[-1] + 1 :]:
        if found and (LOGGED.match(line) or line.startswith("Traceback") or len(found) == LINES):
            break
        if found or ERROR.match(line):
            found.append(line.rstrip())
    # gunicorn writes the message once more, without its kind.
    while len(found) > 1 and (not found[-1] or found[0].endswith(found[-1])):
        found.pop()
    return "\n".join(found)


def start_reason(log: str) -> str:
    """Return why a release that ended while it started cannot start; an empty text if its log does not tell."""
    if re.search(r"^Timeout \(.*\)!$", log, re.MULTILINE):  # of faulthandler
        return (
            "importing the application does not end. Fix: what starts a server (uvicorn.run) or waits for something "
            'belongs below `if __name__ == "__main__":` or into the lifespan'
        )
    told = re.search(r"the application exited with status .* while it was imported", log) or re.search(
        r"^the server did not answer within .*", log, re.MULTILINE
    )
    if not (error := last_error(log)):
        return told[0] if told else ""
    for pattern, hint in (*NEVER, *ABOUT_START):
        if found := pattern.search(error):
            return f"{error}\n{hint.format(*found.groups())}"
    return error


def lasting_reason(log: str) -> str:
    """Return the error in a log that waiting cannot repair, of a release that is not ready; an empty text for none."""
    for line in reversed(log.splitlines()):
        for pattern, hint in NEVER:
            if found := pattern.search(line):
                return f"its log: {line.strip()[:300]}\n{hint.format(*found.groups())}"
    return ""


def first_line(body: str) -> str:
    """Return the first line of an answer, not more than a person reads."""
    return next((line.strip() for line in body.splitlines() if line.strip()), "an empty body")[:200]


def healthy(status: int, application: Application) -> bool:
    """Return True if this is the answer of a healthy application."""
    return 200 <= status < 300 if application.ready_answers == "success" else 0 < status < 500


def asked(application: Application, host: str) -> str:
    """Return the words for the request of the health check."""
    return f"GET {application.ready_path} (host {host}, {application.scheme})"


def final_reason(status: int, body: str, application: Application, host: str) -> str:
    """Return why waiting cannot repair an answer of the health path, and what to change; an empty text if it may."""
    what = f"{asked(application, host)} answered {status}"
    if status == 0:
        refused = body.startswith(("ConnectionRefusedError", "FileNotFoundError"))
        return f"nothing accepts connections on its socket: {body}" if refused else ""
    if 300 <= status < 400:
        return redirect_reason(what, body, application)
    if status == 400 and "host" in body.lower():
        return (
            f"{what}: {first_line(body)}. The application does not accept this host name. Fix: add {host} to its "
            f"allowed hosts (app_settings in {VARIABLES}), or correct server_names"
        )
    if healthy(status, application) or status >= 500 or status in (408, 425, 429):
        return ""
    why = {
        404: "the application has no such path",
        401: "the path asks for a login",
        403: "the path asks for a login or another right",
    }.get(status, first_line(body))
    return f"{what}: {why}. Fix: state app_ready_path in {VARIABLES}: a path that answers 200 without a login"


def redirect_reason(what: str, location: str, application: Application) -> str:
    """Return why a redirect is no answer of a healthy application, if it is none."""
    scheme, _, rest = location.partition("://")
    if scheme == "https" and application.scheme != "https":
        return (
            f"{what}: a redirect to {location}. The application redirects to https what comes as http. Fix: state "
            "public_scheme: https in group_vars/<environment>/vars.yml if clients come by https, or turn the redirect "
            "off in app_settings"
        )
    if healthy(302, application):
        return ""
    path = location if not rest else "/" + rest.partition("/")[2]
    return f"{what}: a redirect to {location}. Fix: app_ready_path: {path} in {VARIABLES}"
