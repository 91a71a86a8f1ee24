"""Values that are passed as steering and are none, and what was meant by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from saeclamp.types.base import Answer
from saeclamp.types.feature_actions import Composable
from saeclamp.types.interventions import Operation
from saeclamp.types.refusals import MAX_SHOWN, shown
from saeclamp.types.rules import AllOf, AnyOf, FeatureCondition, Not, Rule, VectorCondition
from saeclamp.types.steering import Readout, Steering
from saeclamp.types.suggest import Suggestion
from saeclamp.types.variants import Variant


def why_no_steering(value: object) -> str | None:
    """Say why a value is neither a `Steering`, nor its JSON, nor interventions, and what to write; None where it is one."""
    if isinstance(value, Steering | Operation | Mapping):
        return None
    named = _why_not(value)
    if named is not None:
        return named
    if not isinstance(value, Iterable):
        return f"steering takes interventions such as Clamp(feature=..., value=...), not {shown(value)}"
    return None


def why_no_intervention(value: object) -> str | None:
    """Say the same of a value in a list of interventions."""
    if isinstance(value, Operation | Mapping):
        return None
    if isinstance(value, Steering):
        return "it is a whole Steering: pass it alone, or its interventions"
    return _why_not(value) or f"an intervention is such as Clamp(feature=..., value=...), not {shown(value)}"


def _why_not(value: object) -> str | None:
    match value:
        case str() if "/" in value:
            return f"a feature alone says not what becomes of it: write Clamp(feature={shown(value)}, value=...)"
        case str():
            return (
                f"a variant is asked for by its model's name, model='<base>:{value[:MAX_SHOWN]}'; steering takes "
                "interventions such as Clamp(feature='<sae>/<name>', value=...)"
            )
        case Rule():
            return (
                "a rule stands in the whole object: write Steering(rules=(rule,)), beside interventions=(...) if wanted"
            )
        case Readout():
            return "a readout stands in the whole object: write Steering(readout=readout)"
        case FeatureCondition() | VectorCondition() | AllOf() | AnyOf() | Not():
            return "a condition stands in a rule: write Steering(rules=(Rule(name=..., when=condition, then=...),))"
        case Composable():
            return f"{value.feature} is a feature, and what becomes of it is not said: write hit.clamp(1.0) or another"
        case Suggestion():
            return "a suggestion has its steering in the field of that name: pass suggestion.steering"
        case Variant():
            return f"a variant is asked for by its model's name: model={value.id!r}"
        case Answer():
            return f"a {type(value).__name__} is an answer; pick one of its features, and write hit.clamp(1.0)"
        case bytes():
            return "bytes are no steering"
        case _:
            return None
