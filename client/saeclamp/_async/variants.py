"""
`client.variants`: steering that is saved under a model's name, for every client of OpenAI's API.

All methods raise `APIConnectionError` or `APIStatusError`: 400 says what cannot be saved, 404 that there is no such variant.
"""

from __future__ import annotations

from typing import Any

from saeclamp._async.transport import AsyncTransport
from saeclamp._bodies import VARIANTS, export_body, variant_body, variant_path
from saeclamp._requests import SteeringLike
from saeclamp.types import DeletedVariant, ImportedVariants, Variant, VariantExport, VariantList


class AsyncVariants:
    """`client.variants`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        steering: SteeringLike,
        *,
        description: str = "",
        base: str | None = None,
        alias: str | None = None,
    ) -> Variant:
        """
        Save a steering as a model: `<base>:<name>` may be passed as `model` then.

        The name means this version from now on; earlier versions keep their own names. The same content again is the same
        version. An `alias` means the same without a colon, for clients that take names apart at one.
        """
        return await self._transport.ask(
            Variant, "POST", VARIANTS, body=variant_body(name, steering, description, base, alias)
        )

    async def list(self) -> VariantList:
        """List all variants, those of the feature book first."""
        return await self._transport.ask(VariantList, "GET", VARIANTS)

    async def get(self, name: str) -> Variant:
        """Look up a variant, `<name>`, or one of its versions, `<name>@<sha>`."""
        return await self._transport.ask(Variant, "GET", variant_path(name))

    async def delete(self, name: str) -> DeletedVariant:
        """Delete a variant with all its versions."""
        return await self._transport.ask(DeletedVariant, "DELETE", variant_path(name))

    async def export(self) -> VariantExport:
        """Write all versions that users have created; `model_dump_json()` of it makes a file."""
        return await self._transport.ask(VariantExport, "GET", f"{VARIANTS}/export")

    async def import_(self, export: VariantExport | dict[str, Any]) -> ImportedVariants:
        """Take in what another server has exported: all of it, or none."""
        return await self._transport.ask(ImportedVariants, "POST", f"{VARIANTS}/import", body=export_body(export))
