"""The table: printed, and kept in docs/benchmarks.md between two markers. The prose around it is written manually."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version

from tests.hosts.world import CHECKOUT, World

DOCUMENT = CHECKOUT / "docs/benchmarks.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
HOST_VERSIONS = """
. /etc/os-release && echo "$PRETTY_NAME"
python3 -V
nginx -v 2>&1 | sed 's|.*/|nginx |'
cd /srv/nba/live/release/.server && ls -d gunicorn-*.dist-info uvicorn-[0-9]*.dist-info | sed 's|-| |; s|.dist-info||'
"""


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where there is no target."""

    what: str
    ours: str
    other: str
    result: str
    target: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        """Return the line as Markdown."""
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        return f"| {self.what} | {self.ours} | {self.other} | {self.result} | {self.target} | {verdict} |"


def circumstances(here: World, paces: list[float]) -> str:
    """Return when, where and with what was measured, and how fast the machine was (`Bench.pace`)."""
    parts = here.shell("dev1", HOST_VERSIONS).strip().splitlines()
    server = here.shell("db1", "mysql -NBe 'SELECT @@version_comment, @@version'").split()
    parts.append(f"{'MariaDB' if 'MariaDB' in ' '.join(server) else 'MySQL'} {server[-1]}")
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    parts += [f"wrk {wrk.split()[1].split('/')[-1]}", f"ansible-core {version('ansible-core')}"]
    today, kernel = datetime.datetime.now(datetime.UTC).date(), platform.release().split("-")[0]
    return (
        f"`make bench` on {today}: Linux {kernel}, {os.cpu_count()} CPUs for control node, host, database and load "
        f"together; {', '.join(parts)}. Between the parts, `ansible --version` took {min(paces):.2f} to "
        f"{max(paces):.2f} s."
    )


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = "| what | Waffle Iron | compared with | result | target | |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(str(row) for row in rows)])


def document_parts() -> tuple[str, str]:
    """Return what stands before and after the table in the document."""
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{DOCUMENT} lacks the lines {BEGIN} and {END}, between which the table goes")
    return before, after


def write(text: str) -> None:
    """Put the text between the document's markers."""
    before, after = document_parts()
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
