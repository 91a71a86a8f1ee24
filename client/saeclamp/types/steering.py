"""The `steering` object of a request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from saeclamp._exceptions import ArgumentTypeError
from saeclamp.types.base import MAX_INTERVENTIONS, MAX_READ, MAX_RULES, RequestModel, invalid_argument
from saeclamp.types.interventions import Feature, Intervention, Operation, VectorName
from saeclamp.types.rules import Rule
from saeclamp.types.tokens import SpecialTokens, Tokens

ReceiptKind = Literal["none", "summary", "tokens"]
"""Nothing, one summary of the whole response, or beside it what was done at each token."""


class Readout(RequestModel):
    """The activations that the response is to show, for each token, as they are before any edit at their layer."""

    features: Annotated[tuple[Feature, ...], Field(max_length=MAX_READ)] = ()
    vectors: Annotated[tuple[VectorName, ...], Field(min_length=1, max_length=MAX_READ)] | None = None
    """Uploaded vectors, probes, whose scores are shown; None for none."""
    top_k: Annotated[int, Field(strict=True, ge=0, le=MAX_READ)] = 0
    """Number of strongest features of each SAE."""
    saes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_READ)] | None = None
    """SAEs whose strongest features are shown; None for all that are loaded."""
    tokens: Tokens = "generated"
    special_tokens: SpecialTokens = False

    @model_validator(mode="after")
    def _reads_something(self) -> Readout:
        if not self.features and not self.top_k and not self.vectors:
            raise ValueError("give 'features', 'vectors' or 'top_k'")
        if len(self.features) + len(self.vectors or ()) > MAX_READ:
            raise ValueError(f"a readout names at most {MAX_READ} features and vectors together")
        return self


class Steering(RequestModel):
    """
    The `steering` object of a request: interventions, rules, a readout, or several of them.

    Every activation is read from the stream as the model produced it, before any of the request's own interventions at
    that layer, and the changes are summed; so the order of `interventions` does not matter.
    """

    interventions: Annotated[tuple[Intervention, ...], Field(max_length=MAX_INTERVENTIONS)] = ()
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()
    readout: Readout | None = None
    receipt: ReceiptKind = "summary"

    @model_validator(mode="after")
    def _asks_for_something(self) -> Steering:
        if not self.interventions and not self.rules and self.readout is None:
            raise ValueError("give 'interventions', 'rules' or 'readout'")
        numbers: dict[str, int] = {}
        for number, rule in enumerate(self.rules):
            first = numbers.setdefault(rule.name, number)
            if first != number:
                raise ValueError(f"rules[{first}] and rules[{number}] are both named {rule.name!r}")
        return self

    def to_json(self) -> dict[str, Any]:
        """Return it as it is sent: without what was left out."""
        parts = self.model_dump(mode="json", exclude_none=True)
        return {name: part for name, part in parts.items() if part != []}


def extra_body(*interventions: Operation | Steering, receipt: ReceiptKind | None = None) -> dict[str, Any]:
    """
    Build the `extra_body` that openai-python merges into a request, of interventions or of a whole `Steering`.

    >>> extra_body(Clamp(feature="bundled/golden-gate", value=0.75))["steering"]["interventions"][0]["op"]
    'clamp'
    """
    whole = interventions[0] if len(interventions) == 1 else interventions
    return {"steering": as_steering(whole, receipt).to_json()}


def as_steering(
    steering: Steering | Operation | Iterable[Operation | Steering] | dict[str, Any],
    receipt: ReceiptKind | None = None,
) -> Steering:
    """
    Accept what a caller finds natural: a `Steering`, its JSON, one intervention, or several.

    `receipt`, if given, replaces what `steering` asks for. Raises `InvalidArgumentError`.
    """
    from saeclamp.types.steering_mistakes import why_no_intervention, why_no_steering  # which read all types

    why = why_no_steering(steering)
    if why is not None:
        raise ArgumentTypeError(f"steering: {why}.", "steering")
    if isinstance(steering, Operation):
        steering = (steering,)
    if not isinstance(steering, Steering):
        if not isinstance(steering, dict):
            moves = tuple(steering)
            for number, move in enumerate(moves):
                if (why := why_no_intervention(move)) is not None:
                    raise ArgumentTypeError(f"steering[{number}]: {why}.", f"steering[{number}]")
            steering = {"interventions": moves}
        try:
            steering = Steering.model_validate(steering)
        except ValidationError as exc:
            raise invalid_argument(exc, steering, Steering, "steering") from None
    return steering if receipt is None else steering.model_copy(update={"receipt": receipt})
