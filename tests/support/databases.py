"""Databases for tests: a PostgreSQL server of their own, and tables of earlier versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from saeclamp_server.database.connection import MIGRATIONS


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Run a server with its files in a folder; its URL, as SQLAlchemy has it."""
    import pgserver

    server = pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


def emptied(url: str) -> str:
    """Drop all that is in a database of PostgreSQL."""
    with create_engine(url).begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return url


def migrate_down(url: str, revision: str) -> None:
    """Make a database's tables those of an earlier version."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()
