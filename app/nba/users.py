"""The users: list, create, read, replace, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response, status
from sqlalchemy import RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from nba.database import DUPLICATE_KEY, Database
from nba.models import users
from nba.schemas import Problem, Unavailable, User, UserInput

MAX_ID = 2**31 - 1  # of a signed INT column: beyond it MySQL answers with an error, not with "none"
MAX_OFFSET = 1_000_000  # MySQL reads and drops every skipped row


async def get_database(request: Request) -> Database:
    """Return the application's database; `async` because a plain function would cost a thread switch."""
    database: Database = request.app.state.database
    return database


Db = Annotated[Database, Depends(get_database)]
UserId = Annotated[int, Path(ge=1, le=MAX_ID)]

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such user"}}
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Problem, "description": "The e-mail address is taken"}}

router = APIRouter(
    prefix="/users",
    tags=["users"],
    responses={503: {"model": Unavailable, "description": "The database is unavailable"}},
)


@router.get("", response_model=list[User])
def list_users(
    database: Db,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=200, description="Most users to return")] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET, description="Users to skip")] = 0,
) -> Any:
    """List users in the order of their ids. A header `Link: <...>; rel="next"` says that there are more."""
    # One row more than asked for tells whether a next page exists, without counting the table.
    rows = database.read(select(users).order_by(users.c.id).limit(limit + 1).offset(offset))
    if len(rows) > limit and offset + limit <= MAX_OFFSET:
        response.headers["Link"] = f'<?limit={limit}&offset={offset + limit}>; rel="next"'
    return rows[:limit]


@router.post("", response_model=User, status_code=status.HTTP_201_CREATED, responses=CONFLICT)
def create_user(database: Db, request: Request, response: Response, user: UserInput) -> Any:
    """Create a user."""
    try:
        result = database.write(insert(users).values(**user.model_dump()))
    except IntegrityError as error:
        raise _conflict(error) from error
    user_id = result.lastrowid
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/users/{user_id}"
    return {"id": user_id, **user.model_dump()}


@router.get("/{user_id}", response_model=User, responses=NOT_FOUND)
def read_user(database: Db, user_id: UserId) -> Any:
    """Return one user."""
    return _found(database.read(select(users).where(users.c.id == user_id)))


@router.put("/{user_id}", response_model=User, responses={**NOT_FOUND, **CONFLICT})
def replace_user(database: Db, user_id: UserId, user: UserInput) -> Any:
    """Replace the name and the e-mail address of a user."""
    try:
        result = database.write(update(users).where(users.c.id == user_id).values(**user.model_dump()))
    except IntegrityError as error:
        raise _conflict(error) from error
    if result.rowcount == 0:  # rows matched, not rows changed
        raise _no_such_user()
    return {"id": user_id, **user.model_dump()}


@router.delete("/{user_id}", status_code=status.HTTP_204_NO_CONTENT, responses=NOT_FOUND)
def delete_user(database: Db, user_id: UserId) -> None:
    """Delete a user."""
    if database.write(delete(users).where(users.c.id == user_id)).rowcount == 0:
        raise _no_such_user()


def _found(rows: Any) -> RowMapping:
    if not rows:
        raise _no_such_user()
    row: RowMapping = rows[0]
    return row


def _no_such_user() -> HTTPException:
    return HTTPException(status.HTTP_404_NOT_FOUND, "There is no such user")


def _conflict(error: IntegrityError) -> Exception:
    if error.orig and error.orig.args[0] == DUPLICATE_KEY:
        return HTTPException(status.HTTP_409_CONFLICT, "The e-mail address is taken")
    return error
