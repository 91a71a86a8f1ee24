"""
Registry of the vectors that requests can name. Each is a row of the engine's vector bank at its site.

The database says which there are, for all servers of the model: what a request names is looked up there, so that a vector is
found wherever it was uploaded, and gone wherever it was deleted.

A row is free again when nobody refers to its vector any more. Requests refer to those that they move until they have been
answered, so a vector that is deleted meanwhile stays in the engine until then.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from saeclamp.types import StoredVector
from saeclamp.types.interventions import is_vector_name
from saeclamp_saes import Site
from saeclamp_server.database import DatabaseError
from saeclamp_server.errors import (
    InvalidVectorError,
    RequestError,
    UnknownVectorError,
    VectorExistsError,
    VectorNotKeptError,
    VectorsBusyError,
    VectorsFullError,
    VectorsUnavailableError,
)
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.threads import run_computation
from saeclamp_server.vector_names import VECTOR
from saeclamp_server.vectors.folder import VectorFolder
from saeclamp_server.vectors.sites import VectorSite
from saeclamp_server.vectors.store import Refused, VectorStore
from saeclamp_server.vectors.vector_file import SteeringVector, check_name

logger = logging.getLogger("saeclamp.server")

ResultT = TypeVar("ResultT")

WAITS_S = (0.02, 0.1, 0.5)
"""Seconds of the waits before an upload is refused because its site is full."""


@dataclass(frozen=True, eq=False)
class RegisteredVector:
    """A vector that the engine has loaded."""

    name: str
    direction: SteeringVector
    norms: SiteNorms
    """Norms at its site, with its own norm as the one row."""

    @property
    def site(self) -> Site:
        return self.direction.site

    @property
    def sha256(self) -> str:
        return self.direction.sha256

    def score(self, act: float) -> float:
        """Convert the coefficient of the stream's projection to its dot product with the vector, plus the bias."""
        return act * self.direction.norm**2 + (self.direction.bias or 0.0)

    def act_of(self, score: float) -> float:
        """Convert a score to the coefficient of the projection; the inverse of `score`."""
        return (score - (self.direction.bias or 0.0)) / self.direction.norm**2

    def to_wire(self) -> StoredVector:
        """Make the API's `StoredVector`."""
        stream = self.norms.rounded_resid_norm
        return StoredVector(
            name=self.name,
            site=str(self.site),
            layer=self.site.layer,
            sign=self.direction.sign,
            source=self.direction.source,
            bias=self.direction.bias,
            norm=self.direction.norm,
            resid_norm=self.direction.norm / stream if stream else None,
            sha256=f"sha256:{self.sha256}",
        )


