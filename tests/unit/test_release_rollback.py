"""The release to go back to, and the schema that it needs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.releases import (
    Abandoned,
    DeployRequest,
    Marks,
    Progress,
    ReleaseError,
    Run,
    Schema,
    SchemaChange,
    Systemd,
    activate,
    applies,
    configure,
    deploy,
    live_and_problems,
    put,
    release,
)


def test_a_rollback_over_the_same_schema_asks_nothing(moved_on: Any, systemd: Systemd) -> None:
    systemd.revision = "0001"
    assert moved_on.rollback.target("", "") == {"release": "old", "downgrade": ""}
    assert moved_on.rollback.target("old", "") == {"release": "old", "downgrade": ""}


def test_a_rollback_stops_at_an_interrupted_migration(moved_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marks, "interrupted", True)
    for schema in ("", "keep", "downgrade"):
        with pytest.raises(ReleaseError, match="0002 was interrupted"):
            moved_on.rollback.target("", schema)
    # The same command again joins the run that is at work: that is no interruption.
    monkeypatch.setattr(Run, "active", lambda run: True)
    assert moved_on.rollback.target("", "keep") == {"release": "old", "downgrade": ""}


def test_a_rollback_over_another_schema_names_the_ways(moved_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"old ran on schema 0001, and the database has 0002: -e schema=keep leaves it.*; -e schema=downgrade takes"
    with pytest.raises(ReleaseError, match=words):
        moved_on.rollback.target("", "")
    assert moved_on.rollback.target("", "keep") == {"release": "old", "downgrade": ""}
    assert moved_on.rollback.target("", "downgrade") == {"release": "old", "downgrade": "0001"}
    monkeypatch.setattr(Marks, "unmarked", ["0002"])
    for schema in ("", "keep"):
        with pytest.raises(ReleaseError, match="cannot be kept, since these are not marked compatible: 0002"):
            moved_on.rollback.target("", schema)


def test_a_release_that_ran_on_a_newer_schema_still_has_its_own(host: Any, systemd: Systemd) -> None:
    systemd.revision = "0001"
    put(host, "old")
    deploy(host, "old")
    systemd.revision = "0002"
    put(host, "new")
    for name in ("new", "old", "new"):
        deploy(host, name)
    assert host.rollback.target("", "downgrade") == {"release": "old", "downgrade": "0001"}


def test_the_guard_asks_the_database_and_never_the_application(moved_on: Any, systemd: Systemd) -> None:
    """As of an application whose /version knows no schema, or that has none."""
    with pytest.raises(ReleaseError, match="old ran on schema 0001, and the database has 0002"):
        moved_on.rollback.target("", "")
    assert [moved_on.releases.state(name)["schema"] for name in ("old", "new")] == ["0001", "0002"]


def test_a_revision_that_was_not_recorded_is_asked_of_the_release_itself(moved_on: Any) -> None:
    """As with a database that did not answer when the release became live: nothing unknown equals anything."""
    for name in ("old", "new"):
        moved_on.releases.update_state(name, schema=None)
    with pytest.raises(ReleaseError, match="old ran on schema 0001, and the database has 0002"):
        moved_on.rollback.target("", "")


def test_a_rollback_without_alembic_says_that_nothing_was_compared(host: Any, systemd: Systemd) -> None:
    for name in ("old", "new"):
        applies(put(host, name), alembic="", database={"host": "DB_HOST"})
        deploy(host, name)
    assert host.rollback.target("", "") == {"release": "old", "downgrade": ""}
    activate(host, DeployRequest("rollback", "old", "me"), Progress())
    (note,) = host.log.notes
    assert "release old has no migrations (no alembic.ini)" in note and "was not checked" in note
    assert host.releases.state("old")["schema"] is None


def test_a_rollback_from_alembic_to_a_release_without_it_takes_a_word(host: Any, systemd: Systemd) -> None:
    applies(put(host, "old"), alembic="")
    deploy(host, "old")
    put(host, "new")
    deploy(host, "new")
    for schema in ("", "downgrade"):
        with pytest.raises(ReleaseError, match=r"old has no migrations .* and new has: .*-e schema=keep"):
            host.rollback.target("", schema)
    assert host.rollback.target("", "keep") == {"release": "old", "downgrade": ""}


def test_a_release_of_an_older_version_cannot_be_gone_back_to(moved_on: Any) -> None:
    (moved_on.releases.folder("old") / "release.json").write_text('{"release": "old"}')
    with pytest.raises(ReleaseError, match=r"old was made by an older version .* Fix: deploy its commit"):
        moved_on.rollback.target("old", "keep")
    with pytest.raises(ReleaseError, match="a previous release is not a release to go back to"):
        moved_on.rollback.target("", "keep")


@pytest.mark.parametrize("wanted", ["new", "never-seen", "failed"])
def test_a_rollback_goes_to_a_good_release_only(moved_on: Any, wanted: str) -> None:
    put(moved_on, "failed", state="failed")
    with pytest.raises(ReleaseError, match=f"{wanted} is not a release to go back to; good ones here: old"):
        moved_on.rollback.target(wanted, "keep")


def test_a_rollback_is_one_also_where_its_end_was_not_heard(
    moved_on: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control node was gone when `new` was left for `old`: the same command again is no way back to `new`."""
    systemd.revision = "0001"
    request = ["rollback-target", "--schema=keep"]
    deploy(moved_on, "old")
    moved_on.releases.update_state("new", schema="0001")
    monkeypatch.setattr(Run, "unacknowledged", lambda _, kind: {"rollback": "old"}[kind])
    answer = release.dispatch(moved_on, release.parser().parse_args(request))
    assert answer == {"live": "old", "unacknowledged": True, "release": "old", "downgrade": ""}
    assert moved_on.rollback.target("new", "keep")["release"] == "new", "it can be named"
    monkeypatch.setattr(Run, "unacknowledged", lambda _, kind: "")
    answer = release.dispatch(moved_on, release.parser().parse_args(request))
    assert answer == {"live": "old", "unacknowledged": False, "release": "new", "downgrade": ""}


