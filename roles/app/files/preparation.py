"""A release is made of what Ansible brought, whole or not at all, and what it runs in is made anew."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from application import Application
from basics import OPTION_FILE, ReleaseError, quarantine
from bundle import Bundle
from integrity import exchange
from reasons import start_reason
from releases import Releases
from run_log import RunLog
from runtimes import WORKERS, runtime_of
from schema import AccessDenied
from schema_changes import SchemaChanges
from serve import import_command, older

if TYPE_CHECKING:
    from messages import Preview, ReleaseState


@dataclass(frozen=True)
class Preparation:
    """Makes releases, and what they run in; nothing of it touches the live one."""

    releases: Releases
    schema: SchemaChanges
    log: RunLog

    def prepare(self, release: str, bundle: Bundle, request: str = "", wait_seconds: float = math.inf) -> None:
        """Make ``releases/<id>`` of what was brought, whole or not at all.

        Args:
            release: its id.
            bundle: what was brought.
            request: who wants it and what for; the same request waits for itself, and finds it made.
            wait_seconds: how long to wait for another one.

        Raises:
            Busy: another one still prepares its release.
            ReleaseError: it cannot be made.
        """
        target, integrity = self.releases.folder(release), self.releases.integrity
        with self.releases.lock(request, wait_seconds):
            # Looked at inside the lock: another run may have made it while this one waited.
            if target.is_dir():
                integrity.clear(target)  # what is immutable could not be replaced
                if not integrity.changes(target):
                    return
            begin = time.monotonic()
            with self.staged(release, bundle) as partial:
                if os.path.lexists(target):
                    # Somebody changed it: the same release once more takes its place, maybe under running requests.
                    exchange(partial, target)
                    integrity.record(target)
                    for path in integrity.secrets(partial):
                        if path.is_file():
                            path.unlink()  # what is kept for a person has no secrets
                    quarantine(partial)
                    return
                partial.rename(target)
            integrity.record(target)
            own = ("release", "settings", "application")
            known = {key: value for key, value in bundle.facts.items() if key not in own}
            known["preparation"] = round(time.monotonic() - begin, 2)
            self.releases.set_state(release, "prepared", **cast("ReleaseState", known))

    @contextlib.contextmanager
    def staged(self, release: str, bundle: Bundle) -> Iterator[Path]:
        """Make a release of what was brought, in a folder that is gone afterwards unless it was renamed."""
        service, migrator = self.releases.config.user, self.releases.config.migration_user
        partial = self.releases.folder(f".{release}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            groups = {".env": service, ".env.migrate": migrator, OPTION_FILE: migrator}
            bundle.unpack(partial, groups | dict.fromkeys(bundle.secret_files, service))
            self.releases.runtime(partial).make(partial)
            self.check_settings(partial)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def check_settings(self, folder: Path) -> None:
        """Check a release's ``.env`` with its own code, by its command or by an import of it.

        Raises:
            ReleaseError: the application refuses it.
        """
        application = Application.of(folder)
        if application is None:
            raise ReleaseError(older(folder.name))
        runtime, config = self.releases.runtime(folder), self.releases.config
        if command := application.settings_command:
            done = runtime.run(folder, config.user, command)
            if done.returncode != 0:
                raise ReleaseError(
                    f"the application refuses its settings:\n{(done.stderr or done.stdout).strip()}\n"
                    "correct them in group_vars and run the same command again; nothing was switched"
                )
            return
        command = import_command(application, int(config.start_timeout_seconds))
        done = runtime.run(folder, config.user, command, WORKERS)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            words = "\n".join(lines[-25:])
            raise ReleaseError(
                f"the application cannot be imported: {start_reason(done.stderr) or lines[-1]}\n{words}\n"
                "Nothing was switched"
            )

    def repair_runtime(self, release: str) -> None:
        """Make anew what a release runs in, for all that share it, if somebody changed that."""
        folder = self.releases.folder(release)
        runtime = self.releases.runtime(folder)
        if not runtime.changes(folder):
            return
        with self.releases.lock(), self.log.step(f"make the {runtime.title} anew"):
            others = [self.releases.folder(name) for name in self.releases.ids() if name != release]
            runtime.renew(folder, [path for path in others if runtime_of(path) == runtime_of(folder)])

    def preview(self, release: str, bundle: Bundle, workers: int) -> Preview:
        """Return what a release would do to the database, and leave nothing of it on this host.

        Args:
            release: the one that was brought; it may be here already.
            bundle: what was brought.
            workers: worker processes of all hosts of the environment.
        """
        with self.releases.lock(), contextlib.ExitStack() as stack:
            for runtime in self.releases.runtimes.values():
                stack.enter_context(runtime.left_as_it_was())
            try:
                if self.releases.folder(release).is_dir():
                    return self.dry_run(release, workers)
                with self.staged(release, bundle) as folder:
                    return self.dry_run(folder.name, workers)
            except AccessDenied as error:
                present = self.with_present_access(bundle)
                if present == bundle:
                    raise
                # The run itself gives the account its new password before it comes to the release.
                try:
                    with self.staged(release, present) as folder:
                        return self.dry_run(folder.name, workers)
                except AccessDenied:
                    raise error from None

    def with_present_access(self, bundle: Bundle) -> Bundle:
        """Return what was brought with the live release's access to the database as the migration account."""
        live = self.releases.live_release
        paths = [self.releases.folder(live) / name for name in (".env.migrate", OPTION_FILE)] if live else []
        present = {path.name: path.read_text() for path in paths if path.is_file()}
        return dataclasses.replace(bundle, files={**bundle.files, **present})

    def dry_run(self, release: str, workers: int) -> Preview:
        """Return the migrations of a release, and whether its connections fit; each problem is a text."""
        migrations = self.schema.plan(release)
        try:
            return {"migrations": migrations, "connections": self.schema.connections(release, workers)}
        except ReleaseError as error:
            return {"migrations": migrations, "connections": {"checked": True, "problem": str(error)}}
