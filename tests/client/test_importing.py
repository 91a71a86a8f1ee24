"""What other projects wrote, as ours."""

from __future__ import annotations

from typing import Any

import pytest

from saeclamp import Ablate, Add, AllOf, AnyOf, Clamp, FeatureCondition, Rule, Steering, StoredSAE
from saeclamp.importing import (
    ForeignSteeringError,
    from_goodfire,
    from_lm_eval,
    from_neuronpedia,
    from_steering_api,
    to_lm_eval,
)


def feature(index: int) -> dict[str, Any]:
    return {"uuid": "0" * 32, "label": "x", "index_in_sae": index, "max_activation_strength": 1}


def condition(index: int, operator: str, value: Any) -> dict[str, Any]:
    return {"left_hand": {"features": [feature(index)]}, "right_hand": value, "operator": operator}


def scope(join: str, *conditions: Any, moves: list[Any] | None = None, event: str | None = None) -> dict[str, Any]:
    return {
        "conditionals": {"conditionals": [*conditions], "operator": join},
        "controller": {"interventions": moves or [], "scopes": []},
        "is_active": False,
        "event_name": event,
    }


def test_a_variant_of_ember_adds() -> None:
    variant = {
        "base_model": "meta-llama/Llama-3.3-70B-Instruct",
        "edits": [{"feature_id": "f", "feature_label": "pirate", "index_in_sae": 33234, "value": 0.9}],
        "scopes": [],
    }
    assert from_goodfire(variant, "l50") == Steering(interventions=(Add(feature="l50/33234", value=0.9),))
    assert from_goodfire(variant, "l50", max_act_per_unit=2).interventions[0] == Add(feature="l50/33234", value=1.8)


def test_a_controller_of_ember_nudges_and_pins_and_its_scopes_are_rules() -> None:
    moves = [
        {"mode": "nudge", "features": {"features": [feature(1), feature(2)]}, "value": 0.6},
        {"mode": "pin", "features": {"features": [feature(3)]}, "value": 0.5},
        {"mode": "pin", "features": {"features": [feature(4)]}, "value": 0},
        {"mode": "pin", "features": {"features": [feature(5)]}, "value": False},
        {"mode": "nudge", "features": {"features": [feature(2)]}, "value": 0.25},
    ]
    nudge = {"mode": "nudge", "features": {"features": [feature(11), feature(12)]}, "value": 0.6}
    scopes = [
        scope("AND", condition(6, ">", 0.75), condition(7, "<=", 0.2), moves=[nudge]),
        scope("OR", condition(6, ">=", 0.75), condition(7, "<", 0.2), event="an-event"),
        scope("AND", condition(8, ">", 1), event="another"),
    ]
    body = {"controller": {"interventions": moves, "scopes": scopes, "name": "controller__1"}}
    nudges = (Add(feature="s/11", value=0.6), Add(feature="s/12", value=0.6))
    six, seven = FeatureCondition(feature="s/6", above=0.75), FeatureCondition(feature="s/7", below=0.2)
    assert from_goodfire(body, "s") == Steering(
        interventions=(
            Add(feature="s/1", value=0.6),
            Add(feature="s/2", value=0.85),
            Clamp(feature="s/3", value=0.5),
            Ablate(feature="s/4"),
            Clamp(feature="s/5", value=-0.5),
        ),
        rules=(
            Rule(name="scope-0", when=AllOf(all=(six, seven)), then=nudges),
            Rule(name="scope-1", when=AnyOf(any=(six, seven)), then="abort"),
            Rule(name="scope-2", when=FeatureCondition(feature="s/8", above=1), then="abort"),
        ),
    )


@pytest.mark.parametrize("name", ["edits", "fastmodel_config"])
def test_a_pin_among_a_variants_edits_clamps(name: str) -> None:
    edit = {"feature_id": "f", "feature_label": "pirate", "max_activation_strength": 3.5, "index_in_sae": 7}
    edits = [
        {**edit, "mode": "pin", "value": 0.5},
        {**edit, "index_in_sae": 8, "mode": "nudge", "value": -0.3},
        {**edit, "index_in_sae": 9, "mode": "pin", "value": True},
    ]
    assert from_goodfire({"base_model": "m", name: edits}, "s").interventions == (
        Clamp(feature="s/7", value=0.5),
        Add(feature="s/8", value=-0.3),
        Clamp(feature="s/9", value=0.5),
    )


