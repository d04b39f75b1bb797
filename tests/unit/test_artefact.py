"""The artefact of a release, built from real Git repositories."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import tarfile
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from tests.support import ROOT, module_at

artefact = module_at("plugins/action/artefact.py")


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own Git settings out."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "work")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return the folder of an application inside a repository."""
    repository = tmp_path / "repository"
    folder = repository / "app"
    (folder / "nba").mkdir(parents=True)
    (repository / "README.md").write_text("not part of the application\n")
    (repository / ".gitignore").write_text(".env\n__pycache__/\n")
    (folder / "poetry.lock").write_text("# lock\n")
    (folder / "nba/main.py").write_text("app = 1\n")
    (folder / "nba/é.txt").write_text("é\n")
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "latest").symlink_to("nba/main.py")
    git(tmp_path, "init", "--quiet", "--initial-branch=main", "repository")
    commit(repository)
    return folder


def build(folder: Path, version: str = "HEAD") -> bytes:
    tree, _, _ = artefact.tree_of(folder, version)
    content: bytes = artefact.archive(folder, tree)
    return content


def members(content: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: member for member in tar.getmembers()}


def test_holds_the_application_and_nothing_else(app: Path) -> None:
    found = members(build(app))
    assert list(found) == ["latest", "nba/main.py", "nba/é.txt", "poetry.lock", "run"]
    assert (oct(found["run"].mode), oct(found["poetry.lock"].mode)) == ("0o755", "0o644")
    assert (found["latest"].issym(), found["latest"].linkname) == (True, "nba/main.py")
    assert {(member.uid, member.gid, member.mtime) for member in found.values()} == {(0, 0, 0)}


