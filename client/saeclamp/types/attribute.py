"""Attribution of a token to features, measured by taking them away."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from saeclamp.types.base import MAX_INTERVENTIONS, Answer
from saeclamp.types.feature_actions import Composable
from saeclamp.types.features import Label
from saeclamp.types.inspect import PassageSelection, Saes
from saeclamp.types.rows import Listing

TokenLike = Annotated[str, Field(min_length=1, max_length=1000)] | Annotated[int, Field(strict=True, ge=0)]
"""A token's text, blanks included, or its id."""


class Attribute(PassageSelection):
    """
    Body of `POST /v1/features/attribute`: a token in its context.

    Either `position` names a token of the text or conversation, numbered as by `inspect`; or `target` is a token that could
    follow it. Without both, it is the token that the model itself finds likeliest to follow.
    """

    position: Annotated[int, Field(strict=True, ge=1)] | None = None
    target: TokenLike | None = None
    against: TokenLike | None = None
    """Another token: what is explained then is how much likelier the target is, as a difference of logprobs."""
    saes: Saes | None = None
    num_features: Annotated[int, Field(strict=True, ge=1, le=MAX_INTERVENTIONS)] = 24
    """Number of features that are tried, of those that are active in the context."""
    num_pairs: Annotated[int, Field(strict=True, ge=0, le=64)] = 6
    """Number of pairs, of the features that matter most, that are tried together."""

    @model_validator(mode="after")
    def _is_one_question(self) -> Attribute:
        if self.position is not None and self.target is not None:
            raise ValueError("give 'position', of a token that is there, or 'target', of one that could follow")
        return self


class AttributedToken(Answer):
    """A token, and how likely it is in its context, unsteered."""

    id: int
    text: str
    logprob: float


class AttributedFeature(Composable, Answer):
    """A feature, and the change of the explained value when it is taken away."""

    feature: str
    sae: str
    index: int
    name: str | None = None
    label: Label | None = None
    description: str | None = None
    act: float
    """Its largest activation in the context, in the encoder's units."""
    position: int
    """Position of that activation."""
    change: float
    """
    Measured: the value when the feature is clamped to 0 at every token of the context, less the unsteered value. Negative:
    the feature speaks for the token.
    """
    predicted: float
    """Linear prediction of `change`: how fast the value moves when the activation is scaled a little, times all of it."""


class AttributedPair(Answer):
    """Two features, and the change of the value when they are taken away together."""

    features: tuple[str, str]
    change: float
    interaction: float
    """`change` less the changes of both alone: negative where each can stand in for the other."""


class Together(Answer):
    """The change of the value when all tried features are taken away, and how far single changes explain it."""

    num_features: int
    num_active: int
    """Features that are active in the context: more than were tried, perhaps."""
    change: float
    sum_of_changes: float
    predicted: float
    """Sum of the linear predictions."""
    share_explained: float | None
    """Share of the squares of the single changes that the linear predictions account for; 1: all. None: nothing changed."""


class Attribution(Listing[AttributedFeature], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """The features that speak for a token in its context, and those against it; what matters most first."""

    object: str = "attribution"
    target: AttributedToken
    against: AttributedToken | None = None
    position: int
    """Position of the target: as many tokens are its context."""
    metric: Literal["logprob", "logprob_difference"]
    value: float
    """Value of the metric, unsteered."""
    data: tuple[AttributedFeature, ...]
    pairs: tuple[AttributedPair, ...]
    together: Together
    claim: str
    """Statement of what these figures say, and what they do not."""
    warnings: tuple[str, ...] = ()
    """Such as that another token was probably meant."""