def test_a_variants_own_scopes_are_rules() -> None:
    nested = {"base_model": "m", "edits": [{"index_in_sae": 2, "value": 0.7}], "scopes": []}
    group = {"conditionals": [condition(1, ">", 0.75)], "operator": "AND"}
    variant = {"base_model": "m", "edits": [], "scopes": [{"condition": group, "nested_variant": nested}]}
    when = FeatureCondition(feature="s/1", above=0.75)
    rule = Rule(name="scope-0", when=when, then=(Add(feature="s/2", value=0.7),))
    assert from_goodfire(variant, "s") == Steering(rules=(rule,))


def move(mode: Any, index: Any, value: Any) -> dict[str, Any]:
    return {"mode": mode, "features": {"features": [feature(index)]}, "value": value}


ON_1 = condition(1, ">", 1)
NUDGE_2 = move("nudge", 2, 1)
NESTED = {
    **scope("AND", ON_1),
    "controller": {"interventions": [NUDGE_2], "scopes": [scope("AND", ON_1, event="e")]},
}


@pytest.mark.parametrize(
    ("controller", "param", "says"),
    [
        ({"interventions": [move("mul", 1, 0.5)]}, "interventions[0].mode", "has no effect"),
        ({"controller": {"interventions": [move("mul", 1, 2)]}}, "controller.interventions[0].mode", "has no effect"),
        ({"interventions": [move(None, 1, 0.5)]}, "interventions[0].mode", "None is not known"),
        ({"interventions": [move("nudge", 1, True)]}, "interventions[0].value", "a number is needed, not true"),
        ({"interventions": [move("nudge", 1, float("nan"))]}, "interventions[0].value", "a number is needed"),
        ({"interventions": [move("nudge", 1, 1e9)]}, "interventions[0]", "value: "),
        ({"interventions": [move("nudge", 1.5, 1)]}, "interventions[0].features.features[0].index_in_sae", "1.5"),
        (
            {"interventions": [move("nudge", 1, 1), move("pin", 1, 1)]},
            "interventions[1].features.features[0]",
            "s/1 is moved by interventions[0].features.features[0] too",
        ),
        (
            {"interventions": [NUDGE_2], "scopes": [scope("AND", ON_1, moves=[NUDGE_2])]},
            "scopes[0].controller.interventions[0].features.features[0]",
            "s/2 is moved by interventions[0]",
        ),
        ({"scopes": [NESTED]}, "scopes[0].controller.scopes", "a rule within a rule"),
        ({"scopes": [scope("AND", ON_1, moves=[NUDGE_2], event="e")]}, "scopes[0].event_name", "an event too"),
        ({"scopes": [{**scope("AND", ON_1, event="e"), "is_active": True}]}, "scopes[0].is_active", "begins"),
        ({"interventions": [NUDGE_2], "min_nudge_entropy": 0.0}, "min_nudge_entropy", "no equal"),
        ({"edits": [{"index_in_sae": 1, "valeu": 1}]}, "edits[0].valeu", "Did you mean 'value'?"),
        ({"edits": [{"index_in_sae": 1, "value": 1}], "scope": []}, "scope", "Did you mean 'scopes'?"),
        ({"base_model": "m", "edits": [], "scopes": []}, None, "neither moves a feature nor has a scope"),
        (
            {"scopes": [scope("AND", condition(1, ">", True), event="e")]},
            "scopes[0].conditionals.conditionals[0].right_hand",
            "not true",
        ),
    ],
)
def test_each_mode_and_field_of_ember_without_an_equal_is_refused(
    controller: Any, param: str | None, says: str
) -> None:
    with pytest.raises(ForeignSteeringError) as raised:
        from_goodfire(controller, "s")
    assert raised.value.param == param
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("controller", "says"),
    [
        ({"interventions": [{"mode": "spin", "features": {"features": [feature(1)]}, "value": 1}]}, r"\[0\].mode"),
        (
            {"interventions": [{"mode": "pin", "features": {"features": [feature(-1)]}, "value": 1}]},
            "a feature's number",
        ),
        ({"interventions": [{"mode": "pin", "features": {"features": [feature(1)]}, "value": "x"}]}, "a number"),
        ({"interventions": 3}, "list of objects"),
        ({"scopes": [scope("XOR", condition(1, ">", 1), condition(2, ">", 1), event="e")]}, "operator"),
        ({"scopes": [scope("AND", condition(1, "==", 1), event="e")]}, r"operator: '==' has no equal"),
        ({"scopes": [scope("AND", condition(1, ">", {"features": []}), event="e")]}, "compared with a number"),
        ({"scopes": [scope("AND", event="e")]}, "no condition"),
        ({"scopes": [scope("AND", condition(1, ">", 1))]}, "neither moves"),
    ],
)
def test_what_of_ember_has_no_equal_is_refused_with_its_place(controller: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_goodfire(controller, "s")


def test_steering_apis_interventions_add_and_clamp() -> None:
    body = {
        "model": "m",
        "interventions": [
            {"index_in_sae": 11828, "strength": 0.4, "mode": "add"},
            {"index_in_sae": 7, "strength": -0.2, "mode": "clamp"},
            {"index_in_sae": 8, "strength": 0.1},
        ],
    }
    assert from_steering_api(body, "s").interventions == (
        Add(feature="s/11828", value=0.4),
        Clamp(feature="s/7", value=-0.2),
        Add(feature="s/8", value=0.1),
    )


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"index_in_sae": 1, "strength": 1, "mode": "pin"}], "interventions[0].mode"),
        ([{"index_in_sae": 1, "strength": True}], "interventions[0].strength"),
        ([{"index_in_sae": 1, "strength": 1, "layer": 33}], "interventions[0].layer"),
        ([{"index_in_sae": 1, "strength": 1}, {"index_in_sae": 1, "strength": 1, "mode": "clamp"}], "interventions[1]"),
        ([], "interventions"),
    ],
)
def test_what_of_steering_api_has_no_equal_is_refused(items: Any, param: str) -> None:
    with pytest.raises(ForeignSteeringError) as raised:
        from_steering_api({"model": "m", "interventions": items}, "s")
    assert raised.value.param == param


