"""What dev and prod have in common, which is everything but values."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ENVIRONMENTS, ROOT, about_the_sample, application_of, is_sample, yaml_at

VALUES = {environment: yaml_at(f"group_vars/{environment}/vars.yml") for environment in ENVIRONMENTS}
EVERYWHERE = yaml_at("group_vars/all/vars.yml")
# What the sample is given: the way to its database, by the names that were found in it, and what is stated for it.
WIRED = (
    {name: EVERYWHERE["database_way"][part] for part, name in application_of(ROOT / "app")["database"].items()}
    | yaml_at("group_vars/all/sample.yml")["sample_settings"]
    if is_sample()
    else {}
)
INVENTORIES = sorted(path.name for path in (ROOT / "inventory").iterdir())


def kind(value: object) -> object:
    """Return the type of a value, with those of a list's elements."""
    if isinstance(value, list):
        return [sorted({type(item).__name__ for item in value})]
    return type(value).__name__


def test_the_same_keys_in_the_same_order() -> None:
    assert list(VALUES["dev"]) == list(VALUES["prod"])


def test_the_same_types() -> None:
    for key, value in VALUES["dev"].items():
        other = VALUES["prod"][key]
        if value != [] and other != []:
            assert kind(value) == kind(other), key
        assert type(value) is type(other), key


def test_the_same_comments() -> None:
    """Then a diff of the two files is the complete answer to how they differ."""

    def comments(environment: str) -> list[str]:
        lines = (ROOT / f"group_vars/{environment}/vars.yml").read_text().splitlines()[2:]
        return [line.partition("#")[2] for line in lines if "#" in line]

    assert comments("dev") == comments("prod")


def test_no_key_is_also_set_for_all() -> None:
    """A group's value wins over that of `all`, so the second one would be a lie."""
    assert set(VALUES["dev"]) & set(EVERYWHERE) == set()


def test_aws_protects_prod() -> None:
    """Nobody deletes its machines by mistake, and its database leaves a snapshot when it goes."""
    assert VALUES["prod"]["deletion_protection"] is True


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_bears_its_folder_s_name(environment: str) -> None:
    assert VALUES[environment]["environment_name"] == environment


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_vault_s_keys_are_those_of_the_example(environment: str) -> None:
    used = set(re.findall(r"\bvault_\w+", (ROOT / f"group_vars/{environment}/vars.yml").read_text()))
    assert used == set(yaml_at("vault.example.yml"))
    for key in used:
        assert VALUES[environment][key.removeprefix("vault_")] == f"{{{{ {key} }}}}"


def test_the_vault_is_read_nowhere_else() -> None:
    patterns = ("site.yml", "playbooks/*.yml", "roles/*/*/*.yml", "roles/*/templates/*")
    elsewhere = [path for pattern in patterns for path in ROOT.glob(pattern)]
    found = {path.name for path in elsewhere if re.search(r"\bvault_(?!id)\w+", path.read_text())}
    assert found == set()
    assert "vault_" not in (ROOT / "group_vars/all/vars.yml").read_text()


def test_the_example_holds_placeholders_alone() -> None:
    assert set(yaml_at("vault.example.yml").values()) == {"change-me"}


def test_preflight_knows_every_key() -> None:
    contract = yaml_at("playbooks/vars/preflight.yml")["preflight_contract"]
    # Where the database is follows from where the machines are: the inventory says it.
    assert set(contract) == {*VALUES["dev"], "database_host"}
    secrets = {key for key, form in contract.items() if form.endswith("secret")}
    assert secrets == {key.removeprefix("vault_") for key in yaml_at("vault.example.yml")}


# --- the application's settings ---


