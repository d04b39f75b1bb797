"""The users' API on a real database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from nba.database import Database, build_engine
from nba.seed import seed
from tests.conftest import Server, settings_of

pytestmark = pytest.mark.database

ALICE = {"name": "Alice", "email": "alice@example.com"}
BOB = {"name": "Bob", "email": "bob@example.com"}


def test_life_of_a_user(client: TestClient) -> None:
    assert client.get("/users").json() == []
    created = client.post("/users", json=ALICE)
    assert (created.status_code, created.json()) == (201, {"id": 1, **ALICE})
    location = created.headers["Location"]
    assert location == "/users/1"
    assert client.get(location).json() == {"id": 1, **ALICE}
    assert client.put(location, json=BOB).json() == {"id": 1, **BOB}
    assert client.put(location, json=BOB).status_code == 200  # no change is no error
    assert client.get("/users").json() == [{"id": 1, **BOB}]
    deleted = client.delete(location)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for response in (client.get(location), client.put(location, json=BOB), client.delete(location)):
        assert (response.status_code, response.json()) == (404, {"detail": "There is no such user"})


@pytest.mark.parametrize("user_id", [1, 2**31 - 1])
def test_ids_that_do_not_exist(client: TestClient, user_id: int) -> None:
    assert client.get(f"/users/{user_id}").status_code == 404


@pytest.mark.parametrize("email", ["alice@example.com", "ALICE@example.com", " alice@EXAMPLE.com "])
def test_a_taken_address(client: TestClient, email: str) -> None:
    client.post("/users", json=ALICE)
    client.post("/users", json=BOB)
    for response in (
        client.post("/users", json={"name": "Eve", "email": email}),
        client.put("/users/2", json={"name": "Bob", "email": email}),
    ):
        assert (response.status_code, response.json()) == (409, {"detail": "The e-mail address is taken"})
    assert len(client.get("/users").json()) == 2


def test_a_race_for_an_address(client: TestClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: client.post("/users", json=ALICE).status_code, range(16)))
    assert sorted(codes) == [201] + [409] * 15


@pytest.mark.parametrize(
    "name", ["홍길동", "👨‍👩‍👧 family", "O'Brien; DROP TABLE users; --", '%s "q" \\', "x" * 50, "😀" * 50]
)
def test_names(client: TestClient, name: str) -> None:
    created = client.post("/users", json={"name": f"  {name} ", "email": "x@example.com"})
    assert client.get(created.headers["Location"]).json()["name"] == name


def test_pages(client: TestClient, server: Server, database: str) -> None:
    rows = ",".join(f"('n{number}','n{number}@example.com')" for number in range(1, 121))
    server.query(f"INSERT INTO `{database}`.users (name, email) VALUES {rows}")
    first = client.get("/users")
    assert [user["id"] for user in first.json()] == list(range(1, 51))
    assert first.headers["Link"] == '<?limit=50&offset=50>; rel="next"'
    assert first.links["next"]["url"] == "?limit=50&offset=50"
    last = client.get("/users?limit=50&offset=100")
    assert [user["id"] for user in last.json()] == list(range(101, 121))
    assert "Link" not in last.headers
    exact = client.get("/users?limit=120")
    assert (len(exact.json()), "Link" in exact.headers) == (120, False)
    assert client.get("/users?limit=1&offset=1000000").json() == []


def test_a_row_without_an_address(client: TestClient, server: Server, database: str) -> None:
    server.query(f"INSERT INTO `{database}`.users (name) VALUES ('Legacy')")
    assert client.get("/users").json() == [{"id": 1, "name": "Legacy", "email": None}]


def test_location_behind_a_proxy(client: TestClient) -> None:
    created = TestClient(client.app, root_path="/api").post("/users", json=ALICE)
    assert created.headers["Location"] == "/api/users/1"


def test_seed(server: Server, database: str) -> None:
    store = Database(build_engine(settings_of(server.env(database))))
    try:
        assert [seed(store), seed(store)] == [2, 0]
        server.query(f"DELETE FROM `{database}`.users WHERE name = 'Bob'")
        assert seed(store) == 1
    finally:
        store.engine.dispose()
    assert server.query(f"SELECT name, email FROM `{database}`.users ORDER BY name") == [
        ("Alice", "alice@example.com"),
        ("Bob", "bob@example.com"),
    ]
