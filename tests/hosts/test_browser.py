"""The pages as a person sees them: Chromium, without a window, on live hosts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.browser import SECONDS, Visit, browser
from tests.hosts.conftest import Converged
from tests.hosts.world import CHECKOUT, World, await_true
from tests.support import yaml_at

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

pytestmark = pytest.mark.lab
ROWS = "#rows tr"
WATCH_MILLISECONDS = 30_000
YEAR = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module", autouse=True)
def _settled(here: World, converged: Converged) -> Iterator[None]:
    """Begin and end with dev1 on the release of the clean checkout."""
    here.ansible("playbooks/deploy.yml", "-l", "dev1").succeeded()
    yield
    here.ansible("playbooks/deploy.yml", "-l", "dev1").succeeded()
    assert here.status("dev1")["problems"] == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


Opening = Callable[[], Visit]


@pytest.fixture
def opening(chromium: Browser) -> Iterator[Opening]:
    """Return ``opening()``: an empty page, in a browser that nobody has used yet."""
    with ExitStack() as stack:

        def opened() -> Visit:
            context = chromium.new_context(locale="en-GB")
            stack.callback(context.close)
            return Visit(context.new_page())

        yield opened


@pytest.fixture
def visit(opening: Opening) -> Visit:
    """Return one such page."""
    return opening()


def go(page: Page, url: str) -> Response:
    answer = page.goto(url)
    assert answer is not None
    return answer


def home(here: World, host: str = "dev1") -> str:
    return f"http://{here.address(host)}/"


def shown(page: Page, name: str) -> str:
    """Return the text of the element with this id."""
    return str(page.locator(f"#{name}").inner_text())


def await_text(page: Page, name: str, text: str) -> None:
    """Wait until the element with this id shows a text."""
    page.wait_for_function("([name, text]) => document.getElementById(name).textContent === text", arg=[name, text])


def await_shown(page: Page) -> None:
    """Wait until a page has all that it asks the API for: users, and what runs."""
    page.locator(ROWS).first.wait_for()
    page.wait_for_function("() => document.getElementById('release').textContent.length > 1")


def later(visit: Visit) -> None:
    """Put the clock of a page (``clock.install()``) forward, to when it asks again by itself.

    What it asks just now is awaited: it would time out, which that clock tells, too.
    """
    await_true(visit.at_rest, SECONDS, "the page has its answers")
    visit.page.clock.fast_forward(WATCH_MILLISECONDS)


def shows_later(visit: Visit, name: str, text: str) -> bool:
    """Return True if the element with this id shows a text; put the clock forward if it does not yet."""
    if shown(visit.page, name) != text:
        later(visit)
    return shown(visit.page, name) == text


def test_the_page_shows_the_users_and_what_runs_here(here: World, visit: Visit) -> None:
    go(visit.page, home(here))
    await_shown(visit.page)
    users = here.get("dev1", "/api/users").json()
    rows = visit.page.locator(ROWS).all_inner_texts()
    assert all(user["name"] in row and user["email"] in row for user, row in zip(users, rows, strict=True))
    await_text(visit.page, "environment", "dev")
    await_text(visit.page, "release", here.status("dev1")["live"])
    assert visit.faults == []


def test_the_page_of_prod_says_prod_and_that_nobody_is_there_yet(here: World, visit: Visit) -> None:
    go(visit.page, home(here, "prod1"))
    visit.page.get_by_text("No users yet").wait_for()
    await_text(visit.page, "environment", "prod")
    await_text(visit.page, "release", here.status("prod1")["live"])
    assert visit.faults == []


def test_an_outage_is_told_and_ends_by_itself(here: World, opening: Opening) -> None:
    """On a page that was open before, and on one that was opened meanwhile; nobody presses anything."""
    before, meanwhile = opening(), opening()
    for visit in (before, meanwhile):
        visit.page.clock.install()
    go(before.page, home(here))
    await_shown(before.page)
    assert before.faults == []
    with api_away(here):
        later(before)
        await_text(before.page, "environment", "unreachable")
        assert before.page.locator(ROWS).count() >= 2, "what was shown stays"
        go(meanwhile.page, home(here))
        meanwhile.page.get_by_text("The users cannot be loaded").wait_for()
        await_text(meanwhile.page, "environment", "unreachable")
        assert "status 502" in shown(meanwhile.page, "error-reason")
        # What the browser itself says of such an answer, and no exception.
        assert [line for line in before.console + meanwhile.console if "status of 502" not in line] == []
    for visit in (before, meanwhile):
        visit.forget()
        later(visit)
        await_shown(visit.page)
        await_text(visit.page, "environment", "dev")
        assert not visit.page.get_by_text("The users cannot be loaded").is_visible()
        assert visit.faults == []


def test_a_laptop_without_network_is_told_and_comes_back(here: World, visit: Visit) -> None:
    visit.page.clock.install()
    go(visit.page, home(here))
    await_shown(visit.page)
    visit.page.context.set_offline(True)
    visit.page.locator("#reload").click()
    await_text(visit.page, "error-reason", "The server does not answer.")
    visit.page.context.set_offline(False)
    later(visit)
    await_shown(visit.page)


@contextmanager
def api_away(here: World) -> Iterator[None]:
    """Stop what answers for dev1's API for a while: its sockets, too, or the next request would start it again."""
    unit = f"nba@{here.status('dev1')['slot']}"
    try:
        here.execute("dev1", "systemctl", "stop", f"{unit}.socket", f"{unit}.service")
        yield
    finally:
        here.execute("dev1", "systemctl", "start", f"{unit}.socket", f"{unit}.service")
        await_true(lambda: here.get("dev1", "/api/health/ready").status == 200, 30, "dev1 is ready again")