def test_a_host_by_itself_goes_back_to_what_it_chooses(moved_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, ...]] = []

    def begin(_: Any, options: Any, command: str) -> dict[str, Any]:
        begun.append((command, options.kind, options.release, options.downgrade, options.before))
        return {"changed": True}

    monkeypatch.setattr(release, "begin", begin)
    monkeypatch.setattr(Run, "active", lambda _: False)
    assert release.dispatch(moved_on, release.parser().parse_args(["rollback", "--schema=downgrade"]))["changed"]
    assert begun == [("activate", "rollback", "old", "0001", "new")]
    with pytest.raises(ReleaseError, match="never-seen is not a release to go back to"):
        release.dispatch(moved_on, release.parser().parse_args(["rollback", "--schema=", "never-seen"]))
    heard: list[str] = []
    monkeypatch.setattr(Run, "unacknowledged", lambda _, kind: {"rollback": "new"}[kind])
    monkeypatch.setattr(Run, "acknowledge", lambda _: heard.append("acknowledged"))
    answer = release.dispatch(moved_on, release.parser().parse_args(["rollback", "--schema="]))
    assert (answer["changed"], answer["release"], heard, len(begun)) == (False, "new", ["acknowledged"], 1)


def test_the_way_back_is_known_also_where_the_schema_of_a_later_release_was_kept(
    host: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(host, keep_releases=3)
    for name, schema in (("first", "0001"), ("second", "0002"), ("third", "0003")):
        put(host, name, schema=schema)
        deploy(host, name)
    deploy(host, "second")
    systemd.revision = "0003"
    asked: list[Any] = []

    def run(schema: Any, *arguments: str) -> dict[str, Any]:
        asked.append((schema.release, *arguments))
        return {"compatible": True, "unmarked": []}

    monkeypatch.setattr(Schema, "run", run)
    assert host.rollback.target("first", "keep") == {"release": "first", "downgrade": ""}
    assert asked == [("third", "compatible", "0001", "0003")]
    down: list[str] = []

    def downgrade(schema: Any, *_: Any) -> dict[str, Any]:
        down.append(schema.release)
        return {}

    monkeypatch.setattr(Schema, "downgrade", downgrade)
    activate(host, DeployRequest("rollback", "first", "me"), Progress(), SchemaChange(downgrade="0001"))
    assert down == ["third"]


def test_what_was_chosen_for_another_live_release_is_not_gone_back_to(host: Any, systemd: Systemd) -> None:
    configure(host, keep_releases=3)
    for name in ("old", "new", "newest"):
        put(host, name)
        deploy(host, name)
    with pytest.raises(Abandoned, match="chosen when new was live, and newest is now: run the same command ag"):
        activate(host, DeployRequest("rollback", "old", "me", before="new"), Progress())
    assert (*live_and_problems(host), host.releases.state("old")["state"]) == ("newest", [], "good")
    activate(host, DeployRequest("rollback", "new", "me", before="newest"), Progress())
    # A run that was torn has gone there already.
    activate(host, DeployRequest("rollback", "new", "me", before="newest"), Progress())
    assert host.releases.live.release == "new"


def test_a_rollback_goes_to_no_release_that_never_was_good(host: Any, systemd: Systemd) -> None:
    """One host of several may decide for the others, and may be hostile."""
    put(host, "old")
    deploy(host, "old")
    put(host, "bad")
    host.releases.set_state("bad", "failed")
    with pytest.raises(ReleaseError, match="bad was never live and well on this host"):
        activate(host, DeployRequest("rollback", "bad", "me", "old"), Progress())
    assert host.releases.live_release == "old"
    # The way back from a deploy names no release that was live before: it may not be recorded as good.
    activate(host, DeployRequest("rollback", "bad", "me"), Progress())
    assert host.releases.live_release == "bad"
