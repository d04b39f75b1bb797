"""The boundary to the hosts: what they print has a size and a type, is shown as text alone, and names no file."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.files import write_inside
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.host import Diagnosis, HostState, ManagedFiles
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.messages import (
    Migrations,
    Outcome,
    Preview,
    Proof,
    RollbackTarget,
    Status,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.reading import (
    LIMIT,
    HostAction,
    answer_in,
    converted,
    known,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import (
    as_code,
    cleaned,
    fence_for,
    in_markdown,
    one_line,
    printable,
)
from hypothesis import given
from hypothesis import strategies as st

MODELS: list[type[Any]] = [
    Status, Outcome, Proof, RollbackTarget, Preview, Migrations, ManagedFiles, Diagnosis, HostState,
]  # fmt: skip
TRAVERSAL = ["../x", "x/../../../group_vars/prod/zz", "/etc/passwd", "..", ".x", "-e", "x\n", "x\0", "a b", "x" * 200]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GOOD: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "status": (Status, {"live": "r1", "slot": "blue", "workers": 2, "releases": [{"id": "r1", "commit": "0f"}]}),
    "target": (RollbackTarget, {"live": "r2", "release": "r1", "downgrade": "0001", "unacknowledged": False}),
    "outcome": (Outcome, {"release": "r1", "before": "r0", "live": "r1", "receipt": {"release": "r1", "before": "r0"}}),
    "proof": (Proof, {"proven": True, "release": "r1"}),
}


def places(value: Any) -> list[list[Any]]:
    """Return the way to each text in a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [[key, *way] for key, part in parts for way in places(part)]
    return [[]] if isinstance(value, str) else below


def changed(value: Any, way: list[Any], to: object) -> Any:
    """Return a JSON value in which one place is another."""
    if not way:
        return to
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = changed(value[way[0]], way[1:], to)
    return copy


@pytest.mark.parametrize("kind", GOOD)
def test_what_a_program_answers_is_taken(kind: str) -> None:
    model, good = GOOD[kind]
    assert known(answer_in(json.dumps(good), model, "it")).items() >= good.items()


@pytest.mark.parametrize(
    "path", ["/", "/api/health/ready", "/healthz/", "x", "//evil.example", "/a b", "/{{ 7 }}", "/a\n"]
)
def test_the_public_address_of_the_health_is_a_path(path: str) -> None:
    stated = {"health_path": path, "ready_answers": "any", "page": True}
    printed = json.dumps({"live": "r1", "application": {**stated, "module": "main:app"}})
    if path in ("/", "/api/health/ready", "/healthz/"):
        assert known(answer_in(printed, Status, "it"))["application"] == stated
    else:
        with pytest.raises(AnsibleActionFail, match="gave a wrong answer"):
            answer_in(printed, Status, "it")


def test_a_preview_keeps_what_would_stop_the_migration() -> None:
    pending = {"revision": "0002", "message": "more", "statements": ["DROP TABLE a"], "warnings": ["lost"]}
    migrations = {"current": "0001", "head": "0002", "pending": [pending], "stops": ["the id is too long"]}
    printed = json.dumps({"migrations": {**migrations, "interrupted": None}, "connections": {"checked": False}})
    found = known(answer_in(printed, Preview, "it"))
    assert found["migrations"] == migrations


@pytest.mark.parametrize("evil", [*TRAVERSAL, 1, True, {"a": 1}, ["r1"], "{{ 7 * 7 }}", "r1\x1b[2J"])
@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, (_, good) in GOOD.items() for way in places(good)])
def test_no_field_that_may_become_a_name_takes_anything_else(kind: str, way: list[Any], evil: object) -> None:
    model, good = GOOD[kind]
    with pytest.raises(AnsibleActionFail, match=r"gave a wrong answer: .*Fix: "):
        answer_in(json.dumps(changed(good, way, evil)), model, "it")


