"""
`client.saes` and `client.features`: what the server steers with, looking for features, and what is known of each.

All methods raise `APIConnectionError` or `APIStatusError`, and `InvalidArgumentError` for a wrong argument, before
anything is sent. `NotFoundError` says which SAE or feature there is not. What takes longer has `progress=`: it is called
with a `Progress`, about twice a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from saeclamp._async.transport import AsyncTransport
from saeclamp._bodies import (
    FEATURES,
    SAES,
    Passage,
    attribute_body,
    contrast_body,
    feature_path,
    inspect_body,
    neighbours_body,
    sae_path,
    search_params,
    suggest_body,
)
from saeclamp._options import (
    AttributeOptions,
    ContrastOptions,
    InspectOptions,
    NeighboursOptions,
    SearchOptions,
    SuggestOptions,
)
from saeclamp._progress import OnProgress
from saeclamp.types import (
    Attribution,
    Contrasted,
    FeatureHits,
    Inspection,
    Neighbourhoods,
    StoredFeature,
    StoredSAE,
    StoredSAEs,
    Suggestion,
)


class AsyncSAEs:
    """`client.saes`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> StoredSAEs:
        """List the loaded SAEs."""
        return await self._transport.ask(StoredSAEs, "GET", SAES)

    async def get(self, name: str) -> StoredSAE:
        """Look up one SAE."""
        return await self._transport.ask(StoredSAE, "GET", sae_path(name))


class AsyncFeatures:
    """`client.features`. `options` of each method are the other fields of the request that it names."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def search(
        self, query: str = "", *, sae: str | Sequence[str] = (), **options: Unpack[SearchOptions]
    ) -> FeatureHits:
        """
        Look for features by words and by meaning; without a query, list them.

        sae:     of which SAEs; none: of all
        options: as in `FeatureQuery`
        """
        return await self._transport.ask(FeatureHits, "GET", FEATURES, params=search_params(query, sae, options))

    async def get(self, feature: str) -> StoredFeature:
        """Look up all that is known of a feature, `<sae>/<index>` or `<sae>/<name>`."""
        return await self._transport.ask(StoredFeature, "GET", feature_path(feature))

    async def inspect(self, passage: Passage, **options: Unpack[InspectOptions]) -> Inspection:
        """Find which features are active in a text or a conversation; `options` as in `Inspect`."""
        return await self._transport.ask(Inspection, "POST", f"{FEATURES}/inspect", body=inspect_body(passage, options))

    async def contrast(
        self,
        positive: Sequence[Passage],
        negative: Sequence[Passage],
        *,
        progress: OnProgress | None = None,
        **options: Unpack[ContrastOptions],
    ) -> Contrasted:
        """Find which features tell two sets of texts or conversations apart; `options` as in `Contrast`."""
        body = contrast_body(positive, negative, options)
        return await self._transport.ask_long(Contrasted, f"{FEATURES}/contrast", body, progress)

    async def attribute(
        self, passage: Passage, *, progress: OnProgress | None = None, **options: Unpack[AttributeOptions]
    ) -> Attribution:
        """Find which features caused a token, by taking them away; `options` as in `Attribute`."""
        body = attribute_body(passage, options)
        return await self._transport.ask_long(Attribution, f"{FEATURES}/attribute", body, progress)

    async def neighbours(self, *features: str, **options: Unpack[NeighboursOptions]) -> Neighbourhoods:
        """Find which features' decoder rows point the same way; `options` as in `NeighboursQuery`."""
        body = neighbours_body(features, options)
        return await self._transport.ask(Neighbourhoods, "POST", f"{FEATURES}/neighbours", body=body)

    async def suggest(
        self, wish: str, *, progress: OnProgress | None = None, **options: Unpack[SuggestOptions]
    ) -> Suggestion:
        """
        Propose a small steering for a wish, or say that nothing was found (`outcome`); `options` as in `Suggest`.

        It is tested against unsteered answers and random features, which takes minutes.
        """
        body = suggest_body(wish, options)
        return await self._transport.ask_long(Suggestion, f"{FEATURES}/suggest", body, progress)
