"""The lookup that renders a template without a copy of every variable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, lookup_loader
from ansible.template import Templar, trust_as_template

from tests.support import module_at

rendered = module_at("plugins/lookup/rendered.py")


class Single(str):
    """A value that must not be copied."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise AssertionError("copied")


def test_it_renders_what_the_template_lookup_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/part.j2").write_text("{{ greeting }}, {{ name }}")
    (tmp_path / "templates/whole.j2").write_text(
        "{% include 'part.j2' %}\n{% for n in more %}\n[{{ n }}]\n{% endfor %}\n"
    )
    variables = {
        "greeting": trust_as_template("{{ word }} there"), "word": "Hello", "name": "Jin",
        "ansible_search_path": [str(tmp_path)],
    }  # fmt: skip
    # Later in this process, Ansible's finder of collections would refuse ours, which was imported without it.
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path_hooks", [*sys.path_hooks])
    monkeypatch.setattr(sys, "path_importer_cache", {**sys.path_importer_cache})
    init_plugin_loader([])
    loader = DataLoader()
    templar = Templar(loader, variables)
    options = {"template_vars": {"more": [1, 2]}}
    usual = lookup_loader.get("ansible.builtin.template", loader=loader, templar=templar)
    ours = rendered.LookupModule(loader=loader, templar=templar)
    assert (
        ours.run(["whole.j2"], {**variables, "facts": {"kernel": Single("6.1")}}, **options)
        == ["Hello there, Jin[1]\n[2]\n"]
        == usual.run(["whole.j2"], variables, **options)
    )
