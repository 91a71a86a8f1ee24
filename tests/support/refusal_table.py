"""Bodies that ask for steering which cannot be had, with the place that is named and a part of what is said."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.support.bundled import D_SAE, GOLDEN_GATE, STRENGTH

GOOD = {"op": "clamp", "feature": "bundled/golden-gate", "value": STRENGTH}


class Refusal(NamedTuple):
    body: dict[str, Any]
    param: str
    says: str


def steering(*interventions: Any, **more: Any) -> dict[str, Any]:
    return {"steering": {"interventions": list(interventions), **more}}


def one(**changes: Any) -> dict[str, Any]:
    return steering({**GOOD, **changes})


def ruled(when: Any = None, **changes: Any) -> dict[str, Any]:
    when = {"feature": "bundled/5", "above": 1, "unit": "act"} if when is None else when
    return {"steering": {"rules": [{"name": "a", "when": when, "then": "abort", **changes}]}}


LOOKS_BACK = {"feature": "bundled/5", "above": 1, "unit": "act", "over": "max"}

REFUSALS = {
    "unknown field of steering": Refusal(steering(GOOD, intervention=1), "steering.intervention", "unknown field"),
    "unknown field of an intervention": Refusal(one(valeu=1), "steering.interventions[0].valeu", "'value'"),
    "in the second intervention": Refusal(
        steering(GOOD, {**GOOD, "feature": "bundled/5", "layer": 3}), "steering.interventions[1].layer", "unknown field"
    ),
    "missing operation": Refusal(
        steering({"feature": "bundled/5", "value": 1}),
        "steering.interventions[0]",
        "'op' is missing: clamp, add, at_least, at_most, scale, ablate",
    ),
    "missing value": Refusal(
        steering({"op": "clamp", "feature": "bundled/5"}), "steering.interventions[0].value", "required"
    ),
    "no interventions": Refusal(steering(), "steering", "'interventions', 'rules' or 'readout'"),
    "too many interventions": Refusal(steering(*[GOOD] * 65), "steering.interventions", "at most 64"),
    "unknown SAE": Refusal(one(feature="elsewhere/5"), "steering.interventions[0].feature", "Loaded: bundled, second"),
    "unknown feature": Refusal(one(feature="bundled/golden-gat"), "steering.interventions[0].feature", "golden-gate"),
    "index out of range": Refusal(
        one(feature=f"bundled/{D_SAE}"), "steering.interventions[0].feature", f"0 to {D_SAE - 1}"
    ),
    "index object out of range": Refusal(
        one(feature={"sae": "bundled", "index": 99999}, unit="act"),
        "steering.interventions[0].feature",
        f"0 to {D_SAE - 1}",
    ),
    "negative index": Refusal(
        one(feature={"sae": "bundled", "index": -1}),
        "steering.interventions[0].feature.index",
        "greater than or equal to 0",
    ),
    "index of the wrong type": Refusal(
        one(feature={"sae": "bundled", "index": "5"}), "steering.interventions[0].feature.index", "integer"
    ),
    "unknown field of a feature": Refusal(
        one(feature={"sae": "bundled", "index": 5, "name": "x"}),
        "steering.interventions[0].feature.name",
        "unknown field",
    ),
    "feature without an SAE": Refusal(one(feature="golden-gate"), "steering.interventions[0].feature", "<sae>/<name>"),
    "feature of the wrong type": Refusal(
        one(feature=GOLDEN_GATE), "steering.interventions[0].feature", "<sae>/<index>"
    ),
    "digits of another script": Refusal(
        one(feature="bundled/٥"), "steering.interventions[0].feature", "no feature named"
    ),
    "max_act of an unmeasured feature": Refusal(
        one(feature="second/5"), "steering.interventions[0].unit", "no stored maximum"
    ),
    "value of the wrong type": Refusal(one(value="0.74"), "steering.interventions[0].value", "valid number"),
    "value true": Refusal(one(value=True), "steering.interventions[0].value", "valid number"),
    "value null": Refusal(one(value=None), "steering.interventions[0].value", "valid number"),
    "NaN": Refusal(one(value=float("nan")), "steering.interventions[0].value", "finite"),
    "infinity": Refusal(one(value=float("inf")), "steering.interventions[0].value", "finite"),
    "minus infinity": Refusal(one(value=float("-inf")), "steering.interventions[0].value", "finite"),
    "beyond the bound": Refusal(one(value=1e7), "steering.interventions[0].value", "1000000"),
    "ablate with a value": Refusal(
        steering({"op": "ablate", "feature": "bundled/5", "value": 0}),
        "steering.interventions[0].value",
        "unknown field",
    ),
    "unknown operation": Refusal(one(op="clmp"), "steering.interventions[0]", "Did you mean 'clamp'?"),
    "scale with a value": Refusal(one(op="scale"), "steering.interventions[0].value", "special_tokens, op, factor"),
    "unknown unit": Refusal(one(unit="sigma"), "steering.interventions[0].unit", "'max_act', 'act' or 'resid_norm'"),
    "a window of nothing": Refusal(one(tokens={"first": 0}), "steering.interventions[0].tokens.first", "equal to 1"),
    "special_tokens of the whole": Refusal(
        steering(GOOD, special_tokens=True), "steering.special_tokens", "a field of each intervention"
    ),
    "unknown tokens": Refusal(one(tokens="last"), "steering.interventions[0].tokens", "'all', 'prompt' or 'generated'"),
    "unknown receipt": Refusal(steering(GOOD, receipt="full"), "steering.receipt", "'none', 'summary' or 'tokens'"),
    "one feature twice": Refusal(
        steering(GOOD, {**GOOD, "feature": f"bundled/{GOLDEN_GATE}", "unit": "act"}),
        "steering.interventions[1].feature",
        "already",
    ),
    "one feature at overlapping tokens": Refusal(
        steering(GOOD, {**GOOD, "tokens": "prompt"}), "steering.interventions[1].feature", "already"
    ),
    "a rule that compares nothing": Refusal(
        ruled({"feature": "bundled/5"}), "steering.rules[0].when", "give one of 'above' and 'below'"
    ),
    "a condition of no kind": Refusal(
        ruled({"any": [{"above": 1}]}),
        "steering.rules[0].when.any[0]",
        "an object with 'feature' or 'vector' and 'above'",
    ),
    "an unknown field deep in a condition": Refusal(
        ruled({"not": {"feature": "bundled/5", "abov": 1}}), "steering.rules[0].when.not.abov", "Did you mean 'above'?"
    ),
    "an unknown feature deep in a condition": Refusal(
        ruled({"all": [{"feature": "bundled/bridg", "above": 1}]}),
        "steering.rules[0].when.all[0].feature",
        "no feature",
    ),
    "a bound without a maximum": Refusal(
        ruled({"feature": "second/5", "above": 1}), "steering.rules[0].when.unit", "no stored maximum"
    ),
    "a rule that does something else": Refusal(
        ruled(then="stop"), "steering.rules[0].then", "'abort', 'note' or a list"
    ),
    "a rule that does nothing": Refusal(ruled(then=[]), "steering.rules[0].then", ""),
    "an abort with a scope": Refusal(ruled(scope="rest_of_request"), "steering.rules[0]", "no scope"),
    "a note with a scope": Refusal(
        ruled(then="note", scope="rest_of_request"), "steering.rules[0]", "does nothing to later tokens"
    ),
    "a look back over nothing": Refusal(
        ruled({"feature": "bundled/5", "above": 1, "unit": "act", "over": {"last": 0}}),
        "steering.rules[0].when.over.last",
        "greater than or equal to 1",
    ),
    "a look back over what is no tokens": Refusal(
        ruled({"feature": "bundled/5", "above": 1, "unit": "act", "over": "median"}),
        "steering.rules[0].when.over",
        "'token', 'max' or 'mean'",
    ),
    "a look back by no word": Refusal(
        ruled({"feature": "bundled/5", "above": 1, "unit": "act", "over": 3}),
        "steering.rules[0].when.over",
        "'over' is 'token', 'max' or 'mean', or an object with 'last'",
    ),
    "a probe that is not there": Refusal(
        ruled({"vector": "harm", "above": 3}), "steering.rules[0].when.vector", "no vector named 'harm'"
    ),
    "a probe in a unit of features": Refusal(
        ruled({"vector": "harm", "above": 3, "unit": "max_act"}), "steering.rules[0].when.unit", "'score' or 'act'"
    ),
    "more looks back than there is room for": Refusal(
        {
            "steering": {
                "rules": [
                    {"name": "a", "when": {"all": [LOOKS_BACK] * 16}, "then": "note"},
                    {"name": "b", "when": LOOKS_BACK, "then": "note"},
                ]
            }
        },
        "steering.rules[1].when",
        "At most 16 comparisons",
    ),
    "an unknown field of a rule": Refusal(ruled(thn="abort"), "steering.rules[0].thn", "Did you mean 'then'?"),
    "a rule against an intervention": Refusal(
        {"steering": {"interventions": [GOOD], **ruled(then=[GOOD])["steering"]}},
        "steering.rules[0].then[0].feature",
        "interventions[0] already moves",
    ),
    "a readout of nothing": Refusal(steering(GOOD, readout={}), "steering.readout", "'features', 'vectors' or 'top_k'"),
    "a readout of another SAE": Refusal(
        steering(readout={"top_k": 1, "saes": ["bundle"]}), "steering.readout.saes[0]", "Did you mean 'bundled'?"
    ),
    "an unknown field of a readout": Refusal(
        steering(readout={"topk": 1}), "steering.readout.topk", "Did you mean 'top_k'?"
    ),
    "nothing at all": Refusal({"steering": {}}, "steering", "'interventions', 'rules' or 'readout'"),
    "a vector and a feature": Refusal(
        steering({"op": "add", "vector": "v", "value": 1, "feature": "bundled/5"}),
        "steering.interventions[0]",
        "give one of 'feature' and 'vector'",
    ),
    "not an object: number": Refusal({"steering": 3}, "steering", "dictionary"),
    "saklas": Refusal({"steering": "0.5 happy + 0.2 calm"}, "steering", "saklas"),
    "RhizoNymph's gates": Refusal({"steering": [{"when": {}, "apply": {}}]}, "steering", "RhizoNymph"),
    "EasySteer": Refusal({"steering": {"vectors": [], "conflict": "sequential"}}, "steering.vectors", "EasySteer"),
    "a dict of vectors": Refusal({"steering": {"happy": [0.1, 0.2], "calm": [0.3]}}, "steering", "another project"),
    "near miss: steerng": Refusal({"steerng": {"interventions": [GOOD]}}, "steerng", "Did you mean 'steering'?"),
    "near miss: Steering": Refusal({"Steering": {}}, "Steering", "Did you mean"),
    "near miss: sterring": Refusal({"sterring": {}}, "sterring", "Did you mean"),
    "near miss: steering_vectors": Refusal({"steering_vectors": {"x": 1}}, "steering_vectors", "RhizoNymph"),
    "near miss beside a good one": Refusal({**one(), "steer": 1}, "steer", "Did you mean"),
    "Goodfire's controller": Refusal({"controller": {"interventions": []}}, "controller", "Goodfire"),
    "SteeringAPI's interventions": Refusal(
        {"interventions": [{"index_in_sae": 1, "strength": 0.4, "mode": "add"}]}, "interventions", "SteeringAPI"
    ),
    "extra_body in the JSON": Refusal({"extra_body": one()}, "extra_body", "at the top level"),
    "an intervention at the top level": Refusal({"clamp": GOOD}, "clamp", "at the top level"),
    "hotwire": Refusal({"vllm_xargs": {"hotwire": "{}"}}, "vllm_xargs.hotwire", "hotwire"),
    "past the checks": Refusal({"vllm_xargs": {"saeclamp": "x"}}, "vllm_xargs.saeclamp", "engine"),
    "beam search": Refusal({**one(), "use_beam_search": True, "n": 2}, "use_beam_search", "Beam search"),
}
