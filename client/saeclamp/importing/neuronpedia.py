"""Neuronpedia's requests to steer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saeclamp.importing.fields import build, check_fields, index, number, objects, refused
from saeclamp.types import Add, Steering, StoredSAE

OF_REQUESTS = {
    *(
        "prompt",
        "defaultChatMessages",
        "steeredChatMessages",
        "modelId",
        "temperature",
        "n_tokens",
        "freq_penalty",
        "seed",
    ),
    *("stream", "n_logprobs"),
}
"""Fields that do not steer."""


def from_neuronpedia(request: Mapping[str, Any], saes: Mapping[str, str | StoredSAE]) -> Steering:
    """
    Take the body of `POST /api/steer` or `/api/steer-chat`.

    It adds strength times multiplier times the feature's decoder row, which it has brought to norm 1. That is an `add` in
    unit `act` for an SAE whose decoder rows have norm 1, as Gemma Scope's. For any other, give what
    `client.saes.get(name)` returns in place of the name: then it is an `add` in unit `resid_norm`, of that norm whatever
    the row's. Several entries of one feature are summed, as they are there.

    saes: Neuronpedia's source ids, such as `20-gemmascope-res-16k`, to the names under which these SAEs are served, or to
          what the server says of them
    Raises ForeignSteeringError for its other methods, which set projections, not activations.
    """
    own = {"features", "strength_multiplier", "steer_method", "steer_special_tokens"}
    check_fields(request, {*own, *OF_REQUESTS}, "")
    method = request.get("steer_method", "SIMPLE_ADDITIVE")
    if method != "SIMPLE_ADDITIVE":
        raise refused("steer_method", f"{method} works on projections, and has no equal among features' activations.")
    multiplier = number(request, "strength_multiplier", "")
    special = _steers_special_tokens(request)
    sums: dict[tuple[str, str], float] = {}
    for nth, item in enumerate(objects(request, "features")):
        path = f"features[{nth}]"
        check_fields(item, {"modelId", "layer", "index", "strength"}, path)
        source = item.get("layer")
        if not isinstance(source, str) or source not in saes:
            raise refused(
                f"{path}.layer", f"it is not said which served SAE is {source!r}; said: {', '.join(saes) or 'none'}."
            )
        sae = saes[source]
        name, unit, length = (sae, "act", 1.0) if isinstance(sae, str) else _unit(sae, f"{path}.layer")
        key = (f"{name}/{index(item, 'index', path)}", unit)
        sums[key] = sums.get(key, 0.0) + number(item, "strength", path) * multiplier / length
    moves = tuple(
        build(Add, "features", feature=feature, value=value, unit=unit, special_tokens=special)
        for (feature, unit), value in sums.items()
    )
    return build(Steering, "features", interventions=moves)


def _steers_special_tokens(request: Mapping[str, Any]) -> bool:
    """Read the flag: completions steer every token, and chats leave special ones out unless they are told otherwise."""
    chosen = request.get("steer_special_tokens")
    if "prompt" not in request:
        return bool(chosen)
    if chosen is False:
        raise refused(
            "steer_special_tokens", "Neuronpedia's completions steer every token; this is heeded in chats only."
        )
    return True


def _unit(sae: StoredSAE, path: str) -> tuple[str, str, float]:
    """Return the name, the unit of a vector of a given norm along a decoder row, and the norm that a value of 1 has."""
    if sae.unit == "decoder_norm":
        return sae.name, "act", 1.0
    if not sae.resid_norm:
        raise refused(
            path, f"lengths could not be measured where {sae.name} is; give its name if its rows have length 1."
        )
    return sae.name, "resid_norm", sae.resid_norm