def test_two_clones_give_the_same_bytes(app: Path, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        git(tmp_path, "clone", "--quiet", "repository", "clone")
    finally:
        os.umask(umask)
    clone = tmp_path / "clone/app"
    for path in clone.rglob("*"):
        os.utime(path, (1_000_000, 1_000_000), follow_symlinks=False)
    assert (clone / "poetry.lock").stat().st_mode != (app / "poetry.lock").stat().st_mode
    assert artefact.tree_of(clone, "HEAD")[2] is False
    assert build(clone) == build(app)


def test_a_change_elsewhere_changes_nothing(app: Path) -> None:
    before = build(app)
    (app.parent / "README.md").write_text("changed, not committed\n")
    assert artefact.tree_of(app, "HEAD")[2] is False
    assert build(app) == before


def test_the_way_from_one_commit_to_another(app: Path) -> None:
    first = git(app, "rev-parse", "HEAD")
    (app.parent / "README.md").write_text("something else\n")
    commit(app.parent)
    (app / "nba/main.py").write_text("app = 2\n")
    last = commit(app.parent)
    short = git(app, "rev-parse", "--short", "HEAD")
    assert artefact.commits_between(first, last, ".", app) == [f"{short} work"]
    assert artefact.commits_between(last, first, ".", app) == []
    assert artefact.commits_between("c0ffee" * 6 + "beef", last, ".", app) is None
    assert artefact.commits_between(last, "c0ffee" * 6 + "beef", ".", app) is None


def test_uncommitted_work_is_part_of_head(app: Path) -> None:
    (app / "nba/main.py").write_text("app = 2\n")
    (app / "nba/new.py").write_text("new = 1\n")
    (app / "run").unlink()
    (app / ".env").write_text("SECRET=1\n")
    (app.parent / "outside").write_text("not part of the application\n")
    _, head, dirty = artefact.tree_of(app, "HEAD")
    assert (head, dirty) == (git(app, "rev-parse", "HEAD"), True)
    found = members(build(app))
    assert list(found) == ["latest", "nba/main.py", "nba/new.py", "nba/é.txt", "poetry.lock"]
    assert found["nba/main.py"].size == len("app = 2\n")
    commit(app)
    assert list(members(build(app))) == list(found)
    assert artefact.tree_of(app, "HEAD")[2] is False


def test_uncommitted_work_is_refused_where_it_may_not_be(app: Path, tmp_path: Path) -> None:
    origin = artefact.Origin(source=app, mirrors=tmp_path / "mirrors")
    assert origin.build(allow_dirty=False).dirty is False
    (app / "nba/main.py").write_text("app = 2\n")
    with pytest.raises(AnsibleActionFail, match=r"has changes that are not committed.*allow_dirty_tree"):
        origin.build(allow_dirty=False)
    assert origin.build(allow_dirty=True).dirty is True
    assert origin.build("main", allow_dirty=False).dirty is False


def test_the_users_index_is_left_alone(app: Path) -> None:
    (app / "nba/main.py").write_text("app = 2\n")
    git(app, "add", "nba/main.py")
    (app / "nba/main.py").write_text("app = 3\n")
    (app / "new").write_text("new\n")
    os.utime(app / "run", (1_000_000, 1_000_000))
    index = app.parent / ".git/index"
    before = index.read_bytes()
    content = build(app)
    assert index.read_bytes() == before
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        stream = tar.extractfile("nba/main.py")
        assert stream is not None
        assert stream.read() == b"app = 3\n"


@pytest.mark.parametrize("version", ["v1", "other", "HEAD~1"])
def test_a_version_is_what_was_committed(app: Path, version: str) -> None:
    before = build(app)
    git(app, "tag", "v1")
    git(app, "branch", "other")
    (app / "nba/main.py").write_text("app = 2\n")
    commit(app)
    (app / "nba/main.py").write_text("app = 3, not committed\n")
    tree, _, dirty = artefact.tree_of(app, version)
    assert (artefact.archive(app, tree), dirty) == (before, False)


def test_the_root_of_a_repository_can_be_the_application(app: Path) -> None:
    repository = app.parent
    assert "app/poetry.lock" in members(build(repository))
    (repository / "new").write_text("new\n")
    assert "new" in members(build(repository))


def test_another_repository_in_the_environment_does_not_interfere(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git sets these for its hooks, and a hook may well deploy."""
    before = build(app)
    git(tmp_path, "init", "--quiet", "elsewhere")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere/.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere/.git/index"))
    assert build(app) == before


def test_an_unknown_version_is_named(app: Path) -> None:
    with pytest.raises(AnsibleActionFail, match=r"app_version.*'v9'"):
        artefact.tree_of(app, "v9")


def test_a_folder_outside_of_git_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match="not a git repository"):
        artefact.tree_of(tmp_path, "HEAD")


def test_a_submodule_is_refused(app: Path, tmp_path: Path) -> None:
    head = git(app, "rev-parse", "HEAD")
    git(app, "update-index", "--add", "--cacheinfo", f"160000,{head},app/module")
    git(app, "commit", "--quiet", "--message", "submodule")
    with pytest.raises(AnsibleActionFail, match="module: a Git submodule"):
        build(app, git(app, "rev-parse", "HEAD"))


def test_the_lock_is_found_by_its_content(app: Path) -> None:
    content = build(app)
    assert artefact.member_digest(content, "poetry.lock") == hashlib.sha256(b"# lock\n").hexdigest()
    assert artefact.member_digest(content, "no.lock") == ""


PROJECT = '[project]\nname = "own"\ndependencies = ["requests"]\n[dependency-groups]\ndev = ["ruff"]\n'
LOCK = '[[package]]\nname = "own"\ndevelop = {develop}\ngroups = ["{group}"]\n\n[metadata]\ncontent-hash = "{hash}"\n'


def finding(tmp_path: Path, lock: str, project: str = PROJECT, runtime: str = "venv") -> str:
    """Return what is wrong with the lock file of an archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in (("pyproject.toml", project), ("poetry.lock", lock)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    found: str = artefact.lock_finding(stream.getvalue(), runtime, "app")
    return found


def test_a_lock_that_is_older_than_the_project_is_refused(tmp_path: Path) -> None:
    for hashed in artefact.content_hashes(tomllib.loads(PROJECT)):
        lock = LOCK.format(hash=hashed, develop="false", group="main")
        assert finding(tmp_path, lock) == ""
        assert finding(tmp_path, lock, PROJECT + "[tool.ruff]\nline-length = 100\n") == ""
        changed = finding(tmp_path, lock, PROJECT.replace('["requests"]', '["requests", "rich"]'))
        assert changed.startswith("app: poetry.lock is older than pyproject.toml")
        assert "run `poetry lock` there and commit it" in changed
    assert "is older than" in finding(tmp_path, "# lock\n")
    assert "is no TOML" in finding(tmp_path, "<<<<<<< HEAD\n")


def test_a_package_that_stays_in_its_folder_is_refused(tmp_path: Path) -> None:
    hashed = max(artefact.content_hashes(tomllib.loads(PROJECT)))
    lock = LOCK.format(hash=hashed, develop="true", group="main")
    assert "own is installed from a folder with `develop = true`" in finding(tmp_path, lock)
    assert finding(tmp_path, lock, runtime="container") == ""
    assert finding(tmp_path, LOCK.format(hash=hashed, develop="true", group="dev")) == ""


@pytest.mark.parametrize(
    "folder", [ROOT, ROOT / "tests/apps/tutorial"], ids=["the control node's", "the application's"]
)
def test_poetry_computes_the_same_hash(folder: Path) -> None:
    project, lock = (tomllib.loads((folder / name).read_text()) for name in ("pyproject.toml", "poetry.lock"))
    assert lock["metadata"]["content-hash"] in artefact.content_hashes(project)


# --- another repository ---


def fetched(url: str, version: str, folder: str, mirrors: Path) -> tuple[bytes, str]:
    """Return the artefact of another repository and its commit, as a run makes them."""
    remote = artefact.Remote.parse(url)
    mirror = remote.fetch(mirrors)
    tree, head = artefact.remote_tree(remote, mirror, version, folder)
    content: bytes = artefact.archive(mirror, tree)
    return content, head


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/.git"])
def test_another_repository_gives_the_same_bytes(app: Path, tmp_path: Path, form: str) -> None:
    content, head = fetched(form.format(app.parent), "HEAD", "app", tmp_path / "mirrors")
    assert (content, head) == (build(app), git(app, "rev-parse", "HEAD"))
    (app / "nba/main.py").write_text("app = 2, not committed\n")
    assert fetched(form.format(app.parent), "HEAD", "app", tmp_path / "mirrors")[0] == content


def test_a_path_below_the_present_folder(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetched("repository", "main", "app", tmp_path / "mirrors")[0] == build(app)


def test_versions_of_another_repository_move_with_it(app: Path, tmp_path: Path) -> None:
    url, mirrors = str(app.parent), tmp_path / "mirrors"
    first = git(app, "rev-parse", "HEAD")
    git(app, "tag", "--annotate", "--message", "one", "v1")
    git(app, "branch", "gone")
    assert fetched(url, "gone", "app", mirrors)[1] == first
    git(app, "branch", "--delete", "gone")
    (app / "nba/main.py").write_text("app = 2\n")
    second = commit(app.parent)
    for version, expected in {"HEAD": second, "main": second, "v1": first, first: first, "main~1": first}.items():
        assert fetched(url, version, "app", mirrors)[1] == expected
    # A branch that was rewritten, a tag that was moved, a branch that was removed.
    git(app, "reset", "--quiet", "--hard", first)
    git(app, "tag", "--force", "v1", second)
    assert fetched(url, "main", "app", mirrors)[1] == first
    assert fetched(url, "v1", "app", mirrors)[1] == second
    with pytest.raises(AnsibleActionFail, match=r"app_version: 'gone' is not a commit, tag or branch of .*ls-remote"):
        fetched(url, "gone", "app", mirrors)


def test_the_default_branch_is_the_remote_s(app: Path, tmp_path: Path) -> None:
    git(app, "checkout", "--quiet", "-b", "trunk")
    (app / "nba/main.py").write_text("app = 2\n")
    head = commit(app.parent)
    assert fetched(str(app.parent), "HEAD", "app", tmp_path / "mirrors")[1] == head


@pytest.mark.parametrize("folder", ["nowhere", "README.md", "../repository", "app/nba/main.py"])
def test_a_folder_that_is_none_is_named(app: Path, tmp_path: Path, folder: str) -> None:
    with pytest.raises(AnsibleActionFail, match=f"app_repository_folder: '{folder}' is not a folder of"):
        fetched(str(app.parent), "HEAD", folder, tmp_path / "mirrors")


def test_the_root_of_another_repository(app: Path, tmp_path: Path) -> None:
    assert fetched(str(app.parent), "HEAD", "", tmp_path / "mirrors")[0] == build(app.parent)


def test_two_fetches_at_once(app: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: fetched(str(app.parent), "HEAD", "app", tmp_path / "mirrors")[0], range(4)))
    assert made == [build(app)] * 4


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:hunter2@git.example.com/a.git", "https://git.example.com/a.git"),
        ("https://hunter2@git.example.com:8443/a.git", "https://git.example.com:8443/a.git"),
        ("http://user:hunter%402@git.example.com/a", "http://git.example.com/a"),
        ("ftp://user:hunter2@git.example.com/a", "ftp://git.example.com/a"),
        ("git@git.example.com:a/b.git", "git@git.example.com:a/b.git"),
    ],
)
def test_credentials_are_no_part_of_what_is_shown(url: str, shown: str) -> None:
    assert artefact.Remote.parse(url).shown == shown


def test_credentials_are_for_the_server_alone(tmp_path: Path) -> None:
    """They reach it, but neither a command line nor a message nor the mirror."""
    with Server() as server:
        remote = artefact.Remote.parse(f"http://user:hunter%402@127.0.0.1:{server.port}/a.git")
        assert (remote.user, remote.password) == ("user", "hunter@2")
        with pytest.raises(
            AnsibleActionFail, match=r"app_repository: http://127\.0\.0\.1:\d+/a\.git could not"
        ) as refused:
            remote.fetch(tmp_path / "mirrors")
    assert "Basic " + base64.b64encode(b"user:hunter@2").decode() in server.seen
    texts = [str(refused.value), *(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())]
    assert not [text for text in texts if "hunter" in text]


def test_a_helper_of_the_user_s_is_not_asked_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\necho \"$1\" >>'{tmp_path}/asked'\necho username=another\necho password=another\n")
    helper.chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(f"[credential]\n\thelper = {helper}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    with Server() as server, pytest.raises(AnsibleActionFail):
        artefact.Remote.parse(f"http://user:hunter2@127.0.0.1:{server.port}/a.git").fetch(tmp_path / "mirrors")
    assert not (tmp_path / "asked").exists()


def test_nobody_is_asked_for_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "ask"
    asked.write_text(f"#!/bin/sh\ntouch '{tmp_path}/asked'\necho x\n")
    asked.chmod(0o755)
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.setenv(name, str(asked))
    with Server() as server, pytest.raises(AnsibleActionFail, match="terminal prompts disabled"):
        artefact.Remote.parse(f"http://127.0.0.1:{server.port}/a.git").fetch(tmp_path / "mirrors")
    assert not (tmp_path / "asked").exists()


class Server:
    """An HTTP server that wants a login and takes none; it keeps the logins that it was offered."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(self.headers.get("Authorization", ""))
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> Server:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# --- the front end's files ---

PAGE = b"""<link href="style.css"><script src='js/app.js'></script><script src="/js/app.js"></script>
<a href="#users"><a href="other.html"><img src="https://example.com/a.png"><img src="missing.png"><img src="../run.sh">
<script src="assets/index-DiwrgTda.js"></script><link href="done.0123abcd.css"><a href="api/users">"""


def mark(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


def test_a_page_names_its_files_by_their_content() -> None:
    files = {
        "frontend/index.html": PAGE,
        "frontend/other.html": b'<link href="style.css">',
        "frontend/style.css": b"one",
        "frontend/js/app.js": b"two",
        "frontend/assets/index-DiwrgTda.js": b"three",
        "frontend/done.0123abcd.css": b"four",
        "run.sh": b"#!/bin/sh",
    }
    changed = artefact.with_fingerprints(files)
    style, app = f"style.{mark(b'one')}.css", f"js/app.{mark(b'two')}.js"
    assert set(changed) == {"frontend/index.html", "frontend/other.html", f"frontend/{style}", f"frontend/{app}"}
    assert (changed[f"frontend/{style}"], changed[f"frontend/{app}"]) == (b"one", b"two")
    page = PAGE.replace(b"style.css", style.encode()).replace(b"js/app.js", app.encode())
    assert changed["frontend/index.html"] == page
    assert changed["frontend/other.html"] == f'<link href="{style}">'.encode()
    assert artefact.with_fingerprints(files | changed) == {
        name: content for name, content in changed.items() if name.endswith(".html")
    }


def test_files_of_a_front_end_keep_their_names_as_well(app: Path) -> None:
    (app / "frontend").mkdir()
    (app / "frontend/index.html").write_text('<script src="app.js"></script>')
    (app / "frontend/app.js").write_text("1")
    commit(app)
    with tarfile.open(fileobj=io.BytesIO(build(app))) as tar:
        names = [name for name in tar.getnames() if name.startswith("frontend/")]
        page = tar.extractfile("frontend/index.html")
        assert page is not None and f"app.{mark(b'1')}.js".encode() in page.read()
    assert names == [f"frontend/app.{mark(b'1')}.js", "frontend/app.js", "frontend/index.html"]


def test_pages_elsewhere_stay_as_they_are() -> None:
    assert artefact.with_fingerprints({"templates/index.html": b'<link href="a.css">', "templates/a.css": b""}) == {}


# --- a front end from a repository of its own ---


@pytest.fixture
def site(app: Path, tmp_path: Path) -> Path:
    """Return a repository with a built front end in ``dist``; the application has one of its own."""
    (app / "frontend").mkdir()
    (app / "frontend/index.html").write_text("ours")
    (app / "frontend/ours.js").write_text("ours")
    commit(app.parent)
    folder = tmp_path / "site"
    (folder / "dist/assets").mkdir(parents=True)
    (folder / "package.json").write_text("{}")
    (folder / "dist/index.html").write_text('<link href="style.css"><script src="assets/index-DiwrgTda.js"></script>')
    (folder / "dist/style.css").write_text("1")
    (folder / "dist/assets/index-DiwrgTda.js").write_text("2")
    git(tmp_path, "init", "--quiet", "--initial-branch=main", "site")
    commit(folder)
    return folder


def built(app: Path, site: Path | str, version: str = "HEAD", folder: str = "dist") -> tuple[bytes, str]:
    """Return the artefact with that front end, and the front end's commit."""
    front_end = artefact.FrontEnd.fetch(str(site), version, folder, app.parent.parent / "mirrors")
    tree, _, _ = artefact.tree_of(app, "HEAD")
    return artefact.archive(app, tree, front_end), front_end.commit


def test_a_front_end_of_its_own_takes_the_place_of_the_application_s(app: Path, site: Path) -> None:
    content, head = built(app, site)
    found = members(content)
    assert [name for name in found if name.startswith("frontend")] == [
        "frontend/assets/index-DiwrgTda.js",
        "frontend/index.html",
        f"frontend/style.{mark(b'1')}.css",
        "frontend/style.css",
    ]
    assert [name for name in found if not name.startswith("frontend/")] == [
        "latest", "nba/main.py", "nba/é.txt", "poetry.lock", "run",
    ]  # fmt: skip
    assert head == git(site, "rev-parse", "HEAD")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        page = tar.extractfile("frontend/index.html")
        assert page is not None and f"style.{mark(b'1')}.css".encode() in page.read()


def test_the_digest_covers_a_front_end_and_nothing_beside_it(app: Path, site: Path, tmp_path: Path) -> None:
    before, first = built(app, site)
    git(tmp_path, "clone", "--quiet", "site", "clone")
    assert built(app, tmp_path / "clone") == (before, first)
    (site / "package.json").write_text('{"name": "site"}')
    commit(site)
    assert built(app, site) == (before, first)
    (site / "dist/style.css").write_text("3")
    second = commit(site)
    after, head = built(app, site)
    assert (after != before, head) == (True, second)
    assert built(app, site, first) == (before, first)


def test_the_root_of_a_branch_can_be_the_front_end(app: Path, site: Path) -> None:
    content, _ = built(app, site)
    tree = git(site, "rev-parse", "HEAD:dist")
    git(site, "branch", "built", git(site, "commit-tree", "-m", "Built", tree))
    assert built(app, site, "built", "")[0] == content


@pytest.mark.parametrize(
    ("change", "chosen", "words"),
    [
        ({}, ("v9", "dist"), r"app_frontend_version: 'v9' is not a commit, tag or branch of .*`git ls-remote"),
        (
            {},
            ("HEAD", "build"),
            r"app_frontend_folder: 'build' is not a folder of .*set it in group_vars/all/vars\.yml",
        ),
        (
            {},
            ("HEAD", ""),
            r"app_frontend_folder: '' of .* at HEAD has no index\.html; set it in group_vars/all/vars\.yml",
        ),
        (
            {"dist/style.css": "9"},
            ("HEAD", "dist"),
            r"app_frontend_repository: .* not committed.*-e app_frontend_version=",
        ),
        (
            {"dist/new.css": "9"},
            ("HEAD", "dist"),
            r"app_frontend_repository: .* not committed.*`git add -A && git commit`",
        ),
    ],
)
def test_a_front_end_that_is_none_is_refused(
    app: Path, site: Path, change: dict[str, str], chosen: tuple[str, str], words: str
) -> None:
    for name, content in change.items():
        (site / name).write_text(content)
    with pytest.raises(AnsibleActionFail, match=words):
        built(app, site, *chosen)


def test_changes_beside_a_front_end_do_not_matter_and_neither_do_they_to_a_version(app: Path, site: Path) -> None:
    before = built(app, site)
    (site / "package.json").write_text("not committed")
    assert built(app, site) == before
    (site / "dist/style.css").write_text("not committed")
    assert built(app, site, "main") == before
    assert built(app, f"file://{site}") == before


def test_a_front_end_that_cannot_be_fetched_is_named_by_its_own_variable(app: Path, tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match=r"app_frontend_repository: .*nowhere could not be fetched"):
        built(app, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("style.css", "a symbolic link cannot be part of a front end"),
        ("../.env", "the link to '../.env' leaves the folder"),
    ],
)
def test_a_link_in_a_front_end_is_refused(app: Path, site: Path, target: str, words: str) -> None:
    (site / "dist/env").symlink_to(target)
    commit(site)
    with pytest.raises(AnsibleActionFail, match=f"env: {words}"):
        built(app, site)


