"""What scripts/check-language refuses."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest

from tests.support import ROOT

GLOSSARY = """
| write | refused | avoid in this meaning |
|---|---|---|
| `bundle` | `hamper`, `big basket` | `sack` |
"""


@pytest.fixture
def language(monkeypatch: pytest.MonkeyPatch) -> Any:
    loader = SourceFileLoader("language", str(ROOT / "scripts/check-language"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = module_from_spec(spec_from_loader("language", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def found(language: Any, path: str, text: str) -> list[tuple[int, str]]:
    """Return the findings in a file, with the words of `GLOSSARY`."""
    return list(language.findings(path, text, language.pattern_of(language.refused_words(GLOSSARY))))


def test_the_second_column_has_the_refused_words(language: Any) -> None:
    assert language.refused_words(GLOSSARY) == ["hamper", "big basket"]
    assert len(language.refused_words((ROOT / "docs/glossary.md").read_text())) > 20


@pytest.mark.parametrize(
    "text",
    ["a Hamper", "HAMPER_SIZE = 1", "class Hamper:", "a big basket", "big_basket", "# a big\n# basket"],
)
def test_a_refused_word_is_found_in_any_form(language: Any, text: str) -> None:
    assert len(found(language, "lab/a.py", f"one\n{text}\n")) == 1
    assert found(language, "lab/a.py", f"one\n{text}\n")[0][0] == 2


def test_a_refused_word_is_found_in_the_name_of_a_file(language: Any) -> None:
    assert found(language, "lab/big_basket.py", "") == [(1, "the file's name holds 'big_basket'")]


@pytest.mark.parametrize("text", ["hampered", "bigger baskets", "a sack"])
def test_other_words_are_accepted(language: Any, text: str) -> None:
    assert found(language, "lab/a.py", text) == []


@pytest.mark.parametrize(
    "name",
    ["Look for hosts", "Tell the user", "The application", "Start it", "Read what runs", "Check that nginx runs"],
)
@pytest.mark.parametrize("path", ["site.yml", "playbooks/a.yml", "playbooks/tasks/a.yml", "roles/a/tasks/main.yml"])
def test_a_name_that_is_not_a_verb_and_a_noun_is_found(language: Any, path: str, name: str) -> None:
    assert found(language, path, f"---\n- name: {name}\n") == [(2, f"the name is not a verb and a noun: {name}")]
    assert found(language, path, f"---\n- block:\n    - name: {name}  # noqa: rule\n")[0][0] == 3


@pytest.mark.parametrize("name", ["Install nginx", "Create the accounts", "Gather release state", "Asking"])
def test_a_verb_and_a_noun_are_accepted(language: Any, name: str) -> None:
    assert found(language, "roles/a/handlers/main.yml", f"- name: {name}\n") == []


def test_data_has_names_of_its_own(language: Any) -> None:
    assert found(language, "roles/a/vars/main.yml", "- name: The one\n") == []


@pytest.mark.parametrize("text", ["Tell if it runs.", "Tells if it runs.", "Has it run.", "Whether it runs."])
def test_the_first_word_of_a_docstring_is_checked(language: Any, text: str) -> None:
    assert [line for line, _ in found(language, "lab/a.py", f'def f():\n    """{text}"""\n')] == [2]
    assert found(language, "lab/a.py", 'def f():\n    """Return True if it runs."""\n') == []


@pytest.mark.parametrize("path", ["README.md", "docs/a.md"])
def test_a_page_begins_with_its_readers(language: Any, path: str) -> None:
    assert [line for line, _ in found(language, path, "# Drift\n\nIt reads hosts.\n")] == [3]
    assert found(language, path, "# Drift\n\nFor people who run hosts.\n") == []
    assert found(language, "roles/a/README.md", "# a\n\nInstalls a.\n") == []


def test_files_without_a_checked_suffix_and_foreign_ones_are_left_out(language: Any) -> None:
    files = language.checked_files()
    assert {"docs/drift.md", "lab/hosts.py", "roles/nginx/tasks/main.yml", "scripts/lint"} <= set(files)
    assert not any(path.startswith("tests/apps/") or path.endswith(".svg") for path in files)
