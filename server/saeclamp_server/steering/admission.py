"""
Admission of requests by the number of distinct features in use: those that would exceed it wait, in the order they came.

A request counts for the features it moves, compares or reads by name; those that several requests share count once. What is
in use when it begins stays so until it has been answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from time import perf_counter
from typing import TypeAlias

from saeclamp_server.errors import BusyError, InvalidSteeringError
from saeclamp_server.steering.program import SteeringProgram

Feature: TypeAlias = tuple[str, int]
"""(SAE, index)"""


class Admission:
    """Counts the features in use, and lets requests in. For one event loop."""

    def __init__(
        self, capacity: int, max_waiting: int, observe_wait: Callable[[float], None] = lambda seconds: None
    ) -> None:
        """
        capacity:     distinct features in use at once
        max_waiting:  requests that may wait; beyond these they are refused
        observe_wait: called with the seconds that each admitted request has waited
        """
        self._capacity, self._max_waiting, self._observe_wait = capacity, max_waiting, observe_wait
        self._in_use: Counter[Feature] = Counter()
        self._waiting: deque[tuple[frozenset[Feature], asyncio.Future[None]]] = deque()

    @property
    def num_in_use(self) -> int:
        """Number of distinct features that requests in flight use."""
        return len(self._in_use)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def acquire(self, features: frozenset[Feature]) -> None:
        """
        Wait until there is room for a request's features, and count them in. The caller must `release` them.

        Raises InvalidSteeringError for more than there ever is room for, BusyError where too many wait.
        """
        if len(features) > self._capacity:
            raise InvalidSteeringError(
                f"This request uses {len(features)} features; this server allows {self._capacity} at once.", "steering"
            )
        started = perf_counter()
        # behind those that wait, also where this one would fit: small requests would keep a large one waiting for ever
        if self._waiting or not self._fits(features):
            if len(self._waiting) >= self._max_waiting:
                raise BusyError(len(self._waiting), self._capacity)
            await self._wait(features)
        else:
            self._in_use.update(features)
        self._observe_wait(perf_counter() - started)

    def release(self, features: frozenset[Feature]) -> None:
        """Count a request's features out, and let in waiting requests that fit now."""
        self._in_use -= Counter(features)
        self._let_in()

    async def _wait(self, features: frozenset[Feature]) -> None:
        turn = asyncio.get_running_loop().create_future()
        entry = (features, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._let_in()  # those behind it may fit
            # it was let in, and cancelled before it ran again
            elif turn.done() and not turn.cancelled():
                self.release(features)
            raise

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            features, turn = self._waiting.popleft()
            self._in_use.update(features)
            turn.set_result(None)

    def _fits(self, features: frozenset[Feature]) -> bool:
        return len(self._in_use) + len(features - self._in_use.keys()) <= self._capacity


def requested_features(program: SteeringProgram) -> frozenset[Feature]:
    """Collect the features that a program moves, compares or reads by name."""
    moved = {(edit.sae, edit.index) for edit in program.edits}
    compared = {(comparison.sae, comparison.index) for rule in program.rules for comparison in rule.comparisons}
    return frozenset(moved | compared | set(program.readout.features if program.readout else ()))
