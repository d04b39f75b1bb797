"""Ends a run early with one clear line: if Ansible's own error is unclear, or if a run would succeed and do nothing."""

from __future__ import annotations

import gc
import re
import signal
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, test_loader
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import printable

DOCUMENTATION = r"""
name: guard
type: aggregate
short_description: Ends a run that cannot read its values, that was interrupted, or that had no host
description:
  - Before the first play, refuses a checkout in a folder whose name ssh or Ansible would misread (scripts/bootstrap
    refuses it, too), and the options that would leave preflight out.
  - Then opens the vaults and parses the variables of the environments that the run is limited to.
    Ansible itself names neither the file nor its password.
  - Before each task on each host, ends a run whose Ctrl-C came where Python drops an exception. Ansible itself goes on.
  - Shows nothing that steers a terminal. Ansible itself prints an error of a host, or of a module there, as it came.
  - After the last play, fails a run in which no host took part. Ansible itself ends with 0.
"""

VAULT_HEADER = "$ANSIBLE_VAULT;"


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Checks the first play, each task and the statistics."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "guard"
    CALLBACK_NEEDS_ENABLED = False

    _looked = False

    def __init__(self) -> None:
        super().__init__()
        # All that Ansible shows goes through this one object, what other processes of the run show, too.
        show = self._display.display
        self._display.display = lambda msg, *options, **named: show(printable(msg, colours=True), *options, **named)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Check the files that the first play is about to read, and spare each task what is the same for all."""
        if not self._looked:
            self._looked = True
            # Here, once: otherwise the process of each task of this play loads all of them anew.
            for plugins in (filter_loader, test_loader):
                list(plugins.all())
            # Those of collections are not among these. To find one, Ansible loads every file of its collection.
            filter_loader.get("waffle.iron.dotenv")
            self._check_options()
            root = Path(play.get_loader().get_basedir())
            root = root.parent if root.name == "playbooks" else root
            self._check_folder(root)
            self._check_files(play, root)
        # Each of those processes would look for garbage in what it was forked with, and so get a copy of all of it.
        gc.freeze()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Begin no task on a host after a Ctrl-C."""
        # Ansible takes its handler away at the first one and raises. In a hook of a fork, or where an object is
        # deleted, Python drops that, and the next host would be told to switch.
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            raise KeyboardInterrupt

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Fail if no host took part."""
        if not stats.processed:
            self._end("no host took part, so nothing was done: does the inventory have hosts, and the limit name one?")
        # What is left goes with the process; looking through it first would take as long as several tasks.
        gc.freeze()

    def _check_folder(self, root: Path) -> None:
        # ssh's options split at a space and know %, a path in the inventory is a template, PATH has colons.
        if odd := re.search(r"[^\w/.+@=~\u0080-\U0010ffff-]", str(root)):
            self._end(
                f"this checkout is in {str(root)!r}: ssh or Ansible would misread {odd[0]!r} in the name of a folder. "
                "Move it to a folder whose name has letters, digits and . _ - + @ = ~ alone"
            )

    def _check_files(self, play: Any, root: Path) -> None:
        loader = play.get_loader()
        hosts = play.get_variable_manager()._inventory.get_hosts(play.hosts)
        for name in sorted({group.name for host in hosts for group in host.get_groups()}):
            folder = root / "group_vars" / name
            if (folder / "vault.yml").is_file():
                self._check_vault(folder / "vault.yml", root / ".vault" / name, loader)
            if (folder / "vars.yml").is_file():
                self._check_values(folder / "vars.yml", loader)

    def _check_options(self) -> None:
        for option, skips in (
            ("--skip-tags always", "always" in context.CLIARGS.get("skip_tags", ())),
            ("--start-at-task", bool(context.CLIARGS.get("start_at_task"))),
        ):
            if skips:
                self._end(
                    f"{option} leaves preflight out, which every run begins with: choose parts with --tags instead"
                )

    def _check_vault(self, vault: Path, password: Path, loader: Any) -> None:
        text = vault.read_text(errors="replace")
        file, name = f"group_vars/{password.name}/vault.yml", password.name
        if not text.startswith(VAULT_HEADER):
            return  # preflight says so, with everything else
        label = text.splitlines()[0].split(";")[3:]
        if label != [name]:
            self._end(
                f"{file}: is not encrypted under the vault id {name}. "
                f"Correct it: ansible-vault rekey --encrypt-vault-id {name} {file}"
            )
        if not password.is_file():
            self._end(f"{file}: cannot be opened. Fix: put its vault password into .vault/{name} (one line, mode 0600)")
        try:
            loader._vault.decrypt(text)
        except AnsibleError:
            self._end(f"{file}: .vault/{name} does not hold its vault password. Fix: put the right one there")

    def _check_values(self, path: Path, loader: Any) -> None:
        try:
            loader.load_from_file(str(path), cache="none")  # what is cached here would not be templated later
        except AnsibleError as error:
            words = " ".join(str(error.message).split())
            self._end(f"group_vars/{path.parent.name}/vars.yml: {words} Look: yamllint group_vars/{path.parent.name}")

    def _end(self, message: str) -> None:
        self._display.error(message)
        raise SystemExit(1)
