"""
Steering that was written for other projects, as ours, and lm-eval's CSV both ways.

Each function says in which unit it takes the other project's numbers. What has no equal here is refused with the reason,
never approximated in silence: a projection that is set is not an activation that is set.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeclamp.types import (
    Ablate,
    Add,
    AllOf,
    AnyOf,
    Clamp,
    FeatureCondition,
    Operation,
    Rule,
    Scale,
    Steering,
)

LM_EVAL_COLUMNS = (
    "loader",
    "action",
    "sparse_model",
    "hookpoint",
    "feature_index",
    "steering_coefficient",
    "sae_id",
    "description",
)


class ForeignSteeringError(ValueError):
    """What was written for another project cannot be said here. The message names the place."""


def from_goodfire(variant: Mapping[str, Any], sae: str, max_act_per_unit: float = 1.0) -> Steering:
    """
    Take a variant or controller of Goodfire's Ember.

    Nudges add, pins clamp, and `mul` scales; scopes become rules, and those with an event abort. Ember's values are
    "normalised", it does not say how: they are taken as multiples of the feature's maximum activation.

    sae:              name under which the same SAE is served
    max_act_per_unit: how many maximum activations a value of 1 is
    Raises ValueError.
    """
    controller = variant.get("controller", variant)
    interventions = [
        Add(feature=_feature(sae, edit, f"edits[{n}]"), value=_number(edit, "value", f"edits[{n}]") * max_act_per_unit)
        for n, edit in enumerate(_list(controller, "edits"))
    ]
    moves = [*interventions, *_goodfire_moves(controller, sae, max_act_per_unit, "interventions")]
    rules = [
        _goodfire_rule(scope, sae, max_act_per_unit, number) for number, scope in enumerate(_list(controller, "scopes"))
    ]
    return Steering(interventions=tuple(moves), rules=tuple(rules))


def from_steering_api(request: Mapping[str, Any], sae: str, max_act_per_unit: float = 1.0) -> Steering:
    """
    Take `interventions` of SteeringAPI.

    Its strengths are "internally normalised per model": they are taken as multiples of the feature's maximum activation.

    sae, max_act_per_unit: as in `from_goodfire`
    Raises ValueError.
    """
    moves: list[Operation] = []
    for number, item in enumerate(_list(request, "interventions")):
        path = f"interventions[{number}]"
        feature, value = _feature(sae, item, path), _number(item, "strength", path) * max_act_per_unit
        mode = item.get("mode", "add")
        if mode not in ("add", "clamp"):
            raise ForeignSteeringError(f"{path}.mode: {mode!r} is not known: 'add' or 'clamp'.")
        moves.append(Add(feature=feature, value=value) if mode == "add" else Clamp(feature=feature, value=value))
    return Steering(interventions=tuple(moves))


def from_neuronpedia(request: Mapping[str, Any], saes: Mapping[str, str]) -> Steering:
    """
    Take the body of Neuronpedia's `POST /api/steer` or `/api/steer-chat`.

    It adds strength times multiplier decoder rows, which is an `add` in unit `act`. Several entries of one feature are
    summed.

    saes: Neuronpedia's source ids, such as `20-gemmascope-res-16k`, to the names under which these SAEs are served
    Raises ValueError for its other methods, which set projections, not activations.
    """
    method = request.get("steer_method", "SIMPLE_ADDITIVE")
    if method != "SIMPLE_ADDITIVE":
        raise ForeignSteeringError(
            f"steer_method: {method} works on projections, and has no equal among features' activations."
        )
    multiplier = _number(request, "strength_multiplier", "") if "strength_multiplier" in request else 1.0
    values: dict[str, float] = {}
    for number, item in enumerate(_list(request, "features")):
        path = f"features[{number}]"
        feature = f"{_served(item.get('layer'), saes, f'{path}.layer')}/{_index(item, 'index', path)}"
        values[feature] = values.get(feature, 0.0) + _number(item, "strength", path) * multiplier
    # its completions steer every token; its chats leave special ones out unless they are told otherwise
    special = bool(request.get("steer_special_tokens", "prompt" in request))
    return Steering(
        interventions=tuple(
            Add(feature=feature, value=value, unit="act", special_tokens=special) for feature, value in values.items()
        )
    )


def from_lm_eval(text: str, saes: Mapping[tuple[str, str], str]) -> Steering:
    """
    Take the CSV of lm-eval's `steered` model.

    Rows that add are an `add` in unit `act`, at all tokens, special ones among them. Several rows of one hook point are
    summed (lm-eval itself keeps the last one).

    saes: (sparse_model, sae_id or else hookpoint) to the name under which that SAE is served
    Raises ValueError for rows that clamp, which set a projection, not an activation.
    """
    values: dict[str, float] = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
        path = f"line {number}"
        action = row.get("action") or "add"
        if action != "add":
            raise ForeignSteeringError(
                f"{path}: lm-eval's {action!r} sets a projection on the decoder row, and not the feature's activation."
            )
        key = (row.get("sparse_model") or "", row.get("sae_id") or row.get("hookpoint") or "")
        if key not in saes:
            raise ForeignSteeringError(f"{path}: it is not said which served SAE is {key[0]!r}, {key[1]!r}.")
        feature = f"{saes[key]}/{_index(row, 'feature_index', path)}"
        values[feature] = values.get(feature, 0.0) + _number(row, "steering_coefficient", path)
    if not values:
        raise ForeignSteeringError("There are no rows.")
    return Steering(
        interventions=tuple(
            Add(feature=feature, value=value, unit="act", special_tokens=True) for feature, value in values.items()
        )
    )


def to_lm_eval(steering: Steering, saes: Mapping[str, Mapping[str, str]]) -> str:
    """
    Write the CSV of lm-eval's `steered` model.

    saes: of each served SAE, the columns `loader`, `sparse_model`, `hookpoint` and `sae_id`
    Raises ValueError for what lm-eval cannot do: anything but additions in unit `act` at all tokens, features by name, and
    two features at one hook point, of which it would keep the last.
    """
    written = io.StringIO()
    writer = csv.DictWriter(written, LM_EVAL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    if steering.rules or steering.readout is not None:
        raise ForeignSteeringError("lm-eval knows no rules and no readout.")
    taken: dict[tuple[str, str], str] = {}
    for number, move in enumerate(steering.interventions):
        path = f"interventions[{number}]"
        if not isinstance(move, Add) or move.unit != "act" or move.feature is None:
            raise ForeignSteeringError(f"{path}: only an 'add' on a feature in unit 'act' has an equal in lm-eval.")
        if move.tokens != "all" or not move.special_tokens:
            raise ForeignSteeringError(
                f"{path}: lm-eval steers all tokens, special ones too: say so with special_tokens."
            )
        name, _, index = str(move.feature).partition("/")
        if name not in saes or not index.isdecimal():
            raise ForeignSteeringError(
                f"{path}.feature: {move.feature} needs its columns, and an index in place of a name."
            )
        hook = (saes[name].get("hookpoint", ""), saes[name].get("sae_id", ""))
        if hook in taken:
            raise ForeignSteeringError(
                f"{path}: lm-eval keeps one feature of a hook point, and {taken[hook]} is there already."
            )
        taken[hook] = str(move.feature)
        writer.writerow({"action": "add", "feature_index": index, "steering_coefficient": move.value, **saes[name]})
    return written.getvalue()


def _goodfire_moves(controller: Mapping[str, Any], sae: str, per_unit: float, path: str) -> list[Operation]:
    moves: list[Operation] = []
    for number, item in enumerate(_list(controller, "interventions")):
        where = f"{path}[{number}]"
        value, mode = _number(item, "value", where), item.get("mode")
        for nth, feature in enumerate(_list(item.get("features", {}), "features")):
            name = _feature(sae, feature, f"{where}.features[{nth}]")
            if mode == "nudge":
                moves.append(Add(feature=name, value=value * per_unit))
            elif mode == "pin":
                moves.append(Clamp(feature=name, value=value * per_unit) if value else Ablate(feature=name))
            elif mode == "mul":
                moves.append(Scale(feature=name, factor=value))
            else:
                raise ForeignSteeringError(f"{where}.mode: {mode!r} is not known: 'nudge', 'pin' or 'mul'.")
    return moves


def _goodfire_rule(scope: Mapping[str, Any], sae: str, per_unit: float, number: int) -> Rule:
    path = f"scopes[{number}]"
    group = scope.get("conditionals", {})
    conditions = [
        _goodfire_condition(one, sae, per_unit, f"{path}.conditionals[{n}]")
        for n, one in enumerate(_list(group, "conditionals"))
    ]
    if not conditions:
        raise ForeignSteeringError(f"{path}: it has no condition.")
    join = str(group.get("operator", "AND")).upper()
    if join not in ("AND", "OR"):
        raise ForeignSteeringError(f"{path}.conditionals.operator: {join!r} is not known: 'AND' or 'OR'.")
    when = (
        conditions[0] if len(conditions) == 1 else (AllOf(all=conditions) if join == "AND" else AnyOf(any=conditions))
    )
    then = _goodfire_moves(scope.get("controller", {}), sae, per_unit, f"{path}.controller.interventions")
    if not then and not scope.get("event_name"):
        raise ForeignSteeringError(f"{path}: it neither moves anything nor has an event.")
    return Rule(name=f"scope-{number}", when=when, then=tuple(then) or "abort")


def _goodfire_condition(one: Mapping[str, Any], sae: str, per_unit: float, path: str) -> FeatureCondition:
    features = _list(one.get("left_hand", {}), "features")
    bound, operator = one.get("right_hand"), one.get("operator")
    if len(features) != 1 or not isinstance(bound, int | float):
        raise ForeignSteeringError(f"{path}: only one feature that is compared with a number has an equal here.")
    name = _feature(sae, features[0], f"{path}.left_hand")
    if operator in (">", ">="):
        return FeatureCondition(feature=name, above=bound * per_unit)
    if operator in ("<", "<="):
        return FeatureCondition(feature=name, below=bound * per_unit)
    raise ForeignSteeringError(
        f"{path}.operator: {operator!r} has no equal: activations are above a value or below it."
    )


def _feature(sae: str, item: Mapping[str, Any], path: str) -> str:
    return f"{sae}/{_index(item, 'index_in_sae', path)}"


def _index(item: Mapping[str, Any], name: str, path: str) -> int:
    try:
        index = int(item[name])
    except (KeyError, TypeError, ValueError):
        raise ForeignSteeringError(
            f"{path}.{name}: a feature's number is needed, not {json.dumps(item.get(name))}."
        ) from None
    if index < 0:
        raise ForeignSteeringError(f"{path}.{name}: {index} is no feature's number.")
    return index


def _number(item: Mapping[str, Any], name: str, path: str) -> float:
    try:
        return float(item[name])
    except (KeyError, TypeError, ValueError):
        place = f"{path}.{name}".removeprefix(".")
        raise ForeignSteeringError(f"{place}: a number is needed, not {json.dumps(item.get(name))}.") from None


def _list(item: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    value = item.get(name) or []
    if not isinstance(value, Iterable) or isinstance(value, str) or not all(isinstance(one, Mapping) for one in value):
        raise ForeignSteeringError(f"{name}: a list of objects is needed.")
    return [*value]


def _served(source: object, saes: Mapping[str, str], path: str) -> str:
    if source not in saes:
        raise ForeignSteeringError(
            f"{path}: it is not said which served SAE is {source!r}; said: {', '.join(saes) or 'none'}."
        )
    return saes[str(source)]
