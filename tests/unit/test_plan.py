"""The plan of a run: what it says, what it holds for, and what makes it void."""

from __future__ import annotations

import copy
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import module_at

plan = module_at("plugins/action/plan.py")
approved = module_at("plugins/action/approved.py")

LIVE = {"live": "aaaa-1", "settings": {"LEVEL": "1", "HOST": "2", "GONE": "3"}, "problems": []}
PENDING = {
    "revision": "0002",
    "message": "add a nickname",
    "compatible": True,
    "statements": ["ALTER TABLE users ADD COLUMN nick VARCHAR(20)"],
    "warnings": ["drops nothing"],
}
ARTEFACT = {
    "commit": "c0ffee" * 6,
    "subject": "Say hello",
    "dirty": False,
    "digest": "d",
    "commits": ["c0ffee1 Say hello"],
    "undone": [],
    "path": "/nowhere.tar",
}


def record(host: str, module: str = "managed_files", **changes: Any) -> dict[str, Any]:
    plain = {"kind": "change", "role": "nginx", "task": "Configure nginx", "handler": False, "resource": "/etc/n.conf"}
    return {**plain, "host": host, "module": module, "text": "@@ -1 +1 @@\n-a\n+b", **changes}


def environment(**changes: Any) -> Any:
    known: dict[str, Any] = {
        "name": "prod",
        "status": {"prod1": LIVE, "prod2": LIVE},
        "planned": {"release": "bbbb-2", "settings": {"LEVEL": "1", "HOST": "9", "NEW": "4"}},
        "artefact": ARTEFACT,
        "preview": {
            "migrations": {"current": "0001", "head": "0002", "pending": [PENDING]},
            "connections": {"checked": True, "sums": "6 workers = 144"},
        },
    }
    return plan.Environment(**{**known, **changes})


def words(made: dict[str, Any]) -> tuple[str, str]:
    text = plan.Text(made)
    return text.markdown("ansible-playbook site.yml -e plan=x"), "\n".join(text.short())


RECORDS = [
    record("prod1"),
    record("prod2"),
    record("prod1", "ansible.builtin.apt", resource="nginx, curl", text="Inst curl (8.1)", task="Install"),
    record("prod1", "ansible.builtin.systemd_service", handler=True, task="Reload nginx", resource="nginx", text=""),
    record("prod1", "release", role="app", task="Prepare the release", resource="", text=""),
    record("prod1", "ansible.mysql.mysql_user", task="Create the accounts", resource="", text=""),
]


def test_a_plan_says_everything_that_somebody_has_to_approve() -> None:
    full, short = words(environment().plan(RECORDS))
    for text in (full, short):
        assert "aaaa-1 -> bbbb-2" in text
        assert "c0ffee1 Say hello" in text
        assert "added: NEW" in text and "removed: GONE" in text and "changed: HOST" in text
        assert "0002: add a nickname" in text
        assert "/etc/n.conf" in text and "/etc/n.conf (" not in text
        assert "Create the accounts (prod1)" in text
        assert "Reload nginx (prod1)" in text
        assert "without a restart" in text
        assert "Prepare the release" not in text
    assert "```sql\nALTER TABLE users ADD COLUMN nick VARCHAR(20);\n```" in full
    assert "WARNING: drops nothing" in full and "1 WARNING" in short
    assert "```diff\n@@ -1 +1 @@\n-a\n+b\n```" in full
    assert "6 workers = 144" in full
    assert "Inst curl (8.1)" in full and "  packages    curl (prod1)" in short
    assert "Nothing would change" not in full and "would stop" not in full.lower()


def test_the_same_change_of_all_hosts_is_said_once() -> None:
    changes = environment().plan(RECORDS)["basis"]["changes"]
    assert [change["hosts"] for change in changes][:2] == [["prod1", "prod2"], ["prod1"]]
    assert len(changes) == 5


def test_a_front_end_of_its_own_is_named() -> None:
    front_end = {"commit": "f00d" * 10, "subject": "A new page"}
    full, _ = words(environment(artefact={**ARTEFACT, "frontend": front_end}).plan([]))
    assert "Front end: commit f00df00df00d, A new page\n" in full
    assert "Front end" not in words(environment(artefact={**ARTEFACT, "frontend": {}}).plan([]))[0]


def test_nothing_to_do() -> None:
    same = {"release": "aaaa-1", "settings": LIVE["settings"]}
    preview = {"migrations": {"current": "0001", "head": "0001", "pending": []}, "connections": {"checked": False}}
    full, short = words(environment(planned=same, preview=preview, artefact={**ARTEFACT, "commits": []}).plan([]))
    assert "**Nothing would change.**" in full
    assert "aaaa-1 stays" in full
    assert short.count("none") == 6


def test_a_repair_is_a_restart_with_its_reason() -> None:
    status = {"prod1": {**LIVE, "problems": ["nba@blue.service is failed"]}, "prod2": LIVE}
    repair = record("prod1", "release", role="app", task="Repair the live release", resource="", text="")
    same = {"release": "aaaa-1", "settings": LIVE["settings"]}
    full, _ = words(environment(status=status, planned=same).plan([repair]))
    assert "- Repair the live release (prod1): nba@blue.service is failed" in full


