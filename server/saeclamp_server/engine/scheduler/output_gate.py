"""
EngineCore process: holding generated tokens back until the model has read them. Free of vLLM.

A token's activations are known one step after it was sampled, when the model reads it. An answer that a rule may end, or
that shows what was read at each token, therefore leaves one step late: a token leaves when it has been read and no rule has
held at it. So that the last token is read too, such a request is run for one token more than was asked for; it is dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from saeclamp_server.engine.step_report import Readings, Told
from saeclamp_server.steering.program import SteeringProgram

Row = TypeVar("Row")
"""What vLLM gives with each token, such as its logprobs."""

Finish = Literal["stop", "length", "other", "aborted"]


class Waiting(NamedTuple, Generic[Row]):
    """A token that has been sampled and has not left."""

    position: int
    token: int
    row: Row


@dataclass(frozen=True)
class Released(Generic[Row]):
    """What may leave after a step."""

    waiting: list[Waiting[Row]]
    readings: Readings | None
    """Of the prompt, if these leave for the first time, and of the tokens that leave."""
    finish: Finish | None


class Holding(Generic[Row]):
    """One request whose readings are told."""

    def __init__(self, program: SteeringProgram, prompt_len: int, max_tokens: int) -> None:
        """`max_tokens` is what the user asked for."""
        self._holds_back = program.holds_back
        self._aborts = program.aborts
        self._end = prompt_len + max_tokens
        self._next = prompt_len
        self._read = 0
        self._waiting: deque[Waiting[Row]] = deque()
        self._unsent: list[Readings] = []

    def take(
        self, told: Told | None, num_rejected: int, tokens: list[int], rows: list[Row], finish: Finish | None
    ) -> Released[Row]:
        """
        Take what a step has given, and return what may leave.

        num_rejected: drafts at the end of what was told of, which the model did not take
        tokens, rows: that were sampled
        finish:       why vLLM ended the request in this step
        """
        abort = self._look_at(told, num_rejected) if told else None
        for token, row in zip(tokens, rows, strict=True):
            self._waiting.append(Waiting(self._next, token, row))
            self._next += 1
        free = abort if abort is not None else self._read if self._holds_back else self._next
        released = [self._waiting.popleft() for _ in range(sum(waiting.position < free for waiting in self._waiting))]
        if abort is not None:
            self._waiting.clear()
            return Released(released, self._readings_before(free), "aborted")
        if finish is not None:
            released += self._unread(finish)
            if self._waiting:  # dropped
                finish = "length" if finish == "stop" else finish
                self._waiting.clear()
        # readings of a part of the prompt wait for the first token
        return Released(released, self._readings_before(free) if released or finish else None, finish)

    def _look_at(self, told: Told, num_rejected: int) -> int | None:
        """Note how far the model has read; return the position at which a rule ends the answer."""
        end = told.position + told.num_tokens - num_rejected
        if told.readings is not None:
            self._unsent.append(told.readings.between(self._read, end))
        self._read = max(self._read, end)
        return told.abort if told.abort is not None and told.abort < end else None

    def _unread(self, finish: Finish) -> list[Waiting[Row]]:
        """Tokens of an ended answer that may leave though the model has not read them."""
        if not self._waiting or self._waiting[0].position >= self._end:
            return []
        # the token that stops an answer is no part of its text; where no rule can end the answer, none need be read
        if len(self._waiting) == 1 and (finish == "stop" or not self._aborts):
            return [self._waiting.popleft()]
        return []

    def _readings_before(self, end: int) -> Readings | None:
        ready = [readings.between(0, end) for readings in self._unsent]
        self._unsent = [left for readings in self._unsent if (left := readings.between(end, None)).positions]
        ready = [readings for readings in ready if readings.positions]
        return Readings.joined(ready) if ready else None
