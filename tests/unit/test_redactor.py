"""No form in which a program writes a secret passes the redactor, and nothing else changes."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from urllib.parse import quote, urlencode

import pytest
from ansible_collections.waffle.iron.plugins.module_utils.redactor import MASK, Redactor, forms_of
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.support import AWKWARD, module_at

waffle = module_at("plugins/filter/waffle.py")
SECRET = st.text(st.characters(exclude_categories=("Cc", "Zl", "Zp", "Cs")), min_size=6, max_size=40)
SQL = {"\\": r"\\", "'": r"\'", '"': r"\""}
# What wrote the line, and how, as a whole: the quotes around the secret may depend on what is beside it.
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": lambda secret: f"password {secret}",
    "the line of .env": lambda secret: waffle.dotenv({"DATABASE_PASSWORD": secret}),
    "the line of .mysql.cnf": lambda secret: waffle.option_file({"password": secret}),
    "repr": lambda secret: repr({"password": secret}),
    "repr beside an apostrophe": lambda secret: repr(f"it's {secret}"),
    "repr beside both quotes": lambda secret: repr(f"it's {secret} \""),
    "repr of bytes": lambda secret: repr(f"it's {secret}".encode()),
    "JSON": lambda secret: json.dumps([secret]),
    "JSON in UTF-8": lambda secret: json.dumps([secret], ensure_ascii=False),
    "a log line of JSON that quotes an error": lambda secret: json.dumps({"message": repr({"password": secret})}),
    "the error about a line of .env": lambda secret: repr(waffle.dotenv({"A_KEY": secret})),
    "JSON in JSON": lambda secret: json.dumps({"body": json.dumps({"password": secret})}),
    "a command": lambda secret: shlex.join(["mysql", f"--password={secret}"]),
    "a command in a command": lambda secret: shlex.join(["sh", "-c", shlex.join(["mysql", f"-p{secret}"])]),
    "a URL": lambda secret: f"mysql://nba:{quote(secret, safe='')}@db/nba",
    "the URL of SQLAlchemy": lambda secret: f"mysql://nba:{quote(secret, safe=' +')}@db/nba",
    "a path": lambda secret: quote(f"/{secret}"),
    "a form": lambda secret: urlencode({"password": secret}),
    "SQL": lambda secret: "IDENTIFIED BY '" + "".join(SQL.get(character, character) for character in secret) + "'",
    "SQL with doubled quotes": lambda secret: "IDENTIFIED BY '" + secret.replace("'", "''") + "'",
}


@pytest.mark.parametrize("kind", WRITTEN)
@given(secret=SECRET)
@example(secret=AWKWARD)
@example(secret='it\'s $5 \\ {{ "x" }}')
@example(secret="\\\\''\"\"$$")
@example(secret="p'a\"ss/w+o r~d&<é\u200b")
def test_no_form_of_a_secret_is_left(kind: str, secret: str) -> None:
    forms = forms_of(secret)
    assume(not any(form in WRITTEN[kind](MASK) for form in forms))
    redactor = Redactor()
    redactor.add(secret)
    redacted = redactor.redact(WRITTEN[kind](secret))
    assert MASK in redacted
    assert not any(form in redacted for form in forms)


@pytest.mark.parametrize("word", ["printf %q", "set -x"])
def test_what_a_shell_quotes_is_redacted(word: str) -> None:
    script = 'printf %q "$1"' if word == "printf %q" else 'set -x; true "$1"'
    secret = "p@$$w\"o'rd #1 \\ ${HOME} %d"
    said = subprocess.run(["bash", "-c", script, "bash", secret], capture_output=True, text=True, check=True)
    redactor = Redactor()
    redactor.add(secret)
    assert redactor.redact(said.stdout + said.stderr).strip().removeprefix("+ true ") in (MASK, f"'{MASK}'")


@given(st.text(max_size=60), SECRET)
def test_other_text_stays_as_it_is(text: str, secret: str) -> None:
    assume(not any(form in text for form in forms_of(secret)))
    redactor = Redactor()
    redactor.add(secret)
    assert redactor.redact(text) == text


def test_a_secret_that_holds_another_goes_as_a_whole() -> None:
    redactor = Redactor()
    for secret in ("abcdef", "abcdef-'-ghijkl", "short"):
        redactor.add(secret)
    assert redactor.redact("abcdef-'-ghijkl abcdef short") == f"{MASK} {MASK} short"
