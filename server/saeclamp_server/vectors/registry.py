"""
Registry of the vectors that requests can name. Each is a row of the engine's vector bank at its site.

A row is free again when nobody refers to its vector any more. Requests refer to those that they move until they have been
answered, so a vector that is deleted meanwhile stays in the engine until then.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeclamp.types import StoredVector
from saeclamp_saes import Site
from saeclamp_server.errors import (
    InvalidVectorError,
    RequestError,
    UnknownVectorError,
    VectorExistsError,
    VectorNotKeptError,
    VectorsFullError,
)
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.threads import run_computation
from saeclamp_server.vector_names import VECTOR
from saeclamp_server.vectors.sites import VectorSite
from saeclamp_server.vectors.storage import VectorStorage, check_name
from saeclamp_server.vectors.vector_file import SteeringVector

logger = logging.getLogger("saeclamp.server")

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

    def to_wire(self) -> StoredVector:
        """Make the API's `StoredVector`."""
        stream = self.norms.rounded_resid_norm
        return StoredVector(
            name=self.name,
            site=str(self.site),
            layer=self.site.layer,
            sign=self.direction.sign,
            source=self.direction.source,
            norm=self.direction.norm,
            resid_norm=self.direction.norm / stream if stream else None,
            sha256=f"sha256:{self.sha256}",
        )


class VectorRegistry(Mapping[str, RegisteredVector]):
    """Uploaded vectors by name. Changed by one task at a time, read by all."""

    def __init__(
        self, places: Sequence[VectorSite], norms: Mapping[str, SiteNorms], folder: VectorStorage, engine: Any
    ) -> None:
        """
        norms:  norms at each site, by the name of its bank
        engine: vLLM's, of which only `collective_rpc` is used
        """
        self.places = {place.site: place for place in places}
        self._norms = norms
        self._folder = folder
        self._engine = engine
        self._by_name: dict[str, RegisteredVector] = {}
        self._alive = weakref.WeakValueDictionary[tuple[str, str], RegisteredVector]()
        """All vectors that anybody refers to, deleted ones too, by (name, sha256)."""
        self._free = {place.site: deque(range(place.capacity)) for place in places}
        """Free rows of each bank; the one that has been free longest is taken first."""
        self._changing = asyncio.Lock()

    def __getitem__(self, name: str) -> RegisteredVector:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    async def load(self) -> None:
        """Load the folder's vectors. Those that cannot be used are reported and left out."""
        for name, direction in self._folder.read_all():
            try:
                self._check_fit(direction)
                self._by_name[name] = await self._loaded(name, direction)
            except RequestError as exc:
                logger.warning(f"vector {name} is left out: {exc}")

    async def upload(self, name: str, data: bytes) -> tuple[RegisteredVector, bool]:
        """
        Take a safetensors file as a vector of that name, and keep it. Raises RequestError.

        returns: the vector, and whether it is new
        """
        check_name(name)
        # in a thread: it may be 4 MB, and all other requests wait for the event loop
        direction = await run_computation(SteeringVector.parse, data)
        self._check_fit(direction)
        async with self._changing:
            if name in self._by_name:
                if self._by_name[name].sha256 != direction.sha256:
                    raise VectorExistsError(name, f"at {self._by_name[name].site}")
                return self._by_name[name], False
            await self._wait_for_room(direction.site)
            # to the engine first: a vector for which it has no room must not be found in the folder at the next start
            vector = await self._loaded(name, direction)
            await _on_disk(name, self._folder.keep, name, direction)
            self._by_name[name] = vector
        return vector, True

    def refuse_taken(self, name: str, site: Site) -> None:
        """Raise RequestError for a name that a new vector cannot have, or a site that has no room, as far as is known."""
        check_name(name)
        if name in self._by_name:
            raise VectorExistsError(name, f"at {self._by_name[name].site}")
        if not self._free[site]:
            raise VectorsFullError(str(site), self.places[site].capacity)

    async def delete(self, name: str) -> None:
        """Forget a vector, once its file is gone. Raises RequestError."""
        async with self._changing:
            if name not in self._by_name:
                raise UnknownVectorError(name, self, "name", status=404)
            # the file first: a vector that could not be removed would be back at the next start
            await _on_disk(name, self._folder.remove, name)
            del self._by_name[name]

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

    async def _wait_for_room(self, site: Site) -> None:
        """Wait a moment if all rows are taken: a request that has been answered lets go of its vectors a little later."""
        for seconds in WAITS_S:
            if self._free[site]:
                return
            await asyncio.sleep(seconds)
            gc.collect()  # what ended in an error may be held by its traceback

    async def _loaded(self, name: str, direction: SteeringVector) -> RegisteredVector:
        """Load a vector into a free row of the engine, unless requests still refer to the very same one."""
        if (alive := self._alive.get((name, direction.sha256))) is not None:
            return alive
        place, free = self.places[direction.site], self._free[direction.site]
        if not free:
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


async def _on_disk(name: str, change: Callable[..., None], *args: Any) -> None:
    """Change the folder, in a thread, because it waits for the disk. Raises RequestError."""
    try:
        await asyncio.to_thread(change, *args)
    except OSError as exc:
        raise VectorNotKeptError(f"The folder of vectors could not be written for {name!r}: {exc}.", None) from exc
