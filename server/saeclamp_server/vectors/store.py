"""Vectors in the database, so that every server of a model has those that any of them was given."""

from __future__ import annotations

import time
from collections.abc import Collection
from enum import Enum
from typing import Any

from sqlalchemy import func, select

from saeclamp_server.database import Alone, Database
from saeclamp_server.database.tables import vectors
from saeclamp_server.vectors.vector_file import SteeringVector


class Refused(Enum):
    """Reasons why a vector was not taken."""

    NAME = "another vector has the name"
    ROOM = "its site holds as many as it can"


class VectorStore:
    """Vectors of one model, by name. All methods raise DatabaseError."""

    def __init__(self, database: Database, model: str) -> None:
        """model: name under which it is served, as variants have it."""
        self._database, self._model = database, model

    def hashes(self, names: Collection[str] | None = None) -> dict[str, str]:
        """Look up the hashes of those of these vectors that exist, or of all, by name and sorted."""
        wanted = vectors.c.model == self._model
        if names is not None:
            wanted &= vectors.c.name.in_(names)
        with self._database.transaction() as connection:
            rows = connection.execute(select(vectors.c.name, vectors.c.sha256).where(wanted))
            return dict(sorted((row.name, row.sha256) for row in rows))  # each database would sort in a way of its own

    def read(self, name: str) -> SteeringVector | None:
        """Read a vector; None where there is none of that name. Raises InvalidVectorError for a damaged one too."""
        with self._database.transaction() as connection:
            file = connection.execute(select(vectors.c.file).where(self._is(name))).scalar()
        return None if file is None else SteeringVector.parse(file)

    def create(self, name: str, direction: SteeringVector, capacity: int) -> bool | Refused:
        """
        Keep a vector; exactly one of several that come at once under one name is kept.

        capacity: vectors that its site can hold
        Returns whether it is new, or why it was refused.
        """
        row = {
            "model": self._model,
            "name": name,
            "sha256": direction.sha256,
            "site": str(direction.site),
            "file": direction.to_bytes(),
            "created": int(time.time()),
        }
        at_site = (vectors.c.model == self._model) & (vectors.c.site == str(direction.site))
        with self._database.transaction(writes=True, alone=Alone.VECTORS) as connection:  # two may want the last place
            kept = connection.execute(select(vectors.c.sha256).where(self._is(name))).scalar()
            if kept is not None:
                return False if kept == direction.sha256 else Refused.NAME
            if connection.execute(select(func.count()).where(at_site)).scalar_one() >= capacity:
                return Refused.ROOM
            connection.execute(vectors.insert().values(row))
        return True

    def delete(self, name: str) -> bool:
        """Delete a vector; tell whether there was one."""
        with self._database.transaction(writes=True) as connection:
            return connection.execute(vectors.delete().where(self._is(name))).rowcount > 0

    def _is(self, name: str) -> Any:
        return (vectors.c.model == self._model) & (vectors.c.name == name)
