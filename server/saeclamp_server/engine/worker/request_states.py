"""
Worker process: the steered requests that an engine is running, each with its compiled program and its slots, and the reports
on those that have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.edit_stats import EditStats
from saeclamp_server.engine.worker.rule_state import RuleState
from saeclamp_server.engine.worker.step_plan import RequestSlice
from saeclamp_server.steering.program import SteeringProgram
from saeclamp_server.steering.token_ranges import TokenRanges, resolve_ranges

UNCOLLECTED_BYTES = 32 << 20
"""Memory that reports on ended requests may take together until they are fetched; then the oldest are dropped."""
MAX_ABANDONED = 1 << 12
"""Abandoned API calls that are remembered until their requests end here; more than may be running."""


@dataclass
class SteeringReport:
    """Report on one request, made when it has ended; JSON-able through `vars`."""

    failure: str | None = None
    """Reason why it could not be steered, and was stopped; None: it was steered."""
    prompt: list[int] = field(default_factory=list)
    """
    Per edit: prompt positions in its token ranges, computed here or found in the prefix cache. For a rule's edit only those
    at which the rule held when they were computed here.
    """
    tallies: list[dict[str, float]] = field(default_factory=list)
    """Per edit: the fields of `edit_stats.EditStat`."""
    fired: list[dict[str, Any] | None] = field(default_factory=list)
    """Per rule: as `RuleState.read` returns it; None: it has not held."""

    @property
    def num_bytes(self) -> int:
        """Estimated memory of the report: numbers in Python's lists and dictionaries."""
        num_acts = sum(len(fired["acts"]) for fired in self.fired if fired is not None)
        return 500 + 600 * len(self.tallies) + 400 * len(self.fired) + 40 * num_acts


class ScheduledRequest(NamedTuple):
    """A steered request's part of a step, as vLLM's runner has it."""

    request_id: str
    payload: Mapping[str, Any]
    """The request's value under `EXTRA_ARGS_KEY`: the key of its API call, and its program."""
    prompt_ids: Sequence[int]
    first_row: int
    num_tokens: int
    position: int


@dataclass
class _Request:
    key: str
    program: CompiledProgram
    first_slot: int
    first_rule_slot: int
    prompt: list[int | None]
    """Per edit: prompt positions in its token ranges; None for a rule's edit, which is counted on the device."""
    counted: int = 0
    """Positions below this have been counted in the request's slots."""


