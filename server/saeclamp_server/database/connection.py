"""
A database: SQLite by default, PostgreSQL by URL. Any number of API processes may share one.

When a transaction that writes has ended, its change is on the disk: SQLite syncs its write-ahead log at every commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, NoSuchModuleError, SQLAlchemyError

from saeclamp_saes.errors import UserError
from saeclamp_saes.io.paths import data_folder
from saeclamp_saes.io.sanitize import first_line
from saeclamp_server.database.deadlines import ConnectionDeadlines

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_S = 30
"""Seconds that a process waits for another one that writes."""
WAITS = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
"""Settings of libpq, unless the URL says otherwise (s, ms): a host that is gone would hold up requests for minutes."""
POOL = {"pool_size": 2, "max_overflow": 2}
"""Connections that a server keeps to PostgreSQL, and how many more it opens while those are busy: by default PostgreSQL has
100 for all servers, and an answer needs one for a millisecond."""
ANSWER_S, START_S = 5, 300
"""Seconds that a transaction may take, and one of a server that starts: beyond them its connection is cut."""
IDLE_S = 10
"""Seconds after which PostgreSQL ends a transaction that holds a lock and does nothing: its server may be frozen."""


class Alone(IntEnum):
    """Numbers of the PostgreSQL advisory locks under which is done what must not be done by two at once."""

    START = 0x5AEC1A39
    """Changing tables, and entering a fleet."""
    NAMES = 0x5AEC1A3A
    """Changing variants: a name must be no other's alias, which no constraint can say."""
    VECTORS = 0x5AEC1A3B


_DEADLINES = ConnectionDeadlines()
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class DatabaseError(UserError):
    """The database cannot be used. One sentence for the user."""


def default_url() -> str:
    """Return the URL of the default database. It is not in a cache folder, because what is in it is the user's own."""
    return f"sqlite:///{data_folder() / 'variants.sqlite3'}"


class Database:
    """An open database, whose tables are up to date. All methods raise DatabaseError."""

    def __init__(self, url: str, answer_s: float = ANSWER_S, is_migrated: bool = True) -> None:
        """
        Open a database, and bring its tables up to date.

        url:      SQLAlchemy's, of SQLite or PostgreSQL
        answer_s: seconds that PostgreSQL may take for a transaction
        is_migrated: False to leave the tables as they are, or are not
        """
        self._engine = _engine(url, answer_s)
        self.is_away = False
        """True while it is known not to answer: then nobody waits to be told so. Set by `DatabaseWatch`."""
        if not is_migrated:
            return
        with self.transaction(writes=True, alone=Alone.START) as connection:  # two may open a new database at once
            _migrate(connection)

    @property
    def is_shared(self) -> bool:
        """True if servers on other machines can use it too: SQLite is a file of this one."""
        return self._engine.dialect.name == "postgresql"

    @property
    def has_tables(self) -> bool:
        """True if a server has made its tables."""
        with self.transaction() as connection:
            return bool(inspect(connection).has_table("saeclamp_fleets"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def insert(self, table: Any) -> Any:
        """Begin an `INSERT` that can say what is to be done on a conflict."""
        return _INSERT[self._engine.dialect.name](table)

    @contextmanager
    def transaction(self, writes: bool = False, alone: Alone | None = None) -> Iterator[Connection]:
        """
        Run statements, all or none.

        alone: what no two processes may do at once. In SQLite no two write at once
        """
        if self.is_away:
            raise DatabaseError("The database of variants and vectors does not answer.")
        try:
            with (
                self._engine.connect().execution_options(saeclamp_writes=writes) as connection,
                connection.begin(),
            ):
                if alone is not None and self.is_shared:
                    if alone is Alone.START:  # it may have to wait for all others
                        _DEADLINES.begin(connection.connection.dbapi_connection, START_S)
                    # one statement: whoever is frozen behind it is ended by PostgreSQL, and holds up nobody for long
                    idle = f"set_config('idle_in_transaction_session_timeout', '{IDLE_S}s', true)"
                    connection.execute(text(f"SELECT {idle}, pg_advisory_xact_lock({alone.value})"))
                yield connection
        except SQLAlchemyError as exc:
            reason = getattr(exc, "orig", None) or exc
            raise DatabaseError(f"The database of variants and vectors cannot be used: {first_line(reason)}.") from exc

    def check(self) -> None:
        """Ask the database for nothing, to see that it answers, even where it is known not to."""
        try:
            with self._engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError as exc:
            reason = getattr(exc, "orig", None) or exc
            raise DatabaseError(f"The database of variants and vectors cannot be used: {first_line(reason)}.") from exc


def _engine(url: str, answer_s: float) -> Engine:
    try:
        parsed = _with_driver(make_url(url))
        kind = parsed.get_backend_name()
        if kind not in _INSERT:
            raise DatabaseError(f"Variants and vectors are kept in SQLite or PostgreSQL, not in {kind}.")
        if kind == "postgresql":
            settings: dict[str, Any] = {name: value for name, value in WAITS.items() if name not in parsed.query}
            if parsed.get_dialect().driver == "psycopg":
                # a pooler such as PgBouncer gives each transaction another connection, which knows no prepared statement
                settings["prepare_threshold"] = None
            engine = create_engine(parsed, connect_args=settings, pool_timeout=answer_s, **POOL)
            _limit_waits(engine, answer_s)
            return engine
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": BUSY_S})
    except (ArgumentError, NoSuchModuleError) as exc:
        raise DatabaseError(
            f"{url!r} is no database's URL, such as sqlite:////var/lib/variants.sqlite3: {exc}"
        ) from exc
    except ModuleNotFoundError as exc:
        raise DatabaseError(f"PostgreSQL needs a driver: pip install 'saeclamp[postgres]' ({exc}).") from exc
    except OSError as exc:
        raise DatabaseError(f"The folder of {url} cannot be made: {exc.strerror}.") from exc
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _with_driver(url: URL) -> URL:
    """Name our driver where the URL names none, `postgres://` as clouds write it among them."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _limit_waits(engine: Engine, answer_s: float) -> None:
    """Give each use of a connection its deadline, from the first word on."""

    def checkout(connection: Any, record: Any, proxy: Any) -> None:
        _DEADLINES.begin(connection, answer_s)
        try:
            # tried before use, because a server drops idle connections. `pool_pre_ping` would come before the deadline
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as exc:
            _DEADLINES.end(connection)
            raise DisconnectionError(str(exc)) from exc

    event.listen(engine, "checkout", checkout)
    event.listen(engine, "checkin", lambda connection, record: _DEADLINES.end(connection))


def _set_up(connection: Any, record: Any) -> None:
    """Set up a connection to SQLite: readers beside a writer, and commits that are on the disk."""
    connection.isolation_level = None  # sqlite3 itself begins no transaction then: `_begin` does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Begin a transaction. SQLite refuses a reader that becomes a writer if another has written, so writers lock at once."""
    writes = connection.get_execution_options().get("saeclamp_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise DatabaseError(f"The database of variants and vectors is of a newer version of saeclamp: {exc}.") from exc
