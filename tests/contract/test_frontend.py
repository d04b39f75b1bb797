"""What nginx says of the front end's files, and whom the API lets in from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment

from tests.contract.conftest import AUTHOR
from tests.support import ROOT, module_at, yaml_at

FILES = {
    "/style.0123456789.css": True,
    "/js/main.4f2a9c1b.js": True,
    "/assets/index-DiwrgTda.js": True,
    "/assets/logo-a_b-C3d4.svg": True,
    "/index.html": False,
    "/": False,
    "/app.js": False,
    "/assets/robots.txt": False,
    "/report-20260101.js": False,
    "/api/files/data.0123456789.json": False,
    "/api/assets/index-DiwrgTda.js": False,
}
LIVE = [
    "/srv/nba/live/release/frontend",
    "/srv/nba/slots/blue/release/frontend",
    "/srv/nba/slots/green/release/frontend",
]


def locations(**changed: Any) -> dict[str, str]:
    """Return the text of each location of the site, as the role writes it."""
    values = {**yaml_at("roles/nginx/defaults/main.yml"), "nginx_upstream_socket": "/run/app.sock", **changed}
    text = Environment().from_string((ROOT / "roles/nginx/templates/site.conf.j2").read_text()).render(values)  # noqa: S701
    return dict(re.findall(r"^    location ([^\n]*) \{\n(.*?)\n    \}", text, flags=re.DOTALL | re.MULTILINE))


def kept(**changed: Any) -> tuple[str, str]:
    """Return the pattern of what browsers keep, and its location."""
    found = [(name, body) for name, body in locations(**changed).items() if "immutable" in body]
    assert len(found) == 1
    return found[0][0].removeprefix('~ "').removesuffix('"'), found[0][1]


@pytest.mark.parametrize(("path", "is_kept"), FILES.items())
def test_a_file_is_kept_for_a_year_where_its_name_changes_with_it(path: str, is_kept: bool) -> None:
    assert bool(re.search(kept()[0], path)) is is_kept


def test_a_name_that_is_nobody_s_gets_the_health_alone() -> None:
    """A load balancer asks by the host's address, which is none of the names."""
    named = locations(nginx_server_names=["nba.example.com"], nginx_health_path="/api/health/ready")
    body = named["= /api/health/ready"]
    assert "proxy_pass http://site/health/ready;" in body
    assert "include snippets/site-proxy.conf;" in body
    assert "= /api/health/ready" not in locations(nginx_server_names=["nba.example.com"])
    # Where the site answers to every name, it needs none of its own.
    assert "= /api/health/ready" not in locations(nginx_health_path="/api/health/ready")
    wired = yaml_at("group_vars/all/vars.yml")
    assert (wired["nginx_health_path"], wired["aws_health_path"]) == ("{{ health_path }}", "{{ health_path }}")


def test_everything_else_is_asked_for_again_and_missing_files_are_missing() -> None:
    page = locations()["/"]
    assert "add_header Cache-Control no-cache;" in page
    assert "try_files $uri $uri/ =404;" in page
    # Without `always`: a missing file is not kept for a year.
    assert 'add_header Cache-Control "public, max-age=31536000, immutable";' in kept()[1]


def test_files_of_the_release_before_stay_reachable() -> None:
    wired = yaml_at("group_vars/all/vars.yml")
    folders = [wired["page_folder"], *wired["nginx_older_document_roots"]]
    root, *older = (folder.replace("{{ project }}", "nba") for folder in folders)
    assert [root, *older] == LIVE
    body = kept(nginx_document_root=root, nginx_older_document_roots=older)[1]
    assert f"try_files {' '.join(f'{folder}$uri' for folder in LIVE)} =404;" in body


def test_what_artefacts_make_is_what_nginx_keeps() -> None:
    artefact = module_at("plugins/action/artefact.py")
    assert artefact.FINGERPRINTED.pattern == yaml_at("roles/nginx/defaults/main.yml")["nginx_fingerprinted"]
    made = artefact.with_fingerprints({"frontend/index.html": b' src="a.js"', "frontend/a.js": b""})
    assert [bool(re.search(kept()[0], name)) for name in sorted(made)] == [True, False]


def test_the_workflow_in_the_documentation_brings_what_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, as at two pushes: from a shallow clone, as GitHub's runners have it, with `dist` ignored."""
    (text,) = re.findall(r"```yaml\n(name: Built\n.*?)```", (ROOT / "docs/frontend.md").read_text(), flags=re.DOTALL)
    script = yaml.safe_load(text)["jobs"]["built"]["steps"][-1]["run"]
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)

    def run(*command: str, folder: Path = tmp_path) -> str:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    work = tmp_path / "work"
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", "site.git")
    run("git", "clone", "--quiet", "site.git", "work")
    (work / ".gitignore").write_text("dist\n")
    commits = []
    for page in ("one", "two"):
        (work / "source").write_text(page)
        run("git", "add", "--all", folder=work)
        run("git", *AUTHOR, "commit", "--quiet", "--message", f"Make it {page}", folder=work)
        run("git", "push", "--quiet", "origin", "HEAD:main", folder=work)
        runner = tmp_path / f"runner-{page}"
        run("git", "clone", "--quiet", "--depth=1", f"file://{tmp_path}/site.git", str(runner))
        (runner / "dist").mkdir()
        (runner / "dist/index.html").write_text(page)
        run("bash", "-e", "-c", script, folder=runner)
        front_end = module_at("plugins/action/artefact.py").FrontEnd.fetch(
            f"file://{tmp_path}/site.git", "built", "", tmp_path / "mirrors"
        )
        assert front_end.subject.startswith(f"Make it {page} (")
        assert run("git", "show", f"{front_end.commit}:index.html", folder=front_end.mirror) == page
        commits.append(front_end.commit)
    assert run("git", "rev-list", "built", folder=tmp_path / "site.git").split() == commits[::-1]


def test_pages_from_elsewhere_call_dev_s_api_alone() -> None:
    assert yaml_at("group_vars/dev/vars.yml")["cors_origins"] == ["http://localhost:5173", "http://localhost:8080"]
    assert yaml_at("group_vars/prod/vars.yml")["cors_origins"] == []
