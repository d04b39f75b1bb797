"""Renders a template without a copy of every variable."""

from __future__ import annotations

from typing import Any

from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):  # type: ignore[misc]
    """Does what `ansible.builtin.template` does, with the same options.

    That one copies all variables, with the facts of the host, in depth for each template: 40 ms, which a run pays for
    each file of each host. No template of ours changes what a variable holds.
    """

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **options: Any) -> list[Any]:
        """Return the templates named by ``terms``, rendered."""
        template = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        found: list[Any] = template.run(terms, variables=Shared(variables or {}), **options)
        return found


class Shared(dict[str, Any]):
    """Variables whose copy in depth is one of the names alone."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        """Return a dictionary with the very values."""
        return dict(self)