NEURONPEDIA: dict[str, Any] = {
    "modelId": "gemma-2-2b",
    "features": [
        {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": 3124, "strength": 38.5},
        {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "5", "strength": 1},
        {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": 5, "strength": 2},
    ],
    "strength_multiplier": 4,
    "steer_method": "SIMPLE_ADDITIVE",
}
SOURCES = {"20-gemmascope-res-16k": "gs20"}


def test_neuronpedia_adds_strength_times_multiplier_and_sums() -> None:
    chat = from_neuronpedia({**NEURONPEDIA, "steer_special_tokens": False}, SOURCES)
    assert chat.interventions == (
        Add(feature="gs20/3124", value=154.0, unit="act"),
        Add(feature="gs20/5", value=12.0, unit="act"),
    )
    completion = from_neuronpedia({**NEURONPEDIA, "prompt": "The most"}, SOURCES)
    assert all(move.special_tokens for move in completion.interventions)


def test_neuronpedias_rows_of_length_one_are_met_whatever_the_length_of_the_rows_that_are_served() -> None:
    known: dict[str, Any] = {
        **{"name": "gs20", "kind": "sae", "architecture": "jumprelu", "reads": (), "writes": (), "sha256": "sha256:0"},
        **{"d_in": 8, "d_out": 8, "d_sae": 8},
    }
    native = StoredSAE(**known, unit="native", resid_norm=77.0)
    (one, _) = from_neuronpedia(NEURONPEDIA, {"20-gemmascope-res-16k": native}).interventions
    assert one == Add(feature="gs20/3124", value=2.0, unit="resid_norm")
    unit = StoredSAE(**known, unit="decoder_norm")
    (one, _) = from_neuronpedia(NEURONPEDIA, {"20-gemmascope-res-16k": unit}).interventions
    assert one == Add(feature="gs20/3124", value=154.0, unit="act")
    with pytest.raises(ForeignSteeringError, match="lengths could not be measured"):
        from_neuronpedia(NEURONPEDIA, {"20-gemmascope-res-16k": StoredSAE(**known, unit="native")})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"strength_multiplier": None}, "strength_multiplier: a number is needed, not null"),
        ({"vectors": [{"strength": 1}]}, "vectors: this field is not known"),
        ({"steer_methd": "PROJECTION_CAP"}, "Did you mean 'steer_method'"),
        ({"prompt": "a", "steer_special_tokens": False}, "steer_special_tokens: Neuronpedia's completions steer every"),
        ({"steer_method": "ORTHOGONAL_DECOMP"}, "projections"),
        ({"features": [{"layer": "9-other", "index": 1, "strength": 1}]}, "which served SAE"),
        ({"features": [{"layer": "20-gemmascope-res-16k", "index": 1}]}, r"features\[0\].strength"),
        ({"strength_multiplier": "x"}, "strength_multiplier: a number"),
    ],
)
def test_what_of_neuronpedia_has_no_equal_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_neuronpedia({**NEURONPEDIA, **changed}, SOURCES)


