"""A dry run of a `steering` object."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from saeclamp.types.base import Answer, EndpointRequest
from saeclamp.types.features import Label
from saeclamp.types.inspect import Messages
from saeclamp.types.rows import Tabular
from saeclamp.types.steering import Steering


class Validate(EndpointRequest):
    """Body of `POST /v1/steering/validate`: what a completion would be sent."""

    steering: Steering
    messages: Messages | None = None
    """Needed where tokens are chosen by role."""


class PlannedIntervention(Answer):
    """One intervention as it was resolved."""

    feature: str | None = None
    vector: str | None = None
    rule: str | None = None
    """The rule that it belongs to."""
    sae: str | None = None
    index: int | None = None
    name: str | None = None
    label: Label | None = None
    description: str | None = None
    site: str
    op: str
    value: float | None = None
    unit: str | None = None
    value_act: float | None = None
    """`value` in the encoder's own units."""
    factor: float | None = None
    """Factor of `scale`."""
    dose: float | None = None
    """
    Largest dose: how far it can move a token, in median norms of the stream, with the feature not active before, or at its
    maximum. None where norms could not be measured.
    """
    green_zone: tuple[float, float] | None = None
    """Lowest and highest clamp that was found to work, in multiples of `max_act`."""


class Validation(Tabular[PlannedIntervention], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """The effect that a `steering` object would have. One that cannot be applied is an error, as for a completion."""

    object: str = "steering.validation"
    valid: bool = True
    spec: str
    """As in the receipt."""
    interventions: tuple[PlannedIntervention, ...] = ()
    rules: tuple[str, ...] = ()
    """Names of the rules."""
    doses: dict[str, float] = Field(default_factory=dict)
    """Site to how far all interventions there can move a token together."""
    warnings: tuple[str, ...] = ()

    def _rows(self) -> Sequence[PlannedIntervention]:
        return self.interventions
