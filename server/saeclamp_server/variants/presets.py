"""Variants that the feature book makes: each feature that is known to steer, at the value that works best."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from saeclamp.types import Clamp, Steering
from saeclamp_server.errors import DoseTooLargeError
from saeclamp_server.steering import SteeringContext, resolve
from saeclamp_server.variants.names import ModelName
from saeclamp_server.variants.version import VariantVersion, canonical_json, resolved_fingerprint

logger = logging.getLogger("saeclamp.server")


def presets(context: SteeringContext, base: str) -> Mapping[str, VariantVersion]:
    """Make the variants of a base model, by name; of two features with one name, that of the SAE named first gets it."""
    made: dict[str, VariantVersion] = {}
    for name, sae in context.saes.items():
        for note in sae.entry.features.values():
            fits = ModelName.parse(f"{base}:{note.name}") is not None
            if note.best is None or note.max_act is None or not fits or note.name in made:
                continue
            steering = Steering(interventions=(Clamp(feature=f"{name}/{note.name}", value=note.best),))
            try:
                meaning = resolved_fingerprint(resolve(steering, context).program)
            except DoseTooLargeError as exc:
                logger.warning(f"the preset {base}:{note.name} is left out: {exc}")
                continue
            made[note.name] = VariantVersion(
                base, note.name, canonical_json(steering), note.description or "", meaning, read_only=True
            )
    return made
