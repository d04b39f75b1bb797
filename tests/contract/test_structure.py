"""The house rules that a linter does not know."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from ansible.playbook.handler import Handler
from ansible_collections.waffle.iron.plugins.plugin_utils.answers import messages

from tests.support import ENVIRONMENTS, ROLES, ROOT, module_at, yaml_at

PLAYBOOKS = sorted(ROOT.glob("playbooks/*.yml"))
TASK_FILES = sorted([*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("roles/*/handlers/*.yml")])
OTHERS = sorted(
    path for folder in ("templates", "vars", "defaults", "meta") for path in ROOT.glob(f"roles/*/{folder}/*")
)
CODE = [ROOT / "site.yml", *PLAYBOOKS, *TASK_FILES, *OTHERS]
# What is Python, too: the roles' programs on the hosts, our modules and plugins, and the application.
PROGRAMS = sorted(
    path for pattern in ("roles/*/files/*.py", "plugins/*/*.py", "app/nba/*.py") for path in ROOT.glob(pattern)
)
BLOCKS = ("block", "rescue", "always")
COLLECTION = "waffle.iron"
ACTIONS = {
    f"{COLLECTION}.{path.stem}" for path in [*ROOT.glob("plugins/modules/*.py"), *ROOT.glob("plugins/action/*.py")]
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tasks_in(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a file or a play, those in blocks included."""
    for item in node or []:
        if any(key in item for key in BLOCKS):
            for key in BLOCKS:
                yield from tasks_in(item.get(key))
        else:
            yield item


def all_tasks() -> list[tuple[Path, dict[str, Any]]]:
    """Return every task and handler of roles and playbooks."""
    found = [(path, task) for path in TASK_FILES for task in tasks_in(yaml_at(path))]
    for path in PLAYBOOKS:
        for play in yaml_at(path):
            for key in ("pre_tasks", "tasks", "post_tasks", "handlers"):
                found += [(path, task) for task in tasks_in(play.get(key))]
    return found


