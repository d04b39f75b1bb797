"""What becomes of a deploy over all hosts, by what each of them answered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import module_at

rollout = module_at("plugins/plugin_utils/rollout.py")
HOSTS = ["one", "two"]


def asked(**results: Any) -> dict[str, Any]:
    """Return the variables of a host that was asked to revert."""
    return {"__app_reverted": {"live": "r1"}, **{f"__app_{name}": value for name, value in results.items()}}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"refused": "it does not start", "msg": "it does not start"}, "it does not start"),
        ({"msg": "not today"}, "the task `Object` failed: not today"),
        ({"msg": "\x1b[2Jnot today"}, "the task `Object` failed: not today"),
        ({}, "the task `Object` failed: no reason was given"),
    ],
)
def test_a_failure_is_told_in_the_words_of_whoever_failed(result: dict[str, Any], words: str) -> None:
    assert rollout.failure({"name": "Object"}, result) == words


def test_the_summary_names_each_host_that_failed_and_why() -> None:
    hosts = {"one": asked(), "two": asked(failure="not so", afterwards="load balancer: down")}
    text = rollout.deploy_failed(hosts, HOSTS, "r2", "one")
    assert text == "r2 is live on no host; what was live before still is.\ntwo: not so\nload balancer: down"
    assert rollout.deploy_failed(hosts, HOSTS, "r2", "two").startswith("r2 was reverted; see one. not so")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ({}, False),
        (asked(), True),
        (asked(reverted={"live": "r2"}), False),
        (asked(reverted={"refused": "no"}), False),
        (asked(reverted={"refused": "no", "live": "r1"}), True),
        (asked(reverted={"host_unreachable": True, "refused": "no"}), False),
        (asked(reverted={"host_unreachable": True}, prepared={"host_unreachable": True}), True),
        (asked(reverted={"live": "r1", "running": "deploy of r3 by bob"}), True),
        (asked(reverted={"live": "r1", "running": "rollback"}, started={"host_unreachable": True}), False),
    ],
    ids=["left", "back", "has it", "refused", "refused and back", "away", "never had it", "another run", "its own run"],
)
def test_the_state_of_a_host_is_known_by_what_it_answers_last(host: dict[str, Any], known: bool) -> None:
    unknown = rollout.in_unknown_state({"one": asked(), "two": host}, HOSTS, "r2")
    assert unknown == ([] if known else ["two"])


def test_the_first_host_that_was_asked_has_the_summary() -> None:
    text = rollout.deploy_failed({"one": {}, "two": asked()}, HOSTS, "r2", "two")
    assert text.startswith("r2 is live on no host but perhaps on one, which") and "one: left the run" in text


@pytest.mark.parametrize(
    ("started", "status", "peer", "wanted"),
    [
        ({}, "r1", "r1", "r1"),
        ({"before": "r1b"}, "r1", "r1", "r1b"),
        ({"before": "r2"}, "r1", "r1", "r1"),
        ({}, "r2", "r1", "r1"),
        ({"before": ""}, "", "", ""),
    ],
    ids=["live", "waited for another run", "which brought the same", "left on it by an earlier run", "first"],
)
def test_a_host_goes_back_to_what_was_live(started: dict[str, str], status: str, peer: str, wanted: str) -> None:
    hosts = {
        "one": {"__app_started": started, "__app_status": {"live": status}},
        "two": {"__app_status": {"live": peer}},
    }
    assert rollout.previous_release(hosts, HOSTS, "one", "r2") == wanted


def test_a_host_whose_rollback_nobody_saw_decides_for_the_others() -> None:
    one, two = {"__app_status": {"release": "r1"}}, {"__app_status": {"release": "r2"}}
    assert rollout.rollback_choices({"one": one, "two": two}, HOSTS) == ["r1", "r2"]
    two["__app_status"]["unacknowledged"] = "yes"
    assert rollout.rollback_choices({"one": one, "two": two}, HOSTS) == ["r2"]


def test_what_is_left_to_do_is_told_after_what_failed() -> None:
    hosts = {
        "one": {"__app_finished": {"refused": "it drains"}},
        "two": {"__app_started": {"unfinished": "not ready"}, "__app_afterwards": "after_switch.yml failed: no"},
    }
    assert rollout.deploy_unfinished(hosts, HOSTS, "r2", "site.yml").splitlines() == [
        "r2 is live on every host.",
        "two: after_switch.yml failed: no",
        "What is left to do there, site.yml does:",
        "one: it drains",
        "two: not ready",
    ]
    assert rollout.deploy_unfinished({"one": {}, "two": {}}, HOSTS, "r2", "site.yml") == ""


def test_a_host_that_was_not_asked_counts_with_all_its_workers() -> None:
    assert rollout.workers_of_all({"one": {"__app_status": {"workers": 2}}, "two": {}}, HOSTS, 4) == 6


def test_a_host_that_left_is_one_that_was_in_the_run_and_had_not_ended() -> None:
    ended = {"__app_status": {}, "__app_finished": {"changed": True}}
    hosts = {
        "one": {"__app_status": {}},
        "two": {"__app_status": {}},
        "three": ended,
        "four": {},
        "five": {"__app_status": {}, "__app_finished": {"skipped": True}},
    }
    assert rollout.hosts_that_left(hosts, hosts, ["one"]) == ["two", "five"]