def artefact(folder: Path) -> Path:
    path = folder / "artefact.tar"
    files = {
        "migrations/versions/2_b.py": '"""Add a nickname.\n\nMore."""\nrevision: str = "0002"\n',
        "migrations/versions/1_a.py": '"""Create users."""\nrevision = "0001"\ndown_revision = None\n',
        "migrations/env.py": "raise SystemExit\n",
    }
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_a_release_that_needs_packages_first_is_not_asked(tmp_path: Path) -> None:
    lacking = environment(preview={}, artefact={**ARTEFACT, "path": str(artefact(tmp_path))})
    full, _ = words(lacking.plan([]))
    assert "lacks packages that the release needs (app_packages)" in full and "no release yet" not in full


def test_a_bare_host(tmp_path: Path) -> None:
    bare = {"live": "", "problems": []}
    first = environment(
        status={"prod1": bare}, preview={}, artefact={**ARTEFACT, "path": str(artefact(tmp_path)), "commits": None}
    )
    full, short = words(first.plan([record("prod1")]))
    assert "nothing -> bbbb-2" in full
    assert "the application starts for the first time" in full
    assert "added: HOST, LEVEL, NEW" in full
    assert full.index("### 0001: Create users") < full.index("### 0002: Add a nickname")
    assert "so the database was not asked" in full
    assert "0001: Create users" in short
    assert "not in this repository" not in full


def test_code_without_proof_is_not_run_and_the_plan_says_what_that_leaves_out(tmp_path: Path) -> None:
    known = {**ARTEFACT, "path": str(artefact(tmp_path))}
    unproven = environment(preview={}, artefact=known, proof={"proven": False, "proof": {}})
    full, short = words(unproven.plan([]))
    assert "None of the artefact's code was run, since it was not proven" in full
    assert "the reason" in full and "This host has no release yet" not in full
    assert "### 0002: Add a nickname" in full
    assert "which of them are pending needs the proof" in short and "WOULD STOP" in short
    for taken in ({"proven": True}, {"proven": False, "override": "dev is down"}, {"skipped": True}, {}):
        assert not environment(preview={}, artefact=known, proof=taken).unproven


def test_a_program_that_is_older_than_the_checkout() -> None:
    old = {key: value for key, value in LIVE.items() if key != "settings"}
    full, _ = words(environment(status={"prod1": old}).plan([]))
    assert "cannot be told" in full


def test_what_would_stop_the_run_comes_first() -> None:
    problem = {"checked": True, "problem": "set DATABASE_POOL_SIZE to 8 or less"}
    unfit = environment(preview={"migrations": None, "connections": problem}, proof={"proven": False, "proof": {}})
    full, short = words(unfit.plan([]))
    assert full.index("## The run would stop") < full.index("DATABASE_POOL_SIZE") < full.index("## Release")
    assert short.startswith("  WOULD STOP")
    assert "promote_from" in short
    halted = {"current": "0001", "head": "0002", "pending": [], "stops": ["0002: refused without SUPER"]}
    assert environment(preview={"migrations": halted}).plan([])["stops"] == ["0002: refused without SUPER"]
    assert environment(proof={"proven": True}).plan([])["stops"] == []
    assert environment(proof={"proven": False, "override": "ticket"}).plan([])["stops"] == []
    assert environment(proof={"skipped": True, "changed": False}).plan([])["stops"] == []


def test_a_long_diff_is_cut_and_one_with_a_fence_in_it_stays_one_block() -> None:
    long = record("prod1", text="\n".join(f"+{number}" for number in range(200)))
    made = environment().plan([long, record("prod1", resource="/b", text="+ ````")])
    full, _ = words(made)
    assert "... and 120 more lines, which the JSON file has" in full
    assert "+199" in made["basis"]["changes"][0]["text"]
    assert "`````diff\n+ ````\n`````" in full


# --- holding a run to it ---


def test_the_order_in_which_hosts_answer_makes_no_other_plan() -> None:
    more = [*RECORDS, record("prod2", text="else", resource="/b"), record("prod1", text="one", resource="/b")]
    by_host = [record for host in ("prod2", "prod1") for record in more if record["host"] == host]
    assert environment().plan(more)["digest"] == environment().plan(by_host)["digest"]


def changed(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = environment(**changes).plan(RECORDS)
    return made


def test_a_plan_holds_while_nothing_has_changed() -> None:
    assert list(approved.differences(changed(), copy.deepcopy(changed()))) == []


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (
            changed(status={"prod1": {**LIVE, "live": "cccc-3"}, "prod2": LIVE}),
            "prod1: cccc-3 is live, and it was aaaa-1",
        ),
        (
            changed(planned={"release": "dddd-4", "settings": {}}),
            "the release would be dddd-4, and it was bbbb-2: code, a setting or a unit changed here",
        ),
        (
            changed(preview={"migrations": {"current": "0002", "head": "0002", "pending": []}}),
            "the database and what is wanted of it: ['0002', '0002'], and it was ['0001', '0002']",
        ),
        (environment().plan([*RECORDS, record("prod2", resource="/etc/x")]), "prod2: /etc/x: new"),
        (environment().plan(RECORDS[1:]), "prod1: /etc/n.conf: no longer needed"),
        (environment().plan([record("prod1", text="else"), *RECORDS[1:]]), "prod1: /etc/n.conf: another change"),
        (changed(name="dev"), "it is a plan for prod, and this run is for dev"),
    ],
)
def test_what_makes_a_plan_void_is_named(now: dict[str, Any], difference: str) -> None:
    assert list(approved.differences(changed(), now)) == [difference]


def test_a_host_less_makes_it_void_with_all_that_was_planned_there() -> None:
    found = list(approved.differences(changed(), changed(status={"prod1": LIVE})))
    assert found == ["prod2 is no longer in this run", "prod2: /etc/n.conf: no longer needed"]
