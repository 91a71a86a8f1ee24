"""Resolves rules and readouts: the activations that they read, and the sites where a rule's edits may act."""

from __future__ import annotations

from saeclamp.types import AllOf, AnyOf, Condition, FeatureCondition, LastTokens, Not, VectorCondition
from saeclamp.types import Readout as WireReadout
from saeclamp.types import Rule as WireRule
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, Form, ReadoutSpec, RuleSpec
from saeclamp_server.steering.units import check_sae_names, find_feature, find_vector, to_act, to_ranges
from saeclamp_server.vector_names import VECTOR


def resolve_rule(rule: WireRule, context: SteeringContext, conversation: ChatSpans | None, path: str) -> RuleSpec:
    """Find a rule's features and convert its bounds. Raises RequestError."""
    found: dict[int, ComparisonSpec] = {}
    form = _form(rule.when, context, f"{path}.when", found)
    return RuleSpec(
        comparisons=tuple(found[number] for number in range(len(found))),
        form=form,
        tokens=to_ranges(rule.tokens, conversation, f"{path}.tokens"),
        special=rule.special_tokens,
        lasting=rule.scope == "rest_of_request",
        aborts=rule.then == "abort",
    )


def _form(condition: Condition, context: SteeringContext, path: str, found: dict[int, ComparisonSpec]) -> Form:
    match condition:
        case AllOf(all=parts):
            return "all", tuple(_form(part, context, f"{path}.all[{n}]", found) for n, part in enumerate(parts))
        case AnyOf(any=parts):
            return "any", tuple(_form(part, context, f"{path}.any[{n}]", found) for n, part in enumerate(parts))
        case Not(not_=inner):
            return "not", (_form(inner, context, f"{path}.not", found),)
    number = len(found)
    found[number] = _comparison(condition, context, path)
    return number


def _comparison(condition: FeatureCondition | VectorCondition, context: SteeringContext, path: str) -> ComparisonSpec:
    if isinstance(condition, VectorCondition):
        vector = find_vector(condition.vector, context.vectors, f"{path}.vector")
        name, index = f"{VECTOR}{vector.name}", 0
        bound = condition.bound if condition.unit == "act" else vector.act_of(condition.bound)
    else:
        sae, index = find_feature(condition.feature, context.saes, f"{path}.feature")
        name = sae.name
        bound = to_act(condition.bound, condition.unit, context, name, index, path)
    above, over = condition.above is not None, condition.over or "token"
    if isinstance(over, LastTokens):
        return ComparisonSpec(name, index, bound, above, "mean", over.last)
    return ComparisonSpec(name, index, bound, above, over)


def check_rule_order(rule: RuleSpec, edits: list[EditSpec], context: SteeringContext, path: str) -> None:
    """
    Refuse a rule that would act at a site before those that its condition reads. Raises RequestError.

    edits: those of the rule's `then`, in order
    """
    last = max(rule.comparisons, key=lambda comparison: context.read_site(comparison.sae).order)
    known = context.read_site(last.sae)
    for number, edit in enumerate(edits):
        site = context.site_of(edit)
        if site.order < known.order:
            raise InvalidSteeringError(
                f"{edit.target} is moved at {site}, before the rule's condition is known: it reads "
                f"{last.target} at {known}.",
                f"{path}.then[{number}].{'feature' if edit.vector is None else 'vector'}",
            )


def resolve_readout(
    readout: WireReadout | None, context: SteeringContext, conversation: ChatSpans | None, path: str
) -> ReadoutSpec | None:
    """Find a readout's features, vectors and SAEs. Raises RequestError."""
    if readout is None:
        return None
    saes = check_sae_names(readout.saes, context, f"{path}.saes")
    found = [
        find_feature(feature, context.saes, f"{path}.features[{number}]")
        for number, feature in enumerate(readout.features)
    ]
    vectors = [
        find_vector(name, context.vectors, f"{path}.vectors[{number}]")
        for number, name in enumerate(readout.vectors or ())
    ]
    return ReadoutSpec(
        features=(*((sae.name, index) for sae, index in found), *((f"{VECTOR}{one.name}", 0) for one in vectors)),
        top_k=readout.top_k,
        saes=saes if readout.top_k else (),
        tokens=to_ranges(readout.tokens, conversation, f"{path}.tokens"),
        special=readout.special_tokens,
    )
