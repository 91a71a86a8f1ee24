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

from saeclamp_server.engine.step_report import ReadoutChunk, RequestStepReport
from saeclamp_server.steering.program import SteeringProgram

Row = TypeVar("Row")
"""What vLLM gives with each token, such as its logprobs."""

Finish = Literal["stop", "length", "other", "aborted"]


class PendingToken(NamedTuple, Generic[Row]):
    """A token that has been sampled and has not left."""

    position: int
    token: int
    row: Row


@dataclass(frozen=True)
class ReleasedTokens(Generic[Row]):
    """What may leave after a step."""

    waiting: list[PendingToken[Row]]
    readout: ReadoutChunk | None
    """Of the prompt, if these leave for the first time, and of the tokens that leave."""
    finish: Finish | None


class OutputGate(Generic[Row]):
    """One request whose readings are told."""

    def __init__(self, program: SteeringProgram, prompt_len: int, max_tokens: int) -> None:
        """`max_tokens` is what the user asked for."""
        self._holds_back = program.delays_output
        self._aborts = program.can_abort
        self._end = prompt_len + max_tokens
        self._next = prompt_len
        self._read = 0
        self._waiting: deque[PendingToken[Row]] = deque()
        self._unsent: list[ReadoutChunk] = []

    def step(
        self,
        report: RequestStepReport | None,
        num_rejected: int,
        tokens: list[int],
        rows: list[Row],
        finish: Finish | None,
    ) -> ReleasedTokens[Row]:
        """
        Take what a step has given, and return what may leave.

        num_rejected: drafts at the end of what was told of, which the model did not take
        tokens, rows: that were sampled
        finish:       why vLLM ended the request in this step
        """
        abort = self._advance(report, num_rejected) if report else None
        for token, row in zip(tokens, rows, strict=True):
            self._waiting.append(PendingToken(self._next, token, row))
            self._next += 1
        free = abort if abort is not None else self._read if self._holds_back else self._next
        released = [self._waiting.popleft() for _ in range(sum(waiting.position < free for waiting in self._waiting))]
        if abort is not None:
            self._waiting.clear()
            return ReleasedTokens(released, self._readings_before(free), "aborted")
        if finish is not None:
            released += self._free_unread(finish)
            if self._waiting:  # dropped
                finish = "length" if finish == "stop" else finish
                self._waiting.clear()
        # readings of a part of the prompt wait for the first token
        return ReleasedTokens(released, self._readings_before(free) if released or finish else None, finish)

    def _advance(self, report: RequestStepReport, num_rejected: int) -> int | None:
        """Note how far the model has read; return the position at which a rule ends the answer."""
        end = report.position + report.num_tokens - num_rejected
        if report.readout is not None:
            self._unsent.append(report.readout.between(self._read, end))
        self._read = max(self._read, end)
        return report.abort if report.abort is not None and report.abort < end else None

    def _free_unread(self, finish: Finish) -> list[PendingToken[Row]]:
        """Tokens of an ended answer that may leave though the model has not read them."""
        if not self._waiting or self._waiting[0].position >= self._end:
            return []
        # the token that stops an answer is no part of its text; where no rule can end the answer, none need be read
        if len(self._waiting) == 1 and (finish == "stop" or not self._aborts):
            return [self._waiting.popleft()]
        return []

    def _readings_before(self, end: int) -> ReadoutChunk | None:
        ready = [readout.between(0, end) for readout in self._unsent]
        self._unsent = [left for readout in self._unsent if (left := readout.between(end, None)).positions]
        ready = [readout for readout in ready if readout.positions]
        return ReadoutChunk.concat(ready) if ready else None
