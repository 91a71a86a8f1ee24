"""Inspection of a text or a conversation: which features are active, token by token and on the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from saeclamp.types.base import MAX_READ, Answer, EndpointRequest, as_any_of, is_list
from saeclamp.types.feature_actions import Composable
from saeclamp.types.features import MAX_HITS, Label
from saeclamp.types.interventions import Feature
from saeclamp.types.receipts import TopFeature
from saeclamp.types.rows import Tabular

MAX_CHARACTERS = 1_000_000
"""Characters of a text; how many tokens there is room for, the server knows."""
MAX_MESSAGES = 1024

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Messages = Annotated[tuple[dict[str, Any], ...], Field(min_length=1, max_length=MAX_MESSAGES)]
"""As in a chat completion."""


def _kind_of_text(value: object) -> str:
    return "<messages>" if is_list(value) else "<text>"


TextOrMessages: TypeAlias = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Messages, Tag("<messages>")],
    Discriminator(_kind_of_text),
    Field(json_schema_extra=as_any_of),
]
"""A text or a conversation."""
Aggregate: TypeAlias = Literal["max", "mean", "frequency"]
"""A feature's activations at a text's tokens in one number: the largest, the mean, or the share at which it is active."""
FeatureOrder: TypeAlias = Literal["aggregate", "tf_idf"]
"""Features by the aggregate itself, or by how unusual it is: in multiples of `max_act`, times -ln(density)."""
Saes = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_READ)]


class PassageSelection(EndpointRequest):
    """A request about one text or conversation."""

    text: Text | None = None
    messages: Messages | None = None

    @model_validator(mode="after")
    def _has_one_of_both(self) -> PassageSelection:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give one of 'text' and 'messages'")
        return self


class Inspect(PassageSelection):
    """Body of `POST /v1/features/inspect`: a text or a conversation, and what is to be looked for in it."""

    features: Annotated[tuple[Feature, ...], Field(max_length=MAX_READ)] = ()
    """Named features; none: whatever is active."""
    top_k: Annotated[int, Field(strict=True, ge=0, le=MAX_READ)] | None = None
    """Number of strongest features that are shown at each token; None: 5, or 0 where features are named."""
    saes: Saes | None = None
    """SAEs whose active features are looked for; None for all."""
    aggregate: Aggregate = "max"
    """Number by which features are ordered."""
    order: FeatureOrder = "aggregate"
    """Order of the features; by `tf_idf`, those without a stored `max_act` or density come last."""
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_HITS)] = 20
    """Number of features that are summed up, where none are named."""
    include_template: Annotated[bool, Field(strict=True)] = False
    """True if tokens that the chat template has added count where features are summed up."""


class InspectedToken(Answer):
    """A token, and what is active at it."""

    position: int
    id: int
    text: str
    bytes: tuple[int, ...] | None = None
    """Bytes of a token that is a part of a character, which `text` shows as U+FFFD: its neighbours have the rest."""
    role: str | None = None
    """Whose message it is of."""
    template: bool = False
    """True if the chat template has added it."""
    read: bool = True
    """True if activations are read here: not at the first token and special ones, whose streams are like no other's."""
    features: Mapping[str, float] = {}
    """Activations of the named features, as the request names them."""
    top: Mapping[str, tuple[TopFeature, ...]] = {}
    """The strongest by SAE, strongest first; only those that are active."""


class InspectedFeature(Composable, Answer):
    """A feature summed up over all of the text, in the encoder's units."""

    feature: str
    sae: str
    index: int
    name: str | None = None
    label: Label | None = None
    description: str | None = None
    max: float
    mean: float
    """Over all tokens that count, active or not."""
    frequency: float
    """Share of them at which it is active."""
    density: float | None = None
    """Share of the tokens of the labels' texts at which it is active; None where it is not known."""
    position: int | None = None
    """Position at which it is strongest; None where it is active nowhere."""
    max_act: float | None = None
    """Its stored maximum: what `max` may be compared with."""
    acts: tuple[float, ...] = ()
    """At each of the text's tokens; 0 also where nothing is read."""


class Inspection(Tabular[InspectedFeature], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """The features that are active in a text."""

    object: str = "inspection"
    tokens: tuple[InspectedToken, ...]
    features: tuple[InspectedFeature, ...]
    """The named ones, or those that are active, the first by `aggregate` and `order` first."""
    aggregate: Aggregate
    order: FeatureOrder = "aggregate"
    num_counted: int
    """Tokens over which features are summed up."""
    warnings: tuple[str, ...] = ()

    def _rows(self) -> Sequence[InspectedFeature]:
        return self.features
