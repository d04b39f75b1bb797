"""The scripts that turn what a person typed on GitHub into options of a playbook."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Project
from tests.contract.jobs import DIGEST, called, script


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["prod"], ["release=", "schema="]), (["prod", "aa-bb", "stop"], ["release=aa-bb", "schema="]),
     (["prod", "aa-dirty-bb", "keep"], ["release=aa-dirty-bb", "schema=keep"])],
)  # fmt: skip
def test_a_rollback_is_the_playbook_s(project: Project, words: list[str], extra: list[str]) -> None:
    file = called(project, "ansible-playbook")
    assert script(project, "scripts/rollback", *words).returncode == 0
    told = json.loads(file.read_text())
    assert told[:3] == ["playbooks/rollback.yml", "-l", "prod"]
    assert told[3:] == ["-e", "confirm=prod", *(word for value in extra for word in ("-e", value))]


@pytest.mark.parametrize("release", ["aa confirm=dev", "--help", "@file", "{a: b}", "$(id)"])
def test_what_is_no_release_s_id_is_refused(project: Project, release: str) -> None:
    file = called(project, "ansible-playbook")
    done = script(project, "scripts/rollback", "prod", release)
    assert (done.returncode, file.exists()) == (2, False)
    assert "playbooks/releases.yml -l prod" in done.stderr


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "0123abcd",
        f"{DIGEST}\n",
        f"{DIGEST[1:]}\n",
        DIGEST.upper(),
        "{{ 64 * '1' }}",
        f"{DIGEST[:50]} confirm=prod",
        "@file",
    ],
)
def test_what_is_no_digest_is_no_option_of_a_run(project: Project, digest: str) -> None:
    file = called(project, "ansible-playbook")
    done = script(project, "scripts/with-artefact", digest, "ansible-playbook", "site.yml")
    assert (done.returncode, file.exists()) == (2, False)
    assert "a digest of 64 characters" in done.stderr


def test_an_artefact_is_an_option_of_a_run(project: Project) -> None:
    file = called(project, "ansible-playbook")
    assert script(project, "scripts/with-artefact", DIGEST, "ansible-playbook", "site.yml", "-l", "a b").returncode == 0
    assert json.loads(file.read_text()) == ["site.yml", "-l", "a b", "-e", f"artefact={DIGEST}"]
