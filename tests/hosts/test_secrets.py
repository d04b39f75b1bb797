"""No secret is shown: not in a run's output, a command line, the journal, or a file that everybody may read."""

from __future__ import annotations

import base64
import json

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import World

pytestmark = pytest.mark.lab


def needles(here: World) -> dict[str, str]:
    """Return each form in which a secret might turn up, and what it is called."""
    forms = {}
    for environment in ("dev", "prod"):
        for key, value in here.secrets(environment).items():
            for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
                forms[form] = f"{environment} {key}"
            forms[base64.b64encode(value.encode()).decode()] = f"{environment} {key}, base64"
    return forms


def assert_clean(here: World, text: str, where: str) -> None:
    found = sorted(name for form, name in needles(here).items() if form in text)
    assert not found, f"{where} shows {found}"


def test_the_search_finds_a_secret_where_there_is_one(here: World, converged: Converged) -> None:
    with pytest.raises(AssertionError, match="vault_fingerprint_key"):
        assert_clean(here, f"x{here.secrets('dev')['vault_fingerprint_key']}y", "a text with a secret in it")


def test_no_run_printed_a_secret(here: World, converged: Converged) -> None:
    assert len(here.runs) >= 3
    for number, output in enumerate(here.runs):
        assert_clean(here, output, f"run {number}")


def test_no_command_line_showed_a_secret(here: World, converged: Converged) -> None:
    assert "nba-release" in converged.command_lines or "release.py" in converged.command_lines
    assert_clean(here, converged.command_lines, "a command line")


def test_no_journal_holds_a_secret(here: World, converged: Converged) -> None:
    for host in ("dev1", "bare1", "prod1", "prod2"):
        journal = here.execute(host, "journalctl", "--no-pager", "--output=json", "--all")
        assert "nba" in journal
        assert_clean(here, journal, f"the journal of {host}")


def test_no_file_for_everybody_holds_a_secret(here: World, converged: Converged) -> None:
    script = (
        "find /etc /srv /var/log /var/backups /tmp /opt /usr/local /home /run -xdev -type f -perm -o=r "
        "! -path '*/venvs/*' ! -path '/opt/poetry-*' -size -2M -exec cat {} +"
    )
    for host in ("dev1", "prod1", "prod2"):
        text = here.shell(host, script, check=False)
        assert "nginx" in text
        assert_clean(here, text, f"a file on {host}")
