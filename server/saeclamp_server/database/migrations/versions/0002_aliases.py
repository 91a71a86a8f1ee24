"""Names without a colon, for clients that take a name apart at its last one."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "saeclamp_variant_aliases",
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("base", sa.String(256), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.UniqueConstraint("base", "name", name="one_alias_each"),
        sa.ForeignKeyConstraint(
            ["base", "name"],
            [f"saeclamp_variant_names.{column}" for column in ("base", "name")],
            name="is_of_a_name",
        ),
    )


def downgrade() -> None:
    """Drop the table, and all aliases."""
    op.drop_table("saeclamp_variant_aliases")
