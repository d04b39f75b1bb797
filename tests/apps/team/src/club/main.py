"""The application."""

from fastapi import FastAPI
from fastapi.middleware.httpsredirect import HTTPSRedirectMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from sqlalchemy import text

from club import desk, live, members
from club.database import engine
from club.settings import get_settings

settings = get_settings()
app = FastAPI(title="Club", docs_url="/api/v1/docs", openapi_url="/api/v1/openapi.json")
app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts)
if settings.https_redirect:
    app.add_middleware(HTTPSRedirectMiddleware)
for module in (members, live, desk):
    app.include_router(module.router, prefix="/api/v1")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return {"status": "ok"}
