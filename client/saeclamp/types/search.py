"""Looking for features by words and by meaning: what is asked, and what is found."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from saeclamp.types._base import Answer, RequestModel
from saeclamp.types.composing import Composable
from saeclamp.types.features import Label
from saeclamp.types.rows import Listing

MAX_QUERY = 500
"""Characters of a query."""
MAX_HITS = 100
"""Features that one answer lists."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class FeatureQuery(RequestModel):
    """What is looked for, as the parameters of `GET /v1/features`. Without a query, features are listed by number."""

    is_whole = True

    query: Annotated[str, Field(max_length=MAX_QUERY)] = ""
    sae: Annotated[tuple[str, ...], Field(max_length=MAX_HITS)] = ()
    """Of which SAEs; none named: of all that are loaded."""
    limit: Annotated[int, Field(ge=1, le=MAX_HITS)] = 10
    offset: Annotated[int, Field(ge=0)] = 0
    """How many are left out at the beginning, for the next page."""
    min_density: Share | None = None
    max_density: Share | None = None
    """Share of tokens at which the feature is active. Features of which it is not known are left out by a bound."""
    min_output_score: Share | None = None
    green_zone: bool = False
    """Whether only features are wanted whose clamp was calibrated."""

    def to_params(self) -> dict[str, Any]:
        """As parameters of a URL, without what was left out."""
        given = self.model_dump(exclude_defaults=True)
        return {name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()}


class FeatureHit(Composable, Answer):
    """A feature that was found, and what helps to choose among several."""

    object: str = "feature"
    feature: str
    """`<sae>/<index>`, as interventions name it."""
    sae: str
    index: int
    name: str | None = None
    """In the feature book."""
    label: Label | None = None
    """The best of its labels, with its source and score."""
    description: str | None = None
    """The label's words, else `active on ...`, else `promotes ...`; None where nothing is known."""
    tokens: tuple[str, ...] = ()
    """On which it is most active."""
    promotes: tuple[str, ...] = ()
    """Whose logits its decoder row raises most."""
    density: float | None = None
    max_act: float | None = None
    output_score: float | None = None
    """How well amplifying it brings out its own tokens: low ones rarely steer."""
    green_zone: tuple[float, float] | None = None
    best: float | None = None
    similarity: float | None = None
    """Cosine of the query's and the feature's sentence embeddings."""
    score: float | None = None
    """By which hits are ordered: the sum of 1 / (60 + rank) over the rankings that hold it. None without a query."""


class FeatureHits(Listing[FeatureHit], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """A page of what was found, best first."""

    object: str = "list"
    data: tuple[FeatureHit, ...]
    num_found: int
    """Of all pages. A search ranks 200 features by words, 200 by tokens and 200 by meaning, and ends there."""
    rankings: tuple[str, ...] = ()
    """`words` of what people say, `tokens`, `meaning`: which took part."""
    note: str | None = None
    """Why one of them did not."""
