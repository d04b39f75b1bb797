"""What a release states about its application: what variables say wins over what was inferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.database import names_of, scheme_of
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import possible
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.inference import infer
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import Lock, Package
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.resolved import (
    PRELOADED,
    Resolved,
    Stated,
    findings,
    resolve,
)
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.routes import Route, health
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.settings import Setting
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from ansible_collections.waffle.iron.plugins.plugin_utils.setting_values import exported, wiring

from tests.support import AWKWARD, ROOT, about_the_sample, module_at, yaml_at

APPS = ROOT / "tests/apps"
(HOST,) = possible("debian-13", "x86_64", "")
VALUES = {"host": "db", "port": 3306, "user": "shop", "password": AWKWARD, "name": "shop_dev", "tls_ca": "/ca.pem"}


def is_of_the_application(name: Path) -> bool:
    """Return False for what linters and tests leave in a folder."""
    return name.name == ".env.example" or not name.parts[0].startswith(".")


def files_of(folder: Path) -> Source:
    """Return an application's files."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [name for name in names if "__pycache__" not in name.parts and is_of_the_application(name)]
    return Source({str(name): (folder / name).read_text() for name in kept})


def resolved(source: Source, **variables: Any) -> Resolved:
    stated = Stated(**variables)
    return resolve(infer(source, HOST, stated.module, stated.lock_file), source, stated)


def wrong(source: Source, host: str = "db", **variables: Any) -> list[str]:
    stated = Stated(**variables)
    app = infer(source, HOST, stated.module, stated.lock_file)
    return list(findings(app, stated, {"host": host}, resolve(app, source, stated).database))


def lock(*names: str) -> Lock:
    return Lock("uv.lock", tuple(Package(name, "1") for name in names))


def settings(*names: str) -> list[Setting]:
    """Return settings by their names; one with ! has no default."""
    return [Setting(name.removesuffix("!"), not name.endswith("!"), "main.py:1") for name in names]


# --- what is taken for granted ---


def test_a_tutorial_s_program_answers_at_the_root() -> None:
    app = resolved(files_of(APPS / "tutorial"), preload_modules=list(PRELOADED))
    assert (app.module, app.lock, app.path, app.root_path, app.page) == ("main:app", "poetry.lock", "/", "", False)
    assert (app.ready_path, app.ready_answers, app.health_path) == ("/", "any", "/")
    assert app.preload_modules == ["fastapi", "pymysql"]
    assert app.database == {
        "host": "DB_HOST", "port": "DB_PORT", "user": "DB_USER", "password": "DB_PASSWORD", "name": "DB_DATABASE",
    }  # fmt: skip


def test_a_team_s_api_has_one_address_of_its_database() -> None:
    app = resolved(files_of(APPS / "team"))
    assert (app.module, app.folder, app.lock, app.alembic) == ("club.main:app", "src", "uv.lock", "alembic.ini")
    assert (app.ready_path, app.ready_answers) == ("/healthz", "success")
    assert app.database == {"url": "DATABASE_URL", "tls_ca": "DATABASE_TLS_CA"}
    assert app.database_scheme == "mysql+aiomysql"


def test_a_small_one_has_no_database() -> None:
    app = resolved(files_of(APPS / "small"))
    assert (app.module, app.lock, app.database, app.alembic) == ("app:app", "requirements.txt", {}, "")
    assert wrong(files_of(APPS / "small"), host="") == []


@about_the_sample
def test_the_sample_has_a_page() -> None:
    app = resolved(files_of(ROOT / "app"))
    assert (app.page, app.path, app.root_path, app.ready_path) == (True, "/api", "/api", "/health/ready")
    assert app.health_path == "/api/health/ready"


def test_the_program_on_the_host_reads_what_is_stated() -> None:
    """Each field of its own is there; the others are the control node's."""
    known = module_at("roles/app/files/application.py").Application.__dataclass_fields__
    assert set(known) <= set(resolved(files_of(APPS / "small")).as_json())


# --- variables ---


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"path": "/v1"}, {"path": "/v1", "root_path": "/v1", "health_path": "/v1/healthz"}),
        ({"path": "/v1", "strip_path": False}, {"root_path": "", "health_path": "/healthz", "strip_path": False}),
        ({"ready_path": "/api/v1/members"}, {"ready_path": "/api/v1/members", "ready_answers": "success"}),
        ({"ready_path": "/", "ready_answers": "any"}, {"ready_path": "/", "ready_answers": "any"}),
        ({"module": "club.desk:router"}, {"module": "club.desk:router", "folder": "src"}),
        ({"python_version": "3.13"}, {"python": "3.13"}),
        ({"public_scheme": "https"}, {"scheme": "https"}),
        ({"alembic": "other/alembic.ini"}, {"alembic": "other/alembic.ini"}),
        ({"schema_command": ["python", "tables.py"]}, {"schema_command": ["python", "tables.py"]}),
        (
            {"database_settings": {"url": "MY_URL", "scheme": "mysql+asyncmy"}},
            {"database": {"url": "MY_URL"}, "database_scheme": "mysql+asyncmy"},
        ),
        ({"database_settings": {"url": "MY_URL"}}, {"database_scheme": "mysql+aiomysql"}),
    ],
)
def test_what_variables_say_wins(variables: dict[str, Any], expected: dict[str, Any]) -> None:
    app = resolved(files_of(APPS / "team"), **variables).as_json()
    assert {name: app[name] for name in expected} == expected


