"""
Variants and controllers of Goodfire's Ember, as its clients 0.2 and 0.3 write them.

What each mode does there, by the clients' own code: `nudge` adds to a feature's strength, `pin` sets it (`true` to 0.5,
`false` to -0.5), and `mul` is sent and has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeclamp.importing.fields import (
    build,
    check_fields,
    index,
    join,
    mapping,
    number,
    objects,
    refuse_set,
    refused,
)
from saeclamp.types import Ablate, Add, AllOf, AnyOf, Clamp, FeatureCondition, Operation, Rule, Steering

PINNED = {True: 0.5, False: -0.5}

OF_REQUESTS = {
    *("messages", "model", "stream", "max_completion_tokens", "max_tokens", "top_p", "temperature", "stop", "seed"),
    *("timeout", "system_prompt"),
}
"""Fields of its chat completions that do not steer."""
OF_VARIANTS = {"base_model", "edits", "fastmodel_config", "scopes"}
OF_FEATURES = {"uuid", "label", "index_in_sae", "max_activation_strength"}
OF_EDITS = {"feature_id", "feature_label", "index_in_sae", "max_activation_strength", "mode", "value"}
ENTROPIES = ("nonzero_strength_threshold", "min_nudge_entropy", "max_nudge_entropy")
OF_CONTROLLERS = {"interventions", "scopes", "name", "id", *ENTROPIES}
OF_SCOPES = {"conditionals", "controller", "condition", "nested_variant", "is_active", "event_name"}


def from_goodfire(variant: Mapping[str, Any], sae: str, max_act_per_unit: float = 1.0) -> Steering:
    """
    Take a variant, a controller, or the body of a chat completion that has one.

    Nudges add and pins clamp; several nudges of one feature are summed. Scopes become rules that hold at a token, and those
    with an event abort: Ember's own client raises there, after the text has come. Ember's values are "normalised", it does
    not say how: they are taken as multiples of the feature's maximum activation.

    sae:              name under which the same SAE is served
    max_act_per_unit: how many maximum activations a value of 1 is
    Raises ForeignSteeringError, among others for `mul`, scopes within scopes, thresholds of entropy, a feature that is both
    pinned and moved, and comparisons of two features.
    """
    check_fields(variant, {"controller", *OF_REQUESTS, *OF_VARIANTS, *OF_CONTROLLERS}, "")
    reader = _VariantReader(sae, max_act_per_unit)
    if "controller" in variant:
        refuse_set(
            variant,
            ("edits", "fastmodel_config", "scopes", "interventions"),
            "",
            "beside a controller this would count twice.",
        )
        controller, path = mapping(variant, "controller"), "controller"
        check_fields(controller, OF_CONTROLLERS, path)
    else:
        controller, path = variant, ""
    moves = reader.moves(controller, path)
    rules = tuple(
        reader.rule(scope, join(path, f"scopes[{nth}]"), nth)
        for nth, scope in enumerate(objects(controller, "scopes", path))
    )
    if not moves and not rules:
        raise refused(path, "it neither moves a feature nor has a scope.")
    return build(Steering, path, interventions=moves, rules=rules)


class _VariantReader:
    """Reads objects of one variant."""

    def __init__(self, sae: str, per_unit: float) -> None:
        self._sae, self._per_unit = sae, per_unit
        self._moved: dict[str, str] = {}
        """Feature to the place where it is moved."""

    def moves(self, item: Mapping[str, Any], path: str) -> tuple[Operation, ...]:
        """Read the edits and interventions of a variant or controller."""
        for name in ENTROPIES:
            if item.get(name) is not None:
                raise refused(
                    join(path, name), "it ties nudges to tokens' strength or entropy, which has no equal here."
                )
        edits: list[tuple[str, Mapping[str, Any], Sequence[Mapping[str, Any]]]] = [
            (join(path, f"{name}[{nth}]"), {"mode": "nudge", **edit}, [edit])
            for name in ("edits", "fastmodel_config")
            for nth, edit in enumerate(objects(item, name, path))
        ]
        for where, edit, _ in edits:
            check_fields(edit, OF_EDITS, where)
        num_edits = len(edits)
        for nth, one in enumerate(objects(item, "interventions", path)):
            where = join(path, f"interventions[{nth}]")
            check_fields(one, {"mode", "features", "value"}, where)
            edits.append((where, one, self._group(one, "features", where)))
        read: dict[str, Operation] = {}
        for count, (where, edit, features) in enumerate(edits):
            for nth, feature in enumerate(features):
                at = where if count < num_edits else f"{where}.features.features[{nth}]"
                self._add(read, self._move(edit, self._name(feature, at), where), at)
        return tuple(read.values())

    def _add(self, read: dict[str, Operation], move: Operation, path: str) -> None:
        """Keep a move; two nudges of one feature, unconditional or in one scope, are one."""
        name = move.target
        known = read.get(name)
        if isinstance(known, Add) and isinstance(move, Add):
            read[name] = build(Add, path, feature=name, value=known.value + move.value)
            return
        if name in self._moved:
            raise refused(
                path,
                f"feature {name} is moved by {self._moved[name]} too, and here one feature has one move at a token.",
            )
        self._moved[name], read[name] = path, move

    def _move(self, edit: Mapping[str, Any], feature: str, path: str) -> Operation:
        mode, value = edit.get("mode"), edit.get("value")
        if mode == "mul":
            raise refused(
                f"{path}.mode",
                "Ember's client sends 'mul' and says that it has no effect; leave it out, or write Scale(feature=..., "
                "factor=...) for what it looks like.",
            )
        if mode not in ("nudge", "pin"):
            raise refused(f"{path}.mode", f"{mode!r} is not known: 'nudge' or 'pin'.")
        if mode == "pin" and isinstance(value, bool):
            value = PINNED[value]
        strength = number({"value": value}, "value", path) * self._per_unit
        if mode == "nudge":
            return build(Add, path, feature=feature, value=strength)
        return build(Clamp, path, feature=feature, value=strength) if strength else Ablate(feature=feature)

    def rule(self, scope: Mapping[str, Any], path: str, nth: int) -> Rule:
        """Read a scope, as a controller or as a variant has it."""
        check_fields(scope, OF_SCOPES, path)
        refuse_set(scope, ["is_active"], path, "here a scope begins where its condition holds.")
        nested, inner = ("nested_variant", OF_VARIANTS) if "nested_variant" in scope else ("controller", OF_CONTROLLERS)
        controller, at = mapping(scope, nested, path), f"{path}.{nested}"
        check_fields(controller, inner, at)
        refuse_set(controller, ["scopes"], at, "a rule within a rule has no equal here.")
        then = self.moves(controller, at)
        if then and scope.get("event_name"):
            raise refused(f"{path}.event_name", "a scope that moves features and has an event too has no equal here.")
        if not then and not scope.get("event_name"):
            raise refused(path, "it neither moves anything nor has an event.")
        return build(Rule, path, name=f"scope-{nth}", when=self._when(scope, path), then=then or "abort")

    def _when(self, scope: Mapping[str, Any], path: str) -> FeatureCondition | AllOf | AnyOf:
        name = "condition" if "condition" in scope else "conditionals"
        group, at = mapping(scope, name, path), f"{path}.{name}"
        check_fields(group, {"conditionals", "operator"}, at)
        conditions = [
            self._condition(one, f"{at}.conditionals[{nth}]")
            for nth, one in enumerate(objects(group, "conditionals", at))
        ]
        if not conditions:
            raise refused(path, "it has no condition.")
        operator = str(group.get("operator", "AND")).upper()
        if operator not in ("AND", "OR"):
            raise refused(f"{at}.operator", f"{operator!r} is not known: 'AND' or 'OR'.")
        if len(conditions) == 1:
            return conditions[0]
        return build(AllOf, at, all=tuple(conditions)) if operator == "AND" else build(AnyOf, at, any=tuple(conditions))

    def _condition(self, one: Mapping[str, Any], path: str) -> FeatureCondition:
        check_fields(one, {"left_hand", "right_hand", "operator"}, path)
        features = self._group(one, "left_hand", path)
        if len(features) != 1:
            raise refused(f"{path}.left_hand", "only one feature that is compared with a number has an equal here.")
        if isinstance(one.get("right_hand"), Mapping):
            raise refused(f"{path}.right_hand", "only one feature that is compared with a number has an equal here.")
        bound = number(one, "right_hand", path) * self._per_unit
        feature, operator = self._name(features[0], f"{path}.left_hand.features[0]"), one.get("operator")
        if operator in (">", ">="):
            return build(FeatureCondition, path, feature=feature, above=bound)
        if operator in ("<", "<="):
            return build(FeatureCondition, path, feature=feature, below=bound)
        raise refused(
            f"{path}.operator", f"{operator!r} has no equal: activations are above a value or below it, not just it."
        )

    def _group(self, item: Mapping[str, Any], name: str, path: str) -> Sequence[Mapping[str, Any]]:
        group, at = mapping(item, name, path), f"{path}.{name}"
        check_fields(group, {"features"}, at)
        features = objects(group, "features", at)
        if not features:
            raise refused(at, "it names no feature.")
        for nth, feature in enumerate(features):
            check_fields(feature, OF_FEATURES, f"{at}.features[{nth}]")
        return features

    def _name(self, feature: Mapping[str, Any], path: str) -> str:
        return f"{self._sae}/{index(feature, 'index_in_sae', path)}"
