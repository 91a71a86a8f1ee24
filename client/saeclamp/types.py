"""
The wire: every field that saeclamp adds to an OpenAI request or response.

Requests are frozen and refuse unknown keys, so a misspelt field is an error and never an unsteered answer.
Receipts keep what they do not know, so that an older client can read a newer server.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_INTERVENTIONS = 64
"""Interventions in one request."""

MAX_VALUE = 1e6
"""Largest magnitude of a `value`, in any unit: far above every useful dose, far below where fp32 sums break."""

SIMILAR = 0.8
"""Share of common letters from which a key counts as a misspelt `steering`."""

FEATURE_PATTERN = r"^[^/\s]+/[^/\s]+$"

Unit = Literal["max_act", "act", "resid_norm"]
"""
`max_act`: multiples of the feature's stored maximum activation. `act`: what the SAE's encoder returns. `resid_norm`: what
moves a token by that multiple of the residual stream's median length at the SAE's layer, sinks excluded.
"""

Value = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MAX_VALUE, le=MAX_VALUE)]


def looks_like_steering(key: str) -> bool:
    """Is this key `steering`, or a near miss of it? What looks like it and is not must be refused, not ignored."""
    plain = "".join(char for char in unicodedata.normalize("NFKC", key).lower() if char.isalnum())
    return "steer" in plain or SequenceMatcher(None, plain, "steering").ratio() >= SIMILAR


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


MAX_POSITIONS = 1024
"""Positions that one intervention can name."""

Role = Literal["system", "developer", "user", "assistant", "tool"]


class First(_Request):
    """The first positions of the request, its prompt included."""

    first: Annotated[int, Field(strict=True, ge=1, le=2**31)]


class After(_Request):
    """All positions of the request but the first ones, its prompt included."""

    after: Annotated[int, Field(strict=True, ge=0, le=2**31)]


class Roles(_Request):
    """
    What the messages of these roles say, in a chat completion; with `assistant`, what the model generates too.

    The chat template's own text around a message belongs to no role.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=5)]


class Positions(_Request):
    """Single positions of the request, counted from 0."""

    positions: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0, le=2**31)], ...], Field(min_length=1, max_length=MAX_POSITIONS)
    ]


TOKEN_OBJECTS: dict[str, type[_Request]] = {"first": First, "after": After, "roles": Roles, "positions": Positions}
"""By the one field that each has."""


def _kind_of_tokens(value: object) -> str | None:
    if isinstance(value, str):
        return "<scope>"
    keys = (
        value.keys() if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, _Request) else ()
    )
    return next((f"<{key}>" for key in TOKEN_OBJECTS if key in keys), None)


Tokens = Annotated[
    Annotated[Literal["all", "prompt", "generated"], Tag("<scope>")]
    | Annotated[First, Tag("<first>")]
    | Annotated[After, Tag("<after>")]
    | Annotated[Roles, Tag("<roles>")]
    | Annotated[Positions, Tag("<positions>")],
    Discriminator(_kind_of_tokens),
]
"""
Which positions are touched. `prompt` are the positions of the request's prompt, `generated` those of the tokens that the
model has produced (its first new token is predicted at the last prompt position, so it depends on `prompt` steering).
Position 0 and special tokens are touched only with `special_tokens`: they are attention sinks.
"""


class FeatureIndex(_Request):
    """A feature by number, where `"<sae>/<index>"` is inconvenient."""

    sae: Annotated[str, Field(strict=True, min_length=1)]
    index: Annotated[int, Field(strict=True, ge=0)]

    def __str__(self) -> str:
        return f"{self.sae}/{self.index}"


def _kind_of_feature(value: object) -> str:
    return "<path>" if isinstance(value, str) else "<object>"


Feature = Annotated[
    Annotated[str, Field(pattern=FEATURE_PATTERN, max_length=256), Tag("<path>")]
    | Annotated[FeatureIndex, Tag("<object>")],
    Discriminator(_kind_of_feature),
]
"""`"<sae>/<index>"`, `"<sae>/<name>"` or `{"sae": ..., "index": ...}`."""


class Clamp(_Request):
    """Set a feature's activation to `value`, whatever it was: adds `(value - activation) * W_dec[feature]`."""

    op: Literal["clamp"] = "clamp"
    feature: Feature
    value: Value
    """Target activation, in `unit`."""
    unit: Unit = "max_act"
    tokens: Tokens = "all"
    special_tokens: Annotated[bool, Field(strict=True)] = False


class Add(_Request):
    """Raise a feature's activation by `value`: adds `value * W_dec[feature]`, without looking at the activation."""

    op: Literal["add"] = "add"
    feature: Feature
    value: Value
    """Change of the activation, in `unit`. May be negative."""
    unit: Unit = "max_act"
    tokens: Tokens = "all"
    special_tokens: Annotated[bool, Field(strict=True)] = False


