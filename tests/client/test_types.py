"""The wire types: what they accept survives JSON, and what they refuse."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from saeclamp import (
    Ablate,
    Add,
    After,
    AtLeast,
    AtMost,
    Clamp,
    FeatureIndex,
    First,
    GeneratedWindow,
    Last,
    Positions,
    Receipt,
    Roles,
    Scale,
    Steering,
    extra_body,
    types,
)
from saeclamp.types import MAX_INTERVENTIONS, MAX_VALUE, InterventionReceipt, Summary, TokenCounts, as_steering
from saeclamp.types.base import RequestModel

CLAMP: dict[str, Any] = {"op": "clamp", "feature": "s/1", "value": 0.5}

names = st.from_regex(r"[a-zA-Z0-9_.é\-]{1,20}", fullmatch=True)
indices = st.integers(min_value=0, max_value=2**40)
features = st.builds("{}/{}".format, names, names) | st.builds(FeatureIndex, sae=names, index=indices)
values = st.floats(min_value=-MAX_VALUE, max_value=MAX_VALUE, allow_nan=False)
units = st.sampled_from(["max_act", "act", "resid_norm"])
numbers = st.integers(min_value=1, max_value=2**31)
tokens = (
    st.sampled_from(["all", "prompt", "generated"])
    | st.builds(First, first=numbers)
    | st.builds(Last, last=numbers)
    | st.builds(
        lambda start, num: GeneratedWindow(generated=(start, num and min(start + num, 2**31))),
        st.integers(min_value=0, max_value=2**31 - 1),
        st.none() | numbers,
    )
    | st.builds(After, after=numbers)
    | st.builds(
        Roles, roles=st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=1, max_size=3).map(tuple)
    )
    | st.builds(Positions, positions=st.lists(numbers, min_size=1, max_size=5).map(tuple))
)
interventions = (
    st.builds(Clamp, feature=features, value=values, unit=units, tokens=tokens)
    | st.builds(Add, feature=features, value=values, unit=units, tokens=tokens)
    | st.builds(AtLeast, feature=features, value=values, unit=units, tokens=tokens)
    | st.builds(AtMost, feature=features, value=values, unit=units, tokens=tokens)
    | st.builds(Scale, feature=features, factor=values, tokens=tokens)
    | st.builds(Ablate, feature=features, tokens=tokens)
)
steerings = st.builds(
    Steering,
    interventions=st.lists(interventions, min_size=1, max_size=5).map(tuple),
    receipt=st.sampled_from(["none", "summary"]),
)

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**40)
summaries = st.none() | st.builds(Summary, mean=finite, max=finite, unit=st.none() | st.text())
receipts = st.builds(
    Receipt,
    applied=st.booleans(),
    spec=st.text(),
    model=st.text(),
    sae=st.dictionaries(names, st.text(), max_size=2),
    interventions=st.lists(
        st.builds(
            InterventionReceipt,
            feature=st.text(),
            sae=names,
            index=indices,
            name=st.none() | st.text(),
            layer=st.integers(0, 200),
            op=st.text(),
            value=st.none() | finite,
            unit=st.none() | units,
            value_act=st.none() | finite,
            tokens=st.builds(TokenCounts, prompt=counts, generated=counts),
            act_before=summaries,
            dose=summaries,
        ),
        max_size=3,
    ).map(tuple),
    warnings=st.lists(st.text(), max_size=2).map(tuple),
)


@given(steerings)
def test_steering_survives_json(steering: Steering) -> None:
    assert Steering.model_validate(json.loads(json.dumps(steering.model_dump(mode="json")))) == steering
    assert Steering.model_validate_json(steering.model_dump_json()) == steering


@given(receipts)
def test_a_receipt_survives_json(receipt: Receipt) -> None:
    assert Receipt.model_validate(json.loads(json.dumps(receipt.model_dump(mode="json")))) == receipt
    assert Receipt.model_validate_json(receipt.model_dump_json()) == receipt


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"value": math.nan}, id="nan"),
        pytest.param({"value": math.inf}, id="infinity"),
        pytest.param({"value": -math.inf}, id="minus-infinity"),
        pytest.param({"value": True}, id="bool-for-number"),
        pytest.param({"value": "0.5"}, id="string-for-number"),
        pytest.param({"value": None}, id="no-number"),
        pytest.param({"value": 1.1e6}, id="too-large"),
        pytest.param({"value": -1.1e6}, id="too-small"),
        pytest.param({"strength": 1.0}, id="unknown-field"),
        pytest.param({"unit": "sigma"}, id="unknown-unit"),
        pytest.param({"tokens": "some"}, id="unknown-tokens"),
        pytest.param({"tokens": {}}, id="no-tokens"),
        pytest.param({"tokens": None}, id="null-tokens"),
        pytest.param({"tokens": {"first": 0}}, id="the first none"),
        pytest.param({"tokens": {"first": 2.0}}, id="float-for-a-number-of-tokens"),
        pytest.param({"tokens": {"first": True}}, id="bool-for-a-number-of-tokens"),
        pytest.param({"tokens": {"after": -1}}, id="after-a-negative-number"),
        pytest.param({"tokens": {"first": 2, "after": 5}}, id="two-ways-to-choose-tokens"),
        pytest.param({"tokens": {"roles": []}}, id="no-roles"),
        pytest.param({"tokens": {"roles": ["usr"]}}, id="unknown-role"),
        pytest.param({"tokens": {"roles": "user"}}, id="role-outside-a-list"),
        pytest.param({"tokens": {"positions": []}}, id="no-positions"),
        pytest.param({"tokens": {"positions": [1.5]}}, id="half-a-position"),
        pytest.param({"tokens": {"last": 0}}, id="no-last-position"),
        pytest.param({"tokens": {"generated": [3, 3]}}, id="empty-window"),
        pytest.param({"tokens": {"generated": [-1, 3]}}, id="window-that-begins-in-the-prompt"),
        pytest.param({"tokens": {"generated": [1]}}, id="half-a-window"),
        pytest.param({"tokens": {"generated": [0, 2], "last": 1}}, id="two-scopes"),
        pytest.param({"tokens": {"positions": [1] * 1025}}, id="too-many-positions"),
        pytest.param({"special_tokens": "yes"}, id="string-for-bool"),
        pytest.param({"special_tokens": 1}, id="number-for-bool"),
        pytest.param({"op": "set"}, id="unknown-op"),
        pytest.param({"op": "ablate"}, id="ablate-takes-no-value"),
        pytest.param({"feature": "s"}, id="feature-without-index"),
        pytest.param({"feature": "s/"}, id="feature-with-empty-index"),
        pytest.param({"feature": "/1"}, id="feature-without-sae"),
        pytest.param({"feature": "a/b/1"}, id="feature-with-two-slashes"),
        pytest.param({"feature": "s/ 1"}, id="feature-with-space"),
        pytest.param({"feature": "s/1\n"}, id="feature-with-newline"),
        pytest.param({"feature": "s/" + "1" * 255}, id="feature-too-long"),
        pytest.param({"feature": 1}, id="feature-is-a-number"),
        pytest.param({"feature": {"sae": "s", "index": -1}}, id="negative-index"),
        pytest.param({"feature": {"sae": "s", "index": True}}, id="bool-for-index"),
        pytest.param({"feature": {"sae": "s", "index": "1"}}, id="string-for-index"),
        pytest.param({"feature": {"sae": "s", "index": 1.0}}, id="float-for-index"),
        pytest.param({"feature": {"sae": "", "index": 1}}, id="empty-sae"),
        pytest.param({"feature": {"sae": "s", "index": 1, "name": "x"}}, id="unknown-field-of-a-feature"),
    ],
)
def test_a_wrong_intervention_is_refused(changes: dict[str, Any]) -> None:
    assert Steering.model_validate({"interventions": [CLAMP]})  # what is changed below is the only thing wrong
    with pytest.raises(ValidationError):
        Steering.model_validate({"interventions": [CLAMP | changes]})


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"0.5"'])
def test_json_that_is_no_finite_number_is_refused_as_a_value(text: str) -> None:
    with pytest.raises(ValidationError):
        Steering.model_validate_json(f'{{"interventions": [{{"op": "clamp", "feature": "s/1", "value": {text}}}]}}')


@pytest.mark.parametrize(
    "steering",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"interventions": []}, id="no-interventions"),
        pytest.param({"interventions": [CLAMP] * (MAX_INTERVENTIONS + 1)}, id="65-interventions"),
        pytest.param({"interventions": CLAMP}, id="not-a-list"),
        pytest.param({"interventions": [CLAMP], "recipt": "none"}, id="unknown-field"),
        pytest.param({"interventions": [CLAMP], "receipt": "all"}, id="unknown-receipt"),
        pytest.param({"interventions": [{"feature": "s/1", "value": 1.0}]}, id="no-op"),
    ],
)
def test_a_wrong_steering_object_is_refused(steering: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Steering.model_validate(steering)


def test_the_bounds_themselves_are_accepted() -> None:
    edge = [CLAMP | {"value": MAX_VALUE}, CLAMP | {"value": -MAX_VALUE}, CLAMP | {"value": 0}]
    assert [i.value for i in Steering.model_validate({"interventions": edge}).interventions] == [1e6, -1e6, 0.0]  # type: ignore[union-attr]
    assert len(Steering.model_validate({"interventions": [CLAMP] * 64}).interventions) == 64


def test_the_defaults_are_multiples_of_the_maximum_on_all_tokens() -> None:
    assert Clamp(feature="s/1", value=0.5).model_dump(exclude_none=True) == CLAMP | {
        "unit": "max_act",
        "tokens": "all",
        "special_tokens": False,
    }


def test_a_steering_object_cannot_be_changed() -> None:
    steering = as_steering([Clamp(feature="s/1", value=0.5)])
    with pytest.raises(ValidationError):
        steering.receipt = "none"  # type: ignore[misc]


def test_an_older_client_reads_a_newer_receipt() -> None:
    newer = {"applied": True, "spec": "s", "model": "m", "sae": {}, "interventions": [], "fired": [], "shiny": 1}
    assert Receipt.model_validate(newer).applied


def test_extra_body_holds_plain_json() -> None:
    assert json.loads(json.dumps(extra_body(Ablate(feature=FeatureIndex(sae="s", index=3)), receipt="none"))) == {
        "steering": {
            "interventions": [
                {"op": "ablate", "feature": {"sae": "s", "index": 3}, "tokens": "all", "special_tokens": False}
            ],
            "receipt": "none",
        }
    }


def test_no_boolean_is_taken_for_a_number() -> None:
    """In all bodies; a query has no types: there `true` is a text, and is refused as such."""
    bodies = {kind for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, RequestModel)}
    taken = []
    for kind in bodies - {types.FeatureQuery}:
        for name, field in kind.model_fields.items():
            for value in (True, [True], {"x": True}):
                if re.search(r"\b(int|float)\b", str(field.annotation)):
                    try:
                        kind.__pydantic_validator__.validate_assignment(kind.model_construct(), name, value)
                    except ValidationError:
                        continue
                    taken.append((kind.__name__, name, value))
    assert len(bodies) > 20
    assert taken == []
