"""
Worker process: the steered requests that an engine is running, each with its compiled program and its number in the tables,
and the reports on those that have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.device_copies import Fetch
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache
from saeclamp_server.engine.worker.program_layout import FEATURE, WEIGHTS
from saeclamp_server.engine.worker.program_tables import Counters, ProgramTables
from saeclamp_server.engine.worker.steering_report import EndedRequest, SteeringReport, UncollectedReports
from saeclamp_server.steering.program import SteeringProgram
from saeclamp_server.steering.token_ranges import TokenRanges, resolve_ranges

UNCOLLECTED_BYTES = 32 << 20
"""Memory that reports on ended requests may take together until they are fetched; then the oldest are dropped."""
MAX_ABANDONED = 1 << 12
"""Abandoned API calls that are remembered until their requests end here; more than may be running."""


@dataclass
class SteeredRequest:
    """A request that has been registered."""

    key: str
    program: CompiledProgram
    prompt: list[int | None]
    """Per edit: prompt positions in its token ranges; None for a rule's edit, which is counted on the device."""
    number: int | None
    """Number of its program in the tables; None while it is preempted."""
    counters: Counters | None = None
    """Its counters while it is preempted, on the device."""


class RequestStates:
    """
    The steered requests, by vLLM's request id.

    A request is registered when the worker first sees it. One that cannot be registered is remembered as failed; the
    scheduler then stops it, and its report carries the reason.
    """

    def __init__(
        self,
        loaded: Mapping[str, LoadedWeights],
        special_ids: Sequence[int],
        tables: ProgramTables,
        row_caches: Mapping[int, FeatureRowCache] | None = None,
        uncollected_bytes: int = UNCOLLECTED_BYTES,
    ) -> None:
        """row_caches: by the number of the SAE"""
        self._loaded, self._row_caches = loaded, row_caches or {}
        self._special_ids = np.array(sorted(special_ids), np.int64)
        self._tables = tables
        self._requests: dict[str, SteeredRequest] = {}
        self._ended = UncollectedReports(uncollected_bytes)
        self._abandoned: dict[str, None] = {}
        """Keys of abandoned API calls, the oldest first."""
        self.failures: dict[str, tuple[str, str]] = {}
        """(key of the API call, reason), by id of failed requests that vLLM has not ended yet."""
        self.version = 0
        """Raised whenever a request gets a number in the tables, or loses it, or fails."""

    def admit(self, request_id: str, payload: Mapping[str, Any], prompt_ids: Sequence[int]) -> SteeredRequest | None:
        """
        Return a request that runs, with its number in the tables; None when it has failed.

        payload: the request's value under `EXTRA_ARGS_KEY`: the key of its API call, and its program
        """
        request = self._requests.get(request_id)
        if request_id in self.failures and (request is None or request.number is None):
            return None
        try:
            return self._admit(request_id, payload, prompt_ids)
        except Exception as exc:  # noqa: BLE001 (the boundary of one request: its neighbours in the batch must go on)
            self.failures[request_id] = (str(payload.get("key")), f"{type(exc).__name__}: {exc}")
            return None

    def _admit(self, request_id: str, payload: Mapping[str, Any], prompt_ids: Sequence[int]) -> SteeredRequest:
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = self._register(payload, prompt_ids)
        elif request.number is None:  # it comes back after a preemption
            assert request.counters is not None
            request.number = self._enter(request.program)
            self._tables.restore(request.number, request.counters)
            request.counters = None
        return request

    def _register(self, payload: Mapping[str, Any], prompt_ids: Sequence[int]) -> SteeredRequest:
        program = SteeringProgram.from_json(payload["program"])
        compiled = CompiledProgram.compile(program, self._loaded, len(prompt_ids))
        ordinary = ~np.isin(np.asarray(prompt_ids, np.int64), self._special_ids)
        ordinary[:1] = False  # position 0 is an attention sink, and treated as a special token
        prompt = [_count(ordinary | edit.special, edit.tokens) if edit.rule is None else None for edit in program.edits]
        return SteeredRequest(payload["key"], compiled, prompt, self._enter(compiled))

    def _enter(self, program: CompiledProgram) -> int:
        """Write a program into the tables, with the rows of its features where there is a row cache."""
        features = [rows.ints[:, FEATURE].astype(np.int64) for rows in (program.edits, program.reads)]
        for number, cached in self._cached_features(program):
            in_cache = dict(zip(cached.tolist(), self._row_caches[number].acquire(cached).tolist(), strict=True))
            for rows, column in zip((program.edits, program.reads), features, strict=True):
                mine = rows.ints[:, WEIGHTS] == number
                column[mine] = [in_cache[feature] for feature in rows.ints[mine, FEATURE].tolist()]
        try:
            entered = self._tables.add(program, features)
        except BaseException:
            self._release_rows(program)
            raise
        self.version += 1
        return entered

    def _leave(self, requests: Sequence[SteeredRequest]) -> Counters:
        """Take programs out of the tables; returns their counters, (num_requests, ...), on the device."""
        numbers = []
        for request in requests:
            assert request.number is not None, "it runs"
            numbers.append(request.number)
            self._release_rows(request.program)
            request.number = None
        self.version += 1
        return self._tables.remove(numbers)

    def _release_rows(self, program: CompiledProgram) -> None:
        for number, features in self._cached_features(program):
            self._row_caches[number].release(features)

    def _cached_features(self, program: CompiledProgram) -> list[tuple[int, NDArray[np.int64]]]:
        """List the distinct features of a program, by SAE that has a row cache."""
        ints = np.concatenate((program.edits.ints, program.reads.ints))
        return [
            (number, np.unique(ints[ints[:, WEIGHTS] == number, FEATURE]).astype(np.int64))
            for number in self._row_caches
            if (ints[:, WEIGHTS] == number).any()
        ]

    def preempt(self, request_ids: Iterable[str]) -> None:
        """Give the numbers of preempted requests to others; their counters are kept until they come back."""
        known = [
            self._requests[request_id] for request_id in dict.fromkeys(request_ids) if request_id in self._requests
        ]
        running = [request for request in known if request.number is not None]
        if running:
            counters = self._leave(running)
            for nth, request in enumerate(running):
                request.counters = Counters._make(tensor[nth] for tensor in counters)

    def key(self, request_id: str) -> str | None:
        """Return the API call's key of a request that has been registered; None for others."""
        request = self._requests.get(request_id)
        return request.key if request else None

    def fail(self, request_id: str, key: str, reason: str) -> None:
        """
        Remember that a step has failed a request, which the scheduler ends.

        A step of it that is on its way is steered as before: all pipeline stages must map it alike, and one knows of this.
        It fails too, and the first reason stays.
        """
        self.failures.setdefault(request_id, (key, reason))
        self.version += 1  # the coming steps tell the scheduler, until it has ended the request

    def collect(self, keys: Iterable[str]) -> dict[str, dict[str, SteeringReport]]:
        """Return, and drop, the reports on all requests of some API calls, by key and request id."""
        reports: dict[str, dict[str, SteeringReport]] = {key: {} for key in keys}
        # the API process may be told of an answer's end before the worker is, which learns of it with the next step
        for key, request_id, ended in self._close([name for name, one in self._requests.items() if one.key in reports]):
            reports[key][request_id] = ended.report()
        for key, found in reports.items():
            found |= self._ended.take(key)
        for request_id, (key, reason) in [*self.failures.items()]:
            if key in reports:  # instead of what it did before it failed
                reports[key][request_id] = SteeringReport(failure=reason)
                del self.failures[request_id]
        return reports

    def end(self, request_ids: Iterable[str]) -> None:
        """Close requests that vLLM has ended: their slots are released, and only reports are kept that are not abandoned."""
        request_ids = [*dict.fromkeys(request_ids)]
        ended: dict[str, tuple[str, EndedRequest | SteeringReport]] = {
            request_id: (key, one)
            for key, request_id, one in self._close([name for name in request_ids if name in self._requests])
        }
        for request_id in request_ids:
            if request_id in self.failures:  # instead of what it did before it failed
                key, reason = self.failures.pop(request_id)
                ended[request_id] = key, SteeringReport(failure=reason)
        for request_id, (key, one) in ended.items():
            if key not in self._abandoned:
                self._ended.add(key, request_id, one)

    def abandon(self, keys: Iterable[str], is_running: Callable[[str], bool]) -> None:
        """Drop the reports of API calls that nobody will fetch: at once, or when vLLM ends their requests."""
        abandoned = {*keys}
        for key in abandoned:
            self._ended.drop(key)
        self._abandoned |= dict.fromkeys(abandoned)
        for key in [*islice(self._abandoned, max(0, len(self._abandoned) - MAX_ABANDONED))]:
            del self._abandoned[key]
        # requests that run keep their slots: the coming steps still write to them
        self.end(
            request_id
            for request_id, key in [
                *((name, request.key) for name, request in self._requests.items()),
                *((name, key) for name, (key, _) in self.failures.items()),
            ]
            if key in abandoned and not is_running(request_id)
        )

    def _close(self, request_ids: Sequence[str]) -> list[tuple[str, str, EndedRequest]]:
        """End requests, and send for their counters: (key of the API call, id, the request) of each."""
        closed = [(request_id, self._requests.pop(request_id)) for request_id in request_ids]
        running = [one for one in closed if one[1].number is not None]
        ended = []
        if running:
            fetched = Fetch(self._leave([request for _, request in running]))
            for nth, (name, one) in enumerate(running):
                ended.append((one.key, name, EndedRequest(one.prompt, one.program.rules, fetched, nth)))
        for name, one in closed:
            if one.counters is not None:  # it was preempted
                fetched = Fetch([counter[None] for counter in one.counters])
                ended.append((one.key, name, EndedRequest(one.prompt, one.program.rules, fetched, 0)))
        return ended


def _count(touched: NDArray[np.bool_], scope: TokenRanges) -> int:
    """
    Count the positions of a prompt that an edit touches.

    touched: (prompt_len,), positions that it may touch: ordinary tokens, or all
    scope:   the edit's token ranges
    """
    return sum(int(np.count_nonzero(touched[start:end])) for start, end in resolve_ranges(scope, len(touched)))
