"""What a tutorial about FastAPI and MySQL ends with."""

import os

import pymysql
from dotenv import load_dotenv
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

load_dotenv()

app = FastAPI(title="Players")


class Player(BaseModel):
    name: str
    team: str


def get_connection():
    return pymysql.connect(
        host=os.getenv("DB_HOST"),
        port=int(os.getenv("DB_PORT", "3306")),
        user=os.getenv("DB_USER"),
        password=os.getenv("DB_PASSWORD"),
        database=os.getenv("DB_DATABASE"),
        cursorclass=pymysql.cursors.DictCursor,
        autocommit=True,
    )


@app.get("/")
def read_root():
    return {"Hello": "MySQL"}


@app.get("/players")
def list_players():
    with get_connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, name, team FROM players ORDER BY id")
        return cursor.fetchall()


@app.get("/players/{player_id}")
def get_player(player_id: int):
    with get_connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, name, team FROM players WHERE id = %s", (player_id,))
        player = cursor.fetchone()
    if player is None:
        raise HTTPException(404, "no such player")
    return player


@app.post("/players", status_code=201)
def create_player(player: Player):
    with get_connection() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO players (name, team) VALUES (%s, %s)", (player.name, player.team))
        return {"id": cursor.lastrowid, "name": player.name, "team": player.team}
