"""The tokens that SAEs are measured on: documents in their order, cut at a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.lm.documents import documents
from saeclamp_saes.lm.harvest import ActivationReader, TokenSequence
from saeclamp_saes.lm.text import SHORTEST
from saeclamp_saes.progress import ProgressCallback, no_progress


@dataclass(frozen=True)
class EvalData:
    """Data files, and the part of them that is measured on."""

    files: Sequence[Path]
    held_out: float | None = None
    """Share that a training run holds out: only those documents are used; None is all."""
    tokens: int | None = None
    """Use the first so many tokens that count, at most; None is all."""

    def documents(self, reader: ActivationReader) -> Iterator[list[TokenSequence]]:
        """Yield the sequences of each document, none without a token that counts. Raises TrainingError for bad data."""
        left = self.tokens
        for document in documents(self.files):
            if self.held_out is not None and not document.is_held_out(self.held_out):
                continue
            parts = reader.parts(document)
            if left is not None:
                parts, left = _first(parts, left)
            if parts:
                yield parts
            if left == 0:
                return


@dataclass(frozen=True)
class EvalDataSummary:
    """Size of the data, and a sample of their sequences."""

    num_documents: int
    num_parts: int
    num_tokens: int
    """Tokens that count."""
    chosen: list[Tensor]
    """(length,) int64 token ids each: sequences evenly from all of the data."""


def survey_data(
    source: EvalData, reader: ActivationReader, most: int, report: ProgressCallback = no_progress
) -> EvalDataSummary:
    """
    Read the data once without running the model, so that bad ones are known at once, and choose sequences evenly from them.

    most: tokens of the chosen sequences
    Raises TrainingError or VerificationError for data that cannot be used, or hold nothing to measure on.
    """
    num_documents = num_parts = num_tokens = 0
    chosen: list[Tensor] = []
    every = 1
    for parts in source.documents(reader):
        num_documents += 1
        for part in parts:
            num_tokens += int(part.counts.sum())
            if num_parts % every == 0:
                chosen.append(part.ids[:most])
                # halved whenever it is twice too much: every second, fourth, eighth sequence is left
                if sum(map(len, chosen)) > 2 * most:
                    chosen, every = chosen[::2], 2 * every
            num_parts += 1
        # how many there are is not known before the end
        report("reading the data", num_tokens, source.tokens or num_tokens, {})
    if not num_parts:
        raise VerificationError(_nothing(source))
    step = -(-sum(map(len, chosen)) // most)
    return EvalDataSummary(num_documents, num_parts, num_tokens, chosen[::step])


def _first(parts: list[TokenSequence], most: int) -> tuple[list[TokenSequence], int]:
    """Cut after the `most`-th token that counts; return the parts, and how many tokens are then still wanted."""
    kept = []
    for part in parts:
        if not most:
            break
        length = int((part.counts.cumsum(dim=0) <= most).sum())
        kept.append(TokenSequence(part.ids[:length], part.counts[:length]))
        most -= int(part.counts[:length].sum())
    return kept, most


def _nothing(source: EvalData) -> str:
    if source.held_out is None:
        return f"The data hold no document of {SHORTEST} tokens or more."
    return (
        f"No document of {SHORTEST} tokens or more is among those that training with --held-out {source.held_out:g} holds "
        "out: give more data, or the share that the SAE was trained with."
    )