@about_the_sample
def test_a_page_gives_way_to_an_api_at_the_root() -> None:
    app = resolved(files_of(ROOT / "app"), path="/")
    assert (app.page, app.path, app.root_path, app.health_path) == (False, "/", "", "/health/ready")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"path": "api"}, "app_path: 'api' is no path"),
        ({"path": "/api/"}, "app_path: '/api/' is no path"),
        ({"ready_path": "/a b"}, "app_ready_path: '/a b' is no path"),
        ({"ready_answers": "yes"}, "app_ready_answers: 'yes' is neither of success and any"),
        ({"module": "club.main"}, "app_module: 'club.main' is not as package.module:app"),
        ({"database_settings": {"pass": "A"}}, "app_database_settings: 'pass' is none of host, port, "),
        ({"host": ""}, "database_host (the inventory): is not set, and the application has a database (DATABASE_URL "),
    ],
)
def test_what_variables_cannot_say_is_refused(variables: dict[str, Any], expected: str) -> None:
    (finding,) = wrong(files_of(APPS / "team"), **variables)
    assert finding.startswith(expected)
    assert "Fix" in finding


@pytest.mark.parametrize(
    ("app", "module", "files", "shown"),
    [
        (
            "team",
            "club.other:app",
            "src/club/other.py or src/club/other/__init__.py",
            "club.main:app (src/club/main.py)",
        ),
        ("tutorial", "mian:app", "mian.py or mian/__init__.py", "main:app (main.py)"),
    ],
)
def test_a_module_without_a_file_is_named_with_what_was_inferred(app: str, module: str, files: str, shown: str) -> None:
    (finding,) = wrong(files_of(APPS / app), module=module)
    assert finding.startswith(f"app_module: {module} (group_vars/all/vars.yml) needs {files}, and the application has")
    assert f"neither; its files show {shown}. Fix: name {shown.partition(' ')[0]}, or leave it out" in finding


def test_an_entrypoint_without_a_file_names_the_place_that_states_it() -> None:
    texts = {"pyproject.toml": '[tool.fastapi]\nentrypoint = "shop.main:app"', "shop/__init__.py": "", "uv.lock": ""}
    (finding,) = wrong(Source(texts))
    assert finding.startswith("app_module: shop.main:app (pyproject.toml, [tool.fastapi] entrypoint) needs shop/main")
    assert "its files show no application. Fix: name a module that is there" in finding


@pytest.mark.parametrize("module", ["fastapi.other:app", "uvicorn_worker:app"])
def test_a_module_of_a_package_of_the_lock_needs_no_file(module: str) -> None:
    """Also of one whose package has another name, if the application shows nothing that could be meant instead."""
    texts = {"requirements.txt": "fastapi==1 --hash=sha256:1\n", "start.py": "print()"}
    assert wrong(Source(texts), module=module) == []


@about_the_sample
def test_the_commands_of_the_sample_are_stated_for_the_sample_alone() -> None:
    sample = yaml_at("group_vars/all/sample.yml")
    assert all("sample_is_deployed" in sample[name] for name in sample if name.startswith("app_"))
    assert "nba" not in (ROOT / "roles/app/defaults/main.yml").read_text()


# --- health ---


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/", "/healthz", "/health/ready"], "/health/ready"),
        (["/health", "/api/health/ready"], "/health"),
        (["/", "/api/v1/health", "/v1/health"], "/v1/health"),
        (["/health/"], "/health/"),
        (["/patients/{id}/health", "/"], ""),
    ],
)
def test_the_health_path_is_the_one_that_says_most(paths: list[str], expected: str) -> None:
    found = health([Route(path, "main.py:1") for path in paths])
    assert (found.path if found else "") == expected