def settings() -> dict[str, tuple[str, bool, bool]]:
    """Return type, whether it is required and whether it is secret, of each of the application's settings.

    Read from the source: importing it takes the application's own dependencies.
    """
    tree = ast.parse((ROOT / "app/nba/settings.py").read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            annotation = ast.unparse(node.annotation)
            base = re.sub(r"^Annotated\[(.*)$", r"\1", annotation)
            required = not node.value.args and not any(word.arg == "default" for word in node.value.keywords)
            found[node.target.id.upper()] = (re.split(r"[\[,]", base)[0], required, "SecretStr" in annotation)
    return found


SETTINGS = settings() if is_sample() else {}


@about_the_sample
def test_the_settings_were_found() -> None:
    assert SETTINGS["DATABASE_PASSWORD"] == ("SecretStr", True, True)
    assert SETTINGS["DATABASE_PORT"] == ("int", False, False)
    assert SETTINGS["DOCS_ENABLED"] == ("bool", False, False)
    assert SETTINGS["LOG_LEVEL"][0] == "Literal"


@about_the_sample
def test_the_schema_beside_them_has_the_same_keys() -> None:
    """The application's own test compares every word; this one needs none of its dependencies."""
    schema = json.loads((ROOT / "app/settings.schema.json").read_text())
    assert list(schema["properties"]) == list(SETTINGS)
    assert schema["required"] == [name for name, (_, required, _) in SETTINGS.items() if required]
    assert [name for name, found in schema["properties"].items() if found.get("format") == "password"] == [
        name for name, (_, _, secret) in SETTINGS.items() if secret
    ]


@about_the_sample
def test_group_vars_set_every_setting_and_no_other() -> None:
    assert set(WIRED) == set(SETTINGS)


@about_the_sample
def test_secrets_of_the_application_come_from_the_vault() -> None:
    for name, (_, _, secret) in SETTINGS.items():
        source = re.fullmatch(r"\{\{ (\w+).*\}\}", str(WIRED[name]))
        value = str(VALUES["dev"].get(source[1], "")) if source else ""
        assert secret == ("vault_" in value), name


@about_the_sample
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_types_fit(environment: str) -> None:
    types: dict[str, Any] = {"int": int, "bool": bool, "tuple": list, "str": str, "SecretStr": str, "Literal": str}
    compared = 0
    for name, (annotation, _, _) in SETTINGS.items():
        source = re.match(r"\{\{ (\w+)", str(WIRED[name]))
        if source and source[1] in VALUES[environment]:
            assert type(VALUES[environment][source[1]]) is types[annotation], name
            compared += 1
    assert compared > len(SETTINGS) / 2


def test_the_master_account_never_reaches_the_application() -> None:
    wired = {key: value for key, value in EVERYWHERE.items() if "master" in yaml.safe_dump(value)}
    roles = {key.rpartition("_master_")[0] for key in wired}
    assert roles == {"aws_database", "mysql_client"}


@about_the_sample
def test_the_example_for_laptops_names_every_setting() -> None:
    lines = (ROOT / "app/.env.example").read_text().splitlines()
    assert {line.partition("=")[0] for line in lines if line and not line.startswith("#")} == set(SETTINGS)


# --- where values may stand ---


def test_group_vars_are_folders_of_all_and_the_environments() -> None:
    found = sorted(path.name for path in (ROOT / "group_vars").iterdir())
    assert found == ["all", *ENVIRONMENTS]
    for folder in found:
        names = {path.name for path in (ROOT / "group_vars" / folder).iterdir()}
        # What is accepted when hosts are compared is not a value of any role, and the sample goes one day.
        assert names <= ({"vars.yml", "parity.yml", "sample.yml"} if folder == "all" else {"vars.yml", "vault.yml"})
        assert "vars.yml" in names
    assert not (ROOT / "host_vars").exists()


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_each_inventory_links_to_the_values(inventory: str) -> None:
    link = ROOT / "inventory" / inventory / "group_vars"
    assert link.is_symlink()
    assert link.readlink() == Path("../../group_vars")


def test_a_vault_in_the_work_tree_is_encrypted() -> None:
    clear = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("group_vars/*/vault.yml")
        if not path.read_text().startswith(f"$ANSIBLE_VAULT;1.2;AES256;{path.parent.name}\n")
    ]
    assert clear == []
