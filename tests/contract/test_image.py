"""The image and the laptop's containers: the same server, packages and settings as on the hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import AUTHOR
from tests.support import ROOT, about_the_sample, is_sample, module_at, yaml_at

pytestmark = about_the_sample
CONTAINERFILE = (ROOT / "app/Containerfile").read_text() if is_sample() else ""


def test_the_image_has_the_hosts_limits() -> None:
    defaults = yaml_at("roles/app/defaults/main.yml")
    found = re.search(r"^CMD (\[.*\])", CONTAINERFILE.replace("\\\n", ""), flags=re.MULTILINE)
    assert found
    command = json.loads(found[1])
    assert command[0] == "uvicorn" and command[-1] == "nba.main:app"
    assert f"--timeout-graceful-shutdown={defaults['app_graceful_timeout_seconds']}" in command


def test_the_image_takes_the_lock_file_s_hashes_and_the_hosts_poetry() -> None:
    assert "--require-hashes" in CONTAINERFILE
    (version,) = re.findall(r"^ARG POETRY=(\S+)$", CONTAINERFILE, flags=re.MULTILINE)
    assert f"\npoetry=={version} " in (ROOT / "roles/python/files/poetry.txt").read_text()


def test_the_image_has_two_stages_and_an_account_of_its_own() -> None:
    last = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^FROM (\S+)", CONTAINERFILE, flags=re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", last, flags=re.MULTILINE)
    assert "RUN " not in last and "--chown" not in last, "what its account could write to"
    assert {"COMMIT", "ARTEFACT"} <= set(re.findall(r"\$\{(\w+)\}", last.partition("ENV")[0]))


def test_a_laptop_has_the_hosts_settings() -> None:
    compose = yaml_at("app/compose.yaml")
    ours = compose["x-application"]["environment"]
    assert list(ours) == list(json.loads((ROOT / "app/settings.schema.json").read_text())["properties"])
    server = compose["services"]["mysql"]["environment"]
    assert (server["MYSQL_DATABASE"], server["MYSQL_USER"], server["MYSQL_PASSWORD"]) == (
        ours["DATABASE_NAME"],
        ours["DATABASE_USER"],
        ours["DATABASE_PASSWORD"],
    )


def test_a_laptop_s_containers_are_reached_from_it_alone() -> None:
    ports = [port for service in yaml_at("app/compose.yaml")["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8080:80"]


PODMAN = """
import json, os, sys
json.dump({"words": sys.argv[1:], "files": sorted(os.listdir(sys.argv[-1]))}, open(os.environ["TOLD"], "w"))
"""


def commit(folder: Path) -> None:
    for arguments in (["init", "--quiet"], ["add", "."], [*AUTHOR, "commit", "--quiet", "--message", "app"]):
        subprocess.run(["git", "-C", folder, *arguments], check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a repository with an application, and an `.env` that Git does not know."""
    checkout = tmp_path / "checkout"
    own = [
        "plugins/action/artefact.py",
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/plugin_utils/discovery/*.py")),
        "collections/ansible_collections/waffle/iron/plugins",
    ]
    for name in ("scripts/image", "scripts/checkout.py", *own, "group_vars/all/vars.yml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name, follow_symlinks=False)
    (checkout / "app").mkdir()
    (checkout / "app/Containerfile").write_text("FROM scratch\n")
    (checkout / ".gitignore").write_text(".env\n")
    commit(checkout)
    (checkout / "app/.env").write_text("DATABASE_PASSWORD=secret\n")
    program = tmp_path / "bin/podman"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PODMAN}")
    program.chmod(0o755)
    return checkout


def image(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a podman that writes what it was told to the file `told`."""
    beside = checkout.parent
    path = f"{beside}/bin:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "scripts/image", *arguments],
        cwd=checkout,
        env={**os.environ, "PATH": path, "TOLD": str(beside / "told"), "HOME": str(beside)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_image_is_built_from_the_artefact_and_says_which(checkout: Path) -> None:
    (checkout / "README.md").touch()
    commit(checkout)  # which is no new version of the application
    done = image(checkout, "--build-arg", "BASE=mine")
    assert done.returncode == 0, done.stderr
    told = json.loads((checkout.parent / "told").read_text())
    assert told["files"] == ["Containerfile"]
    artefact = module_at("plugins/action/artefact.py")
    tree, _, _ = artefact.tree_of(checkout / "app", "HEAD")
    touched, _ = artefact.last_change(checkout / "app", "HEAD", ".")
    digest = artefact.hashlib.sha256(artefact.archive(checkout / "app", tree)).hexdigest()
    assert told["words"][:6] == [
        "build",
        "--format=docker",
        f"--tag=nba:{digest[:8]}",
        "--tag=nba:latest",
        f"--build-arg=COMMIT={touched}",
        f"--build-arg=ARTEFACT={digest}",
    ]
    assert told["words"][6:8] == ["--build-arg", "BASE=mine"]
    assert digest in done.stdout


def set_origin(checkout: Path, url: str) -> None:
    values = checkout / "group_vars/all/vars.yml"
    text = values.read_text()
    assert 'app_repository: ""\n' in text
    values.write_text(text.replace('app_repository: ""\n', f'app_repository: "{url}"\n'))


def test_an_application_of_its_own_repository_is_what_the_image_has(checkout: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "Containerfile").write_text("FROM scratch\n")
    (theirs / "theirs.py").touch()
    commit(theirs)
    set_origin(checkout, str(theirs))
    done = image(checkout)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "told").read_text())["files"] == ["Containerfile", "theirs.py"]


def test_an_origin_that_only_ansible_can_tell_is_refused(checkout: Path) -> None:
    set_origin(checkout, "{{ somewhere }}")
    done = image(checkout)
    assert done.returncode == 1
    assert "app_repository is computed: write out in group_vars/all/vars.yml" in done.stderr
    assert not (checkout.parent / "told").exists()
