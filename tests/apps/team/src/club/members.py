"""Members, and letters that are written after the answer."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from club.database import get_session, sessions
from club.models import Letter, Member
from club.settings import get_settings

router = APIRouter(prefix="/members")
Session = Annotated[AsyncSession, Depends(get_session)]


class NewMember(BaseModel):
    name: str
    email: str | None = None


class NewLetter(BaseModel):
    text: str


@router.get("/")
async def list_members(session: Session) -> list[dict[str, int | str | None]]:
    members = await session.scalars(select(Member).order_by(Member.id))
    return [{"id": member.id, "name": member.name, "email": member.email} for member in members]


@router.post("/", status_code=201)
async def create_member(member: NewMember, session: Session) -> dict[str, int]:
    row = Member(name=member.name, email=member.email)
    session.add(row)
    await session.commit()
    return {"id": row.id}


async def write_letter(member_id: int, text: str) -> None:
    await asyncio.sleep(get_settings().letter_seconds)
    async with sessions() as session:
        session.add(Letter(member_id=member_id, text=text))
        await session.commit()
    print(f"letter to member {member_id} written")


@router.post("/{member_id}/letters", status_code=202)
async def send_letter(
    member_id: int, letter: NewLetter, tasks: BackgroundTasks, session: Session
) -> dict[str, str]:
    if await session.get(Member, member_id) is None:
        raise HTTPException(404, "no such member")
    tasks.add_task(write_letter, member_id, letter.text)
    return {"status": "accepted"}


@router.get("/{member_id}/letters")
async def count_letters(member_id: int, session: Session) -> dict[str, int]:
    count = await session.scalar(select(func.count()).where(Letter.member_id == member_id))
    return {"count": count or 0}
