"""Merge the email address and the letters."""

revision = "c950"
down_revision = ("8a2e", "b71d")


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
