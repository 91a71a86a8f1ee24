"""
`client.saes` and `client.features`: what the server steers with, looking for features, and what is known of each.

All methods raise `APIConnectionError` or `APIStatusError`, and `InvalidArgumentError` for a wrong argument, before
anything is sent. `NotFoundError` says which SAE or feature there is not. What takes longer has `progress=`: it is called
with a `Progress`, about twice a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, Unpack
from urllib.parse import quote

from saeclamp._exceptions import ArgumentTypeError, InvalidArgumentError
from saeclamp._options import (
    AttributeOptions,
    ContrastOptions,
    InspectOptions,
    NeighboursOptions,
    SearchOptions,
    SuggestOptions,
)
from saeclamp._progress import OnProgress
from saeclamp._transport import AsyncTransport, Transport
from saeclamp.types import (
    Attribute,
    Attribution,
    Contrast,
    Contrasted,
    FeatureHits,
    FeatureQuery,
    Inspect,
    Inspection,
    Neighbourhoods,
    NeighboursQuery,
    StoredFeature,
    StoredSAE,
    StoredSAEs,
    Suggest,
    Suggestion,
)
from saeclamp.types.refusals import A_FEATURE

SAES, FEATURES = "/v1/saes", "/v1/features"

Passage: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation."""


def _sae_path(name: str) -> str:
    return f"{SAES}/{_segment(name)}"


def _feature_path(feature: str) -> str:
    sae, slash, which = feature.partition("/")
    if not slash:
        raise InvalidArgumentError(f"feature: {A_FEATURE}, not {feature!r}.", "feature")
    return f"{FEATURES}/{_segment(sae)}/{_segment(which)}"


def _segment(text: str) -> str:
    """Refuse what might lead to another path."""
    if not text.strip("."):
        raise InvalidArgumentError(f"Nothing can be named {text!r}.")
    return quote(text, safe="")