@pytest.mark.parametrize("model", MODELS)
@given(answer=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_answer_is_taken_or_refused_in_one_way(model: type[Any], answer: dict[str, Any]) -> None:
    fields = list(model.__annotations__)
    for found in (answer, dict(zip(fields, answer.values(), strict=False))):
        try:
            taken = converted(json.dumps(found), model, "it")
        except AnsibleActionFail as error:
            assert "gave a wrong answer" in str(error)
        else:
            assert set(known(taken)) <= {*fields, "from", "to"}


@pytest.mark.parametrize(
    "line", ["{" * 100_000, '{"live": NaN}', '{"live": "\ud800"}', '{"live": "r1"', "{}", '{"x": ' + "[" * 99_999]
)
def test_what_is_no_answer_is_refused_in_one_way(line: str) -> None:
    with pytest.raises(AnsibleActionFail, match=r"gave a wrong answer: .*Fix: "):
        answer_in(line, Status, "it")


def test_fields_that_steer_ansible_are_dropped() -> None:
    steering = {"ansible_facts": {"a": 1}, "_ansible_no_log": False, "failed": False, "skipped": True, "add_host": {}}
    assert known(answer_in(json.dumps({"live": "r1", **steering}), Status, "it")) == {"live": "r1"}


@pytest.mark.parametrize("before", ["", "hello from .bashrc\n", "\n", "[1]\n"])
@pytest.mark.parametrize("after", ["", "\n", "\nlogout\n"])
def test_noise_around_an_answer_breaks_nothing(before: str, after: str) -> None:
    assert known(answer_in(f'{before}{{"live": "r1"}}{after}', Status, "it")) == {"live": "r1"}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_too_much_is_not_parsed(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    done = {"rc": 0, "stdout": "", "stderr": "", stream: " " * (100 << 20)}
    monkeypatch.setattr(ActionBase, "_low_level_execute_command", lambda self, cmd: done)
    with pytest.raises(AnsibleActionFail, match=f"was not read: it has {100 << 20} characters, limit {LIMIT}. Fix: "):
        HostAction.__new__(type("Action", (HostAction,), {"run": None}))._low_level_execute_command("true")


# --- text ---


@given(st.text())
def test_shown_text_steers_nothing(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(sign) for sign in shown} & {"Cs", "Zl", "Zp"}
    assert not any(unicodedata.category(sign) == "Cc" for sign in shown.replace("\n", "").replace("\t", ""))
    assert printable(shown) == shown
    assert "\n" not in one_line(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"), ("\x1b]0;title\x07x", "x"), ("\x1b]8;;http://e\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\rb", "ab"), ("a\r\nb\tc", "a\nb\tc"), ("\x9b2Jx", "x"), ("dev\u202e1", "dev1"), ("\x1b", ""),
        ("é 漢 🧇", "é 漢 🧇"),
    ],
)  # fmt: skip
def test_escapes_go_as_a_whole(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert cleaned({"a": [text, 1, None]}) == {"a": [shown, 1, None]}


def test_ansible_keeps_its_colours() -> None:
    assert printable("\x1b[0;32mok\x1b[0m\x1b[2J", colours=True) == "\x1b[0;32mok\x1b[0m"


@pytest.mark.parametrize("hiding", ["8", "30;40", "38;5;0", "0;30"])
def test_no_colour_hides_a_text(hiding: str) -> None:
    assert printable(f"\x1b[{hiding}mhidden\x1b[0m", colours=True) == "hidden\x1b[0m"


@pytest.mark.parametrize("noise", ["\x1b]0;admin@dev1\x07", "Welcome! ", "echo {\n"])
def test_noise_before_an_answer_breaks_no_call(noise: str) -> None:
    assert known(answer_in(f'{noise}{{"proven": true}}\n', Proof, "it")) == {"proven": True}


def test_a_setting_may_have_any_name_that_dotenv_reads() -> None:
    named = {"live": "r1", "settings": {"my-key": "0f", "a.b": "0f"}}
    assert known(answer_in(json.dumps(named), Status, "it"))["settings"] == named["settings"]


def test_text_ends_no_block_and_no_span_of_code() -> None:
    assert fence_for("a ````` b\n```") == "``````"
    assert as_code("a`b\n# c") == "`a'b # c`"
    assert in_markdown("[x](http://e) <img>\n# y") == r"\[x\](http://e) \<img> # y"


# --- files ---


def test_a_file_is_for_this_account_alone_and_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        path = write_inside(tmp_path / "root", "dev1", "1-r1.json", text=text)
        assert (path, path.read_text()) == (tmp_path / "root/dev1/1-r1.json", text)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["1-r1.json"]


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", ".", "..", "", "x\n", "x\0"])
def test_a_name_is_one_name(tmp_path: Path, name: str) -> None:
    for parts in ((name,), (name, "x"), ("x", name)):
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            write_inside(tmp_path / "root", *parts, text="")
    assert not (tmp_path / "root").exists()


def test_no_link_is_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "dev1").symlink_to(outside)
    with pytest.raises(OSError, match="dev1"):
        write_inside(root, "dev1", "x", text="")
    (outside / "kept").write_text("kept")
    (root / "x").symlink_to(outside / "kept")
    assert write_inside(root, "x", text="new").read_text() == "new"
    assert not (root / "x").is_symlink()
    assert (outside / "kept").read_text() == "kept"


def test_an_optional_field_that_is_null_is_missing() -> None:
    """A template's `default` takes the place of what is missing, and not of null."""
    printed = json.dumps({"live": "r1", "slot": None, "releases": [{"id": "r1", "commit": None, "schema": "0001"}]})
    assert known(answer_in(printed, Status, "it")) == {"live": "r1", "releases": [{"id": "r1", "schema": "0001"}]}
    plan = {
        "migrations": {"current": None, "head": "1", "pending": []},
        "connections": {"checked": False, "free": None},
    }
    found = known(answer_in(json.dumps(plan), Preview, "it"))
    assert found == {"migrations": plan["migrations"], "connections": {"checked": False}}
    assert known(answer_in(json.dumps({**plan, "migrations": None}), Preview, "it"))["migrations"] is None
