"""What a release runs in: a virtual environment or an image, with podman and systemd played."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import ROOT, yaml_at
from tests.unit.releases import (
    APPLICATION,
    CONFIG,
    Bundle,
    Config,
    Host,
    Preparation,
    Progress,
    ReleaseError,
    Schema,
    Systemd,
    brought,
    deploy,
    put,
    replace_link,
    runtimes,
    schema,
    serve,
    slots,
    stand_in,
)

ARTEFACT = "a" * 64
FACTS = {
    "artefact": ARTEFACT,
    "lock": "10c4",
    "commit": "c0ffee",
    "runtime": "container",
    "image_base": "",
    "application": APPLICATION,
}
GROUPS = {"nba": [901], "nba-blue": [901], "nba-migrate": [901, 902]}


class Podman:
    """Answers what the program asks of podman, and keeps what it was told."""

    def __init__(self) -> None:
        self.images: set[str] = set()
        self.told: list[list[str]] = []
        self.context: dict[str, str] = {}
        self.pip = ""
        self.fails = ""
        self.version = "5.4.2"

    def run(self, *command: object, check: bool = True, **_options: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        assert tuple(words[: len(runtimes.PODMAN)]) == runtimes.PODMAN
        words = words[len(runtimes.PODMAN) :]
        self.told.append(words)
        code, out = 0, ""
        match words[0], words[1]:
            case "version", _:
                out = f"{self.version}\n"
            case "build", _:
                if self.fails:
                    raise ReleaseError(self.fails)
                folder = Path(words[-1])
                self.context = {
                    str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()
                }
                if volumes := self.options("--volume"):
                    self.pip = Path(volumes[0].partition(":")[0]).read_text()
                self.images.add(self.options("--tag")[0])
            case "image", "exists":
                code = int(words[2] not in self.images)
            case "image", "rm":
                self.images.discard(words[-1])
        return subprocess.CompletedProcess(words, code, out, "")

    def options(self, name: str) -> list[str]:
        """Return the values of an option of the last command."""
        return [word.partition("=")[2] for word in self.told[-1] if word.startswith(f"{name}=")]

    def builds(self) -> int:
        """Return how many images were built."""
        return sum(words[0] == "build" for words in self.told)


@pytest.fixture
def podman(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Podman:
    podman = Podman()
    monkeypatch.setattr(runtimes, "run", podman.run)
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(slots, "UNITS", tmp_path / "units")
    accounts = {name: SimpleNamespace(pw_uid=groups[-1], pw_gid=groups[-1]) for name, groups in GROUPS.items()}
    accounts["nba-blue"].pw_uid = 903
    monkeypatch.setattr(runtimes.pwd, "getpwnam", accounts.__getitem__)
    monkeypatch.setattr(runtimes.os, "getgrouplist", lambda name, _: GROUPS[name])
    return podman


def contained(host: Any, name: str, image: bool = True, state: str = "prepared", at: float = 0, **facts: Any) -> Path:
    """Make a finished release that is a container."""
    folder: Path = put(host, name, state=state, at=at)
    (folder / ".venv").unlink()
    (folder / "Containerfile").write_text("FROM scratch\n")
    for secret in (".env.migrate", ".mysql.cnf"):
        (folder / secret).write_text("secret\n")
    (folder / "release.json").write_text(json.dumps({**FACTS, "application": APPLICATION, "release": name, **facts}))
    if image:
        host.releases.runtime(folder).make(folder)
    return folder


# --- the image ---


def test_an_image_is_built_once_for_an_artefact_and_a_base(host: Any, podman: Podman) -> None:
    contained(host, "r1")
    contained(host, "r2")  # another setting, the same code
    assert podman.images == {f"localhost/nba:{'a' * 16}-own"} and podman.builds() == 1
    contained(host, "r3", image_base="example.org/python:3.13")
    assert podman.builds() == 2 and len(podman.images) == 2
    assert "--build-arg=BASE=example.org/python:3.13" in podman.told[-1]


def test_a_podman_that_could_not_start_it_builds_nothing(host: Any, podman: Podman) -> None:
    podman.version = "3.4.4"
    with pytest.raises(ReleaseError, match=r"podman 3\.4\.4 cannot run releases; 4\.0 and later can"):
        contained(host, "r1")
    assert podman.builds() == 0


def test_an_image_says_what_it_is_made_of(host: Any, podman: Podman) -> None:
    contained(host, "r1")
    labels = podman.options("--label")
    assert labels == [f"io.waffle-iron.{label}" for label in ("application=nba", f"artefact={ARTEFACT}", "lock=10c4")]
    assert podman.options("--build-arg") == ["COMMIT=c0ffee", f"ARTEFACT={ARTEFACT}"]


def test_no_secret_comes_near_an_image(host: Any, podman: Podman) -> None:
    folder = contained(host, "r1", image=False)
    (folder / "nba").mkdir()
    (folder / "nba/.env").write_text("the application's own\n")
    host.releases.runtime(folder).make(folder)
    assert podman.context == {"Containerfile": "FROM scratch\n", "nba/.env": "the application's own\n"}


def test_the_index_of_packages_and_its_credentials_are_in_files(
    host: Any, podman: Podman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, netrc = "https://index.example.org/simple", tmp_path / "netrc"
    monkeypatch.setattr(runtimes, "NETRC", netrc)
    elsewhere = Host(Config(**{**host.config.__dict__, "index_url": url}))
    contained(elsewhere, "r1")
    assert podman.pip == f"[global]\nindex-url = {url}\n" and "netrc" not in str(podman.told)
    netrc.write_text("machine index.example.org login user password hunter2")
    contained(elsewhere, "r2", image_base="another")
    assert f"--volume={netrc}:{netrc}:ro" in str(podman.told)
    assert "hunter2" not in str(podman.told)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder, podman, patch: patch.setattr(runtimes.shutil, "which", lambda name: None), "app.yml"),
        (lambda folder, podman, patch: (folder / "Containerfile").unlink(), "has no Containerfile"),
        (lambda folder, podman, patch: setattr(podman, "fails", "no such base"), "(?s)app_image_base.*no such base"),
    ],
)
def test_an_image_that_cannot_be_built_says_why(
    host: Any, podman: Podman, monkeypatch: pytest.MonkeyPatch, damage: Any, words: str
) -> None:
    folder = contained(host, "r1", image=False)
    damage(folder, podman, monkeypatch)
    with pytest.raises(ReleaseError, match=words):
        host.releases.runtime(folder).make(folder)


# --- the container ---


def test_a_container_may_do_nothing_but_its_work(host: Any, podman: Podman) -> None:
    folder = contained(host, "r1")
    host.releases.execute("r1", ["python", "-m", "nba.seed"])
    words = podman.told[-1]
    assert words[0] == "run" and words[-3:] == ["python", "-m", "nba.seed"]
    export = str(ROOT / "roles/app/files/environment.py")
    assert words[-7:-3] == [f"localhost/nba:{'a' * 16}-own", "python", "-I", export], "settings become variables there"
    assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--pull=never"} <= set(words)
    assert podman.options("--user") == ["901:901"] and podman.options("--group-add") == []
    volumes = [volume for volume in podman.options("--volume") if volume.startswith(str(folder))]
    assert volumes == [f"{folder}/{name}:/app/{name}:ro" for name in ("release.json", ".env")]
    assert not [word for word in words if word.startswith(("--env", "-e"))]


def test_migrations_have_the_settings_of_their_account(
    host: Any, podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = contained(host, "r1")
    monkeypatch.setattr(schema, "option_files", lambda root: [])
    with pytest.raises(KeyError):  # podman's answer is empty
        Schema(host.releases, "r1").migrate(False, host.log)
    assert podman.options("--user") == ["902:902"] and podman.options("--group-add") == ["901"]
    volumes = podman.options("--volume")
    assert f"{folder}/.env.migrate:/app/.env.migrate:ro" in volumes
    assert not any(".mysql.cnf" in volume for volume in volumes)
    assert f"{ROOT}/roles/app/files/migrations.py:{ROOT}/roles/app/files/migrations.py:ro" in volumes


def test_podman_takes_the_place_of_the_program(host: Any, podman: Podman, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, started = contained(host, "r1"), list[list[str]]()
    replace_link(host.releases.slot("blue").folder / "release", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(runtimes.os, "execvp", lambda name, words: started.append(words))
    host.serve("blue")
    (words,) = started
    assert tuple(words[: len(runtimes.PODMAN)]) == runtimes.PODMAN
    assert {"--name=nba-blue", "--replace", "--detach", "--sdnotify=conmon", "--log-driver=passthrough"} <= set(words)
    assert {f"--workers={serve.workers(CONFIG['workers_max'])}", "--release=r1"} <= set(words) and words[
        -1
    ] == "nba.main:app"
    assert f"--volume={ROOT}/roles/app/files/server:{ROOT}/roles/app/files/server:ro" in words
    assert "--user=903:901" in words, "the slot's own account"


def test_a_virtual_environment_is_never_root_s(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(host, "r1"))
    with pytest.raises(ReleaseError, match=r"nba@blue\.service would run as root"):
        host.serve("blue")


def test_the_limits_of_a_container_are_those_of_the_unit() -> None:
    unit = (ROOT / "roles/app/templates/app@.service.j2").read_text()
    limits = dict(re.findall(r"^Limit(\w+)=(\d+)$", unit, flags=re.MULTILINE))
    ours = [word.partition("=")[2] for word in runtimes.CONFINEMENT if word.startswith("--ulimit")]
    assert ours == [f"{name.lower()}={value}:{value}" for name, value in limits.items()]
    assert f"--umask={re.search(r'^UMask=(.+)$', unit, re.MULTILINE)[1]}" in runtimes.CONFINEMENT  # type: ignore[index]


def test_a_release_finds_its_files_where_the_containerfile_has_its_code() -> None:
    last = (ROOT / "app/Containerfile").read_text().rpartition("\nFROM ")[2]
    assert f"WORKDIR {runtimes.INSIDE}\n" in last


def test_both_kinds_are_what_the_role_takes() -> None:
    options = yaml_at("roles/app/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert list(runtimes.KINDS) == options["app_runtime"]["choices"]
    assert {"app_runtime", "app_image_base"} <= set(yaml_at("group_vars/all/vars.yml"))


# --- from one to the other ---


def test_a_rollback_crosses_from_a_container_to_a_virtual_environment(
    host: Any, systemd: Systemd, podman: Podman
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    contained(host, "r2")
    deploy(host, "r2")
    assert (host.releases.live.release, host.releases.live.drop_in.is_symlink(), host.inspection.problems()) == (
        "r2",
        True,
        [],
    )
    assert host.releases.live.drop_in.readlink().name == "container.conf"
    deploy(host, "r1")
    assert (host.releases.live.release, host.releases.live.drop_in.is_symlink(), host.inspection.problems()) == (
        "r1",
        False,
        [],
    )
    assert not host.releases.idle.drop_in.parent.exists(), "the idle slot has nothing of what it was"
    deploy(host, "r2")
    assert host.releases.live.drop_in.is_symlink() and host.inspection.problems() == []


def test_systemd_reads_its_units_before_the_start(
    host: Any, systemd: Systemd, podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    contained(host, "r1")
    told: list[str] = []

    def listening(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
        told.append(str(command[1]))
        return systemd.run(*command, **options)

    stand_in(monkeypatch, slots.run, listening)
    deploy(host, "r1")
    assert told.index("daemon-reload") < told.index("start")


def test_an_image_that_is_gone_is_told_and_built_again(host: Any, systemd: Systemd, podman: Podman) -> None:
    contained(host, "r1")
    deploy(host, "r1")
    (image,) = podman.images
    podman.images.clear()
    assert host.inspection.problems() == [f"the image of r1: {image} is gone"]
    host.repair.live_slot(Progress())
    assert host.inspection.problems() == [] and podman.images == {image}


def test_a_unit_that_is_not_the_release_s_is_told_and_repaired(host: Any, systemd: Systemd, podman: Podman) -> None:
    contained(host, "r1")
    deploy(host, "r1")
    host.releases.live.drop_in.unlink()
    assert host.inspection.problems() == ["nba@blue.service is not made for the image of r1"]
    host.repair.live_slot(Progress())
    assert host.inspection.problems() == []


def test_an_image_is_built_again_for_a_rollback(host: Any, systemd: Systemd, podman: Podman) -> None:
    contained(host, "r1")
    deploy(host, "r1")
    put(host, "r2")
    deploy(host, "r2")
    podman.images.clear()
    deploy(host, "r1")
    assert len(podman.images) == 1 and host.releases.live.release == "r1"


def test_images_go_with_the_last_release_that_has_them(host: Any, systemd: Systemd, podman: Podman) -> None:
    for number in range(4):
        contained(host, f"r{number}", state="good", at=number, artefact=f"{number}" * 64)
    contained(host, "again", state="good", at=9, artefact="3" * 64)
    host.releases.clean_up()  # keeps two
    assert sorted(host.releases.ids()) == ["again", "r3"]
    assert podman.images == {f"localhost/nba:{'3' * 16}-own"}
    assert [path.name for path in (host.config.root / "images").iterdir()] == [f"{'3' * 16}-own"]


def test_an_image_of_a_release_that_has_a_virtual_environment_now_goes(host: Any, podman: Podman) -> None:
    folder = contained(host, "r1", state="good", at=1)
    (folder / "release.json").write_text(json.dumps({**FACTS, "runtime": "venv"}))
    host.releases.clean_up()
    assert podman.images == set()


def test_a_preview_leaves_no_image(
    host: Any, podman: Podman, accounts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = brought(host, "r1")
    facts = json.dumps({**bundle.facts, "runtime": "container"})
    bundle = Bundle(bundle.archive, bundle.size, {**bundle.files, "release.json": facts})
    monkeypatch.setattr(Preparation, "dry_run", lambda host, release, workers: {"images": set(podman.images)})
    monkeypatch.setattr(runtimes.Path, "is_file", lambda path: path.exists() or path.name == "Containerfile")
    (image,) = host.preparation.preview("r1", bundle, 1)["images"]
    assert image.startswith("localhost/nba:") and podman.images == set()


# --- its processes ---


def test_the_server_is_what_podman_s_monitor_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = tmp_path / "10"
    (process / "task/10").mkdir(parents=True)
    (process / "comm").write_text("conmon\n")
    (process / "task/10/children").write_text("11 ")
    (process / "status").write_text("Name:\tconmon\nNSpid:\t10\t3\n")
    monkeypatch.setattr(slots, "Path", lambda text: Path(text.replace("/proc", str(tmp_path), 1)))
    assert slots.server("10") == "11"
    (process / "comm").write_text("gunicorn\n")
    assert slots.server("10") == "10"
    assert slots.server("12") == "12" and slots.children("12") == []
    assert (slots.own_id("10"), slots.own_id("12")) == ("3", "12")
