"""What an application is, from its files alone."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.entry import find
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import possible
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.inference import Application, infer
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.report import Report
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.resolved import Stated, findings, resolve
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.routes import routes
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.settings import settings_in
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.warnings import warnings

from tests.support import ROOT, about_the_sample, yaml_at

APPS = ROOT / "tests/apps"
(HOST,) = possible("debian-13", "x86_64", "")
FASTAPI = "from fastapi import FastAPI\n"


def source(**texts: str) -> Source:
    """Return an application of Python files, by their paths without the ending."""
    return Source({f"{path}.py": text for path, text in texts.items()})


def archived(folder: Path, artefact: Path) -> Source:
    """Return an application as preflight has it: from an archive."""
    with tarfile.open(artefact, "w") as tar:
        tar.add(folder, arcname="", filter=lambda member: None if ".venv" in member.name else member)
    return Source.read(artefact)


def inferred(folder: Path, tmp_path: Path, **variables: Any) -> tuple[Application, str]:
    """Return what is inferred of an application, and the block that is printed."""
    found = archived(folder, tmp_path / "a.tar")
    return described(found, **variables)


def described(found: Source, **variables: Any) -> tuple[Application, str]:
    """Return what is inferred of files, and the block that is printed."""
    stated = Stated(**variables)
    app = infer(found, HOST, stated.module, stated.lock_file)
    return app, Report(app, found, [HOST], stated, resolve(app, found, stated)).text()


def module(found: Source) -> str:
    """Return the entry that is taken, and the folder that has to be on Python's path."""
    entry = find(found).entry
    return f"{entry.module} {entry.folder}".strip() if entry else ""


# --- the applications of tests/apps, and the sample ---


def test_a_tutorial_s_program(tmp_path: Path) -> None:
    app, text = inferred(APPS / "tutorial", tmp_path)
    assert app.entry and (app.entry.module, app.entry.file) == ("main:app", "main.py")
    assert (app.python, app.locks, app.alembic) == (">=3.13", ("poetry.lock",), "")
    assert [one.name for one in app.settings] == ["DB_DATABASE", "DB_HOST", "DB_PASSWORD", "DB_PORT", "DB_USER"]
    assert app.warnings == ()
    assert text.splitlines()[0] == (
        "application  main:app (main.py)    python >=3.13, host has 3.13    lock poetry.lock"
    )
    assert " ".join(text.partition("\nmigrations ")[2].split()) == (
        "none (no alembic.ini): create your tables yourself, or `app_schema_command: [tables.sql]`; backups are manual "
        "settings 5 variables exported (DB_HOST DB_PORT DB_USER DB_PASSWORD DB_DATABASE); no schema to check them by "
        "health GET / answers below 500 (set app_ready_path for more) version by the server "
        "page none: the API answers at /"
    )


def test_a_team_s_api(tmp_path: Path) -> None:
    app, text = inferred(APPS / "team", tmp_path)
    assert app.entry and (app.entry.module, app.entry.folder) == ("club.main:app", "src")
    assert (app.python, app.locks, app.alembic, app.scripts) == (">=3.11", ("uv.lock",), "alembic.ini", "alembic")
    needed = [one.name for one in app.settings if not one.has_default]
    assert (len(app.settings), needed) == (5, ["DATABASE_URL"])
    assert app.health and app.health.path == "/healthz"
    assert "GET /healthz (src/club/main.py:21) answers 2xx" in text
    assert "2 variables exported (DATABASE_URL DATABASE_TLS_CA)" in text
    assert "warning" not in text


def test_a_small_one(tmp_path: Path) -> None:
    app, _ = inferred(APPS / "small", tmp_path)
    assert app.entry and app.entry.module == "app:app"
    assert (app.python, app.locks, app.alembic, app.health) == ("", ("requirements.txt",), "", None)
    assert [(one.name, one.has_default) for one in app.settings] == [("GREETING", True), ("TIME_ZONE", True)]


@about_the_sample
def test_the_sample(tmp_path: Path) -> None:
    own = list(yaml_at("group_vars/all/sample.yml")["sample_settings"])
    app, text = inferred(ROOT / "app", tmp_path, settings=own)
    assert app.entry and app.entry.module == "nba.main:app"
    assert "warning" not in text and "no schema" not in text, text
    assert "page         frontend/index.html; the API answers at /api" in text


def test_no_lock_names_an_index() -> None:
    for path in ("tutorial/poetry.lock", "team/uv.lock", "small/requirements.txt"):
        text = (APPS / path).read_text()
        assert text.count("://") == text.count("://index.example/"), path


