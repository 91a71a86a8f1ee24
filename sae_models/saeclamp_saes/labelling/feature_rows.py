"""Rows of the file of labels, made of the measurements of all features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.labelling.activation_index import ActivationIndex
from saeclamp_saes.labelling.examples import TokenStrings, inactive_examples, top_examples
from saeclamp_saes.labelling.neighbours import NeighbourTable
from saeclamp_saes.labelling.output_scores import NUM_SHOWN, PromotedTokens
from saeclamp_saes.labelling.table import Explanation, Feature, Kind, Neighbour, TokenLogit, to_batch
from saeclamp_saes.labelling.token_labels import (
    Candidate,
    SplitHalves,
    best_candidate,
    input_label,
    next_token_label,
    output_label,
)
from saeclamp_saes.progress import ProgressCallback

MAX_ACT_QUANTILE = 0.999
HISTOGRAM_BINS = 30
ROWS_AT_ONCE = 256
"""Features whose examples are in memory at once."""


@dataclass(frozen=True)
class FeatureStats:
    """All measurements of an SAE's features, from which rows are made."""

    firings: ActivationIndex
    vocabulary: int
    max_acts: NDArray[Any]
    """(d_sae,) float64, from the function `max_acts`"""
    outputs: PromotedTokens | None
    neighbours: NeighbourTable
    strings: TokenStrings
    explanations: Mapping[int, Explanation]

    def batches(self, report: ProgressCallback, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[Any]:
        """Yield all rows as pyarrow.RecordBatch, `rows_at_once` at a time."""
        d_sae = self.firings.d_sae
        for first in range(0, d_sae, rows_at_once):
            end = min(first + rows_at_once, d_sae)
            yield to_batch([self.row(index) for index in range(first, end)])
            report("labels and examples", end, d_sae, {})

    def row(self, index: int) -> Feature:
        """Make a feature's row."""
        active, explanation = self.firings[index], self.explanations.get(index)
        candidates: dict[Kind, Candidate | None] = {
            "input": input_label(self._halves, active, self.strings),
            "say": next_token_label(self._halves, active, self.strings),
            "output": self._output_label(index),
        }
        kind = best_candidate(candidates)
        label, label_score = candidates.get(kind) or (None, None)
        input_text, input_score = candidates["input"] or (None, None)
        say_text, say_score = candidates["say"] or (None, None)
        return Feature(
            index=index,
            density=len(active.token) / self.firings.num_tokens,
            num_active=len(active.token),
            max_act=None if isnan(self.max_acts[index]) else float(self.max_acts[index]),
            top_act=float(active.value.max()) if len(active.value) else None,
            kind=kind,
            label=label,
            label_score=label_score,
            input_label=input_text,
            input_score=input_score,
            say_label=say_text,
            say_score=say_score,
            output_label=candidates["output"].text if candidates["output"] else None,
            output_score=self._output_score(index),
            top_logits=self._logits(index, "top"),
            bottom_logits=self._logits(index, "bottom"),
            neighbours=tuple(
                Neighbour(int(other), float(cosine))
                for other, cosine in zip(self.neighbours.indices[index], self.neighbours.cosines[index], strict=True)
            ),
            examples=top_examples(self.firings, active, self.strings),
            inactive=inactive_examples(self.firings, active, self.strings, index),
            explanation=explanation.text if explanation else None,
            explanation_source=explanation.source if explanation else None,
            explanation_score=explanation.score if explanation else None,
            histogram=histogram(active.value),
        )

    @cached_property
    def _halves(self) -> SplitHalves:
        return SplitHalves(self.firings, self.vocabulary)

    def _output_score(self, index: int) -> float | None:
        score = nan if self.outputs is None else float(self.outputs.score[index])
        return None if isnan(score) else score

    def _output_label(self, index: int) -> Candidate | None:
        if self.outputs is None:
            return None
        named = [self.strings(int(token)) for token in self.outputs.named[index] if token >= 0]
        return output_label(named, float(self.outputs.score[index]), float(self.outputs.before[index]))

    def _logits(self, index: int, end: str) -> tuple[TokenLogit, ...] | None:
        if self.outputs is None:
            return None
        ids, values = getattr(self.outputs, end)[index], getattr(self.outputs, f"{end}_value")[index]
        return tuple(
            TokenLogit(self.strings(int(token)), int(token), float(value))
            for token, value in zip(ids[:NUM_SHOWN], values[:NUM_SHOWN], strict=True)
        )


def histogram(values: NDArray[Any]) -> tuple[int, ...] | None:
    """
    Count a feature's activations in `HISTOGRAM_BINS` bins of equal width, from 0 to the largest.

    values: (num_active,), positive
    """
    if not len(values):
        return None
    return tuple(np.histogram(values, HISTOGRAM_BINS, (0.0, float(values.max())))[0].tolist())


def max_acts(firings: ActivationIndex) -> NDArray[Any]:
    """
    Measure the 99.9th percentile of each feature's positive activations, between the nearest two (linear interpolation).

    returns: (d_sae,) float64, NaN for features that are never active
    """
    found = np.full(firings.d_sae, np.nan)
    for index in firings.num_active.nonzero()[0]:
        found[index] = np.quantile(firings[index].value.astype(np.float64), MAX_ACT_QUANTILE)
    return found
