"""A steering picked among many passes by chance in at most one of twenty attempts, and a real one passes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from saeclamp_server.api.features.suggest.superiority_test import (
    LEVEL,
    judge_superiority,
    p_of_control,
    p_of_signs,
    upper_tail,
)

NUM_RUNS = 2000
NUM_FEATURES, NUM_STRENGTHS, NUM_TESTED, NUM_CONTROLS = 6, 4, 4, 12
NUM_SCREENED, NUM_QUESTIONS = 3, 10
NOISE = 0.06
"""Standard deviation of one answer's similarity, about what MiniLM says of sampled answers of the packaged model."""

Floats = NDArray[np.float64]


class Passed(NamedTuple):
    """Share of simulated runs in which any steering would be recommended."""

    judged: float
    by_baseline_alone: float
    uncorrected: float


@pytest.mark.parametrize(
    ("t", "degrees", "above"),
    [(0.0, 7, 0.5), (1.0, 1, 0.25), (1.886, 2, 0.1), (1.833, 9, 0.05), (2.718, 11, 0.01), (-1.796, 11, 0.95)],
)
def test_tails_are_those_of_printed_tables(t: float, degrees: int, above: float) -> None:
    assert upper_tail(t, degrees) == pytest.approx(above, abs=2e-4)


@pytest.mark.parametrize(
    ("gains", "p"),
    [
        pytest.param([0.1] * 10, 1 / 1024, id="all-gain"),
        pytest.param([0.0] * 10, 1.0, id="nothing-changes"),
        pytest.param([-0.1] * 10, 1.0, id="all-lose"),
        pytest.param([0.3, 0.1, -0.2], 3 / 8, id="three-of-eight-ways-are-as-large"),
    ],
)
def test_all_ways_to_swap_pairs_are_counted(gains: list[float], p: float) -> None:
    assert p_of_signs(np.array(gains)) == pytest.approx(p)


def test_one_feature_is_compared_with_how_far_random_ones_go_apart() -> None:
    # the mean is 0 and the standard deviation 1, so that t is 2 / sqrt(1 + 1 / 5), of 4 degrees
    controls = np.array([-1.0, -1.0, 0.0, 1.0, 1.0])
    assert p_of_control(2.0, controls) == pytest.approx(upper_tail(2 / 1.2**0.5, 4))
    assert p_of_control(0.0, controls) == 0.5


@pytest.mark.parametrize(("gain", "p"), [(0.1, 0.0), (0.0, 1.0), (-0.1, 1.0)])
def test_controls_that_change_nothing_have_no_spread(gain: float, p: float) -> None:
    assert p_of_control(gain, np.zeros(8)) == p


def test_the_larger_p_counts_and_each_is_corrected_for_what_it_was_picked_from() -> None:
    gains = np.full(10, 1.0)
    controls = np.tile(np.array([[-1.0], [-1.0], [0.0], [1.0], [1.0]]), (1, 10))
    judged = judge_superiority(gains, controls, num_tested=4, num_tried=26)
    assert (judged.gain, judged.control) == (1.0, 0.0)
    assert judged.p_baseline == 1 / 1024
    assert judged.p == min(1.0, 26 * judged.p_controls)
    far = judge_superiority(gains * 50, controls, num_tested=4, num_tried=26)
    assert far.p == 4 / 1024


def simulated(feature_spread: float, effect: float = 0.0, seed: int = 0) -> Passed:
    """
    Simulate attempts: clamps of six features are screened, and the best tested.

    feature_spread: standard deviation of what any feature does to similarity at every question alike
    effect:         what the first feature does beyond that
    """
    chance = np.random.default_rng(seed)
    passed = np.zeros((NUM_RUNS, 3), np.bool_)
    num_arms = NUM_FEATURES * NUM_STRENGTHS
    for run in range(NUM_RUNS):
        own = np.repeat(chance.normal(0, feature_spread, NUM_FEATURES), NUM_STRENGTHS)
        own[:NUM_STRENGTHS] += effect
        # strengths of one feature do nearly the same
        arms = own + chance.normal(0, feature_spread / 4, num_arms)
        screened = arms + chance.normal(0, NOISE, (NUM_SCREENED, num_arms)).mean(axis=0)
        best = np.argsort(-screened)[:NUM_TESTED]
        controls = chance.normal(0, feature_spread, (NUM_CONTROLS, 1))
        unsteered = chance.normal(0, NOISE, NUM_QUESTIONS)
        tested, random = (
            some + chance.normal(0, NOISE, (len(some), NUM_QUESTIONS)) - unsteered
            for some in (arms[best][:, None], controls)
        )
        judged = [judge_superiority(gains, random, NUM_TESTED, num_arms) for gains in tested]
        passed[run] = [
            any(one.p <= LEVEL for one in judged),
            any(one.p_baseline * NUM_TESTED <= LEVEL for one in judged),
            any(max(one.p_baseline, one.p_controls) <= LEVEL for one in judged),
        ]
    return Passed(*map(float, passed.mean(axis=0)))


@pytest.mark.parametrize("feature_spread", [0.0, 0.01, 0.03, 0.2], ids=["none", "small", "middling", "random-weights"])
def test_features_that_have_nothing_to_do_with_the_wish_pass_in_at_most_one_of_twenty_attempts(
    feature_spread: float,
) -> None:
    assert simulated(feature_spread).judged <= LEVEL


def test_without_a_control_arm_whatever_changes_answers_would_pass() -> None:
    assert simulated(feature_spread=0.1).by_baseline_alone > 0.8


def test_without_a_correction_the_best_of_many_would_pass_too_often() -> None:
    assert simulated(feature_spread=0.1).uncorrected > 3 * LEVEL


def test_a_feature_that_does_what_is_wished_passes() -> None:
    # 0.1 is what the sea feature gains on the packaged model, the least of the three wishes of the end-to-end tests
    assert simulated(feature_spread=0.01, effect=0.1).judged > 0.8
    assert simulated(feature_spread=0.01, effect=0.15).judged > 0.98