# --- app_module ---


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"main": f"{FASTAPI}app = FastAPI()", "app": f"{FASTAPI}app = FastAPI()"}, "main:app"),
        ({"main": "print()", "api": f"{FASTAPI}app = FastAPI()"}, "api:app"),
        ({"main": "import fastapi\nserver = fastapi.FastAPI()"}, "main:server"),
        ({"main": "import fastapi as f\nb = f.FastAPI()\napi = f.FastAPI()"}, "main:api"),
        ({"main": f"{FASTAPI}app: FastAPI = make()"}, "main:app"),
        ({"main": f"{FASTAPI}class Own(FastAPI): pass\nsite = Own()"}, "main:site"),
        ({"main": f"{FASTAPI}def make() -> FastAPI: ...\nsite = make()"}, "main:site"),
        ({"main": f"{FASTAPI}def make():\n    a = FastAPI()\n    return a\nsite = make()"}, "main:site"),
        ({"main": f"{FASTAPI}try:\n    app = FastAPI()\nexcept OSError:\n    raise"}, "main:app"),
        ({"main": "from web import site", "web": f"{FASTAPI}site = FastAPI()"}, "main:site"),
        ({"main": "from web import make\napp = make()", "web": f"{FASTAPI}def make() -> FastAPI: ..."}, "main:app"),
        # FastAPI's own instance comes before what wraps it; one name for the two stays.
        ({"main": f"{FASTAPI}app = FastAPI()\napp = Wrapper(app)"}, "main:app"),
        ({"main": f"{FASTAPI}import socketio\napi = FastAPI()\napp = socketio.ASGIApp(api)"}, "main:api"),
        ({"main": "import framework\napp = framework.make()"}, "main:app"),
        ({"app/main": f"{FASTAPI}app = FastAPI()", "app/__init__": ""}, "app.main:app"),
        ({"app/main": f"{FASTAPI}app = FastAPI()"}, "app.main:app"),
        # The folder of a file without __init__.py is on the path if something in it is imported by its bare name.
        ({"app/main": f"{FASTAPI}import a\napp = FastAPI()", "app/a": ""}, "main:app app"),
        ({"app/main": f"{FASTAPI}import a\napp = FastAPI()", "app/a": "", "a": ""}, "app.main:app"),
        ({"app/main": f"{FASTAPI}from app.a import b\napp = FastAPI()", "app/a": ""}, "app.main:app"),
        ({"src/main": f"{FASTAPI}from src.a import b\napp = FastAPI()", "src/a": ""}, "src.main:app"),
        ({"src/club/main": f"{FASTAPI}app = FastAPI()", "src/club/__init__": ""}, "club.main:app src"),
        ({"src/main": f"{FASTAPI}app = FastAPI()"}, "main:app src"),
        # A package that hands on what another file makes.
        (
            {"nba/__init__": "from nba.main import app", "nba/main": f"{FASTAPI}app = FastAPI()"},
            "nba.main:app",
        ),
        # None of a server's business.
        ({"main": f"{FASTAPI}if __name__ == '__main__':\n    app = FastAPI()"}, ""),
        ({"tests/main": f"{FASTAPI}app = FastAPI()"}, ""),
        ({"main": "not Python ("}, ""),
        ({}, ""),
    ],
)
def test_the_entry_is_found_as_fastapi_s_command_line_finds_it(texts: dict[str, str], expected: str) -> None:
    assert module(source(**texts)) == expected


def test_a_stated_entry_comes_first() -> None:
    texts = {"main.py": f"{FASTAPI}app = FastAPI()", "pyproject.toml": '[tool.fastapi]\nentrypoint = "shop.web:site"'}
    assert module(Source(texts)) == "shop.web:site"
    texts["src/shop/web.py"] = ""
    assert module(Source(texts)) == "shop.web:site src"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("main",), "main.py "),
        (("backend/main",), "backend/main.py backend"),
        (("src/main",), "src/main.py src"),
        (("a/main", "b/main"), " "),
    ],
)
def test_a_variable_names_an_entry_that_would_not_be_found(paths: tuple[str, ...], expected: str) -> None:
    entry = infer(source(**dict.fromkeys(paths, "app = make()")), HOST, "main:app").entry
    assert entry and f"{entry.file} {entry.folder}" == expected


def test_several_are_for_people_to_choose_from() -> None:
    one = f"{FASTAPI}app = FastAPI()"
    found = find(source(**{"shop/api": one, "admin/api": one, "tools/main": f"{FASTAPI}def make() -> FastAPI: ..."}))
    assert found.entry is None
    assert [entry.module for entry in found.candidates] == ["admin.api:app", "shop.api:app", "tools.main:make()"]


def test_files_that_import_each_other_have_an_end() -> None:
    assert module(source(main="from b import app", b="from main import app")) == ""


# --- settings ---


def names(found: Source) -> list[str]:
    return [f"{one.name}{'' if one.has_default else '!'}" for one in settings_in(found, found.programs)]


def test_environment_variables_are_settings() -> None:
    text = (
        'import os\nfrom os import environ, getenv\nos.getenv("A")\ngetenv("B", "x")\nos.environ["C"]\n'
        'environ.get("D", default=1)\nos.environ["SET"] = "1"\nos.getenv(name)\nos.environ["PATH"]\n'
    )
    assert names(source(main=text)) == ["A!", "B", "C!", "D"]


