"""
`client.variants`: steering that is saved under a model's name, for every client of OpenAI's API.

All methods raise `APIConnectionError` or `APIStatusError`: 400 says what cannot be saved, 404 that there is no such variant.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from saeclamp._exceptions import InvalidArgumentError
from saeclamp._requests import SteeringLike
from saeclamp._transport import AsyncTransport, Transport
from saeclamp.types import (
    DeletedVariant,
    ImportedVariants,
    NewVariant,
    Variant,
    VariantExport,
    VariantList,
    as_steering,
)
from saeclamp.types._base import invalid_argument

VARIANTS = "/v1/variants"


def _new(name: str, steering: SteeringLike, description: str, base: str | None, alias: str | None) -> dict[str, Any]:
    return NewVariant(
        name=name, steering=as_steering(steering), description=description, base=base, alias=alias
    ).to_json()


def _path(name: str) -> str:
    """Refuse what might lead to another path."""
    if not name.strip("./"):
        raise InvalidArgumentError(f"name: no variant can be named {name!r}.", "name")
    return f"{VARIANTS}/{quote(name, safe='')}"


def _export(export: VariantExport | dict[str, Any]) -> dict[str, Any]:
    if isinstance(export, dict):
        try:
            export = VariantExport.model_validate(export)
        except ValidationError as exc:
            raise invalid_argument(exc, export, VariantExport) from None
    return {
        "object": export.object,
        "data": [
            {**one.model_dump(mode="json", exclude={"steering"}), "steering": one.steering.to_json()}
            for one in export.data
        ],
    }


class Variants:
    """`client.variants`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
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
        return self._transport.ask(Variant, "POST", VARIANTS, body=_new(name, steering, description, base, alias))

    def list(self) -> VariantList:
        """List all variants, those of the feature book first."""
        return self._transport.ask(VariantList, "GET", VARIANTS)

    def get(self, name: str) -> Variant:
        """Look up a variant, `<name>`, or one of its versions, `<name>@<sha>`."""
        return self._transport.ask(Variant, "GET", _path(name))

    def delete(self, name: str) -> DeletedVariant:
        """Delete a variant with all its versions."""
        return self._transport.ask(DeletedVariant, "DELETE", _path(name))

    def export(self) -> VariantExport:
        """Write all versions that users have created; `model_dump_json()` of it makes a file."""
        return self._transport.ask(VariantExport, "GET", f"{VARIANTS}/export")

    def import_(self, export: VariantExport | dict[str, Any]) -> ImportedVariants:
        """Take in what another server has exported: all of it, or none."""
        return self._transport.ask(ImportedVariants, "POST", f"{VARIANTS}/import", body=_export(export))


class AsyncVariants:
    """`async_client.variants`."""

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
        return await self._transport.ask(Variant, "POST", VARIANTS, body=_new(name, steering, description, base, alias))

    async def list(self) -> VariantList:
        """List all variants, those of the feature book first."""
        return await self._transport.ask(VariantList, "GET", VARIANTS)

    async def get(self, name: str) -> Variant:
        """Look up a variant, `<name>`, or one of its versions, `<name>@<sha>`."""
        return await self._transport.ask(Variant, "GET", _path(name))

    async def delete(self, name: str) -> DeletedVariant:
        """Delete a variant with all its versions."""
        return await self._transport.ask(DeletedVariant, "DELETE", _path(name))

    async def export(self) -> VariantExport:
        """Write all versions that users have created; `model_dump_json()` of it makes a file."""
        return await self._transport.ask(VariantExport, "GET", f"{VARIANTS}/export")

    async def import_(self, export: VariantExport | dict[str, Any]) -> ImportedVariants:
        """Take in what another server has exported: all of it, or none."""
        return await self._transport.ask(ImportedVariants, "POST", f"{VARIANTS}/import", body=_export(export))