def options_of(role: str) -> dict[str, Any]:
    """Return the argument specification of a role."""
    options: dict[str, Any] = yaml_at(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return options


def words(text: str) -> str:
    """Return a file's text without its comments."""
    return re.sub(r"(^|\s)#.*$|\{#.*?#\}", "", text, flags=re.MULTILINE)


def test_there_is_something_to_look_at() -> None:
    assert {"base", "python", "mysql_client", "app", "nginx"} <= set(ROLES)
    assert len(all_tasks()) > 25
    assert len(PLAYBOOKS) >= 5


# --- one pattern ---


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_nothing_asks_which_environment_it_is_in(path: Path) -> None:
    text = words(path.read_text())
    names = "|".join(ENVIRONMENTS)
    assert re.findall(rf"(?<![\w/.-])(?:{names})(?![\w-])", text) == []
    assert re.findall(r"environment_name\s*(?:[=!]=|\bin\b|\bis\b|not\b)", text) == []
    assert "group_names" not in text


def decisions(tree: ast.AST) -> Iterator[str]:
    """Yield every condition and comparison of a program."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield ast.unparse(node.test)
        elif isinstance(node, ast.Compare | ast.Match | ast.DictComp | ast.Subscript):
            yield ast.unparse(node.subject if isinstance(node, ast.Match) else node)


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_no_program_asks_either(path: Path) -> None:
    """A name in a message is fine; one that something is compared with is not."""
    names = "|".join(ENVIRONMENTS)
    for decision in decisions(ast.parse(path.read_text())):
        assert not re.search(rf"""['"](?:{names})['"]""", decision), decision
        # The application knows its environment's name only to show it.
        assert "app/nba" not in str(path) or not re.search(r"\.environment\b", decision), decision


def test_nothing_is_swallowed() -> None:
    for path, task in all_tasks():
        where = f"{name_of(path)}: {task.get('name')}"
        assert "ignore_errors" not in task, where
        if "ignore_unreachable" in task:
            # Only where another task fails for it: Ansible would take a host out of the run for one that it asks about.
            told = f"{task['register']}.unreachable"
            failing = [other for at, other in all_tasks() if at == path and "ansible.builtin.fail" in other]
            assert any(told in str(other["when"]) for other in failing), where
        assert task.get("failed_when") is not False, where
        assert str(task.get("failed_when", "")).lower() not in ("false", "no"), where
    swallowing = re.compile(r"\|\|\s*(true\b|:(\s|$))")
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for path in [*CODE, *scripts, ROOT / "Makefile", ROOT / ".ci/run"]:
        lines = [line for line in path.read_text().splitlines() if swallowing.search(line)]
        assert [line for line in lines if not line.startswith("unset ")] == [], name_of(path)


def test_one_program_reads_the_quoting_of_settings() -> None:
    """The filter writes it, the redactor knows what it wrote, and modules have the reader of the release program."""
    paths = [*ROOT.glob("roles/*/files/**/*.py"), *ROOT.glob("plugins/**/*.py")]
    assert {name_of(path.resolve()) for path in paths if "{:-" in path.read_text()} == {
        "plugins/filter/waffle.py", "roles/app/files/environment.py", "roles/app/files/redactor.py",
    }  # fmt: skip


def test_the_programs_of_a_host_need_the_standard_library_alone(tmp_path: Path) -> None:
    installed = [
        entry["source"] for entry in yaml_at("roles/app/vars/main.yml")["__app_installed"] if "source" in entry
    ]
    programs = [name for name in installed if name.endswith(".py") and "/" not in name]
    for name in programs:
        shutil.copy(ROOT / "roles/app/files" / name, tmp_path)
    # What migrations.py needs beside it is in the environment of a release.
    modules = ", ".join(name.removesuffix(".py") for name in programs if name != "migrations.py")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {modules}; assert 'messages' not in sys.modules"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_is_one_list_of_the_commands_of_the_release_program() -> None:
    """Mypy holds the program and the action to it; the parser and the tasks are held to it here."""
    known = set(get_args(messages.Command))
    parser = module_at("roles/app/files/command_line.py").parser()
    assert set(parser._subparsers._group_actions[0].choices) == known
    variables = yaml_at("roles/app/vars/main.yml")
    asked = set()
    for path, task in all_tasks():
        if "waffle.iron.release" in task:
            stated = task["waffle.iron.release"]["command"]
            # A list, the beginning of one in an expression, or the name of a variable that is one of these.
            while found := re.match(r"\{\{ \(?(__app_\w+)", str(stated)):
                stated = variables[found[1]]
            word = stated[0] if isinstance(stated, list) else re.findall(r"^\{\{ \(*\['([\w-]+)'", stated)[0]
            assert word in known, (name_of(path), word)
            asked.add(word)
    assert {"status", "go-back", "prepare", "activate"} <= asked


def test_accounts_come_before_the_units_and_rules_that_name_them() -> None:
    """An upgrade may be a deploy, and each way to a release begins with gather.yml; main.yml alone is not one."""
    imports = {
        path.stem: [task.get("ansible.builtin.import_tasks") for task in tasks_in(yaml_at(path))]
        for path in ROOT.glob("roles/app/tasks/*.yml")
    }
    assert [name for name, files in imports.items() if "service.yml" in files] == ["gather"]
    assert imports["gather"][:2] == ["accounts.yml", "service.yml"]
    assert [name for name, files in imports.items() if "accounts.yml" in files] == ["gather"]


def test_values_are_not_rewritten_on_the_way() -> None:
    for path, task in all_tasks():
        assert "ansible.builtin.include_vars" not in task, name_of(path)
        facts = {name for name in task.get("ansible.builtin.set_fact", {}) if not name.startswith("__")}
        # What a run has found out, and no variable has.
        known = {"preflight_passed", "preflight_built", "preflight_confirmed", "recorded_project", "replaced_project"}
        assert facts <= known, name_of(path)


def test_variables_hold_values_and_no_programs() -> None:
    paths = [*ROOT.glob("roles/*/vars/*.yml"), *ROOT.glob("roles/*/defaults/*.yml"), *ROOT.glob("group_vars/*/*.yml")]
    paths += [*ROOT.glob("playbooks/vars/*.yml"), *TASK_FILES, *PLAYBOOKS]
    assert [name_of(path) for path in paths if "{%" in path.read_text()] == []


def test_files_and_roles_stay_short() -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in [*TASK_FILES, *PLAYBOOKS]}
    assert {name: lines for name, lines in long.items() if lines > 100} == {}
    for role in ROLES:
        every = [task for path in ROOT.glob(f"roles/{role}/tasks/*.yml") for task in tasks_in(yaml_at(path))]
        # What only names another file is no task of its own.
        count = sum(
            1 for task in every if not {"ansible.builtin.import_tasks", "ansible.builtin.include_tasks"} & set(task)
        )
        assert 0 < count <= 50, role


def test_main_is_a_table_of_contents_or_all_there_is() -> None:
    """A role with several files of tasks names each of them in main.yml."""
    for role in ROLES:
        names = {path.name for path in (ROOT / "roles" / role / "tasks").glob("*.yml")} - {"main.yml"}
        text = "".join(path.read_text() for path in (ROOT / "roles" / role / "tasks").glob("*.yml"))
        named = set(re.findall(r"(?:import_tasks|include_tasks|tasks_from|tasks_file): (\S+\.yml)", text))
        playbooks = "".join(path.read_text() for path in [*PLAYBOOKS, *TASK_FILES])
        started = set(re.findall(r"tasks_from: ([\w-]+)", playbooks))
        assert names - named - {f"{name}.yml" for name in started} == set(), role
        assert named <= names, role


