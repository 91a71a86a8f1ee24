"""SAEs and their features, as the server describes them."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import Field

from saeclamp.types.base import MAX_READ, Answer, EndpointRequest, RequestModel
from saeclamp.types.feature_actions import Composable
from saeclamp.types.interventions import Feature
from saeclamp.types.rows import Listing

MAX_QUERY = 500
"""Characters of a query."""
MAX_HITS = 100
"""Features that one answer lists."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class LabelsInfo(Answer):
    """The model and the tokens of which an SAE's labels were made."""

    model: str
    num_tokens: int
    """Tokens that were counted: no first one of a sequence, no special ones, no sinks."""
    date: str
    warnings: tuple[str, ...] = ()


class StoredSAE(Answer):
    """A loaded SAE."""

    object: str = "sae"
    name: str
    """Its features are `<name>/<index>`."""
    kind: str
    """sae, transcoder, skip_transcoder or clt_layer."""
    architecture: str
    reads: tuple[str, ...]
    """Sites at which it reads, for example `resid_post 23`."""
    writes: tuple[str, ...]
    """Sites at which it writes."""
    d_in: int
    d_out: int
    d_sae: int
    unit: str
    """Unit of its activations: `native`, as the checkpoint's own code has it, or `decoder_norm`, along unit decoder rows."""
    model: str | None = None
    """Model that it was trained on, as its checkpoint calls it."""
    sha256: str
    """Hash of its weights, configuration and options, as in receipts."""
    approximation: str | None = None
    """In what its activations differ from the trained SAE's, because the server was told so."""
    resid_norm: float | None = None
    """Median length of the residual stream where it writes: what a value of 1 in unit `resid_norm` is."""
    fit: dict[str, Any] | None = None
    """Fit: how it reconstructs what this model has there, as measured when the server started."""
    named: tuple[str, ...] = ()
    """Names in its feature book."""
    labels: LabelsInfo | None = None


class StoredSAEs(Listing[StoredSAE], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """All that are loaded."""

    object: str = "list"
    data: tuple[StoredSAE, ...]

    @property
    def names(self) -> list[str]:
        """Names of the SAEs, after which features are named."""
        return [sae.name for sae in self.data]


class Label(Answer):
    """A few words on what a feature is about, who says so, and how well that holds."""

    text: str
    source: str
    """`feature book`; `input`, `say` or `output` for labels that were counted; else who wrote an explanation."""
    score: float | None = None
    """Score of what the source measures, 0 to 1; None where it measures nothing."""


class Described(Protocol):
    """A feature that an answer names, in words."""

    @property
    def label(self) -> Label | None:
        """The best of its labels."""

    @property
    def description(self) -> str | None:
        """The same words wherever the feature is named."""


class TokenLogit(Answer):
    """A token, and what a feature's decoder row adds to its logit, up to the final norm's scale."""

    token: str
    id: int
    value: float


class Neighbour(Answer):
    """A feature whose decoder row points the same way."""

    feature: str
    name: str | None = None
    label: Label | None = None
    """The best of its labels, where neighbours were asked for."""
    description: str | None = None
    cosine: float


class Example(Answer):
    """A piece of text, and a feature's activations in it."""

    quantile: int
    """Tenth of the positive activations, by equal counts: 9 is the strongest one. -1: it is not active here."""
    tokens: tuple[str, ...]
    acts: tuple[float, ...]
    peak: int
    """Index of the token that the example was chosen for."""
    peak_act: float


class StoredFeature(Composable, Answer):
    """All that the server knows of a feature. What needs labels is None without them."""

    object: str = "feature"
    feature: str
    """`<sae>/<index>`, as interventions name it."""
    sae: str
    index: int
    name: str | None = None
    """In the feature book; `<sae>/<name>` works too."""
    labels: tuple[Label, ...] = ()
    """The best first."""
    description: str | None = None
    """
    The same words wherever a feature is named: the label that holds, else `active on ...`, else `promotes ...`, with its
    tokens. None where nothing is known of it, or from an older server.
    """
    density: float | None = None
    """Share of the counted tokens at which it is active."""
    num_active: int | None = None
    max_act: float | None = None
    """Activation that a value of 1 in unit `max_act` is."""
    top_act: float | None = None
    """The largest activation that was seen."""
    histogram: tuple[int, ...] | None = None
    """Number of tokens by activation, in bins of equal width from 0 to `top_act`; None where it was not counted."""
    green_zone: tuple[float, float] | None = None
    """Lowest and highest clamp that works, in multiples of `max_act`."""
    best: float | None = None
    """The clamp that works best."""
    evidence: dict[str, str | float] | None = None
    """Evidence that these rest on."""
    curve: tuple[dict[str, Any], ...] | None = None
    """Each strength that was tried, and what came of it."""
    output_score: float | None = None
    """Score of how well amplifying it brings out its own tokens."""
    top_logits: tuple[TokenLogit, ...] | None = None
    bottom_logits: tuple[TokenLogit, ...] | None = None
    neighbours: tuple[Neighbour, ...] | None = None
    examples: tuple[Example, ...] | None = None
    """Pieces of text where it is active, strongest first."""
    inactive: tuple[Example, ...] | None = None
    """Pieces of text where it is not, drawn by chance."""

    @property
    def label(self) -> Label | None:
        """The best of its labels."""
        return self.labels[0] if self.labels else None


class NeighboursQuery(EndpointRequest):
    """Body of `POST /v1/features/neighbours`."""

    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=MAX_READ)]
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_HITS)] = 10
    """Neighbours of each."""