# --- the way to the database ---


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("DB_HOST DB_USER DB_PASSWORD DB_NAME", "DB_HOST DB_USER DB_PASSWORD DB_NAME"),
        ("MYSQL_HOST MYSQL_PORT MYSQL_USER MYSQL_PASSWORD MYSQL_DATABASE", "MYSQL_HOST MYSQL_PORT MYSQL_USER "
         "MYSQL_PASSWORD MYSQL_DATABASE"),
        ("DATABASE_HOST DATABASE_USERNAME DATABASE_PASS DATABASE_DB DATABASE_SSL_CA", "DATABASE_HOST DATABASE_USERNAME "
         "DATABASE_PASS DATABASE_DB DATABASE_SSL_CA"),
        ("DATABASE_POOL_SIZE DB_HOST DB_USER DB_PASSWORD DB_NAME", "DB_HOST DB_USER DB_PASSWORD DB_NAME"),
        ("db_host db_user db_password db_name", "db_host db_user db_password db_name"),
        ("DATABASE_URL!", "DATABASE_URL"),
        ("SQLALCHEMY_DATABASE_URI DB_TLS_CA", "SQLALCHEMY_DATABASE_URI DB_TLS_CA"),
        # An address that has a default is put together of the parts.
        ("DB_HOST DB_USER DB_PASSWORD DB_NAME DATABASE_URL", "DB_HOST DB_USER DB_PASSWORD DB_NAME"),
        ("DB_HOST DB_USER DB_PASSWORD DB_NAME DATABASE_URL!", "DB_HOST DB_USER DB_PASSWORD DB_NAME DATABASE_URL"),
        ("DB_HOST DB_USER", ""),
        ("GREETING", ""),
    ],
)  # fmt: skip
def test_the_names_that_people_use_are_known(names: str, expected: str) -> None:
    assert " ".join(names_of(settings(*names.split())).values()) == expected


def test_names_that_only_a_variable_has_count() -> None:
    assert list(names_of([], ["DB_HOST", "DB_USER", "DB_PASSWORD", "DB_NAME"])) == ["host", "user", "password", "name"]


def test_without_a_driver_of_mysql_there_is_no_database() -> None:
    """An address may be that of SQLite or PostgreSQL."""
    texts = {
        "main.py": 'from fastapi import FastAPI\nimport os\nos.environ["DATABASE_URL"]\napp = FastAPI()',
        "uv.lock": "",
    }
    assert resolved(Source(texts)).database == {}


@pytest.mark.parametrize(
    ("text", "example", "packages", "expected"),
    [
        ("create_engine(x)", "", ("sqlalchemy", "pymysql"), "mysql+pymysql"),
        ("create_engine(x)", "", ("sqlalchemy", "aiomysql", "pymysql"), "mysql+pymysql"),
        ("create_async_engine(x)", "", ("sqlalchemy", "aiomysql", "pymysql"), "mysql+aiomysql"),
        ("create_async_engine(x)", "", ("sqlalchemy", "asyncmy"), "mysql+asyncmy"),
        ("create_engine(x)", "", ("sqlalchemy", "mysqlclient"), "mysql+mysqldb"),
        ("create_engine(x)", "", ("sqlalchemy", "asyncmy"), "mysql+asyncmy"),
        ("Tortoise.init(x)", "", ("tortoise-orm", "asyncmy"), "mysql"),
        ("create_engine(x)", "DATABASE_URL=mariadb+pymysql://u@h/x", ("sqlalchemy", "pymysql"), "mariadb+pymysql"),
        ("create_engine(x)", "DATABASE_URL=sqlite:///x.db", ("sqlalchemy", "pymysql"), "mysql+pymysql"),
    ],
)
def test_an_address_begins_as_the_driver_wants_it(
    text: str, example: str, packages: tuple[str, ...], expected: str
) -> None:
    source = Source({"main.py": text, ".env.example": example})
    assert scheme_of(source, ["main.py"], lock(*packages), "DATABASE_URL") == expected


def test_parts_are_exported_as_they_are() -> None:
    names = {"host": "H", "port": "P", "user": "U", "password": "W", "name": "N"}
    assert exported(names, "", VALUES) == {"H": "db", "P": "3306", "U": "shop", "W": AWKWARD, "N": "shop_dev"}
    assert exported(names, "", {}) == {}


def test_an_address_survives_every_password() -> None:
    from urllib.parse import unquote, urlsplit

    address = exported({"url": "A"}, "mysql+aiomysql", VALUES)["A"]
    parts = urlsplit(address)
    assert unquote(parts.password or "") == AWKWARD
    assert (parts.scheme, parts.hostname, parts.port, parts.path, parts.query) == (
        "mysql+aiomysql", "db", 3306, "/shop_dev", "",
    )  # fmt: skip
    assert exported({"url": "A"}, "mysql", {**VALUES, "host": "fd00::1"})["A"].endswith("@[fd00::1]:3306/shop_dev")


def test_an_address_names_the_authority_if_nothing_else_does() -> None:
    assert exported({"url": "A"}, "mysql+pymysql", VALUES)["A"].endswith("/shop_dev?ssl_ca=/ca.pem")
    found = exported({"url": "A", "tls_ca": "C"}, "mysql+pymysql", VALUES)
    assert (found["A"].endswith("/shop_dev"), found["C"]) == (True, "/ca.pem")
    assert exported({"url": "A"}, "mysql+pymysql", {**VALUES, "tls_ca": ""})["A"].endswith("/shop_dev")


def test_the_wiring_of_a_choice_is_that_of_what_it_chooses_from() -> None:
    variables = {"own": {"A": "{{ a }}"}, "app_settings": "{{ own if x else {} }}", "plain": {"B": 1}, "x": True}
    assert wiring(variables, "app_settings") == {"A": "{{ a }}"}
    assert wiring(variables, "plain") == {"B": 1}
    assert wiring(variables, "none") == {}
