"""Worker process: reports on requests that have ended, made of their counters when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from saeclamp_server.engine.worker.compiled_program import CompiledRule
from saeclamp_server.engine.worker.device_copies import Fetch
from saeclamp_server.engine.worker.program_layout import (
    ACT_SUM,
    DOSE_SUM,
    FOREVER,
    GENERATED,
    GENERATED_SINKS,
    PROMPT,
    PROMPT_SINKS,
)
from saeclamp_server.engine.worker.program_tables import Counters


@dataclass(frozen=True)
class EditStat:
    """Statistics of one edit in one request."""

    prompt: int
    """Prompt positions edited in a forward pass (not those whose keys and values came from the prefix cache)."""
    generated: int
    """Generated positions edited."""
    act_sum: float
    dose_sum: float
    act_max: float
    dose_max: float
    """0, like the other fields, where no position was edited in a forward pass."""
    prompt_sinks: int
    """Prompt positions in its token ranges that were computed here and left out as sinks."""
    generated_sinks: int


@dataclass
class SteeringReport:
    """Report on one request, made when it has ended; JSON-able through `vars`."""

    failure: str | None = None
    """Reason why it could not be steered, and was stopped; None: it was steered."""
    prompt: list[int] = field(default_factory=list)
    """
    Per edit: prompt positions in its token ranges, computed here or found in the prefix cache. For a rule's edit only those
    at which the rule held when they were computed here. The sinks among them are not taken off yet.
    """
    tallies: list[dict[str, float]] = field(default_factory=list)
    """Per edit: the fields of `EditStat`."""
    fired: list[dict[str, Any] | None] = field(default_factory=list)
    """Per rule: `position` at which it first held, the `acts` compared there, and `num_tokens`; None: it has not held."""

    unjudged: list[int] = field(default_factory=list)
    """Per rule: tokens in its scope at which it was not judged, because they are sinks."""
    num_positions: int = 0
    """Positions that were computed here, or found in the prefix cache."""

    num_bytes: ClassVar[int] = 500
    """Estimated memory of one that is kept, which is a failure's: others are made when they are fetched."""


class EndedRequest:
    """A request that has ended. Its report is made when it is asked for, and by then its counters have come."""

    def __init__(self, prompt: Sequence[int | None], rules: Sequence[CompiledRule], fetched: Fetch, nth: int) -> None:
        """
        prompt:  of each edit what its request has counted, as `SteeredRequest` has it
        fetched: the fields of `Counters` of several requests
        nth:     which of these it is
        """
        self._prompt, self._num_compared = prompt, [rule.num_comparisons for rule in rules]
        self._fetched, self._nth = fetched, nth

    @property
    def num_bytes(self) -> int:
        """Estimated memory: numbers in Python's lists and dictionaries, if all rules have held, and the counters."""
        return 5600 + 600 * len(self._prompt) + 400 * len(self._num_compared) + 40 * sum(self._num_compared)

    def report(self) -> SteeringReport:
        """Make the report; waits where the counters are on their way."""
        counters = Counters._make(tensor[self._nth] for tensor in self._fetched.wait())
        stats = _edit_stats(counters, len(self._prompt))
        prompt = [
            stat.prompt + stat.prompt_sinks if count is None else count
            for count, stat in zip(self._prompt, stats, strict=True)
        ]
        fired = [_fired(counters, rule, num) for rule, num in enumerate(self._num_compared)]
        return SteeringReport(
            prompt=prompt,
            tallies=[vars(stat) for stat in stats],
            fired=fired,
            unjudged=counters.num_unjudged[: len(fired)].tolist(),
            num_positions=int(counters.reached),
        )


class UncollectedReports:
    """Ended requests whose reports have not been fetched yet, by the API call's key. The oldest make room."""

    def __init__(self, max_bytes: int) -> None:
        self._by_key: dict[str, dict[str, EndedRequest | SteeringReport]] = {}
        self._num_bytes, self._max_bytes = 0, max_bytes

    def add(self, key: str, request_id: str, ended: EndedRequest | SteeringReport) -> None:
        self._by_key.setdefault(key, {})[request_id] = ended
        self._num_bytes += ended.num_bytes
        while self._num_bytes > self._max_bytes:
            self.drop(next(iter(self._by_key)))

    def take(self, key: str) -> dict[str, SteeringReport]:
        return {
            request_id: ended if isinstance(ended, SteeringReport) else ended.report()
            for request_id, ended in self.drop(key).items()
        }

    def drop(self, key: str) -> dict[str, EndedRequest | SteeringReport]:
        found = self._by_key.pop(key, {})
        self._num_bytes -= sum(ended.num_bytes for ended in found.values())
        return found


def _edit_stats(counters: Counters, num_edits: int) -> list[EditStat]:
    return [
        EditStat(
            prompt=int(sums[PROMPT]),
            generated=int(sums[GENERATED]),
            act_sum=sums[ACT_SUM],
            dose_sum=sums[DOSE_SUM],
            act_max=act_max if act_max > -math.inf else 0.0,
            dose_max=dose_max if dose_max > -math.inf else 0.0,
            prompt_sinks=int(sums[PROMPT_SINKS]),
            generated_sinks=int(sums[GENERATED_SINKS]),
        )
        for sums, (act_max, dose_max) in zip(
            counters.sums[:num_edits].tolist(), counters.peaks[:num_edits].tolist(), strict=True
        )
    ]


def _fired(counters: Counters, rule: int, num_comparisons: int) -> dict[str, Any] | None:
    position = int(counters.first_held[rule])
    if position == FOREVER:
        return None
    acts = counters.first_acts[rule, :num_comparisons].tolist()
    # a rule may hold only at tokens that are computed again after a preemption, which are not counted twice
    return {"position": position, "acts": acts, "num_tokens": max(1, int(counters.num_held[rule]))}
