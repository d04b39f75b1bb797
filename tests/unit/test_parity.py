"""The comparison of hosts: what is equal, what group_vars declare, and that nothing else passes."""

from __future__ import annotations

import copy
import html.parser
import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.compare import (
    Facts,
    Member,
    Row,
    Rules,
    compare,
    labels,
    rules_for,
    secret_digest,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.report import KINDS, Report
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support import module_at, yaml_at

action = module_at("plugins/action/parity.py")

DEV = {
    "environment_name": "dev",
    "database_name": "nba_dev",
    "database_user": "nba_dev",
    "database_password": "a secret of dev's",
    "memory_max": "512M",
    "workers_max": 2,
    "tasks_max": 256,
    "sample_data": True,
    "backup_bucket": "",
    "server_names": ["_"],
    "login_accounts": [],
    "trusted_proxies": [],
}
PROD = {
    **DEV,
    "environment_name": "prod",
    "database_name": "nba_prod",
    "database_user": "nba_prod",
    "database_password": "a secret of prod's",
    "memory_max": "1G",
    "workers_max": 4,
    "sample_data": False,
    "backup_bucket": "nba-backups",
    "server_names": ["nba.example.com", "www.example.com"],
    "login_accounts": [{"name": "alice", "keys": ["ssh-ed25519 AAAA alice"], "sudo": True}],
    "trusted_proxies": ["192.0.2.0/24"],
}
VALUES = {"dev": DEV, "prod": PROD}
FILE = yaml_at("group_vars/all/parity.yml")


def rules(environment: str) -> Rules:
    return rules_for(environment, VALUES, FILE["parity_places"], FILE["parity_switches"])


def member(name: str, facts: Facts, **more: Any) -> Member:
    environment = name.rstrip("0123456789")
    return Member(name, environment, facts, replace(rules(environment), **more))


def only(dev: str | None, *prod: str | None, section: str = "system", key: str = "fact") -> Row:
    """Compare one fact of dev with that of one or more hosts of prod."""
    values = {"dev1": dev, **{f"prod{number}": value for number, value in enumerate(prod, 1)}}
    members = [member(name, {section: {} if value is None else {key: value}}) for name, value in values.items()]
    rows, unused = compare(members)
    assert unused == []
    (row,) = rows
    return row


# --- equal or not ---


def test_equal_facts_are_equal() -> None:
    assert only("Debian 13", "Debian 13", "Debian 13").kind == "equal"


@pytest.mark.parametrize("prod", [("13",), ("12", "13"), ("13", "12"), (None,), ("12", None)])
def test_a_fact_that_differs_is_undeclared(prod: tuple[str | None, ...]) -> None:
    row = only("12", *prod)
    assert (row.kind, row.variables) == ("undeclared", ())


def test_a_fact_that_one_host_alone_has_is_undeclared() -> None:
    assert only(None, "there").kind == "undeclared"


# Without a brace alone on a line: in a site of nginx that is declared, as it comes and goes with a server.
TEXTS = st.text("ab5{}_\n =", max_size=12).filter(lambda text: "}" not in text.split("\n"))
STATES = st.dictionaries(
    st.sampled_from(["packages", "units", "sysctl", "nginx"]),
    st.dictionaries(st.text("abcxyz./@", min_size=1, max_size=6), TEXTS, min_size=1),
    min_size=1,
)


@given(STATES, st.data())
def test_a_change_of_any_leaf_is_reported(facts: dict[str, dict[str, str]], data: st.DataObject) -> None:
    """Changed, removed or added, on any one of three hosts: exactly that fact is named."""
    section = data.draw(st.sampled_from(sorted(facts)))
    key = data.draw(st.sampled_from(sorted(facts[section])))
    other = copy.deepcopy(facts)
    match data.draw(st.sampled_from(["change", "remove", "add"])):
        case "change":
            value = data.draw(TEXTS)
            assume(value != facts[section][key])
            other[section][key] = value
        case "remove":
            del other[section][key]
        case "add":
            key += "+"
            other[section][key] = "new"
    changed = data.draw(st.sampled_from(["dev1", "prod1", "prod2"]))
    members = [member(name, other if name == changed else facts) for name in ("dev1", "prod1", "prod2")]
    rows, _ = compare(members)
    assert [(row.section, row.key, row.kind) for row in rows if row.kind != "equal"] == [(section, key, "undeclared")]


@given(STATES)
def test_a_host_is_alike_itself(facts: dict[str, dict[str, str]]) -> None:
    rows, _ = compare([member(name, facts) for name in ("dev1", "prod1")])
    assert {row.kind for row in rows} == {"equal"}
    assert len(rows) == sum(len(section) for section in facts.values())


# --- declared ---


@pytest.mark.parametrize(
    ("dev", "prod", "section", "variables"),
    [
        ("GRANT SELECT ON `nba_dev`.*", "GRANT SELECT ON `nba_prod`.*", "accounts", "database_name or database_user"),
        ("[Service]\nMemoryMax=512M", "[Service]\nMemoryMax=1G", "units", "memory_max"),
        ("key a secret of dev's", "key a secret of prod's", "nginx", "database_password"),
    ],
)
def test_a_difference_that_follows_from_a_value_is_declared_by_it(
    dev: str, prod: str, section: str, variables: str
) -> None:
    row = only(dev, prod, prod, section=section)
    assert row.kind == "declared"
    assert " or ".join(row.variables) == variables


@pytest.mark.parametrize(
    ("dev", "prod", "section"),
    [
        ("GRANT SELECT ON `nba_dev`.*", "GRANT ALL ON `nba_prod`.*", "accounts"),  # something else differs, too
        ("GRANT SELECT ON `nba_dev`.*", "GRANT SELECT ON `nba_dev`.*\n", "accounts"),
        ("uses nba_prod", "uses nba_dev", "nginx"),  # the wrong way round
        ("uses nba_dev_2", "uses nba_prod_2", "nginx"),  # a part of a longer word
        ("[Service]\nMemoryHigh=512M", "[Service]\nMemoryHigh=1G", "units"),  # not the line that holds the value
        ("[Service]\nMemoryMax=512M", "[Service]\nMemoryMax=2G", "units"),  # not the value
        ("vm.workers 2", "vm.workers 4", "sysctl"),  # a number that is a value somewhere else
    ],
)
def test_nothing_else_is(dev: str, prod: str, section: str) -> None:
    assert only(dev, prod, section=section).kind == "undeclared"


def test_hosts_of_one_environment_are_never_excused() -> None:
    """One of prod's has dev's value: prod differs from prod, whatever dev has."""
    assert only("uses nba_dev", "uses nba_prod", "uses nba_dev").kind == "undeclared"
    key = "release.json: seed_command"
    assert only('["seed"]', "[]", section="application", key=key).kind == "declared"
    assert only('["seed"]', "[]", '["seed"]', section="application", key=key).kind == "undeclared"


def test_a_number_is_declared_where_it_is_wired() -> None:
    row = only("2", "4", section="application", key="release.json: workers_max")
    assert (row.kind, row.variables) == ("declared", ("workers_max",))
    assert only("2", "5", section="application", key="release.json: workers_max").kind == "undeclared"


def test_a_bucket_of_one_environment_is_declared_with_its_folder_and_what_it_takes() -> None:
    dev, prod = (
        json.dumps({"name": name, "prefix": f"nba/{environment}/", "region": "eu-west-1"}, indent=1)
        for name, environment in (("", "dev"), ("nba-backups", "prod"))
    )
    key = "backup.json: bucket"
    row = only(dev, prod, section="application", key=key)
    assert (row.kind, row.variables) == ("declared", ("backup_bucket", "environment_name"))
    for wrong in (prod.replace("/prod", "/test"), prod.replace("eu-", "us-")):
        assert only(dev, wrong, section="application", key=key).kind == "undeclared"
    row = only(None, "1.37", section="packages", key="python3-boto3")
    assert (row.kind, row.variables) == ("declared", ("backup_bucket",))
    assert only(None, "1.37", section="packages", key="python3-botany").kind == "undeclared"


def test_a_thing_that_one_environment_lists_may_be_missing_in_the_other() -> None:
    for section, key in (("users", "user alice"), ("users", "group alice")):
        row = only(None, "uid 1001", section=section, key=key)
        assert (row.kind, row.variables) == ("declared", ("login_accounts",))
    assert only("a", "a\nalice ALL=(ALL:ALL) NOPASSWD: ALL", section="sudoers").kind == "declared"
    assert only("a", "a\nmallory ALL=(ALL:ALL) NOPASSWD: ALL", section="sudoers").kind == "undeclared"
    assert only(None, "uid 1001", None, section="users", key="user alice").kind == "undeclared"


def test_a_switch_excuses_the_lines_that_come_with_it() -> None:
    named = "server {\nlisten 80 default_server;\nserver_name _;\nlocation / { return 421; }\n"
    named += "location = /health {\nset $public_host nba.example.com;\nproxy_pass http://nba/health;\n"
    named += "include snippets/nba-proxy.conf;\n}\n}\n"
    dev = "server {\n    listen 80 default_server;\n    server_name _;\n    root /srv;\n}"
    prod = f"{named}server {{\n    listen 80;\n    server_name nba.example.com www.example.com;\n    root /srv;\n}}"
    assert only(dev, prod, section="nginx").variables == ("server_names",)
    assert only(dev, prod.replace("/srv", "/opt"), section="nginx").kind == "undeclared"


def test_a_network_that_is_trusted_excuses_its_lines() -> None:
    dev = "geo $realip_remote_addr $trusted_proxy {\n        default 0;\n    }"
    prod = dev.replace("default 0;\n", "default 0;\n        192.0.2.0/24 1;\n")
    prod += "\n    set_real_ip_from 192.0.2.0/24;\n    real_ip_header X-Forwarded-For;\n    real_ip_recursive on;"
    row = only(dev, prod, section="nginx", key="/etc/nginx/nginx.conf")
    assert (row.kind, row.variables) == ("declared", ("trusted_proxies",))
    assert only(dev, f"{prod}\nserver_tokens on;", section="nginx", key="/etc/nginx/nginx.conf").kind == "undeclared"


def test_a_value_in_a_line_that_all_have_is_left_alone() -> None:
    """That dev's database has the name of something on prod as well must not tear equal lines apart."""
    assert only("nba_dev here\nnba_dev", "nba_dev here\nnba_prod").kind == "declared"


def test_environments_may_share_a_server() -> None:
    """Then each sees the other's accounts; with a server each, the accounts have each other's place."""
    accounts = {"nba_dev@%": "grants of nba_dev", "nba_prod@%": "grants of nba_prod"}
    rows, _ = compare([member(name, {"accounts": accounts}) for name in ("dev1", "prod1")])
    assert [(row.key, row.kind) for row in rows] == [("nba_dev@%", "equal"), ("nba_prod@%", "equal")]
    apart = {name: {key: text} for name, (key, text) in zip(("dev1", "prod1"), accounts.items(), strict=True)}
    rows, _ = compare([member(name, {"accounts": facts}) for name, facts in apart.items()])
    assert [(row.key, row.kind) for row in rows] == [("{{ database_name or database_user }}@%", "declared")]


def test_what_is_the_host_s_own_is_not_compared() -> None:
    facts = {"dev1": "10.0.0.1 of dev1", "prod1": "10.0.0.12 of prod1"}
    own = {"dev1": {"dev1": "<host>", "10.0.0.1": "<address>"}, "prod1": {"prod1": "<host>", "10.0.0.12": "<address>"}}
    rows, _ = compare([member(name, {"a": {name: text}}, own=own[name]) for name, text in facts.items()])
    assert [(row.key, row.kind, row.values["dev1"]) for row in rows] == [("<host>", "equal", "<address> of <host>")]


def test_settings_are_compared_by_the_digests_that_they_must_have() -> None:
    """A setting that differs is declared when each host has what its own environment says, and only then."""
    wiring = {"app_settings": {"DATABASE_PASSWORD": "{{ database_password }}", "LOG": "{{ log_level }}"}}
    found = {}
    for environment, values in VALUES.items():
        settings = {"app_settings": {"DATABASE_PASSWORD": values["database_password"], "LOG": "INFO"}}
        found[environment] = action.expected_digests("key", settings, wiring, labels(VALUES))
        text = f"DATABASE_PASSWORD={values['database_password']}"
        assert found[environment] == {secret_digest("key", text): "{{ database_password }}"}

    def on(host: str, text: str) -> Member:
        facts = {"application": {".env": secret_digest("key", text)}}
        return member(host, facts, digests=found[host.rstrip("1")])

    dev = on("dev1", "DATABASE_PASSWORD=a secret of dev's")
    right, wrong = on("prod1", "DATABASE_PASSWORD=a secret of prod's"), on("prod1", "DATABASE_PASSWORD=edited manually")
    assert [(row.kind, row.variables) for row in compare([dev, right])[0]] == [("declared", ("database_password",))]
    assert [row.kind for row in compare([dev, wrong])[0]] == ["undeclared"]


def test_variables_with_one_text_have_one_label() -> None:
    assert labels(VALUES)["database_user"] == "database_name or database_user"
    assert labels(VALUES)["memory_max"] == "memory_max"
    assert "tasks_max" not in labels(VALUES)
    shop = {"dev": DEV, "prod": {**PROD, "database_name": "shop", "database_user": "shop_app"}}
    texts = {"dev": "`nba_dev`.* to nba_dev", "prod": "`shop`.* to shop_app"}
    members = [Member(name, name, {"a": {"b": text}}, rules_for(name, shop, {}, {})) for name, text in texts.items()]
    assert compare(members)[0][0].kind == "undeclared"  # "shop" is too short to be looked for
    longer = {"dev": DEV, "prod": {**PROD, "database_name": "shop_data", "database_user": "shop_app"}}
    texts["prod"] = "`shop_data`.* to shop_app"
    members = [Member(name, name, {"a": {"b": text}}, rules_for(name, longer, {}, {})) for name, text in texts.items()]
    assert compare(members)[0][0].kind == "declared"


def test_a_section_is_compared_among_those_who_have_it() -> None:
    members = [
        member("dev1", {"a": {"x": "1"}}),
        member("prod1", {"a": {"x": "1"}}),
        member("prod2", {"b": {"y": "1"}}),
    ]
    assert [(row.section, list(row.values)) for row in compare(members)[0]] == [("a", ["dev1", "prod1"])]


# --- accepted ---


def test_an_accepted_difference_has_its_reason_and_an_idle_entry_is_told() -> None:
    members = [member("dev1", {"packages": {"linux-image-1": "1"}}), member("prod1", {"packages": {}})]
    entry, idle = {"fact": "packages/linux-image-*", "reason": "rebooted on Sundays"}, {"fact": "x/*", "reason": "old"}
    rows, unused = compare(members, [entry, idle])
    assert [(row.kind, row.reason) for row in rows] == [("accepted", "rebooted on Sundays")]
    assert unused == ["x/*"]


def test_accepted_entries_have_a_reason() -> None:
    for entry in FILE["parity_accepted"]:
        assert set(entry) == {"fact", "reason"}
        assert len(entry["reason"]) > 10


def test_the_patterns_name_variables_that_exist() -> None:
    known = set(yaml_at("group_vars/dev/vars.yml"))
    assert set(FILE["parity_places"]) | set(FILE["parity_switches"]) <= known


# --- the report ---


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


EVIL = "<script>alert(1)</script>"


@pytest.fixture
def report() -> Report:
    digests = [secret_digest("key", text) for text in ("one", "two")]
    states = {
        "dev1": {
            "packages": {"a": "1", "b": "1", EVIL: "1"},
            "units": {"nba.service": "[Service]\nMemoryMax=512M"},
            "application": {".env: PASSWORD": digests[0]},
            "nginx": {"site": "shared\nthe password is a secret of dev's"},
        },
        "prod1": {
            "packages": {"a": "1", "b": "2", EVIL: "1"},
            "units": {"nba.service": "[Service]\nMemoryMax=1G"},
            "application": {".env: PASSWORD": digests[1]},
            "nginx": {"site": "shared\nthe password is a secret of dev's"},
        },
    }
    members = [member(name, facts) for name, facts in states.items()]
    rows, unused = compare(members, [{"fact": "gone/*", "reason": "gone for long"}])
    about = {"release": "r1", "answers": "r1", "uptime_seconds": 90061, "subject": EVIL, "certificate_days": None}
    return Report(
        members,
        rows,
        about={"dev1": about, "prod1": {**about, "certificate_days": 12}},
        unused=unused,
        left_out=[("sysctl/x", "changes by itself")],
        secrets={DEV["database_password"]: "<database_password of dev>"},  # type: ignore[dict-item]
        made_at="2026-01-01 00:00:00 UTC",
    )


def test_the_terminal_shows_counts_and_the_first_differences(report: Report) -> None:
    text = "\n".join(report.lines())
    assert "undeclared: packages/b: dev1: 1; prod1: 2" in text
    assert "declared by: memory_max (1)" in text
    assert "accepted, but there is no such difference: gone/*" in text
    assert "undeclared: application/.env: PASSWORD: dev1: hidden A; prod1: hidden B" in text
    assert report.problems() == ["2 undeclared differences: packages/b, application/.env: PASSWORD"]


def test_hosts_that_could_not_be_read_are_problems() -> None:
    found = Report([], [], {}, gaps={"dev1": {"schema": "no answer"}}, missing=["prod1"]).problems()
    assert found == ["prod1 could not be read", "dev1: schema could not be read: no answer"]


def test_json_has_everything(report: Report) -> None:
    found = json.loads(report.as_json())
    assert found["in_parity"] is False
    assert found["summary"]["packages"] == {"undeclared": 1, "accepted": 0, "declared": 0, "equal": 2}
    facts = {(fact["section"], fact["fact"]): fact for fact in found["facts"]}
    assert len(facts) == len(report.rows)
    assert facts["units", "nba.service"]["variables"] == ["memory_max"]
    assert facts["units", "nba.service"]["values"] == {"dev1": "MemoryMax=512M", "prod1": "MemoryMax=1G"}
    assert facts["packages", "a"]["values"] == {"dev1": "1", "prod1": "1"}


def test_no_secret_and_no_digest_of_one_is_in_any_form(report: Report) -> None:
    for text in (report.as_json(), report.as_html(), "\n".join(report.lines())):
        assert "a secret of dev" not in text
        for secret in ("one", "two"):
            assert secret_digest("key", secret)[8:-1] not in text


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = report.as_html()
    page = Page(text)
    assert page.open == []
    assert "alert(1)" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attributes in page.tags:
        assert not {"src", "href", "action", "srcset"} & set(attributes), tag
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert "url(" not in text
    sections = [attributes for tag, attributes in page.tags if tag == "details" and "id" in attributes]
    assert [section["id"] for section in sections] == ["packages", "units", "application", "nginx"]
    assert [section["id"] for section in sections if "open" in section] == ["packages", "application"]
    rows = [
        attributes.get("class") for tag, attributes in page.tags if tag == "tr" and attributes.get("class") in KINDS
    ]
    assert len(rows) == len(report.rows)
    for words in ("1 d 1 h 1 min", "12 days left", "none", "by memory_max", "changes by itself", "gone/*"):
        assert words in page.text
    labels_of = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "input"]
    assert labels_of[0] == "Search facts and values"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_verdict() -> None:
    members = [member("dev1", {"a": {"x": "1"}}), member("prod1", {"a": {"x": "1"}})]
    rows, _ = compare(members)
    fine = Report(members, rows, {"dev1": {}, "prod1": {}})
    assert fine.problems() == []
    assert fine.verdict() == "dev and prod: in parity"
    assert '<header class="ok">' in fine.as_html()
    rows, _ = compare([members[0], member("prod1", {"a": {"x": "2"}})])
    assert Report(members, rows, {}).verdict() == "dev and prod: 1 undeclared difference"
