"""Steering that is applied as asked, and probably not what was meant, is warned of: before, and in the receipt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.sae_entries import SERVER, entry, report

from saeclamp import Ablate, Add, AtLeast, AtMost, Clamp, Scale, Steering
from saeclamp.types import Operation
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.steering import SteeringContext, build_receipt, resolve, warnings_before


def steering(*interventions: Operation) -> Steering:
    return Steering(interventions=interventions)


def test_a_dose_that_drowns_the_text_is_warned_of(served: SteeringContext) -> None:
    resolved = resolve(steering(Clamp(feature="big/bridge", value=0.5)), served)
    loud = report(3, 5, 8.0, 4.0)
    loud["tallies"][0]["dose_max"] = 65.2
    assert build_receipt(resolved, {0: loud}, 1, served, "tiny", SERVER).warnings == (
        "interventions[0] moved a token by 65.2 x its residual norm; text usually breaks above 1.",
    )


ZONED = FeatureNote(4, "bridge", 200.0, clamp=(0.5, 0.75), best=0.6)
WEAK, OUTSIDE = "answers hardly change", "is outside the zone that was found to work, 0.5 to 0.75"
DOUBTFUL: list[Any] = [
    # a unit of activation is 2 long, and the stream 50: 0.02 of it is 0.5
    pytest.param(Clamp(feature="big/1", value=0.49, unit="act"), [WEAK], id="a-clamp-too-small-to-act"),
    pytest.param(Clamp(feature="big/1", value=0.51, unit="act"), [], id="a-clamp-just-large-enough"),
    pytest.param(Add(feature="big/1", value=-0.49, unit="act"), [WEAK], id="an-add-too-small-to-act"),
    pytest.param(Add(feature="big/1", value=0.019, unit="resid_norm"), [WEAK], id="in-lengths-of-the-stream"),
    pytest.param(AtLeast(feature="big/1", value=0.4, unit="act"), [WEAK], id="a-low-bound-too-small-to-act"),
    pytest.param(AtMost(feature="big/1", value=0.4, unit="act"), [], id="a-high-bound-takes-away"),
    pytest.param(Clamp(feature="big/1", value=0.0, unit="act"), [], id="a-clamp-to-0-takes-away"),
    pytest.param(Ablate(feature="big/1"), [], id="so-does-ablate"),
    pytest.param(Scale(feature="big/1", factor=1.5), [], id="scale-does-what-the-feature-does"),
    pytest.param(Clamp(feature="small/1", value=0.01, unit="act"), [], id="nothing-to-measure-by"),
    pytest.param(Clamp(feature="big/bridge", value=0.5), ["breaks above 1"], id="at-the-end-of-the-green-zone"),
    pytest.param(Clamp(feature="big/bridge", value=0.4), [OUTSIDE, "breaks above 1"], id="below-the-green-zone"),
    pytest.param(Clamp(feature="big/bridge", value=151, unit="act"), [OUTSIDE, "breaks"], id="above-it-in-activations"),
    pytest.param(Clamp(feature="big/bridge", value=100, unit="act"), ["breaks above 1"], id="in-it-in-activations"),
    pytest.param(Clamp(feature="big/bridge", value=0), ["breaks above 1"], id="a-clamp-to-0-has-no-green-zone"),
    pytest.param(Add(feature="big/bridge", value=0.2), ["breaks above 1"], id="zones-are-of-clamps"),
]


@pytest.fixture
def zoned(served: SteeringContext) -> SteeringContext:
    return replace(served, saes={**served.saes, "big": replace(served.saes["big"], entry=entry("big", 8, 100, ZONED))})


@pytest.mark.parametrize(("operation", "says"), DOUBTFUL)
def test_values_that_do_too_little_or_lie_outside_the_green_zone_are_warned_of(
    zoned: SteeringContext, operation: Operation, says: list[str]
) -> None:
    warnings = warnings_before(resolve(steering(operation), zoned).program, zoned)
    assert [part for part, warning in zip(says, warnings, strict=True) if part in warning] == says


def test_a_receipt_warns_of_what_did_too_little_and_of_clamps_outside_the_green_zone(zoned: SteeringContext) -> None:
    resolved = resolve(
        steering(
            Clamp(feature="big/bridge", value=0.9),
            Clamp(feature="big/1", value=0.1, unit="act"),
            Ablate(feature="big/2"),
            Add(feature="big/3", value=9, unit="act"),
        ),
        zoned,
    )
    tally = report(3, 5, 8.0, 4.0)["tallies"][0]
    doses = [0.6, 0.0123, 0.0, 0.3]
    done = {
        **report(3, 5, 8.0, 4.0),
        "prompt": [5] * 4,
        "tallies": [{**tally, "dose_max": dose} for dose in doses],
    }
    assert build_receipt(resolved, {0: done}, 1, zoned, "tiny", SERVER).warnings == (
        "interventions[0]: 0.9 x max_act is outside the zone that was found to work, 0.5 to 0.75.",
        "interventions[1] moved no token by more than 0.0123 x its residual norm: below 0.02 answers hardly change.",
    )


def test_what_was_cached_is_not_warned_of_as_too_little(served: SteeringContext) -> None:
    resolved = resolve(steering(Clamp(feature="big/bridge", value=0.5)), served)
    cached = {**report(0, 0, 0.0, 0.0), "prompt": [7]}
    cached["tallies"][0]["dose_max"] = 0.0
    assert build_receipt(resolved, {0: cached}, 1, served, "tiny", SERVER).warnings == ()


def test_texts_longer_than_those_of_training_are_warned_of(served: SteeringContext) -> None:
    big = served.saes["big"]
    short = replace(big, entry=replace(big.entry, summary=replace(big.entry.summary, context_size=8)))
    context = replace(served, saes={**served.saes, "big": short})
    resolved = resolve(steering(Clamp(feature="big/bridge", value=0.5)), context)
    for num_positions, warned in ((8, False), (9, True)):
        done = {**report(3, 5, 8.0, 4.0), "num_positions": num_positions}
        warnings = build_receipt(resolved, {0: done}, 1, context, "tiny", SERVER).warnings
        assert [one for one in warnings if "trained on texts of 8 tokens, and here there were 9" in one] == (
            list(warnings)[-1:] if warned else []
        )