def _query(query: str, sae: str | Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    saes = (sae,) if isinstance(sae, str) else tuple(sae)
    return FeatureQuery(query=query, sae=saes, **options).to_params()


def _inspect(passage: Passage, options: Mapping[str, Any]) -> dict[str, Any]:
    return Inspect(**_passage(passage), **options).to_json()


def _attribute(passage: Passage, options: Mapping[str, Any]) -> dict[str, Any]:
    return Attribute(**_passage(passage), **options).to_json()


def _contrast(positive: Sequence[Passage], negative: Sequence[Passage], options: Mapping[str, Any]) -> dict[str, Any]:
    sets: dict[str, Any] = {}
    for name, passages in (("positive", positive), ("negative", negative)):
        if isinstance(passages, str):  # which would be taken for a list of letters
            raise ArgumentTypeError(f"{name}: a list of texts is needed, not one text: [text, ...].", name)
        sets[name] = tuple(passages)
    return Contrast(**sets, **options).to_json()


def _neighbours(features: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    for number, feature in enumerate(features):
        if isinstance(feature, list | tuple):
            raise ArgumentTypeError("Features are given one by one: neighbours(*features).", f"features[{number}]")
    return NeighboursQuery(features=tuple(features), **options).to_json()


def _passage(passage: Passage) -> dict[str, Any]:
    return {"text": passage} if isinstance(passage, str) else {"messages": list(passage)}


class SAEs:
    """`client.saes`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> StoredSAEs:
        """List the loaded SAEs."""
        return self._transport.ask(StoredSAEs, "GET", SAES)

    def get(self, name: str) -> StoredSAE:
        """Look up one SAE."""
        return self._transport.ask(StoredSAE, "GET", _sae_path(name))


class Features:
    """`client.features`. `options` of each method are the other fields of the request that it names."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def search(
        self, query: str = "", *, sae: str | Sequence[str] = (), **options: Unpack[SearchOptions]
    ) -> FeatureHits:
        """
        Look for features by words and by meaning; without a query, list them.

        sae:     of which SAEs; none: of all
        options: as in `FeatureQuery`
        """
        return self._transport.ask(FeatureHits, "GET", FEATURES, params=_query(query, sae, options))

    def get(self, feature: str) -> StoredFeature:
        """Look up all that is known of a feature, `<sae>/<index>` or `<sae>/<name>`."""
        return self._transport.ask(StoredFeature, "GET", _feature_path(feature))

    def inspect(self, passage: Passage, **options: Unpack[InspectOptions]) -> Inspection:
        """Find which features are active in a text or a conversation; `options` as in `Inspect`."""
        return self._transport.ask(Inspection, "POST", f"{FEATURES}/inspect", body=_inspect(passage, options))

    def contrast(
        self,
        positive: Sequence[Passage],
        negative: Sequence[Passage],
        *,
        progress: OnProgress | None = None,
        **options: Unpack[ContrastOptions],
    ) -> Contrasted:
        """Find which features tell two sets of texts or conversations apart; `options` as in `Contrast`."""
        body = _contrast(positive, negative, options)
        return self._transport.ask_long(Contrasted, f"{FEATURES}/contrast", body, progress)

    def attribute(
        self, passage: Passage, *, progress: OnProgress | None = None, **options: Unpack[AttributeOptions]
    ) -> Attribution:
        """Find which features caused a token, by taking them away; `options` as in `Attribute`."""
        body = _attribute(passage, options)
        return self._transport.ask_long(Attribution, f"{FEATURES}/attribute", body, progress)

    def neighbours(self, *features: str, **options: Unpack[NeighboursOptions]) -> Neighbourhoods:
        """Find which features' decoder rows point the same way; `options` as in `NeighboursQuery`."""
        body = _neighbours(features, options)
        return self._transport.ask(Neighbourhoods, "POST", f"{FEATURES}/neighbours", body=body)

    def suggest(
        self, wish: str, *, progress: OnProgress | None = None, **options: Unpack[SuggestOptions]
    ) -> Suggestion:
        """
        Propose a small steering for a wish, or say that nothing was found (`outcome`); `options` as in `Suggest`.

        It is tested against unsteered answers and random features, which takes minutes.
        """
        body = Suggest(wish=wish, **options).to_json()
        return self._transport.ask_long(Suggestion, f"{FEATURES}/suggest", body, progress)


class AsyncSAEs:
    """`async_client.saes`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> StoredSAEs:
        """List the loaded SAEs."""
        return await self._transport.ask(StoredSAEs, "GET", SAES)

    async def get(self, name: str) -> StoredSAE:
        """Look up one SAE."""
        return await self._transport.ask(StoredSAE, "GET", _sae_path(name))


class AsyncFeatures:
    """`async_client.features`. `options` of each method are the other fields of the request that it names."""

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
        return await self._transport.ask(FeatureHits, "GET", FEATURES, params=_query(query, sae, options))

    async def get(self, feature: str) -> StoredFeature:
        """Look up all that is known of a feature, `<sae>/<index>` or `<sae>/<name>`."""
        return await self._transport.ask(StoredFeature, "GET", _feature_path(feature))

    async def inspect(self, passage: Passage, **options: Unpack[InspectOptions]) -> Inspection:
        """Find which features are active in a text or a conversation; `options` as in `Inspect`."""
        return await self._transport.ask(Inspection, "POST", f"{FEATURES}/inspect", body=_inspect(passage, options))

    async def contrast(
        self,
        positive: Sequence[Passage],
        negative: Sequence[Passage],
        *,
        progress: OnProgress | None = None,
        **options: Unpack[ContrastOptions],
    ) -> Contrasted:
        """Find which features tell two sets of texts or conversations apart; `options` as in `Contrast`."""
        body = _contrast(positive, negative, options)
        return await self._transport.ask_long(Contrasted, f"{FEATURES}/contrast", body, progress)

    async def attribute(
        self, passage: Passage, *, progress: OnProgress | None = None, **options: Unpack[AttributeOptions]
    ) -> Attribution:
        """Find which features caused a token, by taking them away; `options` as in `Attribute`."""
        body = _attribute(passage, options)
        return await self._transport.ask_long(Attribution, f"{FEATURES}/attribute", body, progress)

    async def neighbours(self, *features: str, **options: Unpack[NeighboursOptions]) -> Neighbourhoods:
        """Find which features' decoder rows point the same way; `options` as in `NeighboursQuery`."""
        body = _neighbours(features, options)
        return await self._transport.ask(Neighbourhoods, "POST", f"{FEATURES}/neighbours", body=body)

    async def suggest(
        self, wish: str, *, progress: OnProgress | None = None, **options: Unpack[SuggestOptions]
    ) -> Suggestion:
        """
        Propose a small steering for a wish, or say that nothing was found (`outcome`); `options` as in `Suggest`.

        It is tested against unsteered answers and random features, which takes minutes.
        """
        body = Suggest(wish=wish, **options).to_json()
        return await self._transport.ask_long(Suggestion, f"{FEATURES}/suggest", body, progress)