def test_nobody_who_has_the_page_open_notices_a_deploy(here: World, opening: Opening) -> None:
    """One goes on looking at it, one loads it again and again; afterwards both have the new release."""
    stays, reloads = opening(), opening()
    stays.page.clock.install()
    for visit in (stays, reloads):
        go(visit.page, home(here))
        await_shown(visit.page)
    before, assets = shown(stays.page, "release"), sorted(stays.kept)
    assert len([url for url in assets if url.endswith((".js", ".css"))]) == 2
    seen = []
    with (
        ThreadPoolExecutor(1) as pool,
        here.edited("app/frontend/app.js", lambda text: f"{text}// Another release.\n", commit=True),
    ):
        deploy = pool.submit(here.ansible, "playbooks/deploy.yml", "-l", "dev1")
        while not deploy.done():
            reloads.page.reload()
            await_shown(reloads.page)
            seen.append(shown(reloads.page, "release"))
            later(stays)
        deploy.result().succeeded()
        after = here.status("dev1")["live"]
        reloads.page.reload()
        await_shown(reloads.page)
        assert after != before and shown(reloads.page, "release") == after
        assert [release for release, _ in groupby(seen)] in ([before], [before, after]), "never back"
        await_true(partial(shows_later, stays, "release", after), 30, "the open page names the new release")
        assert (stays.faults, reloads.faults) == ([], [])
        # The script is another one, and that of the release before is there still.
        assert [urlsplit(url).path.rpartition(".")[2] for url in reloads.kept.difference(assets)] == ["js"]
        for url in assets:
            answer = here.get("dev1", urlsplit(url).path)
            assert (answer.status, answer.headers.get("Cache-Control")) == (200, YEAR), url


def test_what_browsers_keep_and_what_is_missing(here: World, visit: Visit) -> None:
    page = visit.page
    assert go(page, home(here)).headers["cache-control"] == "no-cache"
    await_shown(page)
    assert {urlsplit(url).path.rpartition(".")[2] for url in visit.kept} == {"css", "js", "svg"}
    go(page, home(here))
    await_shown(page)
    loaded = page.evaluate(
        "performance.getEntriesByType('resource').map(({name, transferSize}) => [name, transferSize])"
    )
    sizes = [size for url, size in loaded if url.endswith((".css", ".js"))]
    assert sizes == [0, 0], "taken from the browser's own store"
    assert visit.faults == []
    for missing in ("gone.js", "app.0123456789.js", "assets/index-DiwrgTda.js"):
        answer = go(page, home(here) + missing)
        assert answer.status == 404 and "Waffle Iron" not in answer.text()


def test_a_page_on_a_laptop_uses_the_api_of_dev_and_not_of_prod(here: World, opening: Opening) -> None:
    """As docs/frontend.md says: the page from this machine, `?api=` names the host."""
    dev, prod = opening(), opening()
    with laptop() as origin:
        go(dev.page, f"{origin}/?api={home(here)}api")
        await_shown(dev.page)
        await_text(dev.page, "environment", "dev")
        assert dev.faults == []
        go(prod.page, f"{origin}/?api={home(here, 'prod1')}api")
        await_text(prod.page, "error-reason", "The server does not answer.")
        await_text(prod.page, "environment", "unreachable")
        assert [line for line in prod.console if "blocked by CORS policy" in line]


@contextmanager
def laptop() -> Iterator[str]:
    """Serve the page as `python -m http.server` does, and yield its address: an origin that dev lets in."""
    origin = str(yaml_at("group_vars/dev/vars.yml")["cors_origins"][0])
    folder = CHECKOUT / "app/frontend"
    port = urlsplit(origin).port
    assert port is not None
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield origin
        finally:
            server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


def test_the_page_on_parity_can_be_searched(here: World, visit: Visit) -> None:
    """Whatever its verdict: other tests brought other releases to some hosts."""
    here.ansible("playbooks/parity.yml", "-l", "dev1:prod1")
    page, results = visit.page, here.root / ".results"
    facts = json.loads((results / "parity.json").read_text())["facts"]
    go(page, (results / "parity.html").as_uri())
    rows = page.locator("#sections tbody tr")
    assert rows.count() == len(facts)
    page.locator("#search").fill("DATABASE password")
    words = page.locator("#sections tbody tr:not([hidden])").evaluate_all("rows => rows.map(row => row.textContent)")
    assert words and all("database" in text.lower() and "password" in text.lower() for text in words)
    assert shown(page, "found") == f"{len(words)} facts"
    assert page.locator("#sections tbody tr:visible").count() == len(words), "their sections are open"
    page.locator("#search").fill("no such thing anywhere")
    assert (shown(page, "found"), page.locator("details.section:visible").count()) == ("0 facts", 0)
    page.locator("#search").fill("")
    page.locator("#only").check()
    differing = sum(fact["kind"] != "equal" for fact in facts)
    assert differing and shown(page, "found") == f"{differing} facts"
    page.locator("#only").uncheck()
    assert page.locator("details.section:visible").count() == page.locator("details.section").count()
    assert visit.faults == []
