"""Variants in the database: versions, what each name means, and aliases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, select

from saeclamp_server.database import Alone, Database
from saeclamp_server.database.tables import aliases, names, versions
from saeclamp_server.variants.names import NamesInUse
from saeclamp_server.variants.version import VariantVersion

Check: TypeAlias = Callable[[NamesInUse], None]
"""Refuses a change, by an exception of its own, or does not."""


class AliasInUseError(Exception):
    """The alias belongs to another variant."""


class VariantStore:
    """Versions, names and aliases. All methods raise DatabaseError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, version: VariantVersion, alias: str | None = None, check: Check | None = None
    ) -> tuple[VariantVersion, bool]:
        """
        Store a version, and let its name mean it. Returns it as it is stored, and whether it is new.

        alias: the name's alias from now on; None leaves it as it is
        check: as in `import_`
        Raises AliasInUseError too.
        """
        with self._changing(check) as connection:
            is_new = self._keep(connection, version)
            self._name(connection, version)
            self._alias(connection, version.base, version.name, alias)
            (kept,) = _versions(connection, version.base, version.name, version.sha256)
        return kept, is_new

    def import_(
        self,
        imported: Sequence[VariantVersion],
        with_aliases: Mapping[tuple[str, str], str],
        check: Check | None = None,
    ) -> int:
        """
        Store versions from elsewhere, all or none; those that were here stay as they are. Returns how many are new.

        A name comes to mean the last of its versions, as if they had been created one after the other.

        with_aliases: aliases, by base and name
        check:        called with all names while nobody else changes them
        Raises AliasInUseError too.
        """
        with self._changing(check) as connection:
            num_new = 0
            for version in imported:
                num_new += self._keep(connection, version)
                self._name(connection, version)
            for (base, name), alias in with_aliases.items():
                self._alias(connection, base, name, alias)
        return num_new

    def find(self, base: str, name: str, sha256: str | None = None) -> VariantVersion | None:
        """Find the version that a name means, or the one whose hash begins with `sha256`; None for none, or several."""
        if sha256 is None:
            return self._find((names.c.base == base) & (names.c.name == name))
        with self._database.transaction() as connection:
            found = _versions(connection, base, name, sha256)
        return found[0] if len(found) == 1 else None

    def find_alias(self, alias: str) -> VariantVersion | None:
        """Find the version that an alias's name means."""
        named = (aliases.c.base == names.c.base) & (aliases.c.name == names.c.name)
        return self._find((aliases.c.alias == alias) & named)

    def all_aliases(self) -> dict[tuple[str, str], str]:
        """List all aliases, by base and name."""
        with self._database.transaction() as connection:
            return {(row.base, row.name): row.alias for row in connection.execute(select(aliases))}

    def current(self) -> list[VariantVersion]:
        """List the version that every name means, sorted by name."""
        with self._database.transaction() as connection:
            found = [_version(row) for row in connection.execute(select(versions).where(_is_meant()))]
        return sorted(found, key=lambda one: (one.base, one.name))  # each database would sort in a way of its own

    def current_names(self) -> list[tuple[str, str]]:
        """List base and name of all names, sorted."""
        with self._database.transaction() as connection:
            return sorted((base, name) for base, name in connection.execute(select(names.c.base, names.c.name)))

    def all_versions(self) -> list[VariantVersion]:
        """List every version, sorted by name; per name in the order of creation, with the one that it means at the end."""
        meant = {(version.base, version.name): version.sha256 for version in self.current()}
        with self._database.transaction() as connection:
            found = [_version(row) for row in connection.execute(select(versions))]
        # an import lets a name mean its last version, so this order keeps what names mean
        return sorted(
            found,
            key=lambda one: (
                one.base,
                one.name,
                meant.get((one.base, one.name)) == one.sha256,
                one.created,
                one.sha256,
            ),
        )

    def delete(self, base: str, name: str) -> int:
        """Delete a name, its alias and its versions. Returns the number of versions."""
        with self._changing() as connection:
            # in the order of the foreign keys: an alias refers to a name, and a name to a version
            connection.execute(aliases.delete().where((aliases.c.base == base) & (aliases.c.name == name)))
            connection.execute(names.delete().where((names.c.base == base) & (names.c.name == name)))
            gone = versions.delete().where((versions.c.base == base) & (versions.c.name == name))
            return connection.execute(gone).rowcount

    @contextmanager
    def _changing(self, check: Check | None = None) -> Iterator[Connection]:
        # one after the other: what is checked must hold still, and foreign keys and deadlocks are no business of clients
        with self._database.transaction(writes=True, alone=Alone.NAMES) as connection:
            if check is not None:
                taken = {(row.base, row.name): row.alias for row in connection.execute(select(aliases))}
                of_all = connection.execute(select(names.c.base, names.c.name))
                check(NamesInUse([(base, name) for base, name in of_all], taken))
            yield connection

    def _find(self, wanted: ColumnElement[bool]) -> VariantVersion | None:
        # one statement: every request that names a variant asks, and a fleet's database is asked by all of its servers
        with self._database.transaction() as connection:
            row = connection.execute(select(versions).where(wanted & _is_meant())).first()
        return _version(row) if row is not None else None

    def _keep(self, connection: Connection, version: VariantVersion) -> bool:
        insert = self._database.insert(versions).values(_row(version)).on_conflict_do_nothing()
        return connection.execute(insert.returning(versions.c.sha256)).first() is not None

    def _name(self, connection: Connection, version: VariantVersion) -> None:
        meant = {"base": version.base, "name": version.name, "sha256": version.sha256}
        insert = self._database.insert(names).values(meant)
        connection.execute(
            insert.on_conflict_do_update(index_elements=["base", "name"], set_={"sha256": version.sha256})
        )

    def _alias(self, connection: Connection, base: str, name: str, alias: str | None) -> None:
        if alias is None:
            return
        connection.execute(aliases.delete().where((aliases.c.base == base) & (aliases.c.name == name)))
        insert = self._database.insert(aliases).values({"alias": alias, "base": base, "name": name})
        # not a look before it: two processes may give it to two variants at once
        if connection.execute(insert.on_conflict_do_nothing().returning(aliases.c.alias)).first() is None:
            raise AliasInUseError(alias)


def _versions(connection: Connection, base: str, name: str, sha256: str) -> list[VariantVersion]:
    wanted = (versions.c.base == base) & (versions.c.name == name) & versions.c.sha256.startswith(sha256)
    return [_version(row) for row in connection.execute(select(versions).where(wanted))]


def _is_meant() -> ColumnElement[bool]:
    """Join the versions that names mean with the names."""
    same_name = (names.c.base == versions.c.base) & (names.c.name == versions.c.name)
    return same_name & (names.c.sha256 == versions.c.sha256)


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
