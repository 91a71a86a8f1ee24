"""A vector that the server makes of what tells two sets of texts apart."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from saeclamp.types.base import Answer, EndpointRequest
from saeclamp.types.contrast import MAX_TEXTS
from saeclamp.types.inspect import TextOrMessages
from saeclamp.types.interventions import VectorName
from saeclamp.types.vectors import StoredVector

SomeTexts: TypeAlias = Annotated[tuple[TextOrMessages, ...], Field(min_length=4, max_length=MAX_TEXTS)]
"""Texts or conversations; two for each half, by which the evidence is found."""


class Derive(EndpointRequest):
    """Body of `POST /v1/vectors/derive`: two sets, and how a vector is to be made of them."""

    name: VectorName
    site: Annotated[str, Field(min_length=1, max_length=64)]
    """Site at which it is read and will act, such as `resid_post.12`; vectors must have a place there."""
    positive: SomeTexts
    """Texts towards which a positive value pushes."""
    negative: SomeTexts
    method: Literal["mean", "pca"] = "mean"
    """
    The difference of the means, or the first principal component of the differences of pairs: of `positive[i]` and
    `negative[i]`, so there are equally many. It is as long as the means differ along it.
    """
    tokens: Literal["last", "all"] = "last"
    """At which the stream is read: the last one of the prompt, or the mean over all that are not special."""


class Evidence(Answer):
    """Evidence of the vector on texts that it was not made of: each half of the texts is judged by the other's vector."""

    num_positive: int
    num_negative: int
    auc: float
    """Probability that a text of the first set lies farther along the vector than one of the second; 0.5 is chance."""
    cohens_d: float
    """Difference of the means along the vector, in pooled standard deviations; the mean of both halves."""
    halves_cosine: float
    """Between the vectors of the two halves: how much it depends on which texts were chosen."""
    warnings: tuple[str, ...] = ()


class DerivedVector(Answer):
    """A vector that was made and is kept as an uploaded one is."""

    object: str = "vector.derived"
    vector: StoredVector
    evidence: Evidence
