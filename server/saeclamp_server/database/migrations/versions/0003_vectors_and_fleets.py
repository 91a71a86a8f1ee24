"""Uploaded vectors, which lay in a folder of one machine, and fleets of servers that answer as one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "saeclamp_vectors",
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("file", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "saeclamp_fleets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("lengths", sa.Text, nullable=False),
        sa.Column("is_ready", sa.Boolean, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables, with all vectors and fleets."""
    op.drop_table("saeclamp_fleets")
    op.drop_table("saeclamp_vectors")