# --- handlers ---


@pytest.mark.parametrize("role", ROLES)
def test_handlers_and_notifications_agree(role: str) -> None:
    """A misspelt name passes the syntax check and the linter, and then nothing happens."""
    notified: set[str] = set()
    for path in ROOT.glob(f"roles/{role}/tasks/*.yml"):
        for task in tasks_in(yaml_at(path)):
            names = task.get("notify", [])
            notified.update([names] if isinstance(names, str) else names)
    file = ROOT / f"roles/{role}/handlers/main.yml"
    handlers = {handler["name"] for handler in tasks_in(yaml_at(file))} if file.exists() else set()
    assert notified == handlers


# --- names ---


def test_modules_are_fully_named() -> None:
    keywords = set(Handler.fattributes)
    for path, task in all_tasks():
        modules = set(task) - keywords
        assert len(modules) == 1, f"{name_of(path)}: {sorted(modules)}"
        module = modules.pop()
        assert module.count(".") == 2, f"{name_of(path)}: {module}"
        assert module in ACTIONS or not module.startswith(f"{COLLECTION}."), f"{name_of(path)}: {module}"


def test_our_filters_and_lookups_are_fully_named() -> None:
    """Otherwise they would be found in this repository alone, and in no other one that uses the roles."""
    assert "{namespace}.{name}".format(**yaml_at("galaxy.yml")) == COLLECTION
    modules = [module_at(name_of(path)) for path in ROOT.glob("plugins/filter/*.py")]
    ours = {name for module in modules for name in module.FilterModule().filters()}
    ours |= {path.stem for path in ROOT.glob("plugins/lookup/*.py")}
    paths = [*CODE, *ROOT.glob("playbooks/*/*.yml"), *ROOT.glob("group_vars/*/*.yml")]
    code = "\n".join(path.read_text() for path in paths)
    used = {
        name
        for use in (r"\|\s*", r"\bmap\('", r"\b(?:lookup|query)\('")
        for name in re.findall(rf"{use}([\w.]+)", code)
    }
    assert used & ours == set()
    assert {name for name in used if name.startswith(f"{COLLECTION}.")} == {f"{COLLECTION}.{name}" for name in ours}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_names_its_own_variables_alone(role: str) -> None:
    public = {other: set(options_of(other)) for other in ROLES}
    foreign = {name for other, names in public.items() if other != role for name in names}
    wired = set().union(*(yaml_at(f"group_vars/{name}/vars.yml") for name in ("all", *ENVIRONMENTS))) - public[role]
    for path in sorted((ROOT / "roles" / role).rglob("*")):
        if path.parts[-2] in ("tasks", "handlers", "templates", "vars", "defaults") and path.is_file():
            found = set(re.findall(r"[a-z_][a-z0-9_]*", words(path.read_text())))
            assert found & foreign == set(), name_of(path)
            in_templates = set(re.findall(r"\{\{[^}]*?\b([a-z_][a-z0-9_]*)\b[^}]*\}\}", path.read_text()))
            assert in_templates & wired == set(), name_of(path)
            private = {name for name in found if name.startswith("__") and not name.endswith("__")}
            assert {name for name in private if not name.startswith(f"__{role}_")} == set(), name_of(path)


@pytest.mark.parametrize("role", ROLES)
def test_registered_and_defined_names_are_private(role: str) -> None:
    file = ROOT / f"roles/{role}/vars/main.yml"
    names = set(yaml_at(file)) if file.exists() else set()
    for path in ROOT.glob(f"roles/{role}/*/*.yml"):
        if path.parts[-2] in ("tasks", "handlers"):
            for task in tasks_in(yaml_at(path)):
                names |= {task["register"]} if "register" in task else set()
                names |= set(task.get("vars", {}))
    assert {name for name in names if not name.startswith(f"__{role}_")} == set()


# --- roles ---


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_agree(role: str) -> None:
    options = options_of(role)
    defaults = yaml_at(f"roles/{role}/defaults/main.yml")
    required = {name for name, option in options.items() if option.get("required")}
    assert set(options) - required == set(defaults)
    for name, value in defaults.items():
        if "{{" in str(value):
            assert "default" not in options[name], name
        else:
            assert options[name]["default"] == value, name
            assert type(options[name]["default"]) is type(value), name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_explained_and_used(role: str) -> None:
    types = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict, "path": str}
    options = options_of(role)
    code = "".join(
        path.read_text()
        for folder in ("tasks", "handlers", "templates", "vars")
        for path in (ROOT / "roles" / role / folder).glob("*")
    )
    if role == "app":
        # Reads those that say what an application is, by their names.
        code += (ROOT / "plugins/action/application.py").read_text()
    for name, option in options.items():
        assert name.startswith(f"{role}_"), name
        assert len(option["description"]) > 15, name
        assert option["type"] != "list" or "elements" in option, name
        assert isinstance(option.get("default", types[option["type"]]()), types[option["type"]]), name
        assert re.search(rf"\b{name}\b", code), f"{name} does nothing"


