"""The workflows as a table: what starts them, what each job waits for and does. Each name in them leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import ROOT, yaml_at
from tests.workflows import EXPRESSION, needed, value

WORKFLOWS = {path.stem: yaml_at(path.relative_to(ROOT)) for path in sorted(ROOT.glob(".github/workflows/*.yml"))}
JOBS = [(file, name, job) for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()]
NAMES = [f"{file}:{name}" for file, name, _ in JOBS]

STARTS = {
    "ci": {"pull_request": None, "push": ["main"]},
    "deploy": {"push": ["main"], "workflow_dispatch": None},
    "drift": {"schedule": None, "workflow_dispatch": None},
    "preview": {"pull_request": ["labeled", "unlabeled", "synchronize", "reopened", "closed"]},
}
OWN = "${{ vars.RUNNER || 'ubuntu-24.04' }}"
GITHUBS = "ubuntu-24.04"
DEV, PROD = "exec scripts/with-access dev ", "exec scripts/with-access prod "
ANY = 'exec scripts/with-access "$ENVIRONMENT" '
THAT = 'scripts/with-artefact "$ARTEFACT" ansible-playbook '
# What a job waits for, whose secrets it has, where it runs, and its steps in order: commands, and where actions stand.
TABLE: dict[str, tuple[list[str], str, str, list[str]]] = {
    "ci:quick": ([], "", GITHUBS, ["checkout", "make quick"]),
    "ci:hosts": (["quick"], "", GITHUBS, ["checkout", "make test"]),
    "ci:image": ([], "", GITHUBS, ["checkout", "make image"]),
    "deploy:test": ([], "", GITHUBS, ["checkout", "make quick"]),
    "deploy:dev": (["test"], "dev", OWN, [
        "checkout", 'scripts/is-newest "$COMMIT" "$ATTEMPT"', "login", "make setup",
        f"{DEV}ansible-playbook playbooks/build.yml -l dev", 'cat .results/artefact.env >>"$GITHUB_OUTPUT"',
        "upload artefact", f"{DEV}{THAT}site.yml -l dev", f"{DEV}{THAT}playbooks/smoke.yml -l dev",
        "upload receipts-dev",
    ]),
    "deploy:plan": (["dev"], "prod-plan", OWN, [
        "checkout", "login", "make setup", "download artefact", f"{PROD}{THAT}playbooks/plan.yml -l prod",
        "scripts/job-summary .results/plan-prod.md", "upload plan-prod",
    ]),
    "deploy:prod": (["dev", "plan"], "prod", OWN, [
        "checkout", "login", "make setup", "download artefact", "download plan-prod",
        f"{PROD}{THAT}site.yml -l prod -e confirm=prod -e plan=.results/plan-prod.json",
        f"{PROD}{THAT}playbooks/smoke.yml -l prod", "upload receipts-prod",
    ]),
    "deploy:rollback": ([], "${{ inputs.environment }}", OWN, [
        "checkout", "login", "make setup", f'{ANY}scripts/rollback "$ENVIRONMENT" "$RELEASE" "$SCHEMA"',
        f'{ANY}ansible-playbook playbooks/smoke.yml -l "$ENVIRONMENT"', "upload receipts-",
    ]),
    "drift:look": ([], "${{ matrix.secrets }}", OWN, [
        "checkout", 'commit=$(scripts/deployed-commit) && git checkout --quiet --detach "$commit"', "login",
        "make setup",
        f'{ANY}\\ ansible-playbook playbooks/drift.yml -l "$ENVIRONMENT" -e "drift_json=drift-$ENVIRONMENT.json"',
        "upload drift-",
    ]),
    "drift:issue": (["look"], "", GITHUBS, [
        "checkout", "download drift-*", "mkdir -p found && scripts/drift-issue found",
    ]),
    "preview:preview": ([], "preview", OWN, [
        "checkout", "login", "make setup", f'{DEV}scripts/preview "$NUMBER" "$COMMIT"',
        'cat .results/preview.env >>"$GITHUB_OUTPUT"',
    ]),
    "preview:comment": (["preview"], "", GITHUBS, [
        "checkout", 'scripts/preview-comment "$NUMBER" "$COMMIT" "$ADDRESS"',
    ]),
    "preview:remove": ([], "preview", OWN, ["checkout", "login", "make setup", f'{DEV}scripts/preview "$NUMBER"']),
}  # fmt: skip
ACTIONS = {
    "actions/checkout": "checkout",
    "actions/upload-artifact": "upload",
    "actions/download-artifact": "download",
    "aws-actions/configure-aws-credentials": "login",
}


def action(step: dict[str, Any]) -> str:
    """Return the action of a step, in a word; empty for a command."""
    return ACTIONS.get(str(step.get("uses", "")).partition("@")[0], "")


def done(step: dict[str, Any]) -> str:
    """Return what a step does, in a line."""
    if not action(step):
        return " ".join(step["run"].split())
    given = step.get("with", {})
    name = EXPRESSION.sub("", given.get("name", given.get("pattern", ""))).rstrip("-") if "load" in action(step) else ""
    open_end = "-" if name and "${{" in given.get("name", "") and name in ("receipts", "drift") else ""
    return f"{action(step)} {name}{open_end}".strip()


def test_each_workflow_is_started_by_this() -> None:
    found = {
        file: {event: (given or {}).get("branches") or (given or {}).get("types") if isinstance(given, dict) else None
               for event, given in workflow["on"].items()}
        for file, workflow in WORKFLOWS.items()
    }  # fmt: skip
    assert found == STARTS


def test_each_job_is_in_the_table() -> None:
    assert set(NAMES) == set(TABLE)


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=NAMES)
def test_a_job_does_this_in_this_order(file: str, name: str, job: dict[str, Any]) -> None:
    environment = job.get("environment", "")
    environment = environment["name"] if isinstance(environment, dict) else environment
    assert (needed(job), environment, job["runs-on"], [done(step) for step in job["steps"]]) == TABLE[f"{file}:{name}"]


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=NAMES)
def test_who_may_log_in_to_aws_does_so_once_and_keeps_no_key(file: str, name: str, job: dict[str, Any]) -> None:
    logins = [step for step in job["steps"] if action(step) == "login"]
    assert len(logins) == (job["permissions"].get("id-token") == "write")
    for step in logins:
        assert step["if"] == "vars.AWS_ROLE != ''"
        assert step["with"] == {"role-to-assume": "${{ vars.AWS_ROLE }}", "aws-region": "${{ vars.AWS_REGION }}"}


def test_a_rollback_takes_all_that_it_asks_for() -> None:
    inputs = WORKFLOWS["deploy"]["on"]["workflow_dispatch"]["inputs"]
    job = WORKFLOWS["deploy"]["jobs"]["rollback"]
    (step,) = (step for step in job["steps"] if "scripts/rollback" in step.get("run", ""))
    given = {**job["env"], **step["env"]}
    assert {name: given[name.upper()] for name in inputs} == {name: f"${{{{ inputs.{name} }}}}" for name in inputs}
    assert inputs["environment"]["options"] == ["dev", "prod"] and inputs["environment"]["required"] is True
    assert (inputs["schema"]["options"], inputs["schema"]["default"]) == (["stop", "keep", "downgrade"], "stop")


# --- each name leads somewhere ---


def expressions(part: Any) -> Iterator[str]:
    """Yield each expression in a part of a workflow, a condition included."""
    if isinstance(part, dict):
        for key, each in part.items():
            yield from [each] if key == "if" else expressions(each)
    elif isinstance(part, list):
        for each in part:
            yield from expressions(each)
    else:
        yield from EXPRESSION.findall(str(part))


def names(part: Any) -> set[str]:
    """Return the names in the expressions of a part of a workflow."""
    found = re.findall(r"[a-z]+(?:\.[\w*-]+)+", " ".join(re.sub(r"'[^']*'", "", each) for each in expressions(part)))
    return set(found)


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=NAMES)
def test_each_name_in_a_job_leads_to_what_there_is(file: str, name: str, job: dict[str, Any]) -> None:
    """A misspelt one is an empty text to GitHub, and no error."""
    workflow = WORKFLOWS[file]
    inputs = (workflow["on"].get("workflow_dispatch") or {}).get("inputs", {})
    known = {f"inputs.{each}" for each in inputs}
    known |= {f"matrix.{key}" for row in job.get("strategy", {}).get("matrix", {}).get("include", []) for key in row}
    known |= {f"needs.{other}.result" for other in needed(job)}
    known |= {
        f"needs.{other}.outputs.{output}"
        for other in needed(job)
        for output in workflow["jobs"][other].get("outputs", {})
    }
    checked = {each for each in names(job) if each.partition(".")[0] in ("inputs", "matrix", "needs", "steps")}
    # A step's outputs are those of the file that it hands on, and only of a step before.
    before: set[str] = set()
    for step in job["steps"]:
        assert {each for each in names(step) if each.startswith("steps.")} <= before
        if "id" in step:
            before |= {f"steps.{step['id']}.outputs.{output}" for output in written(step["run"])}
    assert checked <= known | before


def written(command: str) -> set[str]:
    """Return the names in the file of results that a command hands on, as its playbook writes it."""
    found = re.fullmatch(r'cat \.results/([a-z-]+)\.env >>"\$GITHUB_OUTPUT"', command)
    assert found, command
    text = (ROOT / f"playbooks/{'build' if found[1] == 'artefact' else found[1]}.yml").read_text()
    block = text.partition("note_content:")[2]
    return set(re.findall(r'(?:^ {10}|^ ")(\w+)=', block, flags=re.MULTILINE))


@pytest.mark.parametrize("file", WORKFLOWS)
def test_what_a_job_takes_was_kept_by_one_before(file: str) -> None:
    kept: dict[str, str] = {}
    for name, job in WORKFLOWS[file]["jobs"].items():
        for step in job["steps"]:
            if action(step) == "upload":
                kept[step["with"]["name"]] = name
            if action(step) == "download":
                wanted = step["with"].get("name", step["with"].get("pattern", "")).rstrip("*")
                assert {job for each, job in kept.items() if each.startswith(wanted)} & set(needed(job)), (name, wanted)


# --- which event makes and removes a preview ---

PREVIEW, OTHER = {"name": "preview"}, {"name": "bug"}
MADE, REMOVED, NOTHING = ["preview"], ["remove"], list[str]()


@pytest.mark.parametrize(
    ("action", "label", "labels", "changed", "wanted"),
    [
        ("labeled", PREVIEW, [PREVIEW], {}, MADE),
        ("labeled", PREVIEW, [OTHER, PREVIEW], {}, MADE),
        ("labeled", OTHER, [OTHER], {}, NOTHING),
        # Nothing of the preview changes.
        ("labeled", OTHER, [OTHER, PREVIEW], {}, NOTHING),
        ("unlabeled", OTHER, [PREVIEW], {}, NOTHING),
        ("synchronize", None, [PREVIEW], {}, MADE),
        ("synchronize", None, [OTHER], {}, NOTHING),
        ("synchronize", None, [], {}, NOTHING),
        ("reopened", None, [PREVIEW], {}, MADE),
        ("unlabeled", PREVIEW, [], {}, REMOVED),
        ("unlabeled", PREVIEW, [OTHER], {}, REMOVED),
        ("unlabeled", OTHER, [], {}, NOTHING),
        ("closed", None, [PREVIEW], {"state": "closed"}, REMOVED),
        ("closed", None, [], {"state": "closed"}, NOTHING),
        # A fork's, by whatever event.
        ("labeled", PREVIEW, [PREVIEW], {"head": {"repo": {"full_name": "else/where"}}}, NOTHING),
        ("synchronize", None, [PREVIEW], {"head": {"repo": {"full_name": "else/where"}}}, NOTHING),
        ("unlabeled", PREVIEW, [], {"head": {"repo": {"full_name": "else/where"}}}, NOTHING),
        ("closed", None, [PREVIEW], {"state": "closed", "head": {"repo": {"full_name": "else/where"}}}, NOTHING),
        # Its repository is gone.
        ("closed", None, [PREVIEW], {"state": "closed", "head": {"repo": {"full_name": None}}}, NOTHING),
    ],
)  # fmt: skip
def test_an_event_makes_or_removes_a_preview(
    action: str, label: Any, labels: list[Any], changed: dict[str, Any], wanted: list[str]
) -> None:
    request = {"state": "open", "labels": labels, "head": {"repo": {"full_name": "own/er"}}, **changed}
    event = {"action": action, "number": 12, "pull_request": request, **({"label": label} if label else {})}
    jobs = {name: job["if"] for name, job in WORKFLOWS["preview"]["jobs"].items() if "if" in job}
    for switch, started in {"on": wanted, "": []}.items():
        known = {"vars": {"PIPELINE": switch}, "github": {"repository": "own/er", "event": event}}
        assert [name for name, condition in jobs.items() if value(condition, known)] == started
    assert needed(WORKFLOWS["preview"]["jobs"]["comment"]) == ["preview"]


@pytest.mark.parametrize(
    ("event", "switch", "wanted"),
    [
        ("push", "on", ["test"]),
        ("workflow_dispatch", "on", ["rollback"]),
        ("push", "", []),
        ("workflow_dispatch", "", []),
    ],
)
def test_a_push_deploys_and_a_dispatch_goes_back(event: str, switch: str, wanted: list[str]) -> None:
    known = {"vars": {"PIPELINE": switch}, "github": {"event_name": event}}
    jobs = WORKFLOWS["deploy"]["jobs"].items()
    assert [name for name, job in jobs if "if" in job and value(job["if"], known)] == wanted
    assert [name for name, job in jobs if "if" not in job] == [name for name, job in jobs if needed(job)]
