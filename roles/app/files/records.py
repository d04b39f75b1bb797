"""What is kept of every run on this host: an audit log, a receipt, and no secret in either.

/var/log/<name>/releases.log          one line of JSON for each deploy, rollback, repair and failure
<root>/state/receipts/<time>-<id>.json    the receipt of one run
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from basics import write_whole
from environment import FILES, MIGRATION_SETTINGS, SETTINGS, dotenv_values
from redactor import Redactor, secrets_in

if TYPE_CHECKING:
    from messages import Proof, Receipt, ReleaseState

RECEIPTS_KEPT = 200
# Kinds of runs whose good end says that the release was live and well.
MADE_LIVE = ("deploy", "rollback", "repair")
SETTINGS_FILES = (SETTINGS, MIGRATION_SETTINGS)
SECRET_KEYS = re.compile(r"PASS|SECRET|TOKEN|KEY|CREDENTIAL|DSN|URL", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"://[^/@:\s]*:([^/@\s]+)@")


def settings_redactor(*releases: Mapping[str, str]) -> Redactor:
    """Return a redactor of the secrets in the settings and secret files of releases: texts by the names of files."""
    redactor = Redactor()
    for files in releases:
        for name in SETTINGS_FILES:
            for key, value in dotenv_values(files.get(name, "")):
                if SECRET_KEYS.search(key):
                    redactor.add(value)
                    for password in PASSWORD_IN_URL.findall(value):
                        redactor.add(password)
                        redactor.add(unquote(password))
        for name, content in files.items():
            if name.startswith(f"{FILES}/"):
                for text in secrets_in(content):
                    redactor.add(text)
    return redactor


def release_redactor(*folders: Path) -> Redactor:
    """Return a redactor of the secrets in the settings and secret files of the releases in ``folders``."""
    return settings_redactor(*map(files_with_secrets, folders))


def files_with_secrets(folder: Path) -> dict[str, str]:
    """Return the settings and secret files of the release in a folder, by name."""
    paths = [*(folder / name for name in SETTINGS_FILES), *(folder / FILES).glob("*")]
    return {str(path.relative_to(folder)): path.read_text() for path in paths if path.is_file()}


@dataclass(frozen=True)
class Records:
    """The records of one application."""

    name: str
    root: Path

    @property
    def log(self) -> Path:
        """Return the audit log."""
        return Path("/var/log") / self.name / "releases.log"

    @property
    def receipts(self) -> Path:
        """Return the folder of the receipts."""
        return self.root / "state" / "receipts"

    def keep(self, receipt: Receipt) -> None:
        """Write a receipt, and its line in the audit log."""
        self.receipts.mkdir(mode=0o700, exist_ok=True)
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(receipt["began"]))
        write_whole(self.receipts / f"{moment}-{receipt['release']}.json", json.dumps(receipt, indent=1) + "\n")
        for old in sorted(self.receipts.glob("*.json"))[:-RECEIPTS_KEPT]:
            old.unlink()
        kept = (
            "began",
            "kind",
            "outcome",
            "release",
            "before",
            "artefact",
            "commit",
            "subject",
            "schema",
            "by",
            "seconds",
        )
        line = {key: receipt.get(key) for key in kept}
        line["error"] = receipt.get("error", "").partition("\n")[0]
        self.log.parent.mkdir(mode=0o755, exist_ok=True)
        # One write of one line: a run that is killed leaves a whole line or none.
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())
        finally:
            os.close(descriptor)

    def entries(self) -> Iterator[Receipt]:
        """Yield the lines of the audit log, each a part of a receipt, the oldest first."""
        if self.log.is_file():
            for line in self.log.read_text().splitlines():
                yield json.loads(line)

    def proof(self, artefact: str, known: Iterable[tuple[str, ReleaseState]]) -> Proof:
        """Return the proof that an artefact was live and well here, by the log and by the releases still here."""
        for release, state in known:
            if state.get("artefact") == artefact and state.get("state") == "good":
                return {"proven": True, "release": release, "at": state["at"]}
        for entry in self.entries():
            # A migration alone ends well, too, and nothing of its artefact was started.
            if entry["artefact"] == artefact and entry["outcome"] == "good" and entry["kind"] in MADE_LIVE:
                return {"proven": True, "release": entry["release"], "at": entry["began"]}
        return {"proven": False}


def settings_changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return the keys of the settings that differ between two releases, by their keyed hashes."""
    return sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