class Neighbourhood(Answer):
    """A feature, and those of its SAE whose decoder rows point the same way; the nearest first."""

    feature: str
    name: str | None = None
    neighbours: tuple[Neighbour, ...]


class Neighbourhoods(Listing[Neighbourhood], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """One for each feature that was asked about, in order."""

    object: str = "list"
    data: tuple[Neighbourhood, ...]

    def _records(self) -> list[dict[str, Any]]:
        return [{"of": near.feature, **neighbour.model_dump()} for near in self.data for neighbour in near.neighbours]


class FeatureQuery(RequestModel):
    """A search for features, as the parameters of `GET /v1/features`. Without a query, features are listed by number."""

    is_whole = True

    query: Annotated[str, Field(max_length=MAX_QUERY)] = ""
    sae: Annotated[tuple[str, ...], Field(max_length=MAX_HITS)] = ()
    """SAEs that are searched; none named: all that are loaded."""
    limit: Annotated[int, Field(ge=1, le=MAX_HITS)] = 10
    offset: Annotated[int, Field(ge=0)] = 0
    """Number of features that are left out at the beginning, for the next page."""
    min_density: Share | None = None
    max_density: Share | None = None
    """Share of tokens at which the feature is active. Features of which it is not known are left out by a bound."""
    min_output_score: Share | None = None
    green_zone: bool = False
    """True if only features are wanted whose clamp was calibrated."""

    def to_params(self) -> dict[str, Any]:
        """Return the parameters of a URL, without what was left out."""
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
    """Score of how well amplifying it brings out its own tokens: low ones rarely steer."""
    green_zone: tuple[float, float] | None = None
    best: float | None = None
    similarity: float | None = None
    """Cosine of the query's and the feature's sentence embeddings."""
    score: float | None = None
    """Score by which hits are ordered: the sum of 1 / (60 + rank) over the rankings that hold it. None without a query."""


class FeatureHits(Listing[FeatureHit], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """A page of what was found, best first."""

    object: str = "list"
    data: tuple[FeatureHit, ...]
    num_found: int
    """Features on all pages. A search ranks 200 features by words, 200 by tokens and 200 by meaning, and ends there."""
    rankings: tuple[str, ...] = ()
    """`words` of what people say, `tokens`, `meaning`: which took part."""
    note: str | None = None
    """Why one of them did not."""
