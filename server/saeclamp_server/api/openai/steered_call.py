"""One steered API call, from its `steering` object to its receipt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from saeclamp.types import Receipt
from saeclamp_server.api import metrics
from saeclamp_server.api.openai.readout_writer import ReadoutWriter, name_aborted
from saeclamp_server.api.openai.receipt_headers import TraceEntry
from saeclamp_server.api.openai.requested_model import RequestedModel
from saeclamp_server.api.openai.sequence_tracker import SequenceTracker
from saeclamp_server.api.state import AppState, CallServices
from saeclamp_server.errors import InvalidSteeringError, NotAppliedError
from saeclamp_server.steering import ResolvedSteering, build_receipt
from saeclamp_server.steering.admission import requested_features
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.steering.program import EXTRA_ARGS_KEY
from saeclamp_server.steering.token_ranges import PROMPT
from saeclamp_server.variants.version import VariantVersion

MAX_SEQUENCES = 4096
"""Answers of one call: the engine keeps the reports of as many and more until they are fetched."""


@dataclass(frozen=True)
class SteeredCall:
    """A steered call: its resolved steering, and the services that decide whether its answer may leave."""

    services: CallServices
    resolved: ResolvedSteering
    key: str
    """Names this call's sequences to the engine."""
    num_sequences: int
    writer: ReadoutWriter | None
    asked: RequestedModel | None = None
    entry: TraceEntry | None = None
    """The request's line of the trace; None for the sequences that our own endpoints run."""

    @classmethod
    async def begin(
        cls,
        state: AppState,
        asked: RequestedModel,
        conversation: ChatSpans | None,
        key: str,
        num_sequences: int,
        num_per_prompt: int,
        shows_token_ids: bool,
        entry: TraceEntry,
    ) -> SteeredCall:
        """Resolve the steering, and wait for its turn. Raises RequestError. Whoever begins a call must end it."""
        if num_sequences > MAX_SEQUENCES:
            raise InvalidSteeringError(
                f"These are {num_sequences} answers; at most {MAX_SEQUENCES} can be steered at once.", "n"
            )
        await state.vectors.refresh(asked.vectors(state))
        with metrics.time_resolution():
            resolved = asked.resolved(state, conversation)
        services, writer = state.calls, None
        if resolved.program.has_token_output:
            writer = ReadoutWriter(
                resolved.steering.readout,
                replace(services.context, vectors=resolved.vectors),  # some may be deleted meanwhile
                services.sequences,
                key,
                shows_token_ids,
                resolved.program.shows(PROMPT),
                state.model.text_of,
                state.model.bytes_of,
            )
        entry.spec = resolved.program.spec
        await services.admission.acquire(requested_features(resolved.program))
        # last, so that nothing has to be undone where the wait is refused or cancelled
        services.sequences.begin(key, num_per_prompt)
        return cls(services, resolved, key, num_sequences, writer, asked, entry)

    @classmethod
    async def begin_resolved(
        cls, services: CallServices, resolved: ResolvedSteering, key: str, num_sequences: int
    ) -> SteeredCall:
        """Wait for the turn of steering that needs no writer. Raises RequestError. Whoever begins a call must end it."""
        await services.admission.acquire(requested_features(resolved.program))
        services.sequences.begin(key, num_sequences)
        return cls(services, resolved, key, num_sequences, None)

    def attach(self, params: Any, prompt_index: int) -> None:
        """
        Put the program into the sampling parameters of one of the call's prompts: vLLM takes them to the engine.

        params: vLLM's SamplingParams
        """
        program = self.resolved.program
        payload = {"key": self.key, "prompt": prompt_index, "program": program.to_json()}
        params.extra_args = {**(params.extra_args or {}), EXTRA_ARGS_KEY: payload}
        if program.needs_all_computed:
            params.skip_reading_prefix_cache = True  # activations at cached positions are not computed
        if program.delays_output and params.max_tokens is not None:
            params.max_tokens += 1  # the scheduler drops it, when the one before it has been read

    def end(self) -> None:
        """Release the call's admission and tracking, and write its line of the trace. Idempotent."""
        if self.services.sequences.end(self.key):
            self.services.admission.release(requested_features(self.resolved.program))
            self.services.reports.close(self.key)
            if self.entry is not None and self.services.trace is not None:
                self.services.trace.write(self.entry.to_json())

    def answers_as(self, answer_id: str) -> None:
        """Note the answer's id."""
        if self.entry is not None and self.entry.id is None:
            self.entry.id = answer_id

    def failed(self, message: str) -> None:
        """Note why there is no answer."""
        if self.entry is not None:
            self.entry.error = message

    @property
    def spec(self) -> str:
        """Hash that names the resolved steering."""
        return self.resolved.program.spec

    @property
    def sequences(self) -> SequenceTracker:
        """Tracker of the sequences of all calls."""
        return self.services.sequences

    @property
    def wants_receipt(self) -> bool:
        """True if the receipt is to be sent; it is checked in any case."""
        return self.resolved.steering.receipt != "none"

    @property
    def completes(self) -> bool:
        """True if responses and chunks are to show more than vLLM writes into them."""
        return self.writer is not None or self.resolved.program.can_abort or self._variant is not None

    @property
    def _variant(self) -> VariantVersion | None:
        return self.asked.variant if self.asked else None

    def complete(self, body: dict[str, Any]) -> None:
        """Write into a response or a chunk what it is to show beside vLLM's own."""
        if self.writer is not None:
            self.writer.write(body)
        name_aborted(body)
        if self._variant is not None and self.asked is not None:
            body["model"] = self.asked.name

    async def receipt(self) -> Receipt:
        """Ask the engine what it did. Raises NotAppliedError unless every sequence was steered."""
        try:
            reports = await self._reports()
            written = build_receipt(
                self.resolved,
                reports,
                self.num_sequences,
                self.services.context,
                self.services.model_name,
                self.services.server,
            )
        except NotAppliedError as exc:
            metrics.FAILURES.inc()
            self.failed(exc.message)
            raise
        metrics.count(written, self.resolved.outcomes)
        variant = self._variant.to_wire().version if self._variant else None
        written = written.model_copy(update={"variant": variant}) if variant else written
        if self.entry is not None:
            self.entry.receipt = written
        return written

    async def _reports(self) -> dict[int, dict[str, Any]]:
        """Fetch the engine's reports, by number of the choice. Raises NotAppliedError where it does not answer."""
        try:
            answers = await self.services.reports.fetch(self.key)
        except Exception as exc:  # vLLM raises no class of its own where the engine is stopping or has died
            raise NotAppliedError(f"what it did could not be asked: {exc}") from exc
        choices = self.sequences.choices(self.key)
        return {choices[request_id]: report for request_id, report in answers.items()}

    def aborted(self, receipt: Receipt) -> set[int]:
        """Return the choices that a rule has ended."""
        outcomes = self.resolved.outcomes
        return {fired.choice for fired in receipt.fired if outcomes[fired.rule] == "abort"}
