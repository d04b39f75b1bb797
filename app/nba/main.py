"""What a server starts: `uvicorn nba.main:app --reload` on a laptop."""

from nba.application import create_app
from nba.logs import configure_logging
from nba.settings import load_or_exit

settings = load_or_exit()
configure_logging(settings.log_level)
app = create_app(settings)
