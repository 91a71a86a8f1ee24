"""Receipts and readouts: what the server says of a steered request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from saeclamp.types.base import Answer
from saeclamp.types.rows import Tabular


class TokenCounts(Answer):
    """Positions whose residual stream an intervention edited, summed over all choices of the response."""

    prompt: int
    """Includes positions whose edited keys and values were already in the prefix cache."""
    generated: int
    sinks: int = 0
    """
    Positions in its token ranges that were left out as attention sinks: their vectors are longer than ten times the median.
    Of those that were computed for this response; of cached ones it is not known, and they are counted as edited.
    """


class Summary(Answer):
    """Mean and maximum over the positions that were computed for this response (cached ones are not measured again)."""

    mean: float
    max: float
    unit: str | None = None


class InterventionReceipt(Answer):
    """One intervention as it was resolved and applied."""

    feature: str | None = None
    vector: str | None = None
    """Name of what was moved, as the request has it."""
    rule: str | None = None
    """The rule that it belongs to. Its `tokens` are those at which it was carried out."""
    sae: str | None = None
    index: int | None = None
    name: str | None = None
    description: str | None = None
    """The feature in words, as in `StoredFeature`; None of a vector."""
    layer: int
    site: str | None = None
    """Site at which the edit was added, for example `resid_post 23`."""
    op: str
    value: float | None = None
    unit: str | None = None
    value_act: float | None = None
    """`value` in the encoder's own units, as applied."""
    factor: float | None = None
    """Factor of `scale`."""
    tokens: TokenCounts
    act_before: Summary | None = None
    """Activation before the edit, in the encoder's units. None where no position was computed."""
    dose: Summary | None = None
    """
    Length of the edit as a share of the token's own residual norm (`token_resid_norm`), or, at sites where the stream is
    not at hand (`attn_z`, `mlp_in`), of the vector that was edited (`token_site_norm`).
    """
    approximation: str | None = None
    """In what the SAE differs from the trained one, because the server was told so: a threshold in place of TopK."""


class Fired(Answer):
    """A rule whose condition held."""

    rule: str
    choice: int
    """Index of the answer."""
    token: int
    """Absolute position, in the request, of the first token at which it held."""
    value: float
    """
    The value that the rule's first comparison had at that token: an activation, in the encoder's units, or a vector's score;
    where it looks over several tokens, their maximum or mean.
    """
    acts: dict[str, float] = Field(default_factory=dict)
    """The same of all its comparisons, by the names of their features and vectors; of several of one the first."""
    num_tokens: int = 1
    """At how many tokens it held."""


class TopFeature(Answer):
    """One of a token's strongest features."""

    index: int
    name: str | None = None
    act: float


class TokenEdit(Answer):
    """The edit of one intervention at one token."""

    intervention: int
    """Index into the receipt's interventions."""
    act_before: float
    """In the encoder's units."""
    dose: float
    """In the unit of the intervention's `dose`."""


class TokenReadout(Answer):
    """The activations that were read at one token, and the edits there."""

    position: int
    """In the request, its prompt included."""
    token_id: int
    text: str | None = None
    """Text of the token alone; bytes that are no whole letter show as U+FFFD. None from an older server."""
    bytes: tuple[int, ...] | None = None
    """Bytes of a token that is a part of a character, which `text` shows as U+FFFD: its neighbours have the rest."""
    features: dict[str, float] = Field(default_factory=dict)
    """Activations by the feature's name in the request, in the encoder's units."""
    vectors: dict[str, float] | None = None
    """Scores by the vector's name; None where the readout names no vectors."""
    top: dict[str, list[TopFeature]] = Field(default_factory=dict)
    """The strongest features by SAE, strongest first; only those that are active."""
    edits: list[TokenEdit] = Field(default_factory=list)
    """With `receipt="tokens"`, what the interventions did that acted here."""


class ChoiceReadout(Tabular[TokenReadout], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """`choices[i].steering`; in a stream, that of the tokens of this chunk."""

    tokens: list[TokenReadout | None] = Field(default_factory=list)
    """
    Aligned with the generated tokens; None where a token was not asked for, was not edited, is a special one, or ended the
    answer.
    """
    prompt_tokens: list[TokenReadout | None] | None = None
    """Aligned with the prompt's tokens, where these were asked for; in a stream, in the first chunk."""

    def _rows(self) -> Sequence[TokenReadout]:
        """Return the generated tokens that were read."""
        return [token for token in self.tokens if token is not None]


class ServerIdentity(Answer):
    """The server that answered."""

    version: str
    """Version of saeclamp."""
    vllm: str
    """Version of vLLM."""
    fleet: str | None = None
    """Name of the servers that answer as one, of which it is one."""
    replica: str
    """Its own name: `--replica`, or that of its machine."""


class Receipt(Tabular[InterventionReceipt], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """The receipt of a steered request: what was resolved and applied; `response.steering`."""

    applied: Annotated[bool, Field(strict=True)]
    spec: str
    """sha256 of the resolved interventions and the SAEs' files: equal for equal steering."""
    model: str
    variant: str | None = None
    """The version of the variant that the request named as its model."""
    sae: dict[str, str]
    """sha256 of each SAE's weights, configuration and options, by the name it is served under."""
    interventions: tuple[InterventionReceipt, ...]
    """Those of the request, then those of its rules."""
    fired: tuple[Fired, ...] = ()
    warnings: tuple[str, ...] = ()
    server: ServerIdentity | None = None
    """The server that answered; None from an older one."""

    def _rows(self) -> Sequence[InterventionReceipt]:
        return self.interventions