def test_the_fields_of_pydantic_s_settings_are_settings() -> None:
    text = (
        "class Base(BaseSettings):\n    model_config = SettingsConfigDict(env_prefix='app_')\n"
        "    host: str\n    port: int = 3306\n    key: str = Field(...)\n    limit: int = Field(default=3)\n"
        "    names: list[str] = Field(default_factory=list)\n    url: str = Field(validation_alias='DATABASE_URL')\n"
        "    other: str = Field('x', alias=AliasChoices('OTHER', 'ELSE'))\n    kind: ClassVar[str] = 'x'\n"
    )
    expected = ["APP_HOST!", "APP_KEY!", "APP_LIMIT", "APP_NAMES", "APP_PORT", "DATABASE_URL!", "OTHER"]
    assert names(source(main=text)) == expected
    old = "class Settings(Base):\n    class Config:\n        env_prefix = 'OLD_'\n    mode: str\n"
    assert names(source(main=text, old=old)) == sorted([*expected, "OLD_MODE!"])


def test_an_example_names_what_the_code_does_not_show() -> None:
    found = Source({"main.py": 'import os\nos.environ["A"]', ".env.example": "A=${B}\nexport C=1\n"})
    assert names(found) == ["A!", "C"]


# --- routes and warnings ---


def test_routes_have_the_prefixes_that_are_in_clear() -> None:
    web = (
        f"{FASTAPI}import users\nfrom admin import router as back\napp = FastAPI()\n@app.get('/')\ndef a(): ...\n"
        "app.include_router(users.router, prefix='/v1')\napp.include_router(back, prefix=settings.admin)\n"
    )
    users = "router = APIRouter(prefix='/users')\n@router.get('')\ndef b(): ...\n@router.post('/no')\ndef c(): ...\n"
    admin = "router = APIRouter()\n@router.get('/hidden')\ndef d(): ...\n"
    found = source(main=web, users=users, admin=admin)
    assert [route.path for route in routes(found, found.programs)] == ["/", "/v1/users"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('connect(host="localhost")', 'main.py:1 has host="localhost": read DB_HOST instead'),
        ('CONFIG = {"host": "127.0.0.1"}', 'main.py:1 has host="127.0.0.1": read DB_HOST instead'),
        ('connect(password="hunter2")', "main.py:1 has a password: read DB_PASSWORD from the environment instead"),
        ("Base.metadata.create_all(engine)", "main.py:1 creates tables at start"),
        ("connection.run_sync(Base.metadata.create_all)", "main.py:1 creates tables at start"),
        ("command.upgrade(config, 'head')", "main.py:1 runs Alembic at start"),
        ("subprocess.run(['alembic', 'upgrade', 'head'])", "main.py:1 runs Alembic at start"),
        ("os.system('alembic upgrade head')", "main.py:1 runs Alembic at start"),
        ("create_engine('mysql+pymysql://a:hunter2@db/x')", "main.py:1 has the database's address"),
        ("uvicorn.run(app)", "main.py:1 starts a server when it is imported"),
    ],
)
def test_what_works_on_a_laptop_alone_is_named(text: str, expected: str) -> None:
    found = source(main=text)
    settings = settings_in(source(other='import os\nos.environ["DB_HOST"]'), ["other.py"])
    (warning,) = warnings(found, ["main.py"], settings)
    assert warning.startswith(expected)
    assert "hunter2" not in warning


@pytest.mark.parametrize(
    "text",
    [
        'if __name__ == "__main__":\n    uvicorn.run(app, host="localhost")\n    Base.metadata.create_all(engine)',
        "def main():\n    uvicorn.run(app, host='127.0.0.1')",
        'connect(host=os.getenv("DB_HOST", "localhost"), password="")',
        "class Settings(BaseSettings):\n    host: str = 'localhost'",
        "create_engine(settings.url)",
    ],
)
def test_what_is_fine_is_not_named(text: str) -> None:
    assert list(warnings(source(main=text), ["main.py"], [])) == []


def test_a_script_that_the_server_does_not_import_may_create_tables() -> None:
    texts = {"main.py": f"{FASTAPI}app = FastAPI()", "make_tables.py": "Base.metadata.create_all(engine)"}
    assert infer(Source(texts), HOST).warnings == ()
    texts["main.py"] += "\nimport make_tables"
    assert len(infer(Source(texts), HOST).warnings) == 1


def test_an_application_without_anything_is_described_all_the_same() -> None:
    empty = Source({})
    app, text = described(empty)
    assert text.startswith("application  not found    python any, host has 3.13    lock none\n")
    said = list(findings(app, Stated(), {}, {}))
    assert [line.partition(":")[0] for line in said] == ["app_module", "lock file"]


def test_what_is_no_text_is_left_alone(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("main.py", b"\xff\x00"), ("a.bin", b"x"), ("long.txt", b"x" * (9 << 20))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = Source.read(tmp_path / "a.tar")
    assert list(found.texts) == ["main.py"]
    assert infer(found, HOST).entry is None
