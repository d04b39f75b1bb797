"""A service of one file, without a database."""

import os
from datetime import datetime
from zoneinfo import ZoneInfo

from fastapi import FastAPI

GREETING = os.environ.get("GREETING", "Hello")
TIME_ZONE = ZoneInfo(os.environ.get("TIME_ZONE", "UTC"))

app = FastAPI(title="Clock")


@app.get("/")
async def now() -> dict[str, str]:
    return {"greeting": GREETING, "now": datetime.now(TIME_ZONE).isoformat()}
