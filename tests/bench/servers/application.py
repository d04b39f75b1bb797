"""What each server is measured with: an application that reads no file and no setting."""
# mypy: ignore-errors
# FastAPI is installed in the application's environment, not where this is checked.

import asyncio
import os
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket

app = FastAPI()
SECONDS = 5


async def work(name: str) -> None:
    """Take a while, and say so at the end."""
    await asyncio.sleep(SECONDS)
    Path(name).touch()


@app.get("/")
async def hello() -> dict[str, str]:
    """Answer at once."""
    return {"Hello": "MySQL"}


@app.get("/worker")
def worker() -> int:
    """Answer from a thread."""
    return os.getpid()


@app.get("/client")
async def client(request: Request) -> str | None:
    """Answer who asks."""
    return request.client.host if request.client else None


@app.get("/task")
async def task(tasks: BackgroundTasks) -> None:
    """Answer, and go on for a while."""
    tasks.add_task(work, "task-done")


@app.get("/left")
async def left() -> None:
    """Take a while, whoever is still there."""
    await work("left-done")


@app.get("/crash")
async def crash() -> None:
    """Fail."""
    raise RuntimeError("it fell over")


@app.websocket("/chat")
async def chat(socket: WebSocket) -> None:
    """Stay open."""
    await socket.accept()
    await socket.receive_text()
