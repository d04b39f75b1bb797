"""Users in MySQL, served by FastAPI: the application that Waffle Iron deploys."""
