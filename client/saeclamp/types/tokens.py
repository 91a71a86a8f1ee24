"""Tokens of a request, and the ways to choose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from saeclamp.types.base import MAX_POSITIONS, RequestModel

Role = Literal["system", "developer", "user", "assistant", "tool"]


class First(RequestModel):
    """The first positions of the request, its prompt included."""

    first: Annotated[int, Field(strict=True, ge=1, le=2**31)]


class After(RequestModel):
    """All positions of the request but the first ones, its prompt included."""

    after: Annotated[int, Field(strict=True, ge=0, le=2**31)]


class Roles(RequestModel):
    """
    The content of the messages of these roles, in a chat completion; with `assistant`, what the model generates too.

    The chat template's own text around a message belongs to no role.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=5)]


class Positions(RequestModel):
    """Single positions of the request, counted from 0."""

    positions: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0, le=2**31)], ...], Field(min_length=1, max_length=MAX_POSITIONS)
    ]


TOKEN_OBJECTS: dict[str, type[RequestModel]] = {"first": First, "after": After, "roles": Roles, "positions": Positions}
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
