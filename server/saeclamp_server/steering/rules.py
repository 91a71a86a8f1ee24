"""Resolves rules and readouts: the activations that they read, and the sites where a rule's edits may act."""

from __future__ import annotations

from saeclamp.types import AllOf, AnyOf, Condition, FeatureCondition, Not
from saeclamp.types import Readout as WireReadout
from saeclamp.types import Rule as WireRule
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, Form, ReadoutSpec, RuleSpec
from saeclamp_server.steering.units import check_sae_names, find_feature, to_act, to_ranges


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


def _comparison(condition: FeatureCondition, context: SteeringContext, path: str) -> ComparisonSpec:
    sae, index = find_feature(condition.feature, context.saes, f"{path}.feature")
    above = condition.above is not None
    bound = condition.above if condition.above is not None else condition.below
    assert bound is not None, "the wire takes one of the two"
    return ComparisonSpec(sae.name, index, to_act(bound, condition.unit, context, sae.name, index, path), above)


def check_rule_order(rule: RuleSpec, edits: list[EditSpec], context: SteeringContext, path: str) -> None:
    """
    Refuse a rule that would act at a site before those that its condition reads. Raises RequestError.

    edits: those of the rule's `then`, in order
    """
    last = max(rule.comparisons, key=lambda comparison: context.saes[comparison.sae].entry.summary.reads[-1].order)
    # an SAE that reads at several sites is known at the last of them
    known = context.saes[last.sae].entry.summary.reads[-1]
    for number, edit in enumerate(edits):
        site = context.site_of(edit)
        if site.order < known.order:
            raise InvalidSteeringError(
                f"{edit.target} is moved at {site}, before the rule's condition is known: it reads "
                f"{last.sae}/{last.index} at {known}.",
                f"{path}.then[{number}].{'feature' if edit.vector is None else 'vector'}",
            )


def resolve_readout(
    readout: WireReadout | None, context: SteeringContext, conversation: ChatSpans | None, path: str
) -> ReadoutSpec | None:
    """Find a readout's features and SAEs. Raises RequestError."""
    if readout is None:
        return None
    saes = check_sae_names(readout.saes, context, f"{path}.saes")
    found = [
        find_feature(feature, context.saes, f"{path}.features[{number}]")
        for number, feature in enumerate(readout.features)
    ]
    return ReadoutSpec(
        features=tuple((sae.name, index) for sae, index in found),
        top_k=readout.top_k,
        saes=saes if readout.top_k else (),
        tokens=to_ranges(readout.tokens, conversation, f"{path}.tokens"),
        special=readout.special_tokens,
    )
