"""The receipt of a run, from its beginning to the records that keep it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from activation import DeployRequest
from records import Records, release_redactor, settings_changed
from releases import Releases
from run_log import RunLog
from schema_changes import SchemaChanges

if TYPE_CHECKING:
    from messages import Receipt, ReleaseFacts, ReleaseState, Step

SAMPLES_KEPT = 40


@dataclass(frozen=True)
class Receipts:
    """Makes the receipt of the run that this program is at, and keeps it."""

    records: Records
    releases: Releases
    schema: SchemaChanges
    log: RunLog

    def begin(self, request: DeployRequest, override: str = "") -> Receipt:
        """Return the beginning of a receipt; ``override`` is why the release comes without proof."""
        before = self.releases.live
        return {
            "kind": request.kind,
            "release": request.release,
            "by": request.by,
            "host": socket.gethostname(),
            "began": round(time.time(), 3),
            "before": before.release if before else "",
            "schema_before": self.schema.revision(before.release) if before else None,
            "promotion_override": override,
        }

    def keep(self, receipt: Receipt, brought: ReleaseFacts | None = None) -> None:
        """Complete a receipt and keep it; where that fails, the receipt says so, and a good release stays.

        ``brought`` are the facts of a release that could not even be prepared.
        """
        try:
            self.write(receipt, brought)
        except OSError as error:
            words = f"its receipt could not be kept on the host: {error}"
            if "error" in receipt:
                receipt["error"] = f"{receipt['error']}\n{words}"
            else:
                receipt["notes"] = [*receipt.get("notes", []), words]

    def write(self, receipt: Receipt, brought: ReleaseFacts | None = None) -> None:
        """Complete a receipt and keep it, with a line in the audit log; the list of releases gets its share.

        Raises:
            OSError: it cannot be written.
        """
        live = self.releases.live
        release = live.release if live and receipt["kind"] == "repair" else receipt["release"]
        facts: ReleaseFacts = self.releases.facts(release) or brought or {}
        before: ReleaseFacts = self.releases.facts(receipt["before"]) if receipt["before"] else {}
        # It was made before the run began, and its time counts once: an earlier run may have failed with it.
        preparation = self.releases.state(release).get("preparation", 0) if receipt["kind"] == "deploy" else 0
        made: list[Step] = [{"step": "prepare", "seconds": preparation}] if preparation else []
        redactor = release_redactor(self.releases.folder(release))
        changed = settings_changed(before.get("settings", {}), facts.get("settings", {})) if facts else []
        seconds = round(time.time() - receipt["began"] + preparation, 2)
        completed: Receipt = {
            "release": release,
            "artefact": facts.get("artefact"),
            "lock": facts.get("lock"),
            "commit": facts.get("commit"),
            "subject": facts.get("subject"),
            "frontend": facts.get("frontend"),
            "dirty": facts.get("dirty"),
            "settings": facts.get("settings", {}),
            "settings_changed": changed,
            "schema": self.schema.revision(live.release) if live else None,
            "migration": redactor.redact_all(self.log.migration),
            "steps": made + self.log.steps,
            "health": self.log.samples[-SAMPLES_KEPT:],
            "notes": [redactor.redact(note) for note in self.log.notes],
            "seconds": seconds,
        }
        receipt.update(completed)
        if self.releases.state(release):
            counted: ReleaseState = {"by": receipt["by"], "seconds": seconds}
            if made:
                counted["preparation"] = 0
            self.releases.update_state(release, **counted)
        self.records.keep(receipt)
