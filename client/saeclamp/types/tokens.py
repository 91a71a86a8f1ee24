"""Tokens of a request, and the ways to choose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from saeclamp.types.base import MAX_POSITIONS, RequestModel

Role = Literal["system", "developer", "user", "assistant", "tool"]


class First(RequestModel):
    """The first positions of the request, its prompt included."""

    first: Annotated[int, Field(strict=True, ge=1, le=2**31)]


class After(RequestModel):
    """All positions of the request but the first ones, its prompt included."""

    after: Annotated[int, Field(strict=True, ge=0, le=2**31)]


class Last(RequestModel):
    """The last positions of the prompt: with 1 the one at which the first new token is predicted."""

    last: Annotated[int, Field(strict=True, ge=1, le=2**31)]


class GeneratedWindow(RequestModel):
    """
    Positions of tokens that the model has produced, counted from 0: from the first number to before the second.

    None in its place: to the end.
    """

    generated: tuple[
        Annotated[int, Field(strict=True, ge=0, le=2**31)], Annotated[int, Field(strict=True, ge=1, le=2**31)] | None
    ]

    @model_validator(mode="after")
    def _refuse_empty(self) -> GeneratedWindow:
        start, end = self.generated
        if end is not None and end <= start:
            raise ValueError(f"the window from {start} to before {end} has no position")
        return self


class Roles(RequestModel):
    """
    The content of the messages of these roles, in a chat completion; with `assistant`, what the model generates too.

    The chat template's own text around a message belongs to no role.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=5)]


class Positions(RequestModel):
    """Single positions of the request, counted from 0; negative ones from the end of its prompt, whose last is -1."""

    positions: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=-(2**31), le=2**31)], ...],
        Field(min_length=1, max_length=MAX_POSITIONS),
    ]


TOKEN_OBJECTS: dict[str, type[RequestModel]] = {
    "first": First,
    "after": After,
    "last": Last,
    "generated": GeneratedWindow,
    "roles": Roles,
    "positions": Positions,
}
"""The one field that an object has, to its class."""

CHOOSING_TOKENS = f"tokens are 'all', 'prompt' or 'generated', or an object with one of {', '.join(TOKEN_OBJECTS)}"


def _kind_of_tokens(value: object) -> str | None:
    if isinstance(value, str):
        return "<scope>"
    keys = (
        value.keys()
        if isinstance(value, Mapping)
        else type(value).model_fields
        if isinstance(value, RequestModel)
        else ()
    )
    return next((f"<{key}>" for key in TOKEN_OBJECTS if key in keys), None)


Tokens = Annotated[
    Annotated[Literal["all", "prompt", "generated"], Tag("<scope>")]
    | Annotated[First, Tag("<first>")]
    | Annotated[After, Tag("<after>")]
    | Annotated[Last, Tag("<last>")]
    | Annotated[GeneratedWindow, Tag("<generated>")]
    | Annotated[Roles, Tag("<roles>")]
    | Annotated[Positions, Tag("<positions>")],
    Discriminator(_kind_of_tokens, custom_error_type="tokens_type", custom_error_message=CHOOSING_TOKENS),
]
"""
Positions that are touched. `prompt` are the positions of the request's prompt, `generated` those of the tokens that the
model has produced (its first new token is predicted at the last prompt position, so it depends on `prompt` steering).
Position 0 and special tokens are touched only with `special_tokens`: they are attention sinks.
"""


SpecialTokens = Annotated[bool, Field(strict=True)]
"""True if position 0 and special tokens are touched where `tokens` has them."""
