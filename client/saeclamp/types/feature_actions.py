"""Building interventions and conditions from features, without operators that mean something else elsewhere."""

from __future__ import annotations

from typing import TypedDict, Unpack

from saeclamp._exceptions import InvalidArgumentError
from saeclamp.types.base import Unit
from saeclamp.types.interventions import Ablate, Add, AtLeast, AtMost, Clamp, Scale
from saeclamp.types.rules import AllOf, AnyOf, Condition, FeatureCondition, Not, Over
from saeclamp.types.tokens import Tokens


class MoveOptions(TypedDict, total=False):
    """Fields of all interventions."""

    tokens: Tokens
    special_tokens: bool


class Composable:
    """
    A feature that an answer has named, and what can be done with it.

    `options` are the other fields of an intervention: `tokens` and `special_tokens`.
    """

    feature: str

    def above(self, value: float, unit: Unit = "max_act", over: Over | None = None) -> FeatureCondition:
        """Make the condition that it is more active than that at a token, or over the tokens so far."""
        return FeatureCondition(feature=self.feature, above=value, unit=unit, over=over)

    def below(self, value: float, unit: Unit = "max_act", over: Over | None = None) -> FeatureCondition:
        """Make the condition that it is less active than that at a token, or over the tokens so far."""
        return FeatureCondition(feature=self.feature, below=value, unit=unit, over=over)

    def clamp(self, value: float | None, unit: Unit = "max_act", **options: Unpack[MoveOptions]) -> Clamp:
        """Set its activation. Refuses None, which is the `best` of a feature that was not calibrated."""
        if value is None:
            raise InvalidArgumentError(
                f"value: {self.feature} was not calibrated, so it has no best strength; give a value.", "value"
            )
        return Clamp(feature=self.feature, value=value, unit=unit, **options)

    def add(self, value: float, unit: Unit = "max_act", **options: Unpack[MoveOptions]) -> Add:
        """Add to its activation."""
        return Add(feature=self.feature, value=value, unit=unit, **options)

    def at_least(self, value: float, unit: Unit = "max_act", **options: Unpack[MoveOptions]) -> AtLeast:
        """Raise its activation where it is lower."""
        return AtLeast(feature=self.feature, value=value, unit=unit, **options)

    def at_most(self, value: float, unit: Unit = "max_act", **options: Unpack[MoveOptions]) -> AtMost:
        """Lower its activation where it is higher."""
        return AtMost(feature=self.feature, value=value, unit=unit, **options)

    def scale(self, factor: float, **options: Unpack[MoveOptions]) -> Scale:
        """Multiply its activation."""
        return Scale(feature=self.feature, factor=factor, **options)

    def ablate(self, **options: Unpack[MoveOptions]) -> Ablate:
        """Set its activation to zero."""
        return Ablate(feature=self.feature, **options)


def all_(*conditions: Condition) -> AllOf:
    """Make the condition that all of some conditions hold."""
    return AllOf(all=conditions)


def any_(*conditions: Condition) -> AnyOf:
    """Make the condition that any of some conditions holds."""
    return AnyOf(any=conditions)


def not_(condition: Condition) -> Not:
    """Make the condition that a condition does not hold."""
    return Not(not_=condition)
