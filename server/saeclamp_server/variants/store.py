"""
Variants in a database: SQLite by default, PostgreSQL by URL. Any number of API processes may share one.

When a method that writes has returned, its change is on the disk: SQLite syncs its write-ahead log at every commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from saeclamp_saes.errors import UserError
from saeclamp_saes.io.paths import data_folder
from saeclamp_saes.io.sanitize import first_line
from saeclamp_server.variants.tables import aliases, names, versions
from saeclamp_server.variants.version import VariantVersion

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_S = 30
"""Seconds that a process waits for another one that writes."""
MIGRATION_LOCK = 0x5AEC1A39
"""Number of the PostgreSQL advisory lock that is taken while tables are changed."""
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class StoreError(UserError):
    """The database cannot be used. One sentence for the user."""


def default_url() -> str:
    """Return the URL of the default database. It is not in a cache folder, because variants are the user's own."""
    return f"sqlite:///{data_folder() / 'variants.sqlite3'}"


class AliasInUseError(Exception):
    """The alias belongs to another variant."""


class VariantStore:
    """Versions, names and aliases. All methods raise StoreError."""

    def __init__(self, url: str) -> None:
        """
        Open a database, and bring its tables up to date.

        url: SQLAlchemy's, of SQLite or PostgreSQL
        """
        self._engine = _engine(url)
        with self._transaction(writes=True) as connection:
            _migrate(connection)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def create(self, version: VariantVersion, alias: str | None = None) -> tuple[VariantVersion, bool]:
        """
        Store a version, and let its name mean it. Returns it as it is stored, and whether it is new.

        alias: the name's alias from now on; None leaves it as it is
        Raises AliasInUseError too.
        """
        with self._transaction(writes=True) as connection:
            is_new = self._keep(connection, version)
            self._name(connection, version)
            self._alias(connection, version.base, version.name, alias)
            (kept,) = _versions(connection, version.base, version.name, version.sha256)
        return kept, is_new

    def import_(self, imported: Sequence[VariantVersion], with_aliases: Mapping[tuple[str, str], str]) -> int:
        """
        Store versions from elsewhere, all or none; those that were here stay as they are. Returns how many are new.

        A name comes to mean the last of its versions, as if they had been created one after the other.

        with_aliases: aliases, by base and name
        Raises AliasInUseError too.
        """
        with self._transaction(writes=True) as connection:
            num_new = 0
            for version in imported:
                num_new += self._keep(connection, version)
                self._name(connection, version)
            for (base, name), alias in with_aliases.items():
                self._alias(connection, base, name, alias)
        return num_new

    def find(self, base: str, name: str, sha256: str | None = None) -> VariantVersion | None:
        """Find the version that a name means, or the one whose hash begins with `sha256`; None for none, or several."""
        with self._transaction() as connection:
            if sha256 is None:
                wanted = (names.c.base == base) & (names.c.name == name)
                sha256 = connection.execute(select(names.c.sha256).where(wanted)).scalar()
                if sha256 is None:
                    return None
            found = _versions(connection, base, name, sha256)
        return found[0] if len(found) == 1 else None

    def find_alias(self, alias: str) -> VariantVersion | None:
        """Find the version that an alias's name means."""
        with self._transaction() as connection:
            found = connection.execute(select(aliases.c.base, aliases.c.name).where(aliases.c.alias == alias)).first()
        return self.find(*found) if found is not None else None

    def all_aliases(self) -> dict[tuple[str, str], str]:
        """List all aliases, by base and name."""
        with self._transaction() as connection:
            return {(row.base, row.name): row.alias for row in connection.execute(select(aliases))}

    def current(self) -> list[VariantVersion]:
        """List the version that every name means, sorted by name."""
        joined = versions.join(names, (names.c.sha256 == versions.c.sha256) & _same_name())
        with self._transaction() as connection:
            rows = connection.execute(select(versions).select_from(joined).order_by(versions.c.base, versions.c.name))
            return [_version(row) for row in rows]

    def current_names(self) -> list[tuple[str, str]]:
        """List base and name of all names, sorted."""
        with self._transaction() as connection:
            rows = connection.execute(select(names.c.base, names.c.name).order_by(names.c.base, names.c.name))
            return [(base, name) for base, name in rows]

    def all_versions(self) -> list[VariantVersion]:
        """List every version, sorted by name; per name in the order of creation, with the one that it means at the end."""
        meant = {(version.base, version.name): version.sha256 for version in self.current()}
        with self._transaction() as connection:
            found = [_version(row) for row in connection.execute(select(versions))]
        # an import lets a name mean its last version, so this order keeps what names mean
        return sorted(
            found,
            key=lambda one: (one.base, one.name, meant.get((one.base, one.name)) == one.sha256, one.created),
        )

    def delete(self, base: str, name: str) -> int:
        """Delete a name, its alias and its versions. Returns the number of versions."""
        with self._transaction(writes=True) as connection:
            # in the order of the foreign keys: an alias refers to a name, and a name to a version
            connection.execute(aliases.delete().where((aliases.c.base == base) & (aliases.c.name == name)))
            connection.execute(names.delete().where((names.c.base == base) & (names.c.name == name)))
            gone = versions.delete().where((versions.c.base == base) & (versions.c.name == name))
            return connection.execute(gone).rowcount

    def _keep(self, connection: Connection, version: VariantVersion) -> bool:
        insert = _INSERT[self._engine.dialect.name](versions).values(_row(version)).on_conflict_do_nothing()
        return connection.execute(insert.returning(versions.c.sha256)).first() is not None

    def _name(self, connection: Connection, version: VariantVersion) -> None:
        meant = {"base": version.base, "name": version.name, "sha256": version.sha256}
        insert = _INSERT[self._engine.dialect.name](names).values(meant)
        connection.execute(
            insert.on_conflict_do_update(index_elements=["base", "name"], set_={"sha256": version.sha256})
        )

    def _alias(self, connection: Connection, base: str, name: str, alias: str | None) -> None:
        if alias is None:
            return
        connection.execute(aliases.delete().where((aliases.c.base == base) & (aliases.c.name == name)))
        insert = _INSERT[self._engine.dialect.name](aliases).values({"alias": alias, "base": base, "name": name})
        # not a look before it: two processes may give it to two variants at once
        if connection.execute(insert.on_conflict_do_nothing().returning(aliases.c.alias)).first() is None:
            raise AliasInUseError(alias)

    @contextmanager
    def _transaction(self, writes: bool = False) -> Iterator[Connection]:
        try:
            with (
                self._engine.connect().execution_options(saeclamp_writes=writes) as connection,
                connection.begin(),
            ):
                yield connection
        except SQLAlchemyError as exc:
            reason = getattr(exc, "orig", None) or exc
            raise StoreError(f"The database of variants cannot be used: {first_line(reason)}.") from exc


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in _INSERT:
            raise StoreError(f"Variants are kept in SQLite or PostgreSQL, not in {parsed.get_backend_name()}.")
        if parsed.get_backend_name() == "postgresql":
            # tried before use, because a server drops idle connections
            return create_engine(parsed, pool_pre_ping=True)
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": BUSY_S})
    except (ArgumentError, NoSuchModuleError) as exc:
        raise StoreError(f"{url!r} is no database's URL, such as sqlite:////var/lib/variants.sqlite3: {exc}") from exc
    except ModuleNotFoundError as exc:
        raise StoreError(f"PostgreSQL needs a driver: pip install 'saeclamp[postgres]' ({exc}).") from exc
    except OSError as exc:
        raise StoreError(f"The folder of {url} cannot be made: {exc.strerror}.") from exc
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


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
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
    # two processes may open a new database at once: in SQLite `BEGIN IMMEDIATE` keeps the second one waiting
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise StoreError(f"The database of variants is of a newer version of saeclamp: {exc}.") from exc


def _versions(connection: Connection, base: str, name: str, sha256: str) -> list[VariantVersion]:
    wanted = (versions.c.base == base) & (versions.c.name == name) & versions.c.sha256.startswith(sha256)
    return [_version(row) for row in connection.execute(select(versions).where(wanted))]


def _same_name() -> Any:
    return (names.c.base == versions.c.base) & (names.c.name == versions.c.name)


def _row(version: VariantVersion) -> dict[str, Any]:
    created = version.created or int(time.time())
    return {
        "base": version.base,
        "name": version.name,
        "sha256": version.sha256,
        "steering": version.steering,
        "description": version.description,
        "meaning": version.meaning,
        "created": created,
    }


def _version(row: Any) -> VariantVersion:
    values = dict(row._mapping)
    del values["sha256"]
    return VariantVersion(**values)
