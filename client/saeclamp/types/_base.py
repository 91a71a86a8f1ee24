"""What all parts of a request share: nothing unknown, nothing changed afterwards, numbers within bounds."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

MAX_INTERVENTIONS = 64
"""Interventions in one request, those of its rules among them."""

MAX_RULES = 16
"""Rules in one request."""

MAX_DEPTH = 32
"""Of `all`, `any` and `not` within each other."""

MAX_TESTS = 16
"""Comparisons of activations in one rule's condition."""

MAX_READ = 64
"""Features that a readout can name, and the most of the strongest ones that it can ask for per token."""

MAX_POSITIONS = 1024
"""Positions that one intervention can name."""

MAX_VALUE = 1e6
"""Largest magnitude of a `value`, in any unit: far above every useful dose, far below where fp32 sums break."""

SIMILAR = 0.8
"""Share of common letters from which a key counts as a misspelt `steering`."""

Unit = Literal["max_act", "act", "resid_norm"]
"""
`max_act`: multiples of the feature's stored maximum activation. `act`: what the SAE's encoder returns. `resid_norm`: what
moves a token by that multiple of the residual stream's median length at the SAE's layer, sinks excluded.
"""

Value = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MAX_VALUE, le=MAX_VALUE)]


def looks_like_steering(key: str) -> bool:
    """Is this key `steering`, or a near miss of it? What looks like it and is not must be refused, not ignored."""
    plain = "".join(char for char in unicodedata.normalize("NFKC", key).lower() if char.isalnum())
    if "steer" in plain:
        return True
    matcher = SequenceMatcher(None, plain, "steering")
    # the first two are bounds of the third and far cheaper: a body may have thousands of keys
    return all(ratio() >= SIMILAR for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


class Request(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(Request):
    """The body of a request to one of our own endpoints."""

    def to_json(self) -> dict[str, Any]:
        """As it is sent: without what was left out."""
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
        """What notebooks show; None where the text of an answer is all there is to show."""
        from saeclamp import _html  # which reads all types

        return _html.shown(self)
