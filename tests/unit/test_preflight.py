"""The parts of preflight that need no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import AWKWARD, module_at

preflight = module_at("plugins/action/preflight.py")

RIGHT: dict[str, list[object]] = {
    "name": ["dev", "prod", "stage2"],
    "optional_name": ["", "dev", "stage2"],
    "possible_host": ["", "db", "10.0.0.1"],
    "optional_host": ["", "example.com", "www.example.com"],
    "optional_arn": ["", "arn:aws:acm:eu-west-1:123456789012:certificate/0123"],
    "optional_bucket": ["", "nba-backups", "backups.example.com"],
    "region": ["eu-west-1", "us-gov-west-1", "ap-southeast-2"],
    "network": ["10.10.0.0/16"],
    "instance_type": ["t3.micro", "m7i-flex.large", "u-6tb1.112xlarge"],
    "database_class": ["db.t4g.micro", "db.m7g.2xlarge"],
    "image": ["debian-12", "debian-13", "ubuntu-24.04"],
    "version": ["8.4", "8.0.40"],
    "address": ["public", "private"],
    "identifier": ["nba_dev", "N1", "a" * 32],
    "host": ["db", "10.0.0.1", "db-1.example.com", "2001:db8::1"],
    "path": ["", "/etc/ssl/ca.crt"],
    "size": ["512M", "1G", "1048576"],
    "web_size": ["1m", "512k", "1024"],
    "level": ["DEBUG", "INFO", "WARNING", "ERROR"],
    "preview_database": ["own", "live"],
    "secret": [AWKWARD, "x" * 12, "    twelve    "],
    "optional_ascii_secret": ["", "p@$$w\"o'rd #1 \\ ${HOME}"],
    "integer": [0, 7, "7"],
    "positive": [1, "1"],
    "boolean": [True, False],
    "list": [[], ["a"]],
    "names": [["_"], ["a.example.com", "b"]],
}
WRONG: dict[str, list[object]] = {
    "name": ["", "Dev", "dev-1", "1dev", "a" * 17, None, 1],
    "optional_name": ["Dev", "dev-1", "dev,prod", None, False],
    "possible_host": ["db_1", "http://db", None],
    "optional_host": ["example.com.", "a b", "https://example.com", None],
    "optional_arn": ["certificate/0123", "arn:aws:iam::123456789012:role/x", None],
    "optional_bucket": ["s3://nba", "NBA", "a", "nba/prod", None],
    "region": ["", "eu-west", "eu-west-1a", "Ireland", None],
    "network": ["", "10.10.0.0", "home", None],
    "instance_type": ["", "t3", "t3.", "T3.micro", None],
    "database_class": ["", "t4g.micro", "db.t4g", None],
    "image": ["", "debian", "debian-11", "ami-0123", None],
    "version": ["", "8", 8.4, "8.4.", "mysql8.4", None],
    "address": ["", "elastic", True, None],
    "identifier": ["", "nba-dev", "nba.dev", "a" * 33, "a b", "a'", None],
    "host": ["", "db_1", "http://db", "db/", "-db", "db-", "a b", None, ["db"]],
    "path": ["ca.crt", "/a b", None, False],
    "size": ["", "1GB", "1 G", "512m", "M", 1.5, None],
    "web_size": ["", "1M", "1mb", "-1m", None],
    "level": ["", "info", "TRACE", None],
    "preview_database": ["", "none", True, None],
    "secret": ["", "x" * 11, "two\nlines of it", "a tab\tin between", 123456789012, None],
    "optional_ascii_secret": ["x" * 11, AWKWARD, "two\nlines of it", None],
    "integer": ["", -1, "-1", 1.0, "1.0", True, None, "a", [1]],
    "positive": [0, "0", "", True, None],
    "boolean": ["true", "yes", "", 0, 1, None],
    "list": ["", "a", None, {"a": 1}],
    "names": [[], "", None, "_"],
}


def cases(table: dict[str, list[object]]) -> list[tuple[str, object]]:
    return [(form, value) for form, values in table.items() for value in values]


def test_every_form_has_cases() -> None:
    assert set(RIGHT) == set(WRONG) == set(preflight.FORMS)


@pytest.mark.parametrize(("form", "value"), cases(RIGHT))
def test_right_values(form: str, value: object) -> None:
    assert preflight.FORMS[form][1](value) is True


@pytest.mark.parametrize(("form", "value"), cases(WRONG))
def test_wrong_values(form: str, value: object) -> None:
    assert preflight.FORMS[form][1](value) is False


@pytest.mark.parametrize("value", ["CHANGE-ME", "change-me", "changeme", "db.CHANGE-ME.example.com"])
def test_placeholders(value: str) -> None:
    assert preflight.placeholder_in(value) is True


@pytest.mark.parametrize("value", ["", "exchange", "change me", 1, None, ["_"]])
def test_what_is_no_placeholder(value: object) -> None:
    assert preflight.placeholder_in(value) is False


def test_tags_are_found_wherever_they_stand() -> None:
    playbook = [
        {"hosts": "all", "tags": "one,two", "roles": [{"role": "base", "tags": ["three"]}]},
        {"hosts": "all", "tasks": [{"block": [{"name": "x", "tags": "four"}], "tags": ["five"]}]},
    ]
    assert sorted(preflight.tags_in(playbook)) == ["five", "four", "one", "three", "two"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "roles/base/tasks").mkdir(parents=True)
    (tmp_path / "group_vars/dev").mkdir(parents=True)
    (tmp_path / "playbooks/base.yml").write_text("- hosts: all\n  roles: [{role: base, tags: [base]}]\n")
    (tmp_path / "roles/base/tasks/main.yml").write_text("- debug:\n  tags: [swap]\n")
    return tmp_path


@pytest.mark.parametrize("tags", [["all"], ["base"], ["swap", "base"], ["always"], ["tagged"]])
def test_known_tags(root: Path, tags: list[str]) -> None:
    assert list(preflight.tag_findings(root, tags, [])) == []
    assert list(preflight.tag_findings(root, ["all"], tags)) == []


def test_unknown_tags_are_named_with_those_that_exist(root: Path) -> None:
    findings = list(preflight.tag_findings(root, ["bsae", "base"], ["swpa"]))
    assert [finding.split(":")[0] for finding in findings] == ["tag 'bsae'", "tag 'swpa'"]
    assert all(finding.endswith("Known: base, swap") for finding in findings)


def environment(root: Path, values: dict[str, Any]) -> Any:
    def read(host: str, variable: str) -> tuple[bool, Any]:
        assert host == "dev1"
        return variable in values, values.get(variable)

    return preflight.Environment("dev", "dev1", root, read)


CONTRACT = {"database_name": "identifier", "database_host": "host", "workers_max": "positive", "log_level": "level"}
GOOD = {"database_name": "nba", "database_host": "db", "workers_max": 2, "log_level": "INFO"}


def test_a_good_environment_has_no_findings(root: Path) -> None:
    assert list(environment(root, GOOD).value_findings(CONTRACT)) == []


def test_each_bad_value_is_one_finding_without_the_value(root: Path) -> None:
    values = {"database_name": "no good", "database_host": "CHANGE-ME", "log_level": "", "database_password": "hunter2"}
    findings = list(environment(root, values).value_findings({**CONTRACT, "database_password": "secret"}))
    assert findings == [
        "database_name (group_vars/dev/vars.yml): must be a MySQL name of letters, digits and _, at most 32",
        "database_host (the inventory): still holds the placeholder",
        "workers_max (group_vars/dev/vars.yml): is not set, or what it refers to is not",
        "log_level (group_vars/dev/vars.yml): must be DEBUG, INFO, WARNING or ERROR",
        "database_password (vault_database_password in group_vars/dev/vault.yml): must be printable text of at least "
        "12 characters. Fix: ansible-vault edit group_vars/dev/vault.yml",
    ]


@pytest.mark.parametrize("source", ["", "stage"])
def test_an_environment_to_promote_from_that_has_hosts(root: Path, source: str) -> None:
    values = {**GOOD, "promote_from": source}
    assert list(environment(root, values).promotion_findings({"stage": ["stage1"], "empty": []})) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [("empty", "no group 'empty' with hosts"), ("gone", "no group 'gone'"), ("dev", "is the environment")],
)
def test_an_environment_to_promote_from_that_cannot_be(root: Path, source: str, words: str) -> None:
    (finding,) = environment(root, {"promote_from": source}).promotion_findings({"empty": [], "dev": ["dev1"]})
    assert finding.startswith("promote_from (group_vars/dev/vars.yml): ")
    assert words in finding


@pytest.mark.parametrize("index", ["", "https://packages.example.com/simple", "file:///srv/a@b/simple"])
def test_an_index_of_packages_without_credentials(root: Path, index: str) -> None:
    assert list(environment(root, {"python_index_url": index}).index_findings()) == []
    assert list(environment(root, {}).index_findings()) == []


def test_an_index_of_packages_that_would_show_its_credentials(root: Path) -> None:
    index = "https://ada:hunter2@packages.example.com/simple"
    (finding,) = environment(root, {"python_index_url": index}).index_findings()
    assert "/root/.netrc" in finding and "hunter2" not in finding


def test_a_vault_must_exist_and_be_encrypted(root: Path) -> None:
    dev, vault = environment(root, GOOD), root / "group_vars/dev/vault.yml"
    (missing,) = dev.vault_findings()
    assert "make secrets ENV=dev" in missing
    vault.write_text("vault_database_password: hunter2hunter2\n")
    (clear,) = dev.vault_findings()
    assert "ansible-vault encrypt" in clear
    assert "hunter2" not in clear
    vault.write_text("$ANSIBLE_VAULT;1.2;AES256;dev\n6162\n")
    assert list(dev.vault_findings()) == []


def test_secrets_that_cannot_be_read_are_left_out(root: Path) -> None:
    assert environment(root, {"a": "x"}).secrets(["a", "b"]) == {"a": "x"}
