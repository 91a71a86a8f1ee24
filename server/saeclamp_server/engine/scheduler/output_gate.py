"""
EngineCore process: the output gate, which holds generated tokens back until the model has read them. Free of vLLM.

A token's activations are known one step after it was sampled, when the model reads it. An answer that a rule may end, or
that shows activations of each generated token, therefore leaves one step late: a token leaves when the model has read it and
no rule has ended the answer at it. So that the last token is read too, the API process asks for one token more than the user
did; the gate drops it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from saeclamp_server.engine.step_report import ReadoutChunk, RequestStepReport
from saeclamp_server.steering.program import SteeringProgram

Row = TypeVar("Row")
"""Row of vLLM's output that goes with a token, such as its logprobs."""

Finish = Literal["stop", "length", "other", "aborted"]
"""End of an answer: vLLM's reason, or `aborted` by a rule."""


class PendingToken(NamedTuple, Generic[Row]):
    """A token that has been sampled and has not left."""

    position: int
    token: int
    row: Row


@dataclass(frozen=True)
class ReleasedTokens(Generic[Row]):
    """Tokens that may leave after a step, with their readout and the answer's end."""

    waiting: list[PendingToken[Row]]
    readout: ReadoutChunk | None
    """Readout of the tokens that leave; with the first ones also that of the prompt."""
    finish: Finish | None


class OutputGate(Generic[Row]):
    """Output gate of one request that has step reports."""

    def __init__(self, program: SteeringProgram, prompt_len: int, max_tokens: int) -> None:
        """`max_tokens` is the user's, without the one token more."""
        self._holds_back = program.delays_output
        self._aborts = program.can_abort
        self._end = prompt_len + max_tokens
        """Position after the answer's last token."""
        self._next = prompt_len
        """Position of the token that is sampled next."""
        self._read = 0
        """Position before which the model has read all tokens."""
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
        Take in a step's report and tokens, and return the tokens that may leave.

        num_rejected: number of rejected drafts, which are the last tokens of the report
        tokens, rows: newly sampled ones
        finish:       why vLLM ended the request in this step
        """
        abort = self._advance(report, num_rejected) if report else None
        for token, row in zip(tokens, rows, strict=True):
            self._waiting.append(PendingToken(self._next, token, row))
            self._next += 1
        # a readout of the prompt alone holds no token back
        free = abort if abort is not None else self._read if self._holds_back else self._next
        released = [self._waiting.popleft() for _ in range(sum(waiting.position < free for waiting in self._waiting))]
        if abort is not None:
            self._waiting.clear()
            return ReleasedTokens(released, self._readings_before(free), "aborted")
        if finish is not None:
            released += self._free_unread(finish)
            # what still waits is the one token more, or could not be read because the context is full. It is dropped, so the
            # answer does not end by a stop token
            if self._waiting:
                finish = "length" if finish == "stop" else finish
                self._waiting.clear()
        # the readout of a part of the prompt waits for the first token: vLLM makes no output before
        return ReleasedTokens(released, self._readings_before(free) if released or finish else None, finish)

    def _advance(self, report: RequestStepReport, num_rejected: int) -> int | None:
        """Note how far the model has read; return the position at which a rule ends the answer."""
        end = report.position + report.num_tokens - num_rejected
        # from `_read` on: after a preemption positions are computed again, and their readout has been taken
        if report.readout is not None:
            self._unsent.append(report.readout.between(self._read, end))
        self._read = max(self._read, end)
        # a rule that held at a rejected draft ends nothing: that token is not in the answer
        return report.abort if report.abort is not None and report.abort < end else None

    def _free_unread(self, finish: Finish) -> list[PendingToken[Row]]:
        """Take the tokens of an ended answer that may leave though the model has not read them."""
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
