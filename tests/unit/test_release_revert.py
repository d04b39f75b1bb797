"""What a failed or interrupted deploy leaves, and who is to blame."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.releases import (
    Abandoned,
    Clock,
    Config,
    DeployRequest,
    Host,
    Progress,
    ReleaseError,
    Releases,
    Run,
    Schema,
    SchemaChange,
    Slot,
    Systemd,
    activate,
    deploy,
    gate,
    live_and_problems,
    put,
    replace_link,
    store,
)


def test_a_rollback_to_what_no_longer_starts_changes_nothing(host: Any, systemd: Systemd) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    systemd.broken.add("old")
    with pytest.raises(ReleaseError, match="old was refused, and what was live before still is"):
        activate(host, DeployRequest("rollback", "old", "me"), Progress())
    assert (*live_and_problems(host), host.releases.state("old")["state"]) == ("new", [], "failed")
    assert systemd.active == {"nba@green.service", "nba@green.socket"}


def test_a_good_release_is_not_to_blame_for_what_keeps_the_live_one_from_being_ready_too(
    host: Any, systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    put(host, "never-good")
    monkeypatch.setattr(Slot, "ask", lambda *_, **__: (503, '{"reason": "database"}'))
    for name, state in (("old", "good"), ("never-good", "failed")):
        with pytest.raises(ReleaseError, match="503"):
            activate(host, DeployRequest("rollback", name, "me"), Progress())
        assert host.releases.state(name)["state"] == state


@pytest.mark.parametrize("fails", [False, True])
def test_the_schema_goes_back_between_the_start_and_the_switch(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    seen: list[Any] = []

    def downgrade(schema: Any, revision: str, backup: bool) -> dict[str, Any]:
        seen.append((schema.release, revision, backup, host.releases.live.release, host.releases.idle.answering()))
        if fails:
            raise ReleaseError("cannot drop")
        return {"from": "0002", "to": "0001"}

    monkeypatch.setattr(Schema, "downgrade", downgrade)
    request, change = DeployRequest("rollback", "old", "me"), SchemaChange(downgrade="0001")
    if fails:
        with pytest.raises(ReleaseError, match="cannot drop"):
            activate(host, request, Progress(), change)
    else:
        activate(host, request, Progress(), change)
    assert seen == [("new", "0001", True, "new", "old")]
    assert live_and_problems(host) == ("new" if fails else "old", [])


@pytest.mark.parametrize("stop", ["downgraded", "switched"])
@pytest.mark.parametrize("again", ["works", "fails"])
def test_a_schema_that_was_taken_back_comes_forward_again_where_the_switch_fails(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, stop: str, again: str
) -> None:
    for name in ("old", "new"):
        put(host, name)
        deploy(host, name)
    progress, seen = Progress(stop), list[Any]()

    def downgrade(schema: Any, revision: str, backup: bool) -> dict[str, Any]:
        seen.append(list(progress.phases))
        return {"backup": "b1.sql.gz"}

    def change(schema: Any, command: list[str], backup: bool, made: str) -> dict[str, Any]:
        assert made == "b1.sql.gz", "the way back from here, too"
        seen.append((schema.release, command, backup))
        if again == "fails":
            raise ReleaseError("cannot add")
        return {}

    monkeypatch.setattr(Schema, "downgrade", downgrade)
    monkeypatch.setattr(Schema, "change", change)
    request, change_back = DeployRequest("rollback", "old", "me"), SchemaChange(downgrade="0001")
    words = {
        "works": r"(?s)another host refused it.*brought forward again; what only that held is in the backup b1\.sql",
        "fails": r"(?s)another host refused it.*at 0001, which is not that of new.*cannot add.*migrate\.yml; what only",
    }
    with pytest.raises(ReleaseError, match=words[again]) as refusal:
        activate(host, request, progress, change_back)
    assert isinstance(refusal.value, Abandoned) == (again == "works")
    noted = "the schema was brought forward again; what only that held is in the backup b1.sql"
    assert [note.partition(".gz")[0] for note in host.log.notes] == ([noted] if again == "works" else [])
    # Every host is ready, and none has switched.
    assert seen == [["migrated", "ready"], ("new", ["upgrade"], False)]
    assert (host.releases.live.release, host.releases.state("old")["state"]) == ("new", "good")
    left = host.inspection.problems()
    assert not left if again == "works" else "could not be undone" in left[0], "the next run tries it again"


@pytest.mark.parametrize("stop", ["migrated", "ready", "downgraded", "switched"])
def test_a_release_that_another_host_refused_is_taken_back(host: Any, systemd: Systemd, stop: str) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    with pytest.raises(Abandoned, match="another host refused it"):
        deploy(host, "new", stop)
    assert live_and_problems(host) == ("old", [])
    assert host.releases.state("new")["state"] == "prepared", "it is not to blame"
    deploy(host, "new")
    assert live_and_problems(host) == ("new", [])


def test_what_cannot_be_put_away_is_no_reason_to_go_back(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")

    def refuse(_: Any) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(Releases, "clean_up", refuse)
    monkeypatch.setattr(Slot, "stop", refuse)
    deploy(host, "new")
    assert (host.releases.live.release, host.releases.state("new")["state"]) == ("new", "good")
    # Never the same command again: after a rollback that would go forward.
    still_runs, still_there = host.log.notes
    assert still_runs.startswith("new is live, but nba@blue.service could not be stopped: Read-only file system. site")
    assert still_there.endswith(
        "old releases could not be removed: Read-only file system. The next deploy removes them"
    )


def test_what_cannot_be_enabled_or_linked_leaves_nothing_of_the_new_one(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")

    def refuse(_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Slot, "enable", refuse)
    with pytest.raises(ReleaseError, match="switched back to old: No space left"):
        deploy(host, "new")
    assert live_and_problems(host) == ("old", [])


def test_what_cannot_be_recorded_is_no_reason_to_go_back(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "old")
    deploy(host, "old")
    put(host, "new")
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_whole", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        deploy(host, "new")
    assert host.releases.live.release == "new"
    assert "nba@blue.service" not in systemd.active | systemd.enabled
    assert host.log.notes[0].startswith(
        "new is live, but that could not be kept: No space left on device. site.yml does"
    )
    host.repair.live_slot(Progress())
    assert (host.releases.state("new")["state"], host.inspection.problems()) == ("good", [])


def test_a_first_release_that_another_host_refused_leaves_nothing_live(host: Any, systemd: Systemd) -> None:
    put(host, "first")
    with pytest.raises(Abandoned, match="switched back to nothing"):
        deploy(host, "first", "switched")
    assert host.releases.live is None
    assert systemd.active == systemd.enabled == set()


def test_a_good_release_that_is_taken_back_stays_good(host: Any, systemd: Systemd) -> None:
    for name in ("first", "second"):
        put(host, name)
        deploy(host, name)
    with pytest.raises(Abandoned):
        deploy(host, "first", "switched")
    assert host.releases.state("first")["state"] == "good"


def test_a_run_that_was_torn_after_its_switch_is_completed_by_a_repair(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    host.releases.update_state("r1", state="prepared")
    systemd.active.add("nba@green.service")
    host.repair.live_slot(Progress())
    assert (host.releases.state("r1")["state"], host.inspection.problems()) == ("good", [])


def test_a_run_that_was_torn_on_its_way_to_an_earlier_release_is_completed_by_a_repair(
    host: Any, systemd: Systemd
) -> None:
    for name in ("first", "second"):
        put(host, name)
        deploy(host, name)
    deploy(host, "first")
    host.releases.set_state("second", "good")
    assert host.inspection.problems() == ["the release second was made live last, and first is live"]
    host.repair.live_slot(Progress())
    assert (host.releases.good(), host.inspection.problems()) == (["first", "second"], [])


def test_what_came_last_is_not_told_by_the_clock(host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, now in (("r1", 2_000_000_000), ("r2", 1_800_000_000), ("r3", 1_800_000_100)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        put(host, name)
        deploy(host, name)
    assert (host.inspection.problems(), host.releases.good()) == ([], ["r3", "r2"])
    assert host.rollback.target("", "")["release"] == "r2"


@pytest.mark.parametrize(
    "midway", [lambda s: s.active.add("nba@green.service"), lambda s: s.changed.add("nba@blue.service")]
)
def test_what_a_run_at_work_has_yet_to_do_is_no_problem(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, midway: Any
) -> None:
    put(host, "r1")
    deploy(host, "r1")
    midway(systemd)
    assert len(host.inspection.status()["problems"]) == 1
    monkeypatch.setattr(Run, "active", lambda run: True)
    assert host.inspection.status()["problems"] == []


@pytest.mark.parametrize(
    ("change", "schema", "expected"),
    [("", "0001", True), ("0002_more.py", "0001", False), ("", "0002", False), ("", "", False)],
)
def test_migrations_are_left_out_only_where_nothing_can_be_pending(  # noqa: PLR0917
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, change: str, schema: str, expected: bool
) -> None:
    for name in ("r1", "r2"):
        versions = put(host, name, at=time.time()) / "db/versions"
        versions.mkdir(parents=True)
        (versions / "0001_first.py").write_text("")
        (versions.parents[1] / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/db\n")
    if change:
        (host.releases.folder("r2") / "db/versions" / change).write_text("")
    deploy(host, "r1")
    host.releases.update_state("r1", schema="0001")
    systemd.revision = schema
    assert host.schema.has_schema_of("r2") is expected


def test_migrations_that_cannot_be_found_are_never_left_out(host: Any, systemd: Systemd) -> None:
    for name in ("r1", "r2"):
        put(host, name)
    deploy(host, "r1")
    host.releases.update_state("r1", schema="0001")
    assert not host.schema.has_schema_of("r2")


@pytest.mark.parametrize("answers", [["1", "1", "2"], ["2", "1"]])
def test_a_release_is_ready_when_each_worker_has_answered(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    put(host, "r1")
    left = iter(answers)
    monkeypatch.setattr(gate, "workers_of", lambda _: {"1", "2"})
    monkeypatch.setattr(Slot, "version", lambda slot: {"release": "r1", "worker": next(left)})
    host.deployment.start(host.releases.idle, "r1", lasting=False)
    assert list(left) == []


def test_a_worker_that_dies_before_all_have_answered_is_not_waited_for(
    host: Any, systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "r1")
    workers = iter([{"1", "2"}, {"1", "3"}])
    monkeypatch.setattr(gate, "workers_of", lambda _: next(workers))
    monkeypatch.setattr(Slot, "version", lambda slot: {"release": "r1", "worker": "1"})
    with pytest.raises(ReleaseError, match="a worker died soon after it had started"):
        host.deployment.start(host.releases.idle, "r1", lasting=False)


def test_switching_twice_does_nothing_the_second_time(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    before = host.releases.live.name
    deploy(host, "r1")
    assert (host.releases.live.name, host.inspection.problems()) == (before, [])


def test_the_public_address_is_asked_which_release_answers(host: Any, systemd: Systemd) -> None:
    put(host, "r1")
    deploy(host, "r1")
    answers, asked = iter(["r1", "r0"]), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Host"] == "nba.example.com"
            asked.append(self.path)
            body = json.dumps({"release": next(answers)} if self.path.endswith("version") else {}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        changed = {**host.config.__dict__, "public_url": url, "public_host": "nba.example.com"}
        watching = Host(Config(**changed))
        watching.deployment.gate(host.releases.live).watch("r1", 0)
        with pytest.raises(ReleaseError, match=r"answered 200 \(r0\), not release r1"):
            watching.deployment.gate(host.releases.live).watch("r1", 0)
        server.shutdown()
    with pytest.raises(ReleaseError, match="ConnectionRefusedError"):
        watching.deployment.gate(host.releases.live).watch("r1", 0)
    assert set(asked) == {"/api/.waffle/version", "/health/ready"}


def test_the_link_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "live"
    replace_link(link, "one")
    seen: list[str] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        seen.append(str(link.readlink()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    replace_link(link, "two")
    assert (seen, str(link.readlink())) == (["one"], "two")
    assert [path.name for path in tmp_path.iterdir()] == ["live"]
