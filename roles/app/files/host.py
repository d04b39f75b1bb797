"""This host, as the program's commands see it: one object for each subject, and the log that they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from activation import Run
from application import Application
from basics import ReleaseError
from deployment import Deployment
from gate import Gate
from inspection import Inspection
from preparation import Preparation
from receipts import Receipts
from records import Records, release_redactor
from redactor import Redactor
from releases import Releases
from repair import Repair
from rollback import Rollback
from run_log import RunLog
from schema_changes import SchemaChanges
from serve import older, server_command
from slots import Config


class Host:
    """The parts that the commands of one application on this host call by name."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.log = RunLog()
        self.releases = Releases(config)
        self.activation = Run(config.name, self.releases.unconfirmed.path)
        self.schema = SchemaChanges(self.releases, self.log)
        self.preparation = Preparation(self.releases, self.schema, self.log)
        self.inspection = Inspection(self.releases, self.activation)
        self.rollback = Rollback(self.releases, self.activation, self.schema)
        self.deployment = Deployment(self.releases, self.preparation, self.schema, self.inspection, self.log)
        self.repair = Repair(self.releases, self.preparation, self.inspection, self.deployment)
        self.records = Records(config.name, config.root)
        self.receipts = Receipts(self.records, self.releases, self.schema, self.log)

    def redactor(self) -> Redactor:
        """Return a redactor of the secrets of all releases here: a downgrade runs another one than was named."""
        return release_redactor(*map(self.releases.folder, self.releases.ids()))

    def serve(self, slot: str) -> None:
        """Become the server of a slot that systemd starts for podman, in the release's folder (else: serve.py).

        Raises:
            ReleaseError: an older version of Waffle Iron made the release, or it runs in no container.
        """
        release = Path.cwd()
        application = Application.of(release)
        if application is None:
            raise ReleaseError(older(release.name))
        command = server_command(release, application, dataclasses.asdict(self.config))
        self.releases.runtime(release).serve(self.releases.slot(slot), ["python", *command])

    def probe(self, slot: str, pid: int) -> None:
        """Wait until a starting slot, whose main process is ``pid``, answers at all.

        Raises:
            ReleaseError: the process ended, or did not answer in time.
        """
        Gate(self.config, self.releases.slot(slot)).answered_live(pid)