class RequestStates:
    """
    The steered requests, by vLLM's request id.

    A request is registered when the worker first sees it. One that cannot be registered or sliced is remembered as failed;
    the scheduler then stops it, and its report carries the reason.
    """

    def __init__(
        self,
        loaded: Mapping[str, LoadedWeights],
        special_ids: Sequence[int],
        edit_stats: EditStats,
        rule_states: RuleState,
        uncollected_bytes: int = UNCOLLECTED_BYTES,
    ) -> None:
        self._loaded = loaded
        self._special_ids = np.array(sorted(special_ids), np.int64)
        self._edit_stats = edit_stats
        self._rule_states = rule_states
        self._requests: dict[str, _Request] = {}
        self._ended = _UncollectedReports(uncollected_bytes)
        self._abandoned: dict[str, None] = {}
        """Keys of abandoned API calls, the oldest first."""
        self.failures: dict[str, tuple[str, str]] = {}
        """(key of the API call, reason), by id of failed requests that vLLM has not ended yet."""

    def slice_of(self, scheduled: ScheduledRequest) -> RequestSlice | None:
        """Return the request's slice of this step, or None when it has failed."""
        if scheduled.request_id in self.failures:
            return None
        try:
            return self._slice_of(scheduled)
        except Exception as exc:  # noqa: BLE001 (the boundary of one request: its neighbours in the batch must go on)
            self.failures[scheduled.request_id] = (str(scheduled.payload.get("key")), f"{type(exc).__name__}: {exc}")
            return None

    def _slice_of(self, scheduled: ScheduledRequest) -> RequestSlice:
        request = self._requests.get(scheduled.request_id)
        if request is None:
            request = self._requests[scheduled.request_id] = self._register(scheduled.payload, scheduled.prompt_ids)
        # the largest so far, as a preemption begins at position 0 again
        counted, request.counted = request.counted, max(request.counted, scheduled.position + scheduled.num_tokens)
        return RequestSlice(
            request.program,
            scheduled.first_row,
            scheduled.num_tokens,
            scheduled.position,
            len(scheduled.prompt_ids),
            counted,
            request.first_slot,
            request.first_rule_slot,
        )

    def _register(self, payload: Mapping[str, Any], prompt_ids: Sequence[int]) -> _Request:
        program = SteeringProgram.from_json(payload["program"])
        compiled = CompiledProgram.compile(program, self._loaded, len(prompt_ids))
        ordinary = ~np.isin(np.asarray(prompt_ids, np.int64), self._special_ids)
        ordinary[:1] = False  # position 0 is an attention sink, and treated as a special token
        prompt = [_count(ordinary | edit.special, edit.tokens) if edit.rule is None else None for edit in program.edits]
        return _Request(
            payload["key"],
            compiled,
            self._edit_stats.allocate(compiled.num_edits),
            self._rule_states.allocate(len(compiled.rules)),
            prompt,
        )

    def roll_back(self, request_id: str, end: int) -> None:
        """Count positions from `end` on anew: their tokens were drafts, and have been rejected."""
        request = self._requests.get(request_id)
        if request is not None:
            request.counted = min(request.counted, end)

    def key(self, request_id: str) -> str | None:
        """Return the API call's key of a request that has been registered; None for others."""
        request = self._requests.get(request_id)
        return request.key if request else None

    def fail(self, request_id: str, key: str, reason: str) -> None:
        """Remember that a step has failed a request; its later steps are not steered."""
        self.failures[request_id] = (key, reason)

    def collect(self, keys: Iterable[str]) -> dict[str, dict[str, SteeringReport]]:
        """Return, and drop, the reports on all requests of some API calls, by key and request id."""
        reports: dict[str, dict[str, SteeringReport]] = {key: {} for key in keys}
        # the API process may be told of an answer's end before the worker is, which learns of it with the next step
        for request_id, request in [*self._requests.items()]:
            if request.key in reports:
                reports[request.key][request_id] = self._close(request_id)
        for key, found in reports.items():
            found |= self._ended.take(key)
        for request_id, (key, reason) in [*self.failures.items()]:
            if key in reports:  # instead of what it did before it failed
                reports[key][request_id] = SteeringReport(failure=reason)
                del self.failures[request_id]
        return reports

    def end(self, request_ids: Iterable[str]) -> None:
        """Close requests that vLLM has ended: their slots are released, and only reports are kept that are not abandoned."""
        for request_id in request_ids:
            reports: dict[str, SteeringReport] = {}
            if request_id in self._requests:
                key = self._requests[request_id].key
                reports[key] = self._close(request_id)
            if request_id in self.failures:  # instead of what it did before it failed
                key, reason = self.failures.pop(request_id)
                reports[key] = SteeringReport(failure=reason)
            for key, report in reports.items():
                if key not in self._abandoned:
                    self._ended.add(key, request_id, report)

    def abandon(self, keys: Iterable[str], is_running: Callable[[str], bool]) -> None:
        """Drop the reports of API calls that nobody will fetch: at once, or when vLLM ends their requests."""
        abandoned = {*keys}
        for key in abandoned:
            self._ended.take(key)
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

    def _close(self, request_id: str) -> SteeringReport:
        request = self._requests.pop(request_id)
        num_edits = request.program.num_edits
        tallies = [vars(tally) for tally in self._edit_stats.read(request.first_slot, num_edits)]
        self._edit_stats.release(request.first_slot, num_edits)
        rules = request.program.rules
        fired = self._rule_states.read(request.first_rule_slot, [len(rule.reads) for rule in rules])
        self._rule_states.release(request.first_rule_slot, len(rules))
        prompt = [
            int(tally["prompt"]) if count is None else count
            for count, tally in zip(request.prompt, tallies, strict=True)
        ]
        return SteeringReport(prompt=prompt, tallies=tallies, fired=fired)


class _UncollectedReports:
    """Reports on ended requests that have not been fetched yet, by the API call's key. The oldest make room."""

    def __init__(self, max_bytes: int) -> None:
        self._by_key: dict[str, dict[str, SteeringReport]] = {}
        self._num_bytes, self._max_bytes = 0, max_bytes

    def add(self, key: str, request_id: str, report: SteeringReport) -> None:
        self._by_key.setdefault(key, {})[request_id] = report
        self._num_bytes += report.num_bytes
        while self._num_bytes > self._max_bytes:
            self.take(next(iter(self._by_key)))

    def take(self, key: str) -> dict[str, SteeringReport]:
        found = self._by_key.pop(key, {})
        self._num_bytes -= sum(report.num_bytes for report in found.values())
        return found


def _count(touched: NDArray[np.bool_], scope: TokenRanges) -> int:
    """
    Count the positions of a prompt that an edit touches.

    touched: (prompt_len,), positions that it may touch: ordinary tokens, or all
    scope:   the edit's token ranges
    """
    return sum(int(np.count_nonzero(touched[start:end])) for start, end in resolve_ranges(scope, len(touched)))
