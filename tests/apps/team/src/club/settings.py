"""Settings from the environment, or from `.env`."""

from functools import lru_cache

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    database_url: str
    database_tls_ca: str = ""
    allowed_hosts: list[str] = ["localhost"]
    https_redirect: bool = False
    letter_seconds: float = 8


@lru_cache
def get_settings() -> Settings:
    return Settings()
