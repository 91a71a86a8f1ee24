"""Contrast of two sets of texts: the features that tell them apart."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from saeclamp.types.base import Answer, EndpointRequest
from saeclamp.types.feature_actions import Composable
from saeclamp.types.features import MAX_HITS, Label
from saeclamp.types.inspect import Aggregate, Saes, TextOrMessages
from saeclamp.types.rows import Listing

MAX_TEXTS = 256
"""In each set."""

Texts: TypeAlias = Annotated[tuple[TextOrMessages, ...], Field(min_length=1, max_length=MAX_TEXTS)]
"""Texts or conversations."""


class Contrast(EndpointRequest):
    """Body of `POST /v1/features/contrast`: two sets, and how they are to be compared."""

    positive: Texts
    negative: Texts
    saes: Saes | None = None
    """SAEs whose features are compared; None for all."""
    aggregate: Aggregate = "mean"
    """Number that one text counts for, out of a feature's activations at its tokens."""
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_HITS)] = 20
    include_template: Annotated[bool, Field(strict=True)] = False
    """True if tokens that the chat template has added count."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
    """Seed of the permutations, where not all of them are tried."""


class ContrastExample(Answer):
    """The token of one of the texts at which a feature is strongest."""

    text: int
    """Its number in the set in which the feature is larger."""
    position: int
    token: str
    act: float


class ContrastedFeature(Composable, Answer):
    """A feature, and how far it tells the sets apart."""

    feature: str
    sae: str
    index: int
    name: str | None = None
    label: Label | None = None
    description: str | None = None
    output_score: float | None = None
    """Low: it reads what differs, but will rarely bring it about."""
    positive: float
    negative: float
    """Means of what its texts count for, in the encoder's units."""
    difference: float
    effect: float
    """
    Cliff's delta: how much likelier a text of the first set has the larger value than a text of the second, than the other
    way round; from -1 to 1, which are perfect separation.
    """
    p: float
    """
    Probability that any of the features would differ as far or farther if the texts were dealt to the two sets by chance:
    corrected for the number of features (Westfall and Young's maximum over features).
    """
    significant: bool
    """True if `p` is at most 0.05."""
    examples: tuple[ContrastExample, ...] = ()


class Contrasted(Listing[ContrastedFeature], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """Features that tell two sets of texts apart: the surest first, and among equals the farthest apart."""

    object: str = "contrast"
    data: tuple[ContrastedFeature, ...]
    num_features: int
    """Features that are active in any of the texts, and for whose number `p` is corrected."""
    num_significant: int
    test: str
    """Description of the test by which `p` was found."""
    warnings: tuple[str, ...] = ()
    """Among them, that the sets are too small to tell."""
