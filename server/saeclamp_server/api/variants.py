"""`/v1/variants`: steering that is saved under a model's name."""

from __future__ import annotations

from fastapi import Request, Response

from saeclamp.types import DeletedVariant, ImportedVariants, NewVariant, Variant, VariantExport, VariantList
from saeclamp_server.api.state import state_of
from saeclamp_server.api.strict_route import strict_router
from saeclamp_server.steering import vectors_used
from saeclamp_server.variants import VariantRegistry

router = strict_router()


@router.post("/v1/variants", responses={201: {"model": Variant, "description": "A new version"}})
async def create_variant(body: NewVariant, request: Request, response: Response) -> Variant:
    """Save a steering. 201 if it is a new version, 200 if it was there; the name means it from now on."""
    await state_of(request.app).vectors.refresh(vectors_used(body.steering))
    variant, is_new = await _registry(request).create(body)
    response.status_code = 201 if is_new else 200
    return variant.model_copy(update={"is_new": is_new})


@router.get("/v1/variants")
async def list_variants(request: Request) -> VariantList:
    """List all variants, those of the feature book first."""
    return VariantList(data=tuple(await _registry(request).listed()))


@router.get("/v1/variants/export")
async def export_variants(request: Request) -> VariantExport:
    """Write all versions that users have created, for another server."""
    return VariantExport.model_validate(await _registry(request).exported())


@router.post("/v1/variants/import")
async def import_variants(body: VariantExport, request: Request) -> ImportedVariants:
    """Take in what another server has exported: all of it, or none."""
    num_new, num_known = await _registry(request).import_(body)
    return ImportedVariants(num_new=num_new, num_known=num_known)


@router.get("/v1/variants/{name:path}")
async def get_variant(request: Request, name: str) -> Variant:
    """Look up a variant by its name or alias, or one of its versions by `name@sha`."""
    return await _registry(request).described(name)


@router.delete("/v1/variants/{name:path}")
async def delete_variant(request: Request, name: str) -> DeletedVariant:
    """Delete a variant with all its versions."""
    deleted, num = await _registry(request).delete(name)
    return DeletedVariant(id=deleted, deleted=True, num_versions=num)


def _registry(request: Request) -> VariantRegistry:
    return state_of(request.app).variants
