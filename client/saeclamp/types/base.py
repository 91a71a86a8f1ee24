"""The base of all parts of a request: nothing unknown, nothing changed afterwards, numbers within bounds."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from saeclamp._exceptions import ArgumentTypeError, InvalidArgumentError

MAX_INTERVENTIONS = 64
"""Interventions in one request, those of its rules among them."""

MAX_RULES = 16
"""Rules in one request."""

MAX_DEPTH = 32
"""Levels of `all`, `any` and `not` within each other."""

MAX_TESTS = 16
"""Comparisons of activations in one rule's condition."""

MAX_AGGREGATES = 16
"""Comparisons of one request that look at several tokens."""

MAX_WINDOW = 64
"""Tokens that a comparison can look back over, if not over all."""

MAX_READ = 64
"""Features and vectors that a readout can name, and the most of the strongest ones that it can ask for per token."""

MAX_POSITIONS = 1024
"""Positions that one intervention can name."""

MAX_VALUE = 1e6
"""Largest magnitude of a `value`, in any unit: far above every useful dose, far below where fp32 sums break."""

SIMILAR = 0.8
"""Share of common letters from which a key counts as a misspelt `steering`."""
MIN_SIMILAR, MAX_SIMILAR = 6, 12
"""Lengths of keys that can have so many letters in common with it."""
MAX_KEY = 256
"""Characters of a field's name."""

Unit = Literal["max_act", "act", "resid_norm"]
"""
`max_act`: multiples of the feature's stored maximum activation. `act`: what the SAE's encoder returns. `resid_norm`: what
moves a token by that multiple of the residual stream's median length at the SAE's layer, sinks excluded.
"""

Value = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MAX_VALUE, le=MAX_VALUE)]


def looks_like_steering(key: str) -> bool:
    """Tell whether a key is `steering`, or a near miss of it: what looks like it and is not must be refused, not ignored."""
    # what stands behind so many characters is nobody's idea of a field's name, and one key can be as long as a body
    key = key[:MAX_KEY]
    plain = "".join(char for char in unicodedata.normalize("NFKC", key).lower() if char.isalnum())
    if "steer" in plain:
        return True
    if not MIN_SIMILAR <= len(plain) <= MAX_SIMILAR:
        return False
    matcher = SequenceMatcher(None, plain, "steering")
    # the first is a bound of the second and far cheaper: a body may have thousands of keys
    return matcher.quick_ratio() >= SIMILAR and matcher.ratio() >= SIMILAR


def is_list(value: object) -> bool:
    """Tell whether a value is what pydantic takes for a JSON list: any iterable but a text or an object."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | BaseModel)


def as_any_of(schema: dict[str, Any]) -> None:
    """
    Write a union into a JSON schema as `anyOf`.

    pydantic writes `oneOf` for one with a callable discriminator, which changes no body but the API's document.
    """
    schema["anyOf"] = schema.pop("oneOf")


def invalid_argument(exc: ValidationError, value: Any, kind: type[BaseModel], path: str = "") -> InvalidArgumentError:
    """
    Translate pydantic's error.

    value: what was to be a `kind`
    path:  its JSON path in the request; empty where it is no part of one yet
    """
    from saeclamp.types.refusals import refusal  # which reads all types

    why = refusal(exc, value, kind, path)
    is_part = issubclass(kind, RequestModel) and not kind.is_whole
    place = why.path or (kind.__name__ if is_part else "")
    return InvalidArgumentError(f"{place}: {why.sentence}" if place else why.sentence, why.path or None)


class RequestModel(BaseModel):
    """
    A part of a request.

    Building one raises `InvalidArgumentError`, in the words in which the server refuses the same as JSON; `model_validate`
    raises pydantic's own error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    is_whole: ClassVar[bool] = False
    """True if it is all of a body or query: its fields are the arguments of a call then, and its own name means nothing."""

    if not TYPE_CHECKING:  # for type checkers the signature is that of the fields

        def __init__(self, /, *args: Any, **fields: Any) -> None:
            """Check the fields."""
            kind = type(self)
            if args:
                names = ", ".join(f"{name}=..." for name, field in kind.model_fields.items() if name != "op")
                raise ArgumentTypeError(f"The fields of {kind.__name__} are given by name: {kind.__name__}({names}).")
            try:
                super().__init__(**fields)
            except ValidationError as exc:
                raise invalid_argument(exc, fields, kind) from None

        # pydantic builds the parts of a larger object without `__init__` where it bears this mark, as BaseModel's does:
        # their errors are then those of the whole, with the path from there
        __init__.__pydantic_base_init__ = True


class EndpointRequest(RequestModel):
    """The body of a request to one of our own endpoints."""

    is_whole = True

    def to_json(self) -> dict[str, Any]:
        """Return it as it is sent: without what was left out."""
        asked = self.model_dump(mode="json", exclude_defaults=True)
        steering = getattr(self, "steering", None)
        # whose parts are told apart by fields that have their defaults
        return asked if steering is None else {**asked, "steering": steering.to_json()}


class Answer(BaseModel):
    """A part of what the server says. Fields that this version does not know are kept: it can read a newer server."""

    model_config = ConfigDict(extra="allow", frozen=True)

    _request_id: str | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The `x-request-id` of the HTTP response, to quote when reporting a problem; None in a part of an answer."""
        return self._request_id

    def _repr_html_(self) -> str | None:
        """Draw the answer for notebooks; None where its text is all there is to show."""
        return next((drawn for draw in _renderers if (drawn := draw(self)) is not None), None)


_renderers: list[Callable[[Answer], str | None]] = []


def draw_answers_with(draw: Callable[[Answer], str | None]) -> None:
    """Let answers be drawn in notebooks: what draws them knows all their types, and so cannot be imported here."""
    _renderers.append(draw)
