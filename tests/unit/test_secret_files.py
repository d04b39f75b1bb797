"""The secret files of a release, from the variable to the process that reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.waffle.iron.plugins.module_utils.host_state.digests import SecretDigests
from ansible_collections.waffle.iron.plugins.modules import host_state
from ansible_collections.waffle.iron.plugins.plugin_utils import secret_files
from ansible_collections.waffle.iron.plugins.plugin_utils.parity.compare import secret_digest

from tests.support import module_at
from tests.unit.releases import Bundle, ReleaseError, brought, member, put, records, runtimes, sent

waffle = module_at("plugins/filter/waffle.py")
environment = module_at("roles/app/files/environment.py")
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----\n"
FILES = {"oci.pem": KEY, "gcp-account.json": "{}"}


# --- the variable ---


def test_files_have_a_place_and_a_variable() -> None:
    assert waffle.secret_files_in_release(FILES) == {".files/oci.pem": KEY, ".files/gcp-account.json": "{}"}
    assert secret_files.by_variable(FILES) == {"OCI_PEM_FILE": KEY, "GCP_ACCOUNT_JSON_FILE": "{}"}
    assert waffle.secret_files_in_release({}) == {}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"keys/oci.pem": KEY}, "is no name"),
        ({"..": KEY}, "is no name"),
        ({"1.pem": KEY}, "is no name"),
        ({"oci.pem\n": KEY}, "is no name"),
        ({"oci.pem": ""}, "holds no text"),
        ({"oci.pem": None}, "holds no text"),
        ({"oci.pem": {"key": KEY}}, "holds no text"),
        ({"oci.pem": b"\x00"}, "holds no text"),
        ({"oci.pem": f"{KEY}\0"}, "no text in UTF-8"),
        ({"oci.pem": "\ud800"}, "no text in UTF-8"),
        ({"oci.pem": "x" * (65 << 10)}, "more than 64 KiB"),
        ({"API.key": KEY}, "its variable API_KEY_FILE is a setting, too"),
        ({"oci.pem": KEY, "oci-pem": KEY}, "its variable OCI_PEM_FILE is that of oci.pem, too"),
    ],
)
def test_what_a_release_cannot_have_is_refused_without_its_content(files: dict[str, Any], words: str) -> None:
    ((name, found),) = secret_files.findings(files, ["API_KEY_FILE"])
    assert name in files and words in found and "Fix: " in found and "BEGIN" not in found
    if "setting" not in words:
        with pytest.raises(AnsibleFilterError, match="app_files: ") as refusal:
            waffle.secret_files_in_release(files)
        assert "BEGIN" not in str(refusal.value)


# --- the release ---


def test_a_release_has_them_as_files_of_its_own(host: Any, accounts: dict[str, int], installed: list[str]) -> None:
    stream = sent("r1", **{"files/oci.pem": KEY, "files/a": "x\r\n"})
    host.preparation.prepare("r1", Bundle.of(stream, host.config.root))
    folder = host.releases.folder("r1") / ".files"
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (folder, *folder.iterdir())}
    assert modes == {".files": "0o750", "oci.pem": "0o640", "a": "0o640"}
    assert {name: accounts[name] for name in modes} == dict.fromkeys(modes, 901)
    assert (folder / "oci.pem").read_text() == KEY and (folder / "a").read_bytes() == b"x\r\n"
    (folder / "oci.pem").write_text("another")
    assert host.releases.integrity.changes(folder.parent) == [".files/oci.pem was changed"]


def test_an_artefact_brings_none(host: Any, root: Path, accounts: dict[str, int]) -> None:
    with pytest.raises(ReleaseError, match="has no place in a release"):
        host.preparation.prepare("r1", brought(host, "r1", member(".files/oci.pem", b"x")))
    assert list((root / "releases").iterdir()) == []


def test_a_process_has_the_paths_of_its_own_release(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    assert environment.environment_of(tmp_path, {}) == {"A": "1", "PYTHONUNBUFFERED": "1"}
    (tmp_path / ".files").mkdir()
    (tmp_path / ".files/oci.pem").write_text(KEY)
    found = environment.environment_of(tmp_path, {"OCI_PEM_FILE": "/elsewhere"})
    assert found["OCI_PEM_FILE"] == f"{tmp_path}/.files/oci.pem"


def test_no_log_and_no_receipt_shows_a_line_of_them(tmp_path: Path) -> None:
    (tmp_path / ".files").mkdir()
    (tmp_path / ".files/oci.pem").write_text(f"  {KEY}")
    bundled = records.settings_redactor({".files/oci.pem": KEY})
    for redactor in (bundled, records.release_redactor(tmp_path)):
        text = redactor.redact(f"cannot parse MIIEvQIBADANBgkqhkiG9w0BAQEF, of {KEY!r}")
        assert "MII" not in text and "BEGIN" not in text


def test_a_group_that_was_changed_is_repaired(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, integrity = put(host, "r1"), host.releases.integrity
    (folder / ".files").mkdir()
    (folder / ".files/oci.pem").write_text(KEY)
    group = SimpleNamespace(gr_gid=os.getgid() + 1, gr_mem=[])
    monkeypatch.setattr("integrity.grp.getgrnam", lambda name: group)
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr("integrity.os.chown", lambda *arguments: given.append(arguments))
    paths = [folder / ".env", folder / ".files", folder / ".files/oci.pem"]
    assert integrity.account_problems(folder) == [f"{path} belongs to another group" for path in paths]
    integrity.repair_accounts([folder])
    assert given == [(path, 0, group.gr_gid) for path in paths]


def test_a_container_sees_them_and_an_image_never_has_them() -> None:
    assert ".files" in runtimes.OF_THE_RELEASE and ".files" in runtimes.BESIDE


# --- parity ---


def test_parity_compares_digests(tmp_path: Path) -> None:
    host = host_state.Host("waffle-test", SecretDigests("key"), "")
    (tmp_path / ".files").mkdir()
    (tmp_path / ".files/oci.pem").write_bytes(KEY.replace("\n", "\r\n").encode())
    (tmp_path / "release.json").write_text(json.dumps({}))
    host.release, host.secret_files = str(tmp_path), host_state.secret_files_in(f"{tmp_path}/.files")
    # As the control node makes it of the value.
    content = KEY.replace("\n", "\r\n")
    assert host.application()[".files: oci.pem"] == secret_digest("key", f"oci.pem={content}")


def test_no_fact_shows_a_value_of_a_file_s_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".files").mkdir()
    (tmp_path / ".files/account.json").write_text(json.dumps({"client_secret": "SuperSecret123"}))
    monkeypatch.setattr(os.path, "realpath", lambda path: str(tmp_path))
    digests = SecretDigests("key")
    host_state.Host("waffle-test", digests, "")
    assert "SuperSecret123" not in digests.redact("environment of a job: SuperSecret123")
