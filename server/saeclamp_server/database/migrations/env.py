"""Run by Alembic; the connection, and the transaction around it, are the store's."""

from alembic import context

from saeclamp_server.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="saeclamp_variant_schema",
)
context.run_migrations()
