"""Rules: what is to happen where features are active, or are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from saeclamp.types.base import (
    MAX_DEPTH,
    MAX_INTERVENTIONS,
    MAX_TESTS,
    MAX_WINDOW,
    RequestModel,
    Unit,
    Value,
    as_any_of,
    is_list,
)
from saeclamp.types.interventions import Feature, Intervention, Operation, VectorName
from saeclamp.types.tokens import SpecialTokens, Tokens


class LastTokens(RequestModel):
    """The mean over the last tokens that were looked at: over so many, or over all where there are fewer."""

    last: Annotated[int, Field(strict=True, ge=1, le=MAX_WINDOW)]


CHOOSING_OVER = "'over' is 'token', 'max' or 'mean', or an object with 'last'"


def _kind_of_over(value: object) -> str | None:
    if isinstance(value, str):
        return "<over>"
    return "<last_tokens>" if isinstance(value, Mapping | LastTokens) else None


Over: TypeAlias = Annotated[
    Annotated[Literal["token", "max", "mean"], Tag("<over>")] | Annotated[LastTokens, Tag("<last_tokens>")],
    Discriminator(_kind_of_over, custom_error_type="over_type", custom_error_message=CHOOSING_OVER),
]
"""The token alone; the maximum or mean over all tokens so far at which it was read; or the mean over the last of these."""


class _Comparison(RequestModel):
    above: Value | None = None
    below: Value | None = None
    over: Over | None = None
    """None: the token alone, as `token` says."""

    @model_validator(mode="after")
    def _compares_once(self) -> _Comparison:
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of 'above' and 'below'")
        return self

    @property
    def bound(self) -> float:
        """The one of `above` and `below` that is given."""
        bound = self.above if self.above is not None else self.below
        assert bound is not None, "one is given"
        return bound


class FeatureCondition(_Comparison):
    """A condition: a feature's activation at a token is above, or below, a value; one of the two is given."""

    feature: Feature
    unit: Unit = "max_act"


class VectorCondition(_Comparison):
    """
    A condition: what an uploaded vector, a probe, reads at a token is above, or below, a value; one of the two is given.

    In unit `score` that is the stream's dot product with the vector, plus the vector's bias; in unit `act`, as
    interventions have it, the coefficient of the stream's projection on it.
    """

    vector: VectorName
    unit: Literal["score", "act"] = "score"


class AllOf(RequestModel):
    """A condition: all of some conditions hold at a token."""

    all: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=MAX_TESTS)]


class AnyOf(RequestModel):
    """A condition: any of some conditions holds at a token."""

    any: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=MAX_TESTS)]


class Not(RequestModel):
    """A condition: another one does not hold at a token."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    not_: Annotated[Condition, Field(alias="not")]


CONDITIONS: dict[str, type[RequestModel]] = {
    "feature": FeatureCondition,
    "vector": VectorCondition,
    "all": AllOf,
    "any": AnyOf,
    "not": Not,
}
"""Field by which a condition is known, to its class."""

A_CONDITION = (
    "a condition is an object with 'feature' or 'vector' and 'above' or 'below', or with one of 'all', 'any' and 'not'"
)

CONDITION_TYPE = "condition_type"
"""Type of pydantic's error for what is no condition."""


def _kind_of_condition(value: object) -> str | None:
    if isinstance(value, Mapping):
        return next((f"<{key}>" for key in CONDITIONS if key in value), None)
    return next((f"<{key}>" for key, kind in CONDITIONS.items() if isinstance(value, kind)), None)


ConditionObject: TypeAlias = "FeatureCondition | VectorCondition | AllOf | AnyOf | Not"


Condition: TypeAlias = Annotated[
    Annotated[FeatureCondition, Tag("<feature>")]
    | Annotated[VectorCondition, Tag("<vector>")]
    | Annotated[AllOf, Tag("<all>")]
    | Annotated[AnyOf, Tag("<any>")]
    | Annotated[Not, Tag("<not>")],
    Discriminator(_kind_of_condition, custom_error_type=CONDITION_TYPE, custom_error_message=A_CONDITION),
]
"""A comparison, or `all`, `any` and `not` of conditions."""


def comparisons(condition: ConditionObject) -> Iterator[FeatureCondition | VectorCondition]:
    """Yield all comparisons in a condition, in the order in which they are written."""
    match condition:
        case FeatureCondition() | VectorCondition():
            yield condition
        case AllOf(all=parts) | AnyOf(any=parts):
            for part in parts:
                yield from comparisons(part)
        case Not(not_=inner):
            yield from comparisons(inner)


def _depth(condition: ConditionObject) -> int:
    match condition:
        case AllOf(all=parts) | AnyOf(any=parts):
            return 1 + max(map(_depth, parts))
        case Not(not_=inner):
            return 1 + _depth(inner)
        case _:
            return 1


CHOOSING_THEN = "'then' is 'abort', 'note' or a list of interventions"


def _kind_of_then(value: object) -> str | None:
    if value in ("abort", "note"):
        return f"<{value}>"
    return "<interventions>" if is_list(value) and value else None


Then: TypeAlias = Annotated[
    Annotated[Literal["abort"], Tag("<abort>")]
    | Annotated[Literal["note"], Tag("<note>")]
    | Annotated[tuple[Intervention, ...], Field(min_length=1, max_length=MAX_INTERVENTIONS), Tag("<interventions>")],
    Discriminator(_kind_of_then, custom_error_type="then_type", custom_error_message=CHOOSING_THEN),
    Field(json_schema_extra=as_any_of),
]
"""The end of the answer, a note in the receipt and nothing else, or interventions."""


class Rule(RequestModel):
    """
    A rule: what is to happen where a condition holds.

    Activations are read from the unedited stream. `then` may move features at the layer where the condition is known (that
    of the last feature it reads) or at a later one. `abort` ends the answer before the token at which the condition holds;
    `note` changes nothing: the receipt says where the condition held, and the server's metrics count it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    when: Condition
    scope: Literal["token", "rest_of_request"] = "token"
    """Reach of `then`: the token at which the condition holds, or that one and all later ones."""
    then: Then
    tokens: Tokens = "all"
    """Tokens at which the condition is looked at."""
    special_tokens: SpecialTokens = False

    @model_validator(mode="after")
    def _is_bounded(self) -> Rule:
        if _depth(self.when) > MAX_DEPTH:
            raise ValueError(f"a condition is nested at most {MAX_DEPTH} deep")
        if sum(1 for _ in comparisons(self.when)) > MAX_TESTS:
            raise ValueError(f"a condition has at most {MAX_TESTS} comparisons")
        if self.then == "abort" and self.scope != "token":
            raise ValueError("'abort' ends the request, so it has no scope 'rest_of_request'")
        if self.then == "note" and self.scope != "token":
            raise ValueError("'note' does nothing to later tokens, so it has no scope 'rest_of_request'")
        return self

    @property
    def interventions(self) -> tuple[Operation, ...]:
        """The interventions of `then`, if that is what it has."""
        return () if isinstance(self.then, str) else self.then
