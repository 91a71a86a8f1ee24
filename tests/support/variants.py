"""Variants that tests make: a served SAE with a feature book, and steerings of its features."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.sae_entries import entry, served_saes

from saeclamp.types import Add, Clamp, NewVariant, Steering
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.steering import SteeringContext
from saeclamp_server.variants import VariantRegistry
from saeclamp_server.variants.version import VariantVersion

ResultT = TypeVar("ResultT")
BRIDGE = Steering(interventions=(Clamp(feature="big/bridge", value=2),))
FOOD = Steering(interventions=(Add(feature="big/food", value=3, unit="act"),))


def run(task: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(task)


def served(max_act: float = 200.0, resid_norm: float = 50.0) -> SteeringContext:
    bridge = FeatureNote(4, "bridge", max_act, (1, 2), 1.5, "A bridge.")
    food, unmeasured = FeatureNote(5, "food", None), FeatureNote(6, "plain", 3.0)
    return SteeringContext(
        served_saes((entry("big", 8, 100, bridge, food, unmeasured), SiteNorms(resid_norm, [2.0] * 100)))
    )


def create(variants: VariantRegistry, name: str, steering: Steering, **options: Any) -> Any:
    return run(variants.create(NewVariant(name=name, steering=steering, **options)))


def version(name: str, number: int) -> VariantVersion:
    steering = Steering(interventions=(Clamp(feature=f"big/{number}", value=1, unit="act"),))
    return VariantVersion("tiny", name, json.dumps(steering.to_json(), sort_keys=True), "", "sha256:" + "0" * 64)
