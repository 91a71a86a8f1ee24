"""Readouts and edits of each token, written beside the tokens of an answer or of a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saeclamp.types import ChoiceReadout, Readout, TokenEdit, TokenReadout, TopFeature
from saeclamp_server.api.openai.sequence_tracker import SequenceTracker, TrackedSequence
from saeclamp_server.steering import SteeringContext
from saeclamp_server.steering.program import ABORTED
from saeclamp_server.vector_names import VECTOR


@dataclass
class ReadoutWriter:
    """Writes a call's readouts into its answer, or into the chunks of its stream."""

    readout: Readout | None
    context: SteeringContext
    sequences: SequenceTracker
    key: str
    shows_token_ids: bool
    """True if the user asked for token ids too; the readout needs them in any case."""
    reads_prompt: bool
    text_of: Callable[[int], str]
    """Turns a token's id into its text."""
    bytes_of: Callable[[int], tuple[int, ...] | None]
    """Turns a token's id into its bytes, where it is a part of a character."""
    _num_written: dict[int, int] = field(default_factory=dict)
    """Per choice: number of generated tokens whose readouts have been written."""

    def write(self, body: dict[str, Any]) -> None:
        """Add `steering` to each choice of a response or a chunk, whose tokens are in `token_ids`."""
        for choice in body.get("choices", ()):
            ids = choice.get("token_ids")
            if ids is not None or choice.get("finish_reason") is not None:
                choice["steering"] = self._choice(choice["index"], ids or []).model_dump(mode="json", exclude_none=True)
            if not self.shows_token_ids:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
        if not self.shows_token_ids:
            body.pop("prompt_token_ids", None)

    def _choice(self, number: int, ids: Sequence[int]) -> ChoiceReadout:
        sequence = self.sequences.sequence(self.key, number)
        is_first, num_prompt = number not in self._num_written, len(sequence.prompt_ids)
        start = num_prompt + self._num_written.get(number, 0)
        self._num_written[number] = start - num_prompt + len(ids)
        prompt = [*enumerate(sequence.prompt_ids)] if is_first and self.reads_prompt else None
        return ChoiceReadout(
            tokens=[self._token(sequence, at, token) for at, token in enumerate(ids, start)],
            prompt_tokens=prompt and [self._token(sequence, at, token) for at, token in prompt],
        )

    def _token(self, sequence: TrackedSequence, position: int, token_id: int) -> TokenReadout | None:
        # each is shown once, and a long stream would keep them all
        reading = sequence.readings.pop(position, None)
        if reading is None or reading.is_empty:
            return None
        names = [*map(str, self.readout.features)] if self.readout else []
        return TokenReadout(
            position=position,
            token_id=token_id,
            text=self.text_of(token_id),
            bytes=self.bytes_of(token_id),
            features={name: act for name, act in zip(names, reading.acts, strict=False) if act is not None},
            vectors=self._scores(reading.acts[len(names) :]),
            top={
                sae: [
                    TopFeature(index=index, name=self.context.name_of(sae, index), act=act) for index, act in strongest
                ]
                for sae, strongest in reading.top.items()
                if strongest is not None
            },
            edits=[TokenEdit(intervention=edit, act_before=act, dose=dose) for edit, act, dose in reading.edits],
        )

    def _scores(self, acts: Sequence[float | None]) -> dict[str, float] | None:
        """Convert what was read of the readout's vectors; None where it names none."""
        if self.readout is None or not self.readout.vectors:
            return None
        return {
            name: self.context.shown_act(f"{VECTOR}{name}", act)
            for name, act in zip(self.readout.vectors, acts, strict=True)
            if act is not None
        }


def name_aborted(body: dict[str, Any]) -> None:
    """Give answers that a rule has ended their `finish_reason`."""
    for choice in body.get("choices", ()):
        if choice.get("stop_reason") == ABORTED:
            choice["finish_reason"], choice["stop_reason"] = "content_filter", None