class AtLeast(_Request):
    """Raise a feature's activation to `value` where it is lower, and leave it alone elsewhere."""

    op: Literal["at_least"] = "at_least"
    feature: Feature
    value: Value
    """Lowest activation, in `unit`."""
    unit: Unit = "max_act"
    tokens: Tokens = "all"
    special_tokens: Annotated[bool, Field(strict=True)] = False


class AtMost(_Request):
    """Lower a feature's activation to `value` where it is higher, and leave it alone elsewhere."""

    op: Literal["at_most"] = "at_most"
    feature: Feature
    value: Value
    """Highest activation, in `unit`."""
    unit: Unit = "max_act"
    tokens: Tokens = "all"
    special_tokens: Annotated[bool, Field(strict=True)] = False


class Scale(_Request):
    """Multiply a feature's activation by `factor`. Changes nothing where the feature is not active."""

    op: Literal["scale"] = "scale"
    feature: Feature
    factor: Value
    tokens: Tokens = "all"
    special_tokens: Annotated[bool, Field(strict=True)] = False


class Ablate(_Request):
    """Set a feature's activation to zero. Changes nothing where the feature is not active."""

    op: Literal["ablate"] = "ablate"
    feature: Feature
    tokens: Tokens = "all"
    special_tokens: Annotated[bool, Field(strict=True)] = False


Operation: TypeAlias = Clamp | Add | AtLeast | AtMost | Scale | Ablate

Intervention = Annotated[Operation, Field(discriminator="op")]


class Steering(_Request):
    """
    The `steering` object of a request.

    Every activation is read from the stream as the model produced it, before any of the request's own interventions at
    that layer, and the changes are summed; so the order of `interventions` does not matter.
    """

    interventions: Annotated[tuple[Intervention, ...], Field(min_length=1, max_length=MAX_INTERVENTIONS)]
    receipt: Literal["none", "summary"] = "summary"


class _Receipt(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class TokenCounts(_Receipt):
    """Positions whose residual stream an intervention edited, summed over all choices of the response."""

    prompt: int
    """Includes positions whose edited keys and values were already in the prefix cache."""
    generated: int


class Summary(_Receipt):
    """Mean and maximum over the positions that were computed for this response (cached ones are not measured again)."""

    mean: float
    max: float
    unit: str | None = None


class InterventionReceipt(_Receipt):
    """One intervention as it was resolved and applied."""

    feature: str
    sae: str
    index: int
    name: str | None = None
    layer: int
    site: str | None = None
    """Where the edit was added, for example `resid_post 23`."""
    op: str
    value: float | None = None
    unit: str | None = None
    value_act: float | None = None
    """`value` in the encoder's own units, as applied."""
    factor: float | None = None
    """Of `scale`."""
    tokens: TokenCounts
    act_before: Summary | None = None
    """Activation before the edit, in the encoder's units. None where no position was computed."""
    dose: Summary | None = None
    """
    Length of the edit as a share of the token's own residual norm (`token_resid_norm`), or, at sites where the stream is
    not at hand (`attn_z`, `mlp_in`), of the vector that was edited (`token_site_norm`).
    """
    approximation: str | None = None
    """In what the SAE differs from the trained one, because the server was told so: a threshold in place of TopK."""


class Receipt(_Receipt):
    """What was resolved and applied; `response.steering`."""

    applied: Annotated[bool, Field(strict=True)]
    spec: str
    """sha256 of the resolved interventions and the SAEs' files: equal for equal steering."""
    model: str
    sae: dict[str, str]
    """sha256 of each SAE's weights, configuration and options, by the name it is served under."""
    interventions: tuple[InterventionReceipt, ...]
    warnings: tuple[str, ...] = ()


def extra_body(*interventions: Operation, receipt: Literal["none", "summary"] = "summary") -> dict[str, Any]:
    """
    Build the `extra_body` that openai-python merges into a request.

    >>> extra_body(Clamp(feature="bundled/golden-gate", value=0.75))["steering"]["interventions"][0]["op"]
    'clamp'
    """
    return {"steering": as_steering(interventions, receipt).model_dump(mode="json")}


def as_steering(
    steering: Steering | Operation | Iterable[Operation] | dict[str, Any],
    receipt: Literal["none", "summary"] | None = None,
) -> Steering:
    """
    Accept what a caller finds natural: a `Steering`, its JSON, one intervention, or several.

    `receipt`, if given, replaces what `steering` asks for. Raises TypeError for a string, and pydantic's ValidationError.
    """
    if isinstance(steering, str):  # which would be taken for a sequence of letters
        raise TypeError(f"steering takes interventions such as Clamp(feature={steering!r}, value=...), not a string")
    if isinstance(steering, dict):
        steering = Steering.model_validate(steering)
    elif isinstance(steering, Operation):
        steering = Steering(interventions=(steering,))
    elif not isinstance(steering, Steering):
        steering = Steering(interventions=tuple(steering))
    return steering if receipt is None else steering.model_copy(update={"receipt": receipt})