# --- an artefact that was built before ---


def run(app: Path, tmp_path: Path, **arguments: str) -> dict[str, Any]:
    """Run the action as a task does."""
    given = {"source": str(app), "mirrors": str(tmp_path / "mirrors"), "cache": str(tmp_path / "cache"), **arguments}
    task = SimpleNamespace(args=given, async_val=0, check_mode=False, diff=False, environment=None)
    action = artefact.ActionModule(task, SimpleNamespace(_shell=SimpleNamespace(tmpdir=None)), None, None, None, None)
    found: dict[str, Any] = action.run(task_vars={})
    return found


def test_an_artefact_is_taken_as_it_was_built_whatever_git_has_by_now(app: Path, tmp_path: Path) -> None:
    built = run(app, tmp_path)
    first = git(app, "rev-parse", "HEAD")
    (app / "nba/main.py").write_text("app = 2\n")
    commit(app)
    assert run(app, tmp_path)["digest"] != built["digest"]
    assert run(app, tmp_path, digest=built["digest"]) == built
    assert run(app, tmp_path, digest=built["digest"], since=first)["commits"] == []
    # Neither the application's nor a front end's repository need be there.
    gone = {"repository": str(tmp_path / "gone"), "frontend_repository": str(tmp_path / "gone")}
    assert run(tmp_path, tmp_path, digest=built["digest"], **gone) == built
    assert run(tmp_path, tmp_path, digest=built["digest"], since=first, **gone)["commits"] is None


