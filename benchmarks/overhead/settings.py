"""What is compared: which requests are sent to which server, in batches of which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.overhead.load import Steering
from tests.support.bundled import D_SAE, GOLDEN_GATE

BATCH = 64
"""The size for which targets are set."""
BATCHES = (1, 8, 32, BATCH)
WIDE = 256
"""The size in which 256 programs can differ."""
OTHER_LAYERS = (5, 12, 17)
"""Layers at which a second server has a random SAE each."""
NUM_LAYERS = 30
ONE_LAYER, FOUR_LAYERS, ALL_LAYERS = "1 layer", "4 layers", "all layers"
"""Our servers, by how many layers have a hook."""


@dataclass(frozen=True)
class Setting:
    """A row of the table, once for each size of batch."""

    name: str
    server: str
    """`vanilla`, one of ours, or the library that hooks a model."""
    steering: Steering
    batches: Sequence[int] = (BATCH,)
    target: float | None = None
    """At `BATCH`, or at `WIDE` where that is the size."""


def _edits(features: Sequence[str]) -> dict[str, Any]:
    return {"interventions": [{"op": "clamp", "feature": feature, "value": 5, "unit": "act"} for feature in features]}


def _features(count: int, first: int = GOLDEN_GATE) -> list[str]:
    return [f"bundled/{(first + number) % D_SAE}" for number in range(count)]


def _distinct(num_programs: int) -> Steering:
    return lambda number: _edits(_features(1, number % num_programs))


def _always(steering: dict[str, Any] | None) -> Steering:
    return lambda number: steering


def _rule(then: Any, above: float) -> Steering:
    condition = {"feature": f"bundled/{GOLDEN_GATE}", "above": above, "unit": "act"}
    return _always({"rules": [{"name": "rule", "when": condition, "then": then}]})


def _vectors() -> dict[str, Any]:
    edits = [
        {"op": "add", "vector": f"layer-{layer}", "value": 0.01, "unit": "resid_norm"} for layer in range(NUM_LAYERS)
    ]
    return {"interventions": edits}


PLAIN = Setting("vanilla vLLM", "vanilla", _always(None))
"""What all others are compared with, in their size of batch."""
SETTINGS = (
    Setting("idle", ONE_LAYER, _always(None), BATCHES, target=1.00),
    Setting("1 feature", ONE_LAYER, _always(_edits(_features(1))), BATCHES, target=0.99),
    Setting("4 features", ONE_LAYER, _always(_edits(_features(4)))),
    Setting("16 features", ONE_LAYER, _always(_edits(_features(16)))),
    Setting("8 programs", ONE_LAYER, _distinct(8)),
    Setting("32 programs", ONE_LAYER, _distinct(32)),
    Setting("128 programs", ONE_LAYER, _distinct(128), (WIDE,)),
    Setting("256 programs", ONE_LAYER, _distinct(256), (WIDE,), target=0.98),
    Setting("a rule that edits", ONE_LAYER, _rule(_edits(["bundled/94"])["interventions"], above=0), target=0.98),
    Setting("a rule that would abort", ONE_LAYER, _rule("abort", above=1e6), target=0.98),
    Setting("3 named features read", ONE_LAYER, _always({"readout": {"features": _features(3)}}), target=0.98),
    Setting("5 strongest features read", ONE_LAYER, _always({"readout": {"top_k": 5}})),
    Setting("idle", FOUR_LAYERS, _always(None)),
    Setting(
        "16 features on 4 layers",
        FOUR_LAYERS,
        _always(_edits([*_features(4), *(f"layer-{layer}/{number}" for layer in OTHER_LAYERS for number in range(4))])),
        target=0.96,
    ),
    Setting("idle", ALL_LAYERS, _always(None)),
    Setting("a vector on each layer", ALL_LAYERS, _always(_vectors()), target=0.93),
)
