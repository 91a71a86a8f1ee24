"""`/v1/models`: the base model, vLLM's adapters, and variants, which are listed as adapters are."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from saeclamp.types import Variant
from saeclamp_server.api.state import state_of

router = APIRouter()
MODELS_PATH = "/v1/models"


@router.get(MODELS_PATH, response_model=None)
async def list_models(request: Request) -> JSONResponse:
    """List what may be passed as `model`."""
    return JSONResponse({"object": "list", "data": await _cards(request)})


@router.get(f"{MODELS_PATH}/{{model:path}}", response_model=None)
async def get_model(request: Request, model: str) -> JSONResponse:
    """Look up one model by its name, or a version of a variant."""
    cards = await _cards(request)
    found = next((card for card in cards if card["id"] == model), None)
    if found is None:
        variants = state_of(request.app).variants
        variant = await variants.of_model(model)
        if variant is None:
            await variants.refuse_unknown(model, ())
        assert variant is not None, "models have a card"
        found = _card(variant.to_wire()) | {"id": model}
    return JSONResponse(found)


async def _cards(request: Request) -> list[dict[str, Any]]:
    state = state_of(request.app)
    served = (await state.vllm.openai_serving_models.show_available_models()).model_dump()["data"]
    if state.calls.server.fleet is not None:
        served = [card | {"root": card["id"]} for card in served]  # the path of one machine is not that of another
    listed = await state.variants.listed()
    aliases = [_card(variant) | {"id": variant.alias} for variant in listed if variant.alias]
    return [*served, *map(_card, listed), *aliases]


def _card(variant: Variant) -> dict[str, Any]:
    return {
        "id": variant.id,
        "object": "model",
        "created": variant.created,
        "owned_by": "feature-book" if variant.read_only else "user",
        "root": variant.version,
        "parent": variant.base,
        "metadata": {"description": variant.description, "steering": variant.steering},
    }