@pytest.mark.parametrize("role", ROLES)
def test_secrets_are_marked(role: str) -> None:
    def walk(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, option in options.items():
            yield name, option
            yield from walk(option.get("options", {}))

    for name, option in walk(options_of(role)):
        secret = (
            re.search(
                r"(password|_key|migration_settings|backup_connection|^app_(migration_)?database|^app_files)$", name
            )
            is not None
        )
        assert (option.get("no_log") is True) == secret, name
        assert option["description"].startswith("Secret.") == secret, name


@pytest.mark.parametrize("role", ROLES)
def test_group_vars_set_no_variable_that_a_role_does_not_have(role: str) -> None:
    """Ansible says nothing about a misspelt one."""
    options = options_of(role)
    others = tuple(f"{other}_" for other in ROLES if other.startswith(f"{role}_"))
    wired = {name for name in yaml_at("group_vars/all/vars.yml") if name.startswith(f"{role}_")}
    assert {name for name in wired if not name.startswith(others)} <= set(options)


def test_the_tables_of_variables_are_current() -> None:
    command = [sys.executable, str(ROOT / "scripts/role-docs"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.parent.name for path in ROOT.glob("roles/*/README.md")} == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_the_sample_of_a_role_is_valid(role: str) -> None:
    text = (ROOT / "roles" / role / "README.md").read_text()
    (sample,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    options = options_of(role)
    roles = {entry["role"]: entry.get("vars", {}) for play in yaml.safe_load(sample) for entry in play["roles"]}
    given = set(roles[f"{COLLECTION}.{role}"])
    assert given <= set(options)
    assert {name for name, option in options.items() if option.get("required")} <= given


# --- playbooks ---


@pytest.mark.parametrize("path", PLAYBOOKS, ids=name_of)
def test_each_playbook_begins_with_preflight(path: Path) -> None:
    first = yaml_at(path)[0]
    if path.name == "preflight.yml":
        assert (first["name"], first["gather_facts"], first["tags"]) == ("Run preflight", False, ["always"])
    elif path.name != "reach.yml":  # a part of those that do
        assert first["ansible.builtin.import_playbook"] == "preflight.yml"


def test_the_site_is_all_nouns_in_order() -> None:
    imported = [play["ansible.builtin.import_playbook"] for play in yaml_at("site.yml")]
    assert imported == [f"playbooks/{name}.yml" for name in ("preflight", "reach", "base", "database", "web", "app")]
    assert all(set(play) == {"name", "ansible.builtin.import_playbook"} for play in yaml_at("site.yml"))


def test_each_role_has_a_tag_of_its_name() -> None:
    entries = [entry for path in PLAYBOOKS for play in yaml_at(path) for entry in play.get("roles", [])]
    assert {entry["role"] for entry in entries} == set(ROLES)
    for entry in entries:
        assert entry["tags"] == [entry["role"]]


# --- documents ---


def documents() -> list[Path]:
    return [path for pattern in ("README.md", "docs/*.md", "roles/*/README.md") for path in ROOT.glob(pattern)]


def test_documented_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    patterns = ("plugins/*/*.py", "scripts/[a-z]*", "inventory/*/*.*", "group_vars/*/vars.yml", "lab/*.py", "*.yml")
    places = [*documents(), *PLAYBOOKS, *(path for pattern in patterns for path in ROOT.glob(pattern))]
    seen = 0
    for path in places:
        text = path.read_text()
        # As code, as a string or after a colon: "make sure" is prose.
        made = set(re.findall(r"(?:[`\"]|: |\$ )make ([a-z][a-z-]+)", text))
        assert made <= targets, f"{name_of(path)}: {sorted(made - targets)}"
        for script in re.findall(r"(?<![\w/-])scripts/[a-z][a-z-]*(?:\.py)?", text):
            assert (ROOT / script).is_file(), f"{name_of(path)}: {script}"
            seen += 1
        for playbook in re.findall(r"ansible-playbook (?:-\S+ \S+ )*((?:playbooks/)?[a-z]+\.yml)", text):
            assert (ROOT / playbook).is_file(), f"{name_of(path)}: {playbook}"
            seen += 1
    assert seen > 0


def test_every_target_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## .+", text, flags=re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)[1].split())  # type: ignore[index]
    assert targets == explained == phony
    for script in re.findall(r"@(?:\S+/python )?(scripts/[a-z-]+)", text):
        assert (ROOT / script).is_file(), script
