"""Databases for tests: a PostgreSQL server of their own, and tables of earlier versions."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, make_url, text
from tests.support.serving import wait_until

from saeclamp_server.database.connection import MIGRATIONS

PGBOUNCER = """\
[databases]
* = host={host} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 20000
default_pool_size = {connections}
"""


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Run a server with its files in a folder; its URL, as SQLAlchemy has it."""
    import pgserver

    server = pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


@contextmanager
def pgbouncer(url: str, folder: Path, connections: int) -> Iterator[str]:
    """Run PgBouncer before a server of `postgresql`, with so many connections to it, each for a transaction; its URL."""
    target = make_url(url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        PGBOUNCER.format(host=target.query["host"], user=target.username, port=port, connections=connections)
    )
    # it does not run as root, and only their owner may use PostgreSQL's files
    user = ["-u", Path(str(target.query["host"])).owner()] if os.geteuid() == 0 else []
    program = shutil.which("pgbouncer")
    assert program is not None, "apt-get install pgbouncer"
    with (folder / "pgbouncer.log").open("w") as log:
        process = subprocess.Popen([program, *user, str(settings)], stdout=log, stderr=log)
    try:
        assert wait_until(lambda: _listens(port), 10), (folder / "pgbouncer.log").read_text()
        yield f"postgresql+psycopg://{target.username}@127.0.0.1:{port}/{target.database}"
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


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
