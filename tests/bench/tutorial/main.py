"""The program that a tutorial ends with: one connection for each request. What `GET /users` is held against."""
# mypy: ignore-errors
# FastAPI is installed where this runs, in the application's environment, not where it is checked.

import os
import ssl

import pymysql
from dotenv import load_dotenv
from fastapi import FastAPI

load_dotenv()
tls = {"ssl_ca": os.environ["DATABASE_TLS_CA"], "ssl_verify_identity": True}
if os.environ.get("TLS_ONCE"):  # else PyMySQL reads all authorities for each connection
    tls = {"ssl": ssl.create_default_context(cafile=os.environ["DATABASE_TLS_CA"])}
app = FastAPI()


def get_connection() -> pymysql.Connection:
    """Connect as `.env` says."""
    return pymysql.connect(
        host=os.environ["DATABASE_HOST"],
        port=int(os.environ["DATABASE_PORT"]),
        user=os.environ["DATABASE_USER"],
        password=os.environ["DATABASE_PASSWORD"],
        database=os.environ["DATABASE_NAME"],
        cursorclass=pymysql.cursors.DictCursor,
        **tls,
    )


@app.get("/")
def read_root() -> dict[str, str]:
    """Greet."""
    return {"Hello": "MySQL"}


@app.get("/users")
def get_users() -> list[dict[str, object]]:
    """List the users."""
    connection = get_connection()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT id, name, email FROM users")
            return cursor.fetchall()
    finally:
        connection.close()
