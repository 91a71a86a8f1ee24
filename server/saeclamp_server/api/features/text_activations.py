"""Activations in texts: of all features, or named ones, at every token."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Readout as WireReadout
from saeclamp.types import Steering
from saeclamp_saes.concurrency import gather_first_error
from saeclamp_server.api.model_client import GenerateRequest, GenerateResult, ModelClient, Prompt
from saeclamp_server.api.model_share import MAX_CELLS
from saeclamp_server.steering import ResolvedSteering, SteeringContext, add_sae_hashes
from saeclamp_server.steering.program import ReadoutSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import PROMPT
from saeclamp_server.threads import run_computation

NUM_ACTIVE = 512
"""Features of each SAE that are read at a token: more than are active at all but the strangest ones."""
INDEX_BITS = 32
"""Lower bits of a key, which are the feature's index; the SAE's number is above them."""


class FeatureId(NamedTuple):
    """A feature, wherever it is served."""

    sae: str
    number: int

    def __str__(self) -> str:
        return f"{self.sae}/{self.number}"


def feature_of(key: int, saes: Sequence[str]) -> FeatureId:
    """Return the feature of a key, given the SAEs that were read."""
    return FeatureId(saes[key >> INDEX_BITS], key & ((1 << INDEX_BITS) - 1))


@dataclass(frozen=True)
class TextActivations:
    """Activations in one text, kept flat: dicts of them would take ten times as much memory."""

    prompt: Prompt
    is_read: NDArray[np.bool_]
    """(num_tokens,): not the first one and special ones"""
    named: NDArray[np.float64]
    """(num_tokens, num_features), of the named features; 0 where nothing is read"""
    is_cut: bool
    """True if at some token as many features of an SAE were active as are read, or more."""
    saes: tuple[str, ...] = ()
    """SAEs of which all active features are known."""
    positions: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """(num_active,): where each of the following is active, ascending; within a token and an SAE the strongest first"""
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(num_active,): the SAE's number in `saes` and the feature's index; equal in texts that were read together"""
    acts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(num_active,)"""

    def counted(self, include_template: bool = False) -> NDArray[np.bool_]:
        """Tell which tokens features are summed up over: (num_tokens,)."""
        return self.is_read & (include_template | ~np.array(self.prompt.is_template(), np.bool_))

    def key(self, feature: FeatureId) -> int:
        """Find the key of a feature of one of `saes`."""
        return self.saes.index(feature.sae) << INDEX_BITS | feature.number

    def strongest(self, position: int, num: int) -> dict[str, list[tuple[int, float]]]:
        """List index and activation of the features that are most active at a token, by SAE."""
        start, end = np.searchsorted(self.positions, (position, position + 1))
        found: dict[str, list[tuple[int, float]]] = {}
        for key, act in zip(self.keys[start:end].tolist(), self.acts[start:end].tolist(), strict=True):
            sae, index = feature_of(key, self.saes)
            rows = found.setdefault(sae, [])
            if len(rows) < num:
                rows.append((index, act))
        return {sae: rows for sae, rows in found.items() if rows}


class TextSums(NamedTuple):
    """Features summed up over one text. Each array is (num_features,), by key."""

    keys: NDArray[np.int64]
    """Ascending."""
    max: NDArray[np.float64]
    """The largest activation at a token that counts, active or not."""
    mean: NDArray[np.float64]
    frequency: NDArray[np.float64]
    peak: NDArray[np.float64]
    """The activation that is farthest from 0."""
    position: NDArray[np.int32]
    """Its position."""


async def read_activations(
    model: ModelClient,
    context: SteeringContext,
    prompts: Sequence[tuple[Prompt, str]],
    features: Sequence[FeatureId] = (),
    saes: Sequence[str] = (),
) -> list[TextActivations]:
    """
    Read texts in one batch.

    prompts:  each with its JSON path
    features: whose activations are wanted, active or not
    saes:     of which all active features are wanted
    Raises RequestError.
    """
    return await gather_first_error(
        read_text_activations(model, context, prompt, path, features, saes) for prompt, path in prompts
    )


async def read_text_activations(
    model: ModelClient,
    context: SteeringContext,
    prompt: Prompt,
    path: str,
    features: Sequence[FeatureId] = (),
    saes: Sequence[str] = (),
) -> TextActivations:
    """Read a text, as `read_activations` does."""
    # of a long text fewer are read at each token, so that whatever is read of one text has room
    num = min(NUM_ACTIVE, max(1, MAX_CELLS // max(1, len(prompt.ids) * len(saes)))) if saes else 0
    outcome = await model.run(GenerateRequest(prompt.ids, _reading(context, features, saes, num)), path)
    return await run_computation(_activations, prompt, outcome, features, tuple(saes), num)


def _reading(
    context: SteeringContext, features: Sequence[FeatureId], saes: Sequence[str], num: int
) -> ResolvedSteering:
    readout = ReadoutSpec(tuple((sae, index) for sae, index in features), num, tuple(saes), PROMPT)
    # the wire allows fewer features, and is not asked
    steering = Steering.model_construct(readout=WireReadout.model_construct(), interventions=(), rules=())
    return ResolvedSteering(steering, add_sae_hashes(SteeringProgram((), (), readout=readout), context))


def _activations(
    prompt: Prompt, outcome: GenerateResult, features: Sequence[FeatureId], saes: tuple[str, ...], num_active: int
) -> TextActivations:
    num = len(prompt.ids)
    is_read, named = np.zeros(num, np.bool_), np.zeros((num, len(features)))
    positions, keys, acts = array("i"), array("q"), array("d")
    is_cut = False
    for position, reading in sorted(outcome.readings.items()):
        if position >= num or reading.is_empty:
            continue
        is_read[position] = True
        named[position] = [act or 0.0 for act in reading.acts]
        for number, sae in enumerate(saes):
            strongest = reading.top.get(sae) or ()
            keys.extend(number << INDEX_BITS | index for index, _ in strongest)
            acts.extend(act for _, act in strongest)
            positions.extend([position] * len(strongest))
            is_cut |= len(strongest) == num_active
    return TextActivations(
        prompt,
        is_read,
        named,
        is_cut,
        saes,
        np.array(positions, np.int32),
        np.array(keys, np.int64),
        np.array(acts, np.float64),
    )


def active_features(texts: Sequence[TextActivations]) -> Iterator[FeatureId]:
    """Yield all features that are active somewhere in texts, each once, those of the first SAE first."""
    if texts:
        for key in np.unique(np.concatenate([text.keys for text in texts])).tolist():
            yield feature_of(key, texts[0].saes)


def dense_acts(text: TextActivations, features: Sequence[FeatureId]) -> NDArray[np.float64]:
    """Lay out the activations of a few features in a text: (num_tokens, num_features)."""
    acts = np.zeros((len(text.prompt.ids), len(features)))
    for number, feature in enumerate(features):
        chosen = text.keys == text.key(feature)
        acts[text.positions[chosen], number] = text.acts[chosen]
    return acts


def sum_activations(text: TextActivations, include_template: bool = False) -> TextSums:
    """Sum up what each feature does that is active at a token that counts."""
    counted = text.counted(include_template)
    chosen = counted[text.positions] & (text.acts != 0)
    keys, numbers = np.unique(text.keys[chosen], return_inverse=True)
    positions, acts, num, num_counted = text.positions[chosen], text.acts[chosen], len(keys), max(1, counted.sum())
    times = np.bincount(numbers, minlength=num)
    largest = np.full(num, -np.inf)
    np.maximum.at(largest, numbers, acts)
    # of equal peaks the first: the last that is written stays
    order = np.lexsort((-positions, np.abs(acts)))
    peak, position = np.zeros(num), np.zeros(num, np.int32)
    peak[numbers[order]], position[numbers[order]] = acts[order], positions[order]
    return TextSums(
        keys,
        # where it is not active at every token, 0 is among its activations, and may be larger
        np.where(times < num_counted, np.maximum(largest, 0.0), largest),
        np.bincount(numbers, weights=acts, minlength=num) / num_counted,
        times / num_counted,
        peak,
        position,
    )
