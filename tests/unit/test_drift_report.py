"""What drift.yml tells, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import ROOT, module_at, yaml_at

drift = module_at("plugins/callback/drift.py")


def record(resource: str, **facts: Any) -> dict[str, Any]:
    known = {"kind": "change", "host": "prod1", "role": "nginx", "file": "main.yml", "task": "Configure nginx"}
    return {**known, "module": "managed_files", "handler": False, "text": "", "resource": resource, **facts}


def test_a_difference_is_told_with_its_task_and_lines() -> None:
    report = drift.Report([record("/etc/nginx/nginx.conf", text="-old\n+new")], {})
    assert report.lines(["prod1", "prod2"])[:5] == [
        "prod1: 1 difference",
        "  /etc/nginx/nginx.conf  [nginx: Configure nginx]",
        "      -old",
        "      +new",
        "prod2: no drift",
    ]


def left(name: str) -> dict[str, Any]:
    """Return the record of an application of another project, with the label of the task that finds it."""
    task = yaml_at("playbooks/tasks/leftovers.yml")[-1]
    label = task["loop_control"]["label"].replace("{{ item }}", name).replace("{{ environment_name }}", "prod")
    return record(label, role="", file=drift.LEFTOVERS, task=task["name"])


def test_an_application_that_is_left_names_the_playbook_that_removes_it() -> None:
    lines = drift.Report([left("shop")], {}).lines(["prod1"])
    assert "playbooks/remove.yml -l prod -e remove=shop " in lines[1], lines
    assert not [line for line in lines if "site.yml" in line], "site.yml does not repair this"


def test_site_yml_repairs_only_what_is_no_application_that_is_left() -> None:
    last = [drift.Report(found, {}).lines(["prod1"])[-1] for found in ([record("/a")], [record("/a"), left("shop")])]
    assert last[0].startswith("ansible-playbook site.yml with the same -l repairs this;")
    assert last[1].startswith("ansible-playbook site.yml with the same -l repairs the rest of this;")
    assert (ROOT / "playbooks/tasks" / drift.LEFTOVERS).is_file()


def test_a_host_that_could_not_be_reached_is_not_called_free_of_drift() -> None:
    report = drift.Report([record("", host="prod2", kind="unreachable")], {})
    assert report.lines(["prod1", "prod2"], {"prod2": 1}) == ["prod1: no drift", "prod2: could not be reached"]


def test_a_long_difference_is_cut() -> None:
    lines = drift.told(record("/x", text="\n".join("line" for _ in range(50))))
    assert len(lines) == drift.LINES + 2 and lines[-1].strip() == "... 30 more lines"


def test_what_follows_from_another_difference_is_not_told() -> None:
    assert drift.Report([record("nginx", handler=True)], {}).drift == []


@pytest.mark.parametrize("file", drift.DEPLOYS)
def test_a_release_that_waits_is_no_drift(file: str) -> None:
    report = drift.Report([record("", role="app", file=file)], {})
    assert (report.drift, report.waiting) == ([], {"prod1"})
    assert any("not live yet" in line for line in report.lines(["prod1"]))
    assert (ROOT / "roles/app/tasks" / file).is_file()


def test_what_is_accepted_is_told_with_its_reason() -> None:
    accepted = [{"resource": "/etc/cron.d/*", "reason": "ticket 1"}, {"resource": "/nowhere", "reason": "ticket 2"}]
    report = drift.Report([record("/etc/cron.d/mine"), record("")], {"prod1": accepted})
    assert [item["resource"] for item in report.drift] == [""], "a hidden resource is never accepted"
    lines = "\n".join(report.lines(["prod1"]))
    assert "accepted: /etc/cron.d/mine (ticket 1)" in lines
    assert "drift_accepted: matches nothing here: /nowhere" in lines


def test_a_task_that_could_not_look_is_told() -> None:
    (line, words) = drift.told(record("", kind="failed", text="no such file"))
    assert line == "  could not be looked at  [nginx: Configure nginx]" and words.strip() == "no such file"


def test_every_accepted_entry_has_a_reason() -> None:
    for name in ("all", "dev", "prod"):
        for entry in yaml_at(f"group_vars/{name}/vars.yml").get("drift_accepted", []):
            assert set(entry) == {"resource", "reason"} and len(entry["reason"]) > 10, entry
