"""What jobs report: the plan as a summary, drift as an issue, and which commit is deployed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Project
from tests.contract.jobs import COMMIT, called, script
from tests.support import yaml_at


def test_a_summary_is_added_and_cut_to_what_github_takes(project: Project, tmp_path: Path) -> None:
    plan, summary = tmp_path / "plan.md", tmp_path / "summary"
    plan.write_text("# Plan\n")
    assert script(project, "scripts/job-summary", str(plan)).stdout == "# Plan\n"
    plan.write_text("x" * 2_000_000)
    summary.write_text("before\n")
    done = script(project, "scripts/job-summary", str(plan), GITHUB_STEP_SUMMARY=str(summary))
    assert (done.returncode, done.stdout) == (0, "")
    assert summary.read_text().startswith("before\nxxx")
    assert summary.stat().st_size < 1 << 20
    assert script(project, "scripts/job-summary", "no-such-file").returncode == 1


RECORD = {
    "host": "prod1", "kind": "change", "role": "nginx", "task": "Configure nginx", "resource": "/etc/nginx/a.conf",
    "text": "-````\n+two\n",
}  # fmt: skip
NOTHING: dict[str, Any] = {"drift": [], "site_repairs": False, "unreachable": []}
GH = """
if sys.argv[1:3] == ["issue", "list"]: print({number!r})
if "-" in sys.argv: open({body!r}, "w").write(sys.stdin.read())
"""


def found(project: Project, **reports: dict[str, Any]) -> str:
    """Write what drift.yml found in each environment; return the folder."""
    folder = project.root / "found"
    folder.mkdir()
    for environment, report in reports.items():
        (folder / f"drift-{environment}.json").write_text(json.dumps(report))
    return "found"


@pytest.mark.parametrize("number", ["", "7"])
def test_drift_is_told_in_one_issue(project: Project, number: str) -> None:
    body = project.root / "body"
    file = called(project, "gh", GH.format(number=number, body=str(body)))
    reports = {"dev": NOTHING, "prod": {"drift": [RECORD], "site_repairs": True, "unreachable": ["prod2"]}}
    done = script(project, "scripts/drift-issue", found(project, **reports), RUN_URL="https://example.com/7")
    assert done.returncode == 0, done.stderr
    text = body.read_text()
    for words in (
        "## dev\n\nNo drift.",
        "- **prod1** `/etc/nginx/a.conf` (nginx: Configure nginx)",
        "`````\n-````\n+two\n`````",  # its own fence does not end the block
        "- **prod2** could not be reached",
        "`ansible-playbook site.yml -l prod`",
        "https://example.com/7",
    ):
        assert words in text
    assert ('"edit", "7"' if number else '"create", "--title"') in file.read_text()
    assert ("edit" in file.read_text()) is bool(number)


def test_an_issue_names_site_yml_only_for_what_it_repairs(project: Project) -> None:
    """An application of another project names its own command, and site.yml does not remove it."""
    file = found(project, dev=NOTHING, prod={"drift": [RECORD], "site_repairs": False, "unreachable": []})
    text = script(project, "scripts/drift-issue", "--print", file).stdout
    assert "**prod1**" in text and "site.yml" not in text


def test_an_issue_is_closed_when_nothing_is_left(project: Project) -> None:
    file = called(project, "gh", GH.format(number="7", body="/dev/null"))
    assert script(project, "scripts/drift-issue", found(project, dev=NOTHING, prod=NOTHING)).returncode == 0
    assert '"close", "7"' in file.read_text()


def test_an_environment_that_was_not_looked_at_closes_nothing(project: Project) -> None:
    file = called(project, "gh", GH.format(number="7", body=str(project.root / "body")))
    assert script(project, "scripts/drift-issue", found(project, dev=NOTHING)).returncode == 0
    assert "close" not in file.read_text()
    assert "## prod\n\n- could not be looked at at all" in (project.root / "body").read_text()


def test_a_host_that_cannot_be_reached_is_in_the_report_of_drift(project: Project) -> None:
    (project.root / "found").mkdir()
    words = ("-i", "inventory/test", "-l", "dev", "-e", "drift_json=found/drift-dev.json")
    done = project.run("ansible-playbook", "playbooks/drift.yml", *words)
    assert done.returncode == 4, done.stdout
    assert json.loads((project.root / "found/drift-dev.json").read_text())["unreachable"] == ["dev1"]
    assert "**dev1** could not be reached" in script(project, "scripts/drift-issue", "--print", "found").stdout


def test_what_is_deployed_is_the_commit_of_a_run_that_came_to_its_end(project: Project) -> None:
    file = called(project, "gh", "print('0123abc')")
    assert script(project, "scripts/deployed-commit").stdout == "0123abc\n"
    assert {"deploy.yml", "success", "push"} <= set(json.loads(file.read_text()))
    called(project, "gh")
    assert script(project, "scripts/deployed-commit").returncode == 1


@pytest.mark.parametrize(
    ("main", "attempt", "code"), [(COMMIT, "1", 0), ("f00d" * 10, "1", 1), ("f00d" * 10, "2", 0), ("", "1", 1)]
)
def test_an_older_push_stops_where_main_has_moved_on(project: Project, main: str, attempt: str, code: int) -> None:
    called(project, "gh", f"print({main!r})")
    done = script(project, "scripts/is-newest", COMMIT, attempt)
    assert (done.returncode, "main has moved from" in done.stderr) == (code, code == 1), done.stderr


def test_github_that_does_not_answer_stops_a_push(project: Project) -> None:
    called(project, "gh", "sys.exit('HTTP 500')")
    assert script(project, "scripts/is-newest", COMMIT).returncode == 1


def test_dev_is_asked_before_anything_is_done_there() -> None:
    steps = [step for step in yaml_at(".github/workflows/deploy.yml")["jobs"]["dev"]["steps"] if "run" in step]
    assert steps[0]["run"] == 'scripts/is-newest "$COMMIT" "$ATTEMPT"'
    assert (steps[0]["env"]["COMMIT"], steps[0]["env"]["ATTEMPT"]) == ("${{ github.sha }}", "${{ github.run_attempt }}")
