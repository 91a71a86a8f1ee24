"""Versions of variants, and which of them each name means."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "saeclamp_variant_versions",
        sa.Column("base", sa.String(256), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("steering", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("meaning", sa.String(71), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "saeclamp_variant_names",
        sa.Column("base", sa.String(256), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["base", "name", "sha256"],
            [f"saeclamp_variant_versions.{column}" for column in ("base", "name", "sha256")],
            name="names_a_version",
        ),
    )


def downgrade() -> None:
    """Drop the tables, and all variants."""
    op.drop_table("saeclamp_variant_names")
    op.drop_table("saeclamp_variant_versions")
