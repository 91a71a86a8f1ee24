"""Features that were found compose into interventions and conditions, and all of it round-trips through JSON."""

from __future__ import annotations

import json

import pytest

from saeclamp import (
    Ablate,
    Add,
    AllOf,
    AnyOf,
    AtLeast,
    AtMost,
    Clamp,
    FeatureCondition,
    FeatureHit,
    LastTokens,
    Not,
    Rule,
    Scale,
    Steering,
    all_,
    any_,
    not_,
)

SEA = FeatureHit(feature="bundled/123", sae="bundled", index=123)
LAW = FeatureHit(feature="bundled/193", sae="bundled", index=193)


def test_a_feature_becomes_any_intervention() -> None:
    name = "bundled/123"
    assert SEA.clamp(1.0) == Clamp(feature=name, value=1.0)
    assert SEA.add(2, "act", tokens="generated") == Add(feature=name, value=2, unit="act", tokens="generated")
    assert SEA.at_least(0.5) == AtLeast(feature=name, value=0.5)
    assert SEA.at_most(0.5, "resid_norm") == AtMost(feature=name, value=0.5, unit="resid_norm")
    assert SEA.scale(0.1, special_tokens=True) == Scale(feature=name, factor=0.1, special_tokens=True)
    assert SEA.ablate() == Ablate(feature=name)


def test_a_feature_that_was_not_calibrated_has_no_best_strength() -> None:
    with pytest.raises(ValueError, match="bundled/123 was not calibrated"):
        SEA.clamp(SEA.best)


def test_conditions_nest_as_they_are_written() -> None:
    both_or_neither = any_(all_(SEA.above(2), LAW.above(1)), not_(any_(SEA.above(2), LAW.above(1, "act"))))
    sea, law = FeatureCondition(feature="bundled/123", above=2), FeatureCondition(feature="bundled/193", above=1)
    lawful = FeatureCondition(feature="bundled/193", above=1, unit="act")
    assert both_or_neither == AnyOf(any=(AllOf(all=(sea, law)), Not(not_=AnyOf(any=(sea, lawful)))))
    assert SEA.below(3) == FeatureCondition(feature="bundled/123", below=3)
    assert SEA.above(3, over=LastTokens(last=8)) == FeatureCondition(
        feature="bundled/123", above=3, over=LastTokens(last=8)
    )


def test_equality_means_equality() -> None:
    assert SEA in [SEA]
    assert SEA not in [LAW]
    assert SEA != LAW


def test_what_is_composed_comes_back_from_json() -> None:
    rule = Rule(name="guard", when=all_(SEA.above(2), not_(LAW.below(1))), then=(LAW.clamp(0),))
    steering = Steering(interventions=(SEA.clamp(1),), rules=(rule,))
    assert Steering.model_validate(json.loads(json.dumps(steering.to_json()))) == steering
    assert FeatureHit.model_validate_json(SEA.model_dump_json()) == SEA
