"""
Worker process: the steered requests an engine is running: their programs, what was done for each, and which could
not be done.
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
"""What reports on ended requests that nobody has fetched may take together; then the oldest are forgotten."""
MAX_ABANDONED = 1 << 12
"""Calls of clients that have gone, which are remembered until their requests end here; more than may be running."""


@dataclass
class SteeringReport:
    """What became of one request; JSON-able through `vars`."""

    failure: str | None = None
    """Why it could not be steered. Its generation was stopped."""
    prompt: list[int] = field(default_factory=list)
    """Per edit: prompt positions in its scope, computed here or found in the prefix cache; of a rule's, those computed."""
    tallies: list[dict[str, float]] = field(default_factory=list)
    """Per edit: the fields of `edit_stats.EditStat`."""
    fired: list[dict[str, Any] | None] = field(default_factory=list)
    """Per rule: what `RuleState.read` says of it."""

    @property
    def num_bytes(self) -> int:
        """What it takes, roughly: numbers in Python's lists and dictionaries."""
        num_acts = sum(len(fired["acts"]) for fired in self.fired if fired is not None)
        return 500 + 600 * len(self.tallies) + 400 * len(self.fired) + 40 * num_acts


class ScheduledRequest(NamedTuple):
    """A steered request's part of a step, as the runner tells it."""

    request_id: str
    payload: Mapping[str, Any]
    """What the request carries under `EXTRA_ARGS_KEY`: the key of its API call, and its program."""
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
    """Per edit: prompt positions in its scope; None where a rule decides."""
    counted: int = 0


class RequestStates:
    """
    Steered requests by the engine's request id.

    A request is admitted when the worker first sees it. A request that cannot be admitted or mapped is remembered as
    failed; the runner then stops its generation, and its report carries the reason.
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
        """Keys, the oldest first."""
        self.failures: dict[str, tuple[str, str]] = {}
        """Request id -> (key, reason), of requests that the engine has not ended."""

    def slice_of(self, scheduled: ScheduledRequest) -> RequestSlice | None:
        """Return the request's span of this step, or None when it has failed."""
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
        ordinary[:1] = False
        prompt = [_count(ordinary | edit.special, edit.tokens) if edit.rule is None else None for edit in program.edits]
        return _Request(
            payload["key"],
            compiled,
            self._edit_stats.allocate(compiled.num_edits),
            self._rule_states.allocate(len(compiled.rules)),
            prompt,
        )

    def roll_back(self, request_id: str, end: int) -> None:
        """Take back what was counted of a request at `end` and behind it: those tokens were drafts, and have gone."""
        request = self._requests.get(request_id)
        if request is not None:
            request.counted = min(request.counted, end)

    def key(self, request_id: str) -> str | None:
        """Name the API call of a request that has been admitted."""
        request = self._requests.get(request_id)
        return request.key if request else None

    def fail(self, request_id: str, key: str, reason: str) -> None:
        """Remember a failure that a step has shown; the request's later steps are not steered."""
        self.failures[request_id] = (key, reason)

    def collect(self, keys: Iterable[str]) -> dict[str, dict[str, SteeringReport]]:
        """Report on every request of some API calls, by their keys and by request id, and forget them."""
        reports: dict[str, dict[str, SteeringReport]] = {key: {} for key in keys}
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
        """Note that the engine has ended requests: only their reports are kept, if they are still wanted."""
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
        """Forget what nobody will ask for: at once, or when the engine ends it."""
        abandoned = {*keys}
        for key in abandoned:
            self._ended.take(key)
        self._abandoned |= dict.fromkeys(abandoned)
        for key in [*islice(self._abandoned, max(0, len(self._abandoned) - MAX_ABANDONED))]:
            del self._abandoned[key]
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
    """Reports on requests that the engine has ended and nobody has asked for yet. The oldest make room."""

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
    Count the positions of a prompt that a scope touches.

    touched: (prompt_len,), where it may touch
    """
    return sum(int(np.count_nonzero(touched[start:end])) for start, end in resolve_ranges(scope, len(touched)))
