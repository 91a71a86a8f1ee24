"""SteeringAPI's interventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saeclamp.importing.fields import build, check_fields, index, number, objects, refused
from saeclamp.types import Add, Clamp, Operation, Steering

OF_REQUESTS = {
    *(
        "model",
        "messages",
        "temperature",
        "max_completion_tokens",
        "max_tokens",
        "repetition_penalty",
        "seed",
        "stream",
    ),
    *("top_p", "stop"),
}
"""Fields that do not steer."""


def from_steering_api(request: Mapping[str, Any], sae: str, max_act_per_unit: float = 1.0) -> Steering:
    """
    Take `interventions` of a chat completion.

    `add` adds to a feature's activation and `clamp` sets it. Its strengths are "internally normalised per model": they are
    taken as multiples of the feature's maximum activation. It steers at another layer than the one whose SAE it reads, so
    the same is done only by an SAE that is served at that layer (`?site=`).

    sae, max_act_per_unit: as in `from_goodfire`
    Raises ForeignSteeringError.
    """
    check_fields(request, {"interventions", *OF_REQUESTS}, "")
    moves: dict[str, Operation] = {}
    paths: dict[str, str] = {}
    for nth, item in enumerate(objects(request, "interventions")):
        path = f"interventions[{nth}]"
        check_fields(item, {"index_in_sae", "strength", "mode", "id", "label"}, path)
        feature = f"{sae}/{index(item, 'index_in_sae', path)}"
        value, mode = number(item, "strength", path) * max_act_per_unit, item.get("mode", "add")
        if mode not in ("add", "clamp"):
            raise refused(f"{path}.mode", f"{mode!r} is not known: 'add' or 'clamp'.")
        if feature in moves:
            raise refused(
                path,
                f"feature {feature} is moved by {paths[feature]} too, and it is not said what becomes of both.",
            )
        if mode == "add":
            moves[feature] = build(Add, path, feature=feature, value=value)
        else:
            moves[feature] = build(Clamp, path, feature=feature, value=value)
        paths[feature] = path
    return build(Steering, "interventions", interventions=tuple(moves.values()))
