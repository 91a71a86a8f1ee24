"""What other projects wrote, as ours."""

from __future__ import annotations

from typing import Any

import pytest

from saeclamp import Ablate, Add, AllOf, AnyOf, Clamp, FeatureCondition, Rule, Scale, Steering
from saeclamp.importing import from_goodfire, from_lm_eval, from_neuronpedia, from_steering_api, to_lm_eval


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


def test_a_controller_of_ember_nudges_pins_and_multiplies_and_its_scopes_are_rules() -> None:
    moves = [
        {"mode": "nudge", "features": {"features": [feature(1), feature(2)]}, "value": 0.6},
        {"mode": "pin", "features": {"features": [feature(3)]}, "value": 0.5},
        {"mode": "pin", "features": {"features": [feature(4)]}, "value": 0},
        {"mode": "mul", "features": {"features": [feature(5)]}, "value": 0.1},
    ]
    scopes = [
        scope("AND", condition(6, ">", 0.75), condition(7, "<=", 0.2), moves=moves[:1]),
        scope("OR", condition(6, ">=", 0.75), condition(7, "<", 0.2), event="an-event"),
        scope("AND", condition(8, ">", 1), event="another"),
    ]
    body = {"controller": {"interventions": moves, "scopes": scopes, "name": "controller__1"}}
    nudges = (Add(feature="s/1", value=0.6), Add(feature="s/2", value=0.6))
    six, seven = FeatureCondition(feature="s/6", above=0.75), FeatureCondition(feature="s/7", below=0.2)
    assert from_goodfire(body, "s") == Steering(
        interventions=(
            *nudges,
            Clamp(feature="s/3", value=0.5),
            Ablate(feature="s/4"),
            Scale(feature="s/5", factor=0.1),
        ),
        rules=(
            Rule(name="scope-0", when=AllOf(all=(six, seven)), then=nudges),
            Rule(name="scope-1", when=AnyOf(any=(six, seven)), then="abort"),
            Rule(name="scope-2", when=FeatureCondition(feature="s/8", above=1), then="abort"),
        ),
    )


@pytest.mark.parametrize(
    ("controller", "says"),
    [
        ({"interventions": [{"mode": "spin", "features": {"features": [feature(1)]}, "value": 1}]}, r"\[0\].mode"),
        ({"interventions": [{"mode": "pin", "features": {"features": [feature(-1)]}, "value": 1}]}, "no feature's"),
        ({"interventions": [{"mode": "pin", "features": {"features": [feature(1)]}, "value": "x"}]}, "a number"),
        ({"interventions": 3}, "list of objects"),
        ({"scopes": [scope("XOR", condition(1, ">", 1), condition(2, ">", 1), event="e")]}, "operator"),
        ({"scopes": [scope("AND", condition(1, "==", 1), event="e")]}, "no equal"),
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
    with pytest.raises(ValueError, match=r"interventions\[0\].mode"):
        from_steering_api({"interventions": [{"index_in_sae": 1, "strength": 1, "mode": "pin"}]}, "s")


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


@pytest.mark.parametrize(
    ("changed", "says"),
    [
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
sparsify,add,EleutherAI/sae-pythia-70m-32k,layers.3,31,-2.5,,
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


def test_lm_evals_rows_add_at_every_token_and_all_of_one_hook_point_count() -> None:
    assert from_lm_eval(CSV, SERVED).interventions == (
        Add(feature="three/30", value=10.0, unit="act", special_tokens=True),
        Add(feature="three/31", value=-2.5, unit="act", special_tokens=True),
        Add(feature="gs20/12082", value=240.0, unit="act", special_tokens=True),
    )


def test_lm_evals_csv_comes_back_as_it_went() -> None:
    rows = CSV.splitlines()
    one_of_each = "\n".join([rows[0], rows[1], rows[3].replace("increase dogs", ""), ""])
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
        ([Add(feature=f"three/{n}", value=1, unit="act", special_tokens=True) for n in (1, 2)], "keeps one feature"),
    ],
)
def test_what_lm_eval_would_do_otherwise_is_not_written(moves: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_lm_eval(Steering(interventions=tuple(moves)), COLUMNS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CSV.replace("sparsify,add", "sparsify,clamp"), "line 2: .* projection"),
        (CSV.replace("layers.3", "layers.4"), "which served SAE"),
        (CSV.replace("30,10.0", "x,10.0"), "line 2.feature_index"),
        (CSV.splitlines()[0], "no rows"),
    ],
)
def test_what_of_lm_eval_has_no_equal_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_lm_eval(text, SERVED)