class VectorRegistry(Mapping[str, RegisteredVector]):
    """Uploaded vectors by name. Changed by one task at a time, read by all."""

    def __init__(
        self, places: Sequence[VectorSite], norms: Mapping[str, SiteNorms], store: VectorStore, engine: Any
    ) -> None:
        """
        norms:  norms at each site, by the name of its bank
        engine: vLLM's, of which only `collective_rpc` is used
        """
        self.places = {place.site: place for place in places}
        self._norms = norms
        self._store = store
        self._engine = engine
        self._by_name: dict[str, RegisteredVector] = {}
        self._alive = weakref.WeakValueDictionary[tuple[str, str], RegisteredVector]()
        """All vectors that anybody refers to, deleted ones too, by (name, sha256)."""
        self._free = {place.site: deque(range(place.capacity)) for place in places}
        """Free rows of each bank; the one that has been free longest is taken first."""
        self._unfit = set[tuple[str, str]]()
        """Vectors of the database that this server cannot hold, by (name, sha256): they are read and reported once."""
        self._no_room = set[tuple[str, str]]()
        """Those for which there was no room when they were last wanted."""
        self._changing = asyncio.Lock()

    def __getitem__(self, name: str) -> RegisteredVector:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    async def take_over(self, folder: VectorFolder) -> None:
        """Move a folder's vectors into the database. Those that cannot be used are reported and stay where they are."""
        for name, direction in folder.read_all():
            try:
                self._check_fit(direction)
                self._refuse(await self._kept(name, direction), name, direction.site)
                folder.put_away(name)
            except RequestError as exc:
                logger.warning(f"vector {name} is left out: {exc}")
            except OSError as exc:
                logger.warning(f"vector {name} is kept in the database now, but its file cannot be moved away: {exc}")

    async def refresh(self, names: Collection[str] | None = None) -> None:
        """
        Look up in the database what these names mean now, or all names, and load what this server lacks.

        Raises VectorsUnavailableError, and VectorsBusyError or VectorsFullError where a named one has no room. What does
        not fit this server is reported, once, and left out.
        """
        if names is None or names:
            await self._with_patience(self._refresh, names)

    async def _with_patience(self, change: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        """Try again for a moment while rows are taken: a request that is answered lets go of its vectors a little later."""
        for seconds in WAITS_S:
            try:
                return await change(*args)
            except VectorsBusyError:
                # nothing is locked meanwhile: others may need no room
                await asyncio.sleep(seconds)
                gc.collect()  # what ended in an error may be held by its traceback
        return await change(*args)

    async def _refresh(self, names: Collection[str] | None) -> None:
        found: Mapping[str, str] = {}
        if names is not None and all(map(is_vector_name, names)):  # PostgreSQL itself refuses some others
            found = await self._ask(self._store.hashes, names)
        if names is None or len(found) < len(set(names)):
            names, found = None, await self._ask(self._store.hashes, None)  # a refusal lists all that there are
        if self._has(found, names):
            return
        async with self._changing:
            # again, because this server itself may have changed something meanwhile
            hashes = await self._ask(self._store.hashes, names)
            self._drop_gone(hashes, [*self._by_name] if names is None else names)
            if names is None:
                self._unfit &= hashes.items()
            missing = [key for key in hashes.items() if key[0] not in self._by_name and key not in self._unfit]
            if names is not None and missing:  # what others have deleted meanwhile must not take their room
                self._drop_gone(await self._ask(self._store.hashes, None), [*self._by_name])
            for name, sha256 in missing:
                await self._take_in(name, sha256, is_needed=names is not None)

    def _drop_gone(self, hashes: Mapping[str, str], names: Iterable[str]) -> None:
        """Forget those of these names that mean something else now, or nothing."""
        for name in names:
            if name in self._by_name and hashes.get(name) != self._by_name[name].sha256:
                del self._by_name[name]

    async def _take_in(self, name: str, sha256: str, is_needed: bool) -> None:
        """Load a vector of the database. Raises VectorsBusyError and VectorsFullError for one that is needed."""
        key = name, sha256
        try:
            direction = await self._ask(self._store.read, name)
            if direction is None:  # it was deleted a moment ago
                return
            self._check_fit(direction)
            self._by_name[name] = await self._loaded(name, direction)
            self._no_room.discard(key)
        except (VectorsBusyError, VectorsFullError) as exc:
            if is_needed:
                raise
            if key not in self._no_room:
                logger.warning(f"vector {name} is left out: {exc}")
            self._no_room.add(key)
        except InvalidVectorError as exc:
            self._unfit.add(key)
            logger.warning(f"vector {name} is left out: {exc}")

    def _has(self, hashes: Mapping[str, str], names: Collection[str] | None) -> bool:
        """Tell whether all that is kept and fits is loaded, and nothing else is."""
        own = {(name, one.sha256) for name, one in self._by_name.items() if names is None or name in names}
        return own == hashes.items() - self._unfit

    async def upload(self, name: str, data: bytes) -> tuple[RegisteredVector, bool]:
        """
        Take a safetensors file as a vector of that name, and keep it. Raises RequestError.

        returns: the vector, and whether it is new
        """
        check_name(name)
        # in a thread: it may be 4 MB, and all other requests wait for the event loop
        direction = await run_computation(SteeringVector.parse, data)
        self._check_fit(direction)
        await self.refresh([name])
        return await self._with_patience(self._add, name, direction)

    async def _add(self, name: str, direction: SteeringVector) -> tuple[RegisteredVector, bool]:
        async with self._changing:
            if name in self._by_name:
                if self._by_name[name].sha256 != direction.sha256:
                    raise VectorExistsError(name, f"at {self._by_name[name].site}")
                return self._by_name[name], False
            # to the engine first: a vector for which it has no room must not be found by anyone
            vector = await self._loaded(name, direction)
            is_new = await self._kept(name, direction)
            self._refuse(is_new, name, direction.site)
            self._by_name[name] = vector
        return vector, is_new is True

    async def refuse_taken(self, name: str, site: Site) -> None:
        """Raise RequestError for a name that a new vector cannot have, or a site that has no room, as far as is known."""
        check_name(name)
        await self.refresh()
        if name in self._by_name:
            raise VectorExistsError(name, f"at {self._by_name[name].site}")
        if not self._free[site]:
            raise VectorsFullError(str(site), self.places[site].capacity)

    async def delete(self, name: str) -> None:
        """Forget a vector, once the database has, even one that does not fit this server. Raises RequestError."""
        await self.refresh([name])
        async with self._changing:
            is_gone = is_vector_name(name) and await self._ask(self._store.delete, name)
            self._by_name.pop(name, None)  # only now: a vector that could not be deleted would be back at the next look
        if not is_gone:
            raise UnknownVectorError(name, self, "name", status=404)

    def _check_fit(self, direction: SteeringVector) -> None:
        place = self.places.get(direction.site)
        if place is None:
            sites = ", ".join(map(str, self.places)) or "none"
            raise InvalidVectorError(
                f"This server cannot edit {direction.site}; vectors can sit at {sites}. To add a site, serve with "
                f"--vector-site {str(direction.site).replace(' ', '.')}.",
                "metadata.site",
            )
        if len(direction.numbers) != place.width:
            raise InvalidVectorError(
                f"The vector has {len(direction.numbers)} numbers; at {place.site} this model has {place.width}.",
                "body",
            )

    async def _loaded(self, name: str, direction: SteeringVector) -> RegisteredVector:
        """Load a vector into a free row of the engine, unless requests still refer to the very same one."""
        if (alive := self._alive.get((name, direction.sha256))) is not None:
            return alive
        place, free = self.places[direction.site], self._free[direction.site]
        if not free:
            num_named = sum(one.site == direction.site for one in self._by_name.values())
            if num_named < place.capacity:
                raise VectorsBusyError(str(place.site))
            raise VectorsFullError(str(place.site), place.capacity)
        row = free.popleft()
        measured = self._norms[place.bank_name]
        vector = RegisteredVector(
            name, direction, SiteNorms(measured.median_resid_norm, [direction.norm], measured.of_resid)
        )
        # the row is given back even if the call below fails. Not at the interpreter's end, when there is no engine any more
        weakref.finalize(vector, free.append, row).atexit = False
        numbers = direction.signed().numpy().tobytes()
        args = (place.bank_name, row, f"{VECTOR}{name}", direction.sha256, numbers)
        await self._engine.collective_rpc("load_vector", args=args)
        self._alive[name, direction.sha256] = vector
        return vector

    async def _kept(self, name: str, direction: SteeringVector) -> bool | Refused:
        """Keep a vector in the database. Raises VectorNotKeptError."""
        try:
            capacity = self.places[direction.site].capacity
            return await asyncio.to_thread(self._store.create, name, direction, capacity)
        except DatabaseError as exc:
            logger.warning(str(exc))
            message = (
                f"The vector {name!r} could not be kept: the database cannot be used, and the server's log says why."
            )
            raise VectorNotKeptError(message, None) from exc

    def _refuse(self, outcome: bool | Refused, name: str, site: Site) -> None:
        if outcome is Refused.NAME:
            raise VectorExistsError(name, "in the database")
        if outcome is Refused.ROOM:
            raise VectorsFullError(str(site), self.places[site].capacity)

    async def _ask(self, method: Callable[..., ResultT], *args: Any) -> ResultT:
        try:
            return await asyncio.to_thread(method, *args)  # it waits for a disk or a network
        except DatabaseError as exc:
            logger.warning(str(exc))
            raise VectorsUnavailableError from exc
