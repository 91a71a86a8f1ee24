"""From a wish to a small steering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from saeclamp.types.base import Answer, EndpointRequest
from saeclamp.types.feature_actions import Composable
from saeclamp.types.features import MAX_QUERY, Label
from saeclamp.types.inspect import Saes
from saeclamp.types.rows import Tabular

Strength = Annotated[float, Field(strict=True, ge=-10, le=10, allow_inf_nan=False)]


class Suggest(EndpointRequest):
    """Body of `POST /v1/features/suggest`."""

    wish: Annotated[str, Field(min_length=3, max_length=MAX_QUERY)]
    """A sentence, such as `talk about the sea`: what a prompt would ask for."""
    saes: Saes | None = None
    """SAEs whose features may be suggested; None for all."""
    num_candidates: Annotated[int, Field(strict=True, ge=1, le=16)] = 6
    """Number of features that are tried."""
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1, max_length=8)] = (0.5, 0.75, 1.0, 1.5)
    """Clamps that are tried, in multiples of the feature's maximum."""
    max_tokens: Annotated[int, Field(strict=True, ge=8, le=200)] = 40
    """Tokens of each answer."""
    # the server multiplies it by 2**20, and the engine's seeds end at 2**63
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    """Another one samples other answers, and draws other controls."""


class SuggestedPoint(Answer):
    """A clamp of one strength, and what it did to answers to a few neutral questions: a first look, which proves nothing."""

    strength: float
    """In multiples of the feature's maximum."""
    gain: float
    """Nearness of the answers to the wish, less that of unsteered ones: difference of mean cosines of embeddings."""
    perplexity: float | None = None
    """Under the unsteered model, in multiples of the unsteered answers'; None where the gain was too small to ask."""
    repetition: float
    """Share of the last 20 words that stood among these before."""


class SuggestedTrial(Answer):
    """
    A steering, and what it did to answers to questions that had no part in choosing it.

    Its gain is measured against unsteered answers that had no part in choosing what the wish sounds like.
    """

    features: tuple[str, ...]
    """One, or a pair."""
    strengths: tuple[float, ...]
    """Strength of each, in multiples of its maximum."""
    gain: float
    control: float | None = None
    """Mean gain of the control arm: random features that move the stream as far. None, as `p_controls`: it was not asked,
    because nothing gained more than chance does."""
    p_baseline: float
    """Probability that chance alone gains as much over unsteered answers; exact, by swapping steered and unsteered ones."""
    p_controls: float | None = None
    """Probability that a random feature gains as much; by Student's t for one case against a control sample."""
    p: float
    """The larger of the two, corrected for having picked the best of all that was tried."""
    perplexity: float
    repetition: float
    works: bool
    """True if `p` is at most 0.05, the gain is large enough to be noticed, and the text has not fallen apart."""
    reason: str | None = None
    """Why it does not work, or another was taken; None for the one that was."""


class SuggestedControl(Answer):
    """A random feature of the control arm."""

    feature: str
    value_act: float
    """To which it was clamped, in the encoder's units: it moves the stream as far as one of the steerings."""
    gain: float


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
    """Why it was not taken; None for one that was."""


class Suggestion(Tabular[SuggestedFeature], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """A steering that was tried and passed, or the honest news that none did; and what was tried."""

    object: str = "suggestion"
    wish: str
    outcome: Literal["found", "nothing_found"]
    steering: dict[str, Any] | None
    """To be sent as it is; None where nothing was found."""
    chosen: tuple[SuggestedFeature, ...] = ()
    """Features of the steering: one or two; none where nothing was found."""
    best: SuggestedTrial | None = None
    """Test of the steering."""
    example: str | None = None
    """Its answer to the first question of the test."""
    trials: tuple[SuggestedTrial, ...] = ()
    """All that was put to the test, largest gain first."""
    controls: tuple[SuggestedControl, ...] = ()
    """None where nothing that was tested gained more than chance does, so that there was nothing to compare."""
    num_tried: int
    """Clamps and pairs of clamps of which the best were put to the test."""
    test: str | None = None
    """Description of the test; None where nothing was tested."""
    alternatives: tuple[SuggestedFeature, ...] = ()
    """Features that were rejected, with reasons; the most promising first."""
    note: str | None = None
    """Why nothing was found."""

    def _rows(self) -> Sequence[SuggestedFeature]:
        """Return those that were chosen, and those that were not."""
        return (*self.chosen, *self.alternatives)
