"""Steering as the terminal writes it."""

from __future__ import annotations

import pytest

from saeclamp.types import Ablate, Add, Clamp, FeatureCondition, First, Readout, Roles, Rule, Scale, Steering
from saeclamp.types.dose import dose_in_words
from saeclamp_server.cli.steering_flags import in_words

FIRES = FeatureCondition(feature="s/1", above=0.5)


@pytest.mark.parametrize(
    ("steering", "written"),
    [
        (Steering(interventions=(Clamp(feature="s/sea", value=0.75),)), "clamp s/sea 0.75 max_act"),
        (Steering(interventions=(Add(feature="s/3", value=-30, unit="act"),)), "add s/3 -30 act"),
        (
            Steering(interventions=(Scale(feature="s/3", factor=2), Ablate(feature="s/4", tokens="prompt"))),
            "scale s/3 x 2, ablate s/4 at prompt tokens",
        ),
        (
            Steering(interventions=(Clamp(vector="mood", value=1, unit="act", tokens=First(first=4)),)),
            "clamp mood 1 act at tokens: first 4",
        ),
        (
            Steering(interventions=(Clamp(feature="s/3", value=1, tokens=Roles(roles=("user", "assistant"))),)),
            "clamp s/3 1 max_act at tokens: roles user, assistant",
        ),
        (
            Steering(
                rules=(
                    Rule(name="stop", when=FIRES, then="abort", tokens="generated"),
                    Rule(name="calm", when=FIRES, then=(Ablate(feature="s/2"),)),
                ),
                readout=Readout(top_k=1),
            ),
            "rule stop (abort), rule calm (ablate s/2), a readout, which moves nothing",
        ),
    ],
)
def test_a_steering_is_written_in_the_words_of_its_flags_and_receipts(steering: Steering, written: str) -> None:
    assert in_words(steering) == written


@pytest.mark.parametrize(
    ("dose", "written"), [(0.36349, "0.363"), (0.0123, "0.0123"), (15.452, "15.5"), (0.0, "0"), (12345.6, "12346")]
)
def test_a_dose_has_three_digits_and_no_exponent(dose: float, written: str) -> None:
    assert dose_in_words(dose) == written