def test_an_artefact_tells_the_front_end_that_is_in_it(app: Path, site: Path, tmp_path: Path) -> None:
    built = run(app, tmp_path, frontend_repository=str(site), frontend_folder="dist")
    assert built["frontend"]["commit"] == git(site, "rev-parse", "HEAD")
    assert run(app, tmp_path, digest=built["digest"]) == built


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tar, facts: tar.unlink(), "No such file or directory"),
        (lambda tar, facts: facts.unlink(), "No such file or directory"),
        (lambda tar, facts: tar.write_bytes(tar.read_bytes() + b"x"), "its digest differs"),
        (lambda tar, facts: facts.write_text("[]"), "does not tell what the artefact is"),
        (lambda tar, facts: facts.write_text(facts.read_text().replace('commit": "', 'commit": "x')), "does not tell"),
        (lambda tar, facts: facts.write_text(facts.read_text().replace("false", "true")), "were not committed"),
    ],
)
def test_an_artefact_that_is_not_there_or_not_that_one_is_refused(
    app: Path, tmp_path: Path, damage: Callable[[Path, Path], None], words: str
) -> None:
    built = run(app, tmp_path)
    tar = Path(built["path"])
    damage(tar, tar.with_suffix(".json"))
    with pytest.raises(AnsibleActionFail, match=words) as refusal:
        run(app, tmp_path, digest=built["digest"])
    assert str(refusal.value).startswith("artefact: ")


@pytest.mark.parametrize("digest", ["0123abcd", "0" * 63 + "\n", "../" * 20 + "abcd"])
def test_what_is_no_digest_is_refused(app: Path, tmp_path: Path, digest: str) -> None:
    with pytest.raises(AnsibleActionFail, match="is not a digest of 64 characters"):
        run(app, tmp_path, digest=digest)
