"""Filters: what became of a deploy or rollback over all hosts of an environment (plugins/plugin_utils/rollout.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.waffle.iron.plugins.plugin_utils import rollout


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
