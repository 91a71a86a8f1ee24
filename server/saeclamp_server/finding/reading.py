"""What is active in texts: all features, or named ones, at every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Readout as WireReadout
from saeclamp.types import Steering
from saeclamp_server.model import Model, Outcome, Prompt, Run, run_all
from saeclamp_server.program import Readout, SteeringProgram
from saeclamp_server.scopes import PROMPT
from saeclamp_server.steering import ResolvedSteering, Served, with_hashes

NUM_ACTIVE = 512
"""Features of each SAE that are read at a token: more than are active at all but the strangest ones."""


class FeatureId(NamedTuple):
    """A feature, wherever it is served."""

    sae: str
    number: int

    def __str__(self) -> str:
        return f"{self.sae}/{self.number}"


@dataclass(frozen=True)
class Activations:
    """What one text showed."""

    prompt: Prompt
    is_read: NDArray[np.bool_]
    """(num_tokens,): not the first one and special ones"""
    named: NDArray[np.float64]
    """(num_tokens, num_features), of the named features; 0 where nothing is read"""
    active: list[dict[FeatureId, float]]
    """Of each token, the features that are active, strongest first within an SAE; none were asked for: empty."""
    is_cut: bool
    """Whether more than `NUM_ACTIVE` features of an SAE were active somewhere."""

    def counted(self, include_template: bool = False) -> NDArray[np.bool_]:
        """Tokens over which features are summed up: (num_tokens,)."""
        return self.is_read & (include_template | ~np.array(self.prompt.is_template(), np.bool_))


async def read(
    model: Model,
    served: Served,
    prompts: Sequence[tuple[Prompt, str]],
    features: Sequence[FeatureId] = (),
    saes: Sequence[str] = (),
) -> list[Activations]:
    """
    Read texts in one batch.

    prompts:  each with its JSON path
    features: whose activations are wanted, active or not
    saes:     of which all active features are wanted
    Raises RequestError.
    """
    asked = _reading(served, features, saes)
    outcomes = await run_all(model, [(Run(prompt.ids, asked), path) for prompt, path in prompts])
    return [_activations(prompt, outcome, features) for (prompt, _), outcome in zip(prompts, outcomes, strict=True)]


def _reading(served: Served, features: Sequence[FeatureId], saes: Sequence[str]) -> ResolvedSteering:
    num = NUM_ACTIVE if saes else 0
    readout = Readout(tuple((sae, index) for sae, index in features), num, tuple(saes), PROMPT)
    # the wire allows fewer features, and is not asked
    steering = Steering.model_construct(readout=WireReadout.model_construct(), interventions=(), rules=())
    return ResolvedSteering(steering, with_hashes(SteeringProgram((), (), readout=readout), served))


def _activations(prompt: Prompt, outcome: Outcome, features: Sequence[FeatureId]) -> Activations:
    num = len(prompt.ids)
    is_read, named = np.zeros(num, np.bool_), np.zeros((num, len(features)))
    active: list[dict[FeatureId, float]] = [{} for _ in range(num)]
    is_cut = False
    for position, reading in outcome.readings.items():
        if position >= num or reading.is_empty:
            continue
        is_read[position] = True
        named[position] = [act or 0.0 for act in reading.acts]
        for sae, strongest in reading.top.items():
            active[position] |= {FeatureId(sae, index): act for index, act in strongest or ()}
            is_cut |= len(strongest or ()) == NUM_ACTIVE
    return Activations(prompt, is_read, named, active, is_cut)


def mentioned(texts: Sequence[Activations]) -> Iterator[FeatureId]:
    """Yield all features that are active somewhere in texts, each once, in the order in which they are met."""
    yield from dict.fromkeys(feature for text in texts for token in text.active for feature in token)


def matrix(text: Activations, features: Sequence[FeatureId]) -> NDArray[np.float64]:
    """Lay out the activations of some features in a text: (num_tokens, num_features)."""
    numbers = {feature: number for number, feature in enumerate(features)}
    acts = np.zeros((len(text.active), len(features)))
    for position, token in enumerate(text.active):
        for feature, act in token.items():
            if feature in numbers:
                acts[position, numbers[feature]] = act
    return acts
