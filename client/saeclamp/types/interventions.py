"""Operations on features, and on directions that users have uploaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from saeclamp.types.base import RequestModel, Unit, Value
from saeclamp.types.tokens import SpecialTokens, Tokens

FEATURE_PATTERN = r"^[^/\s]+/[^/\s]+$"

A_FEATURE = (
    "a feature is written <sae>/<index> or <sae>/<name>, such as bundled/golden-gate (without spaces), or as an object with "
    "sae and index"
)

VECTOR_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"


class FeatureIndex(RequestModel):
    """A feature by number, where `"<sae>/<index>"` is inconvenient."""

    sae: Annotated[str, Field(strict=True, min_length=1, max_length=256)]
    index: Annotated[int, Field(strict=True, ge=0)]

    def __str__(self) -> str:
        return f"{self.sae}/{self.index}"


def _kind_of_feature(value: object) -> str | None:
    if isinstance(value, str):
        return "<path>"
    return "<object>" if isinstance(value, Mapping | FeatureIndex) else None


Feature = Annotated[
    Annotated[str, Field(pattern=FEATURE_PATTERN, max_length=256), Tag("<path>")]
    | Annotated[FeatureIndex, Tag("<object>")],
    Discriminator(_kind_of_feature, custom_error_type="feature_type", custom_error_message=A_FEATURE),
]
"""`"<sae>/<index>"`, `"<sae>/<name>"` or `{"sae": ..., "index": ...}`."""


def is_vector_name(name: str) -> bool:
    """Tell whether a vector can have this name: one of dots alone would lead to another path of a URL, or of the disk."""
    return re.fullmatch(VECTOR_PATTERN.strip("^$"), name) is not None and name.strip(".") != ""


VectorName = Annotated[str, Field(pattern=VECTOR_PATTERN)]
"""As it was uploaded under."""


class _InterventionBase(RequestModel):
    feature: Feature | None = None
    vector: VectorName | None = None
    """An uploaded direction, in place of `feature`: its activation is the stream's projection on it, of either sign."""
    tokens: Tokens = "all"
    special_tokens: SpecialTokens = False

    @model_validator(mode="after")
    def _moves_one_thing(self) -> _InterventionBase:
        if (self.feature is None) == (self.vector is None):
            raise ValueError("give one of 'feature' and 'vector'")
        return self

    @property
    def target(self) -> str:
        """The feature or vector as the user wrote it."""
        return str(self.vector if self.feature is None else self.feature)


class Clamp(_InterventionBase):
    """Set a feature's activation to `value`, whatever it was: adds `(value - activation) * W_dec[feature]`."""

    op: Literal["clamp"] = "clamp"
    value: Value
    """Target activation, in `unit`."""
    unit: Unit = "max_act"


class Add(_InterventionBase):
    """Raise a feature's activation by `value`: adds `value * W_dec[feature]`, without looking at the activation."""

    op: Literal["add"] = "add"
    value: Value
    """Change of the activation, in `unit`. May be negative."""
    unit: Unit = "max_act"


class AtLeast(_InterventionBase):
    """Raise a feature's activation to `value` where it is lower, and leave it alone elsewhere."""

    op: Literal["at_least"] = "at_least"
    value: Value
    """Lowest activation, in `unit`."""
    unit: Unit = "max_act"


class AtMost(_InterventionBase):
    """Lower a feature's activation to `value` where it is higher, and leave it alone elsewhere."""

    op: Literal["at_most"] = "at_most"
    value: Value
    """Highest activation, in `unit`."""
    unit: Unit = "max_act"


class Scale(_InterventionBase):
    """Multiply a feature's activation by `factor`. Changes nothing where the feature is not active."""

    op: Literal["scale"] = "scale"
    factor: Value


class Ablate(_InterventionBase):
    """Set a feature's activation to zero. Changes nothing where the feature is not active."""

    op: Literal["ablate"] = "ablate"


Operation: TypeAlias = Clamp | Add | AtLeast | AtMost | Scale | Ablate

Intervention = Annotated[Operation, Field(discriminator="op")]
