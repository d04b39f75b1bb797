"""Filters: what became of a deploy or rollback over all hosts of an environment (plugins/lib/rollout.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ansible loads a filter by its file, so this folder is no package that could be imported from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import rollout


class FilterModule:
    """The functions of `rollout`, by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                rollout.deploy_failed,
                rollout.deploy_unfinished,
                rollout.failure,
                rollout.hosts_that_left,
                rollout.previous_release,
                rollout.rollback_choices,
                rollout.workers_of_all,
            )
        }
