"""What a server starts: `uvicorn nba.main:app --reload` on a laptop, `gunicorn -k asgi nba.main:app` elsewhere."""

from nba.application import create_app
from nba.logs import configure_logging
from nba.settings import load_or_exit

# gunicorn takes this exit code of a worker as final; after any other it starts workers for ever.
GUNICORN_BOOT_ERROR = 3

settings = load_or_exit(GUNICORN_BOOT_ERROR)
configure_logging(settings.log_level)
app = create_app(settings)
