"""Helpers for the tests of the pipeline's scripts: run one as a job does, and play the programs that it calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.contract.conftest import Project

# The secrets of a job.
SECRETS = ("VAULT_PASSWORD", "SSH_KEY", "PROMOTE_FROM_SSH_KEY", "KNOWN_HOSTS")
DIGEST, COMMIT = "0123abcd" * 8, "89ab" * 10


def called(project: Project, program: str, answer: str = "") -> Path:
    """Put a program into the path that tells what it was called with; return the file that it tells it in."""
    file = project.root / f"{program}-called"
    path = project.root / "bin" / program
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'#!{sys.executable}\nimport json, sys\nopen({str(file)!r}, "a").write(json.dumps(sys.argv[1:]))\n{answer}'
    )
    path.chmod(0o755)
    return file


def script(project: Project, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run a script, with the test's own programs first in the path."""
    environment = project.environment()
    path = f"{project.root}/bin:{environment['PATH']}"
    return subprocess.run(
        words,
        cwd=project.root,
        env={**environment, "PATH": path, **changed},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
