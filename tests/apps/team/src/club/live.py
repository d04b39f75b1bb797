"""What stays open: a chat over a WebSocket, and events that the server sends."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

router = APIRouter()
rooms: set[WebSocket] = set()


@router.websocket("/chat")
async def chat(socket: WebSocket) -> None:
    await socket.accept()
    rooms.add(socket)
    try:
        while True:
            text = await socket.receive_text()
            for other in list(rooms):
                await other.send_text(text)
    except WebSocketDisconnect:
        pass
    finally:
        rooms.discard(socket)


@router.get("/events")
async def events(count: int = 10, seconds: float = 1) -> StreamingResponse:
    async def ticks() -> AsyncIterator[str]:
        for number in range(count):
            yield f"id: {number}\nevent: tick\ndata: {number}\n\n"
            await asyncio.sleep(seconds)

    return StreamingResponse(ticks(), media_type="text/event-stream")
