"""Files are whole, private, and replaced in one step."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from tests.support import module_at

program = module_at("roles/app/files/basics.py")


def test_what_is_written_is_for_root_alone_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    program.write_whole(path, "old")
    assert path.stat().st_mode & 0o777 == 0o600

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        program.write_whole(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    assert path.read_text() == "old"


def test_what_a_program_says_need_not_be_text() -> None:
    words = "import sys; sys.stdout.buffer.write(b'caf\\xe9')"
    assert program.run(sys.executable, "-c", words).stdout == "caf\ufffd"


RESTARTING = """#!/bin/sh
echo "$*" >>"$0.calls"
test "$(wc -l <"$0.calls")" -gt 2 && exit 0
echo "Failed to start nba@blue.service: Connection reset by peer" >&2
exit 1
"""


def test_a_question_to_systemd_is_repeated_while_systemd_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("systemctl", "systemd-run", "other"):
        (tmp_path / name).write_text(RESTARTING)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("systemctl", "systemd-run"):
        assert program.run(name, "start").returncode == 0
        assert (tmp_path / f"{name}.calls").read_text() == "start\n" * 3
    with pytest.raises(program.ReleaseError, match="Connection reset"):
        program.run("other")
    monkeypatch.setattr(program, "BUS_SECONDS", 0.0)
    (tmp_path / "systemctl.calls").unlink()
    with pytest.raises(program.ReleaseError, match="Connection reset"):
        program.run("systemctl", "start")


@pytest.mark.parametrize("body", ["", "[]", "null", "<html>", '"text"', "{"])
def test_an_answer_that_is_no_object_says_nothing(body: str) -> None:
    assert program.parsed(body) == {}


@pytest.mark.parametrize(("name", "umask"), [("release", 0o022), ("backup", 0o077), ("serve", 0o027)])
def test_a_program_takes_no_umask_of_the_host(monkeypatch: pytest.MonkeyPatch, name: str, umask: int) -> None:
    program = module_at(f"roles/app/files/{name}.py")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    before = os.umask(0o777)
    try:
        with contextlib.suppress(SystemExit, OSError):
            program.main()
        assert os.umask(before) == umask
    finally:
        os.umask(before)
