"""The rest: who asks, what was uploaded, a session in two cookies, and what goes wrong."""

import asyncio
import hashlib
from importlib.metadata import version

from fastapi import APIRouter, Request, Response, UploadFile

router = APIRouter()
# Signed and encrypted sessions are split by libraries if they outgrow what browsers take in one cookie.
COOKIE_BYTES = 4500


@router.get("/about")
async def about() -> dict[str, str]:
    return {"name": "club", "version": version("club")}


@router.get("/client")
async def client(request: Request) -> dict[str, str | None]:
    return {"host": request.client.host if request.client else None, "url": str(request.url)}


@router.post("/files", status_code=201)
async def upload(file: UploadFile) -> dict[str, int | str]:
    digest, size = hashlib.sha256(), 0
    while part := await file.read(1 << 20):
        digest.update(part)
        size += len(part)
    return {"size": size, "sha256": digest.hexdigest()}


@router.post("/session", status_code=204)
async def log_in(response: Response) -> None:
    for number in range(2):
        response.set_cookie(f"session-{number}", str(number) * COOKIE_BYTES, httponly=True, samesite="lax")


@router.get("/session")
async def session(request: Request) -> dict[str, int]:
    return {name: len(value) for name, value in request.cookies.items() if name.startswith("session-")}


@router.get("/crash")
async def crash() -> None:
    raise RuntimeError("the desk fell over")


@router.post("/say", status_code=204)
async def say(text: str) -> None:
    print(text)


@router.get("/slow")
async def slow(seconds: float, name: str) -> dict[str, str]:
    print(f"slow {name} begins")
    await asyncio.sleep(seconds)
    return {"name": name}
