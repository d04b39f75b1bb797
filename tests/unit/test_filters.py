"""Text on its way into `.env` and back, and the names of releases."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess

import pytest
from ansible.errors import AnsibleFilterError
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import AWKWARD, module_at

waffle, mysql = module_at("plugins/filter/waffle.py"), module_at("plugins/filter/mysql.py")
PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)


@given(before=PRINTABLE, text=PRINTABLE, after=PRINTABLE)
@example(before="'", text=AWKWARD, after="'")
@example(before="a\\", text="b\\", after="c\\")
@example(before="a'\\", text="\\'", after="'\\'")
@example(before='"', text="${HOME}${HOME:-x}$HOME $${", after='\\"')
@example(before=" # a", text=" #", after="# ")
@example(before="}", text="${:-\\}", after="${:-$}")
@example(before=" ", text="", after="export A=b")
def test_printable_text_survives_dotenv(before: str, text: str, after: str) -> None:
    settings = {"A": before, "B": text, "C": after}
    assert dotenv_values(stream=io.StringIO(waffle.dotenv(settings))) == settings


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | PRINTABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=6,
)


@given(value=st.lists(VALUES, max_size=3) | st.dictionaries(PRINTABLE, VALUES, max_size=3))
@example(value=["https://a.example", AWKWARD])
@example(value={"line": "a\nb", "set": True, "none": None})
def test_lists_and_mappings_are_json(value: object) -> None:
    read = dotenv_values(stream=io.StringIO(waffle.dotenv({"A": value})))["A"]
    assert read is not None and json.loads(read) == value


def test_booleans_are_lower_case() -> None:
    assert waffle.dotenv({"A": True, "B": False, "C": "True"}) == "A=true\nB=false\nC=True\n"
    same = [waffle.fingerprints({"A": value}, "key") for value in (True, "true")]
    assert same[0] == same[1]


def test_plain_values_stay_readable() -> None:
    settings = {"B_PORT": 3306, "A_HOST": "db-1.example.com", "C_EMPTY": "", "D_URLS": "http://a:1,http://b"}
    assert waffle.dotenv(settings) == "A_HOST=db-1.example.com\nB_PORT=3306\nC_EMPTY=\nD_URLS=http://a:1,http://b\n"


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"])
def test_control_characters_are_refused(character: str) -> None:
    with pytest.raises(AnsibleFilterError, match="DATABASE_PASSWORD") as refusal:
        waffle.dotenv({"DATABASE_PASSWORD": f"hunter2{character}suffix"})
    assert "hunter2" not in str(refusal.value)
    assert "suffix" not in str(refusal.value)


def test_an_option_file_has_what_each_client_knows_in_its_own_group() -> None:
    options = {"user": "a", "port": 3306, "password": 'a"b\\', "database": "shop", "ssl-ca": ""}
    client = '[client]\npassword = "a\\"b\\\\"\nport = "3306"\nuser = "a"\n'
    assert waffle.option_file(options) == client + '[mysql]\ndatabase = "shop"\n'
    assert waffle.option_file({}) == ""


@pytest.mark.parametrize("value", ["hunter2\n[mysqld]", "hunter2\0", "hunter2" * 600])
def test_an_option_that_the_clients_could_not_read_is_refused_by_its_key(value: str) -> None:
    with pytest.raises(AnsibleFilterError, match="password") as refusal:
        waffle.option_file({"password": value})
    assert "hunter2" not in str(refusal.value)


PARTS = {"artefact": "a1", "env": "A=1\n", "serve": ["gunicorn", "--workers=2"], "workers": 2}


def test_a_release_has_one_name() -> None:
    name = waffle.release_id(PARTS, "key", "0a1b2c3")
    assert name == waffle.release_id(dict(reversed(PARTS.items())), "key", "0a1b2c3")
    commit, digest = name.split("-")
    assert commit == "0a1b2c3"
    assert len(digest) == 8
    assert int(digest, 16) >= 0


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"artefact": "a2"}, "key"),
        ({"env": "A=2\n"}, "key"),
        ({"serve": []}, "key"),
        ({"workers": 3}, "key"),
        ({}, "k"),
    ],
)
def test_every_part_and_the_key_change_the_name(change: dict[str, object], key: str) -> None:
    assert waffle.release_id({**PARTS, **change}, key, "c") != waffle.release_id(PARTS, "key", "c")


def test_a_fingerprint_of_a_setting_tells_a_change_and_nothing_else() -> None:
    settings = {"A": "1", "B": "1", "C": "secret"}
    told = waffle.fingerprints(settings, "key")
    assert told == waffle.fingerprints(dict(settings), "key")
    other = waffle.fingerprints({**settings, "C": "other"}, "key")
    assert {name for name in told if told[name] != other[name]} == {"C"}
    # Neither which settings have the same value, nor, without the key, which value it is.
    assert len({*told.values(), *waffle.fingerprints(settings, "another key").values()}) == 6
    assert not {hashlib.sha256(text.encode()).hexdigest()[:16] for text in ("1", "A=1", "C=secret")} & {*told.values()}


def test_a_name_needs_a_key() -> None:
    with pytest.raises(AnsibleFilterError, match="vault_fingerprint_key"):
        waffle.release_id(PARTS, "", "c")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("shop", "shop"), ("nba_dev-restore", r"nba\_dev-restore"), ("a_b%c", r"a\_b\%c"), ("", "")],
)
def test_a_grant_is_for_one_database(name: str, pattern: str) -> None:
    assert mysql.database_pattern(name) == pattern


def test_an_account_has_the_same_hash_as_long_as_nothing_of_it_changes() -> None:
    accounts = [{"name": "nba", "password": AWKWARD, "privileges": "SELECT"}, {"name": "ada", "password": AWKWARD}]
    one, other = mysql.salted(accounts, "key")
    assert {key: one[key] for key in accounts[0]} == accounts[0]
    assert one["hash"].startswith(f"$A$005${one['salt']}") and len(one["salt"]) == 20
    assert mysql.salted(accounts, "key") == [one, other]
    assert one["hash"] != other["hash"], "equal passwords of two accounts must not look equal"
    assert mysql.salted([{**accounts[0], "password": "x"}], "key")[0]["hash"] != one["hash"]
    assert mysql.salted(accounts, "another key")[0]["salt"] != one["salt"]


def test_what_overrides_a_unit_is_absent_and_the_unit_itself_is_not() -> None:
    paths = [entry["path"] for entry in waffle.unit_overrides("nba", ["nba-blue"])]
    assert "/run/systemd/system.control/nba@green.socket.d" in paths and "/etc/systemd/system/nba@.service.d" in paths
    assert "/etc/systemd/system/nba@.service" not in paths and "/run/systemd/system/nba@.service" in paths
    assert paths[-1] == "/var/spool/cron/crontabs/nba-blue"


ACCOUNTS = [
    {"name": "nba", "home": "/srv/nba"},
    {"name": "nba-migrate", "groups": ["nba"]},
    {"name": "nba-blue", "group": "nba"},
]
REPORT = """welcome to this host
account=nba:/srv/nba:/usr/sbin/nologin:nba:L
account=nba-migrate:/nonexistent:/usr/sbin/nologin:nba-migrate,nba:L\r
account=nba-blue:/nonexistent:/usr/sbin/nologin:nba:L
"""


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        (REPORT, []),
        (REPORT.replace("/usr/sbin/nologin:nba:L", "/bin/bash:nba:L", 1), ["nba"]),
        (REPORT.replace("nba-migrate,nba", "nba-migrate,nba,sudo"), ["nba-migrate"]),
        (REPORT.replace("nba:L\n", "nba:P\n"), ["nba", "nba-blue"]),
        ("account=:::\n", ["nba", "nba-migrate", "nba-blue"]),
        ("", ["nba", "nba-migrate", "nba-blue"]),
    ],
)
def test_an_account_that_is_as_it_should_be_costs_no_module(said: str, changed: list[str]) -> None:
    assert [account["name"] for account in waffle.accounts_to_change(ACCOUNTS, said)] == changed


def test_the_command_about_accounts_prints_what_the_filter_expects() -> None:
    report = subprocess.check_output(
        ["sh", "-c", waffle.account_report([{"name": "daemon"}, {"name": "no-such"}])], text=True
    )
    daemon, missing = report.splitlines()
    assert re.fullmatch(r"account=daemon:/usr/sbin:/usr/sbin/nologin:daemon:(L|P|NP)?", daemon)
    assert missing == "account=::"
