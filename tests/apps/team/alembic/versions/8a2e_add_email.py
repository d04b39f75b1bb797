"""Add the members' email address."""

import sqlalchemy as sa
from alembic import op

revision = "8a2e"
down_revision = "3f1c"


def upgrade() -> None:
    op.add_column("members", sa.Column("email", sa.String(200)))


def downgrade() -> None:
    op.drop_column("members", "email")