CSV = """\
loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,sae_id,description
sparsify,add,EleutherAI/sae-pythia-70m-32k,layers.3,30,10.0,,
sae_lens,add,gemma-scope-2b-pt-res-canonical,layers.20,12082,240.0,layer_20/width_16k/canonical,increase dogs
"""
SERVED = {
    ("EleutherAI/sae-pythia-70m-32k", "layers.3"): "three",
    ("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"): "gs20",
}
COLUMNS = {
    "three": {"loader": "sparsify", "sparse_model": "EleutherAI/sae-pythia-70m-32k", "hookpoint": "layers.3"},
    "gs20": {
        "loader": "sae_lens",
        "sparse_model": "gemma-scope-2b-pt-res-canonical",
        "hookpoint": "layers.20",
        "sae_id": "layer_20/width_16k/canonical",
    },
}


def test_lm_evals_rows_add_at_every_token() -> None:
    assert from_lm_eval(CSV, SERVED).interventions == (
        Add(feature="three/30", value=10.0, unit="act", special_tokens=True),
        Add(feature="gs20/12082", value=240.0, unit="act", special_tokens=True),
    )


def test_lm_evals_csv_comes_back_as_it_went() -> None:
    rows = CSV.splitlines()
    one_of_each = "\n".join([rows[0], rows[1], rows[2].replace("increase dogs", ""), ""])
    steering = from_lm_eval(one_of_each, SERVED)
    assert to_lm_eval(steering, COLUMNS) == one_of_each
    assert from_lm_eval(to_lm_eval(steering, COLUMNS), SERVED) == steering


@pytest.mark.parametrize(
    ("moves", "says"),
    [
        ([Clamp(feature="three/1", value=1, unit="act", special_tokens=True)], "only an 'add'"),
        ([Add(feature="three/1", value=1, special_tokens=True)], "only an 'add'"),
        ([Add(feature="three/1", value=1, unit="act")], "special ones too"),
        ([Add(feature="three/name", value=1, unit="act", special_tokens=True)], "an index"),
        ([Add(feature=f"three/{n}", value=1, unit="act", special_tokens=True) for n in (1, 2)], "heeds one feature"),
    ],
)
def test_what_lm_eval_would_do_otherwise_is_not_written(moves: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_lm_eval(Steering(interventions=tuple(moves)), COLUMNS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CSV.replace("sparsify,add", "sparsify,clamp"), "line 2.action: .* projection"),
        (CSV.replace("sparsify,add", "sparsify,"), "line 2.action: '' is not known"),
        (CSV.replace("sparsify,add", "torch,add"), "line 2.loader: 'torch' is not known"),
        (
            CSV + "sparsify,add,EleutherAI/sae-pythia-70m-32k,layers.3,31,-2.5,,\n",
            r"line 4.hookpoint: line 2 is at layers\.3 too, and lm-eval heeds only the last",
        ),
        (
            "action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index\n"
            "add,EleutherAI/sae-pythia-70m-32k,layers.3,30,1,2\n",
            "line 2.head_index: lm-eval does not read it",
        ),
        (CSV.replace("layers.3", "layers.4"), "which served SAE"),
        (CSV.replace("30,10.0", "x,10.0"), "line 2.feature_index"),
        (CSV.splitlines()[0], "no rows"),
    ],
)
def test_what_of_lm_eval_has_no_equal_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_lm_eval(text, SERVED)
