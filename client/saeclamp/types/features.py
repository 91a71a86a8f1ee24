"""What the server knows of its SAEs and their features."""

from __future__ import annotations

from typing import Any, Protocol

from saeclamp.types._base import Answer
from saeclamp.types.composing import Composable
from saeclamp.types.rows import Listing


class LabelsInfo(Answer):
    """Of what an SAE's labels were made."""

    model: str
    num_tokens: int
    """That were counted: no first one of a sequence, no special ones, no sinks."""
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
    """Where it reads, for example `resid_post 23`."""
    writes: tuple[str, ...]
    """Where it writes."""
    d_in: int
    d_out: int
    d_sae: int
    unit: str
    """Of its activations: `native`, as the checkpoint's own code gives them, or `decoder_norm`, along unit decoder rows."""
    model: str | None = None
    """What it was trained on, as its checkpoint calls it."""
    sha256: str
    """Of its weights, configuration and options, as in receipts."""
    approximation: str | None = None
    """In what its activations differ from the trained SAE's, because the server was told so."""
    resid_norm: float | None = None
    """Median length of the residual stream where it writes: what a value of 1 in unit `resid_norm` is."""
    fit: dict[str, Any] | None = None
    """How it reconstructs what this model has there, as measured when the server started."""
    named: tuple[str, ...] = ()
    """Names in its feature book."""
    labels: LabelsInfo | None = None


class StoredSAEs(Listing[StoredSAE], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """All that are loaded."""

    object: str = "list"
    data: tuple[StoredSAE, ...]

    @property
    def names(self) -> list[str]:
        """What features are named after."""
        return [sae.name for sae in self.data]


class Label(Answer):
    """A few words on what a feature is about, who says so, and how well that holds."""

    text: str
    source: str
    """`feature book`; `input`, `say` or `output` for labels that were counted; else who wrote an explanation."""
    score: float | None = None
    """Of what the source measures, 0 to 1; None where it measures nothing."""


class Described(Protocol):
    """A feature that an answer names, in words."""

    @property
    def label(self) -> Label | None:
        """The best of its labels."""

    @property
    def description(self) -> str | None:
        """The same words wherever the feature is named."""


class TokenLogit(Answer):
    """What a feature's decoder row adds to a token's logit, up to the final norm's scale."""

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
    """Of the positive activations, in ten equal counts: 9 is the strongest tenth. -1: it is not active here."""
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
    """What a value of 1 in unit `max_act` is."""
    top_act: float | None = None
    """The largest activation that was seen."""
    green_zone: tuple[float, float] | None = None
    """Lowest and highest clamp that works, in multiples of `max_act`."""
    best: float | None = None
    """The clamp that works best."""
    evidence: dict[str, str | float] | None = None
    """What these rest on."""
    curve: tuple[dict[str, Any], ...] | None = None
    """Each strength that was tried, and what came of it."""
    output_score: float | None = None
    """How well amplifying it brings out its own tokens."""
    top_logits: tuple[TokenLogit, ...] | None = None
    bottom_logits: tuple[TokenLogit, ...] | None = None
    neighbours: tuple[Neighbour, ...] | None = None
    examples: tuple[Example, ...] | None = None
    """Where it is active, strongest first."""
    inactive: tuple[Example, ...] | None = None
    """Where it is not, drawn by chance."""

    @property
    def label(self) -> Label | None:
        """The best of its labels."""
        return self.labels[0] if self.labels else None
