"""
`client.saes` and `client.features`: what the server steers with, and what it knows of each feature.

All methods raise `APIConnectionError` or `APIStatusError`; `NotFoundError` says which SAE or feature there is not.
"""

from __future__ import annotations

from urllib.parse import quote

from saeclamp._responses import SAE, Feature, SAEList
from saeclamp._transport import AsyncTransport, Transport

SAES, FEATURES = "/v1/saes", "/v1/features"


def _sae_path(name: str) -> str:
    return f"{SAES}/{_segment(name)}"


def _feature_path(feature: str) -> str:
    sae, slash, which = feature.partition("/")
    if not slash:
        raise ValueError(f"A feature is written <sae>/<index> or <sae>/<name>, not {feature!r}.")
    return f"{FEATURES}/{_segment(sae)}/{_segment(which)}"


def _segment(text: str) -> str:
    """Raise ValueError for what might lead to another path."""
    if not text.strip("."):
        raise ValueError(f"Nothing can be named {text!r}.")
    return quote(text, safe="")


class SAEs:
    """`client.saes`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> SAEList:
        """List the loaded SAEs."""
        return self._transport.ask(SAEList, "GET", SAES)

    def get(self, name: str) -> SAE:
        """Look up one SAE."""
        return self._transport.ask(SAE, "GET", _sae_path(name))


class Features:
    """`client.features`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, feature: str) -> Feature:
        """Look up all that is known of a feature, `<sae>/<index>` or `<sae>/<name>`."""
        return self._transport.ask(Feature, "GET", _feature_path(feature))


class AsyncSAEs:
    """`async_client.saes`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> SAEList:
        """List the loaded SAEs."""
        return await self._transport.ask(SAEList, "GET", SAES)

    async def get(self, name: str) -> SAE:
        """Look up one SAE."""
        return await self._transport.ask(SAE, "GET", _sae_path(name))


class AsyncFeatures:
    """`async_client.features`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def get(self, feature: str) -> Feature:
        """Look up all that is known of a feature, `<sae>/<index>` or `<sae>/<name>`."""
        return await self._transport.ask(Feature, "GET", _feature_path(feature))
