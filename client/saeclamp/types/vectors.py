"""What the server says of a direction that a user has uploaded."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class StoredVector(BaseModel):
    """A direction that interventions can name."""

    model_config = ConfigDict(extra="allow")

    object: str = "vector"
    name: str
    site: str
    """Where it is read and added, for example `resid_post 12`."""
    layer: int
    sign: Literal[1, -1]
    """-1: it is the negative of the uploaded numbers that pushes towards the concept, and that an `add` of 1 adds."""
    source: str
    """Where it comes from, in the words of who uploaded it."""
    norm: float
    """Its length: what an `add` of 1 in unit `act` adds."""
    resid_norm: float | None = None
    """The same as a share of the residual stream's median length at the site; None where that could not be measured."""
    sha256: str
    """Of its numbers and of what was said of them."""
