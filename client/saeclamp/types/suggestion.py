"""From a wish to a small steering."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from saeclamp.types._base import Answer, Question
from saeclamp.types.composing import Composable
from saeclamp.types.features import Label
from saeclamp.types.inspection import Saes
from saeclamp.types.search import MAX_QUERY

Strength = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


class Suggest(Question):
    """Body of `POST /v1/features/suggest`."""

    wish: Annotated[str, Field(min_length=3, max_length=MAX_QUERY)]
    """A sentence, such as `talk about the sea`: what a prompt would ask for."""
    saes: Saes | None = None
    """Of which SAEs; None for all."""
    num_candidates: Annotated[int, Field(strict=True, ge=1, le=16)] = 6
    """How many features are tried."""
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1, max_length=8)] = (0.5, 0.75, 1.0, 1.5)
    """Clamps that are tried, in multiples of the feature's maximum."""
    max_tokens: Annotated[int, Field(strict=True, ge=8, le=200)] = 40
    """Of each answer."""


class SuggestedPoint(Answer):
    """What a clamp of one strength did to the answers to neutral questions."""

    strength: float
    """In multiples of the feature's maximum."""
    gain: float
    """How much nearer the answers are to the wish than unsteered ones: difference of mean cosines of embeddings."""
    perplexity: float
    """Under the unsteered model, in multiples of the unsteered answers'."""
    repetition: float
    """Share of the last 20 words that stood among these before."""
    works: bool
    """Whether the gain is beyond what differs from question to question, and the text has not fallen apart."""


class SuggestedFeature(Composable, Answer):
    """A feature that was tried, or thought of."""

    feature: str
    name: str | None = None
    label: Label | None = None
    description: str | None = None
    output_score: float | None = None
    found_by: tuple[str, ...]
    """`search`, `contrast`: how it came to be thought of."""
    curve: tuple[SuggestedPoint, ...] = ()
    reason: str | None = None
    """Why it was not taken; None for the one that was."""


class Suggestion(Answer):
    """A steering that was tried, and what else was."""

    object: str = "suggestion"
    wish: str
    steering: dict[str, Any] | None
    """To be sent as it is; None where nothing that was tried works."""
    chosen: SuggestedFeature | None = None
    best: SuggestedPoint | None = None
    """Of the chosen feature."""
    example: str | None = None
    """An answer with this steering."""
    alternatives: tuple[SuggestedFeature, ...] = ()
    """That were rejected, with reasons; the most promising first."""
    note: str | None = None
