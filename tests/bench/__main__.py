"""`python -m tests.bench [PART...]`: measure in a lab of its own; the whole run goes to docs/benchmarks.md."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.bench import report
from tests.bench.measure import PARTS, Bench
from tests.hosts.world import world

LAB = {"LAB_NAME": "bench", "LAB_SUBNET": "10.203.4.0/24", "PROD_HOSTS": "0"}


def main(names: list[str]) -> int:
    """Measure; return 1 if a target was missed."""
    if unknown := set(names) - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not shutil.which("wrk"):
        raise SystemExit("wrk, which measures requests per second, is missing: apt install wrk")
    if (not names or "plot" in names) and not find_spec("matplotlib"):
        raise SystemExit("matplotlib, which draws docs/deploy.svg, is missing: scripts/bootstrap bench")
    if os.geteuid() != 0:
        raise SystemExit("the lab boots machines, which takes root: make bench")
    report.document_parts()
    for number in (signal.SIGINT, signal.SIGTERM):  # the lab is removed then, too; a background job ignores the first
        signal.signal(number, signal.default_int_handler)
    os.environ.update(LAB)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, world(Path(folder) / "checkout", "bench") as here:
        bench = Bench(here, Path(folder))
        rows, paces = [], [bench.pace()]
        try:
            for name, measure in PARTS.items():
                if not names or name in names:
                    rows += measure(bench)
                    paces.append(bench.pace())
        finally:
            # Also where a later part failed: the minutes of those before it are not lost.
            print(f"\n{report.table(rows)}")
        circumstances = report.circumstances(here, paces)
    print(f"\n{circumstances}")
    if not names:
        report.write(f"{circumstances}\n\n{report.table(rows)}")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
