"""Answers against unsteered answers, and the green zone: expectations are worked out by hand, bounds by slow loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tests.support.bundled import ENTRY

from saeclamp_server.calibration.green_zone import Criteria, Point, fluency, judge, least_prompts
from saeclamp_server.calibration.metrics import AnswerMetrics, Estimate, MeasuredAnswer, compare
from saeclamp_server.calibration.records import read_points
from saeclamp_server.calibration.text_metrics import WordSet, distinct_2, repetition

BRIDGE = WordSet.parse("bridge")
UNSTEERED = [
    MeasuredAnswer(0, "one two three", 4, 4.0),
    MeasuredAnswer(1, "a bridge is here", 4, 6.0),
    MeasuredAnswer(2, "red red red", 2, 2.0),
]
STEERED = [
    MeasuredAnswer(0, "the bridge the bridge", 5, 10.0, dose=0.2),
    MeasuredAnswer(1, "bridge", 1, 3.0, dose=0.4),
    MeasuredAnswer(2, "", 0, 0.0, dose=0.3),
]


def lengths(texts: Sequence[str]) -> np.ndarray:
    """Stands in for the encoder: more letters, more similar."""
    return np.array([len(text) / 100 for text in texts])


def test_figures_are_means_over_answers_and_over_tokens() -> None:
    found = compare(STEERED, UNSTEERED, BRIDGE, None)
    assert found.num_answers == 3
    assert found.hit.value == pytest.approx(2 / 3)
    assert found.hit_gain.value == pytest.approx(1 / 3)
    assert found.perplexity == pytest.approx(math.exp(13 / 6))
    assert found.perplexity_ratio.value == pytest.approx(math.exp(13 / 6 - 12 / 10))
    assert found.distinct_2 == pytest.approx(2 / 3)  # of the only answer with two words
    assert found.distinct_2_ratio.value == pytest.approx((2 / 3) / ((1 + 1 + 1 / 2) / 3))
    assert found.repetition == pytest.approx((1 / 2 + 0) / 2)
    assert found.repetition_gain.value == pytest.approx(1 / 4 - (0 + 0 + 2 / 3) / 3)
    assert found.dose == pytest.approx(0.3)
    assert found.similar is found.similar_gain is found.similarity_gain is None


def test_unsteered_answers_are_no_different_from_themselves() -> None:
    found = compare(UNSTEERED, UNSTEERED, BRIDGE, lengths)
    assert found.hit_gain == found.repetition_gain == found.similarity_gain == found.similar_gain == (0, 0, 0)
    assert found.perplexity_ratio == found.distinct_2_ratio == (1, 1, 1)
    assert found.dose is None


def test_without_words_there_are_no_hits() -> None:
    found = compare(STEERED, UNSTEERED, None, lengths)
    assert found.hit is found.hit_gain is None
    assert found.similar is not None


def test_similar_is_above_the_95th_percentile_of_the_unsteered() -> None:
    unsteered = [MeasuredAnswer(number, "x" * number, 1, 1.0) for number in range(21)]  # 95 % of them at or below 19
    steered = [MeasuredAnswer(number, "x" * length, 1, 1.0) for number, length in enumerate([18, 19, 20, 40] * 5 + [0])]
    found = compare(steered, unsteered, None, lengths)
    assert found.similar.value == pytest.approx(10 / 21)
    assert found.similar_gain.value == pytest.approx(10 / 21 - 1 / 21)
    assert found.similarity_gain.value == pytest.approx(((18 + 19 + 20 + 40) * 5 / 21 - 10) / 100)


def test_bounds_are_those_of_drawing_prompts_with_all_their_answers() -> None:
    generator = np.random.default_rng(5)
    vocabulary = np.array(["bridge", "a", "b", "c", "d", "e", "f", "g"])

    def answers(share: float) -> list[MeasuredAnswer]:
        weights = np.array([share] + [(1 - share) / 7] * 7)
        return [
            MeasuredAnswer(
                prompt, " ".join(generator.choice(vocabulary, 6, p=weights)), 6, float(generator.uniform(3, 9)), seed
            )
            for prompt in range(7)
            for seed in range(3)
        ]

    steered, unsteered = answers(0.15), answers(0.05)
    found = compare(steered, unsteered, BRIDGE, lengths)
    draws = np.random.default_rng(0).integers(7, size=(1000, 7))

    def of_prompts(some: list[MeasuredAnswer], draw: np.ndarray) -> list[MeasuredAnswer]:
        return [answer for prompt in draw for answer in some if answer.prompt == prompt]

    def bounds(figure: Callable[[list[MeasuredAnswer], list[MeasuredAnswer]], float]) -> Estimate:
        drawn = [figure(of_prompts(steered, draw), of_prompts(unsteered, draw)) for draw in draws]
        low, high = np.percentile(drawn, (2.5, 97.5))
        return Estimate(figure(steered, unsteered), float(low), float(high))

    def share(some: list[MeasuredAnswer]) -> float:
        return sum("bridge" in answer.text.split() for answer in some) / len(some)

    def mean(measure: Callable[[str], float | None], some: list[MeasuredAnswer]) -> float:
        return sum(measure(answer.text) for answer in some) / len(some)

    def perplexity(some: list[MeasuredAnswer]) -> float:
        return math.exp(sum(answer.nll for answer in some) / sum(answer.num_tokens for answer in some))

    assert found.hit == pytest.approx(bounds(lambda one, _: share(one)))
    assert found.hit_gain == pytest.approx(bounds(lambda one, other: share(one) - share(other)))
    assert found.perplexity_ratio == pytest.approx(bounds(lambda one, other: perplexity(one) / perplexity(other)))
    assert found.distinct_2_ratio == pytest.approx(
        bounds(lambda one, other: mean(distinct_2, one) / mean(distinct_2, other))
    )
    assert found.repetition_gain == pytest.approx(
        bounds(lambda one, other: mean(repetition, one) - mean(repetition, other))
    )
    assert found.hit.low < found.hit.value < found.hit.high


def test_answers_without_a_token_have_no_perplexity() -> None:
    empty = [MeasuredAnswer(number, "", 0, 0.0) for number in range(3)]
    found = compare(empty, UNSTEERED, BRIDGE, None)
    assert found.perplexity is found.perplexity_ratio is found.distinct_2 is found.distinct_2_ratio is None
    assert found.hit == (0, 0, 0)
    assert fluency(found) == 0


def test_figures_survive_the_file() -> None:
    found = compare(STEERED, UNSTEERED, BRIDGE, lengths)
    read = AnswerMetrics.from_json(json.loads(json.dumps(found.to_json())))
    assert read.hit_gain == pytest.approx(found.hit_gain, abs=1e-5)
    assert read.perplexity == pytest.approx(found.perplexity, abs=1e-5)
    assert AnswerMetrics.from_json(read.to_json()) == read
    assert (read.num_answers, compare(STEERED, UNSTEERED, None, None).hit) == (3, None)


def figures(
    hit: float, perplexity: float | None, distinct: float | None = 1.0, similar: float | None = None
) -> AnswerMetrics:
    def exactly(value: float | None) -> Estimate | None:
        return None if value is None else Estimate(value, value, value)

    return AnswerMetrics(
        num_answers=10,
        hit=exactly(hit),
        hit_gain=exactly(hit),
        similar=exactly(similar),
        similar_gain=exactly(similar),
        similarity_gain=exactly(similar),
        perplexity=perplexity,
        perplexity_ratio=exactly(perplexity),
        distinct_2=distinct,
        distinct_2_ratio=exactly(distinct),
        repetition=0.0,
        repetition_gain=exactly(0.0),
        dose=0.3,
    )


def curve(*rows: tuple[Any, ...]) -> list[Point]:
    """Rows of hit, perplexity and distinct-2 against unsteered, at strengths 0.1, 0.2, ..."""
    return [
        Point(round(0.1 * number, 1), number, {"greedy": figures(*row)}) for number, row in enumerate(rows, start=1)
    ]


@pytest.mark.parametrize(
    ("rows", "zone", "best"),
    [
        pytest.param([(0, 1), (0.39, 1.2), (0.8, 1.5), (0.7, 1.9)], (0.3, 0.4), 0.3, id="less-than-half-of-0.8"),
        pytest.param([(0, 1), (0.4, 1.2), (0.8, 1.5), (1, 3)], (0.2, 0.3), 0.3, id="broken-text-sets-no-bar"),
        pytest.param([(0, 1), (0.5, 2.0), (1, 2.01)], (0.2, 0.2), 0.2, id="limits-are-within"),
        pytest.param([(0.8, 1, 0.85), (0.8, 1, 0.84)], (0.1, 0.1), 0.1, id="of-distinct-2-too"),
        pytest.param([(0.8, 1), (0.1, 1), (0.8, 1), (0.7, 1)], (0.3, 0.4), 0.3, id="the-longest-run"),
        pytest.param([(0.5, 1), (0.1, 1), (0.8, 1)], (0.3, 0.3), 0.3, id="of-equal-runs-the-better"),
        pytest.param([(0.9, 1.9), (0.8, 1.0)], (0.1, 0.2), 0.2, id="fluency-counts"),
    ],
)
def test_the_green_zone_is_the_longest_run_of_strengths_that_steer_and_stay_fluent(
    rows: list[tuple[Any, ...]], zone: tuple[float, float], best: float
) -> None:
    found = judge(curve(*rows), Criteria(), 12)
    assert (found.zone, found.best) == (zone, best)
    low, high = zone
    points = curve(*rows)
    assert found.green == tuple(low <= point.strength <= high for point in points)
    many = f"It steers from {low:g} to {high:g} x max_act, best at {best:g}."
    assert found.why == (many if low < high else f"It steers at {low:g} x max_act.")


def test_the_score_is_gain_times_fluency() -> None:
    found = judge(curve((0.8, 1.0), (0.8, math.e), (0.8, 1.0, 0.9), (0.8, 0.5, 1.2), (-0.1, 1)), Criteria(), 12)
    assert found.scores == pytest.approx((0.8, 0.4, 0.72, 0.8, 0.0))


def test_a_feature_that_never_shows_has_no_zone() -> None:
    found = judge(curve((0, 1), (0.1, 1.2), (0.19, 1.3)), Criteria(), 12)
    assert (found.zone, found.best, found.green) == (None, None, (False, False, False))
    assert found.why == (
        "It does not steer: from 0.1 to 0.3 x max_act the share of answers about it rises by 19% at most, which is below "
        "20%."
    )
    assert judge(curve((0, 1), (0.1, 1.2), (0.19, 1.3)), Criteria(min_gain=0.15), 12).zone == (0.2, 0.3)


def test_a_feature_that_shows_only_in_broken_text_has_no_zone() -> None:
    found = judge(curve((0, 1), (0.3, 2.5, 0.9), (0.6, 5, 0.4)), Criteria(), 12)
    assert found.zone is None
    assert found.why == (
        "Where it begins to show, at 0.2 x max_act, answers are no longer fluent: perplexity 2.50 x unsteered, distinct-2 "
        "0.90 x unsteered."
    )
    assert judge(curve((0, 1), (0.3, 2.5, 0.9), (0.6, 5, 0.4)), Criteria(max_perplexity=3), 12).zone == (0.2, 0.2)


def test_a_strength_whose_answers_are_empty_is_not_green() -> None:
    found = judge(curve((0.8, 1.2), (0.8, None, None)), Criteria(), 12)
    assert found.zone == (0.1, 0.1)
    assert found.scores[1] == 0


def test_what_shows_faintly_while_fluent_and_fully_when_broken_has_no_zone() -> None:
    found = judge(curve((0.1, 1.0), (0.15, 1.9), (1.0, 4.0, 0.3)), Criteria(), 12)
    assert found.zone is None
    assert found.why.startswith(
        "Where it begins to show, at 0.3 x max_act, answers are no longer fluent: perplexity 4.00"
    )


def test_broken_text_at_the_lowest_strength_asks_for_lower_ones() -> None:
    found = judge(curve((0.6, 2.5, 0.9), (0.9, 5, 0.4)), Criteria(), 12)
    assert found.why == (
        "Where it begins to show, at 0.1 x max_act or below, answers are no longer fluent: perplexity 2.50 x unsteered, "
        "distinct-2 0.90 x unsteered. Try lower strengths."
    )


def test_every_decoding_must_agree() -> None:
    def point(strength: float, greedy: AnswerMetrics, sampled: AnswerMetrics) -> Point:
        return Point(strength, strength, {"greedy": greedy, "sampled": sampled})

    points = [
        point(0.5, figures(0.8, 1.2), figures(0.1, 1.2)),
        point(0.6, figures(0.8, 1.4), figures(0.4, 1.4)),
        point(0.7, figures(0.8, 1.6), figures(0.4, 2.6)),
    ]
    found = judge(points, Criteria(), 12)
    assert found.zone == (0.6, 0.6)
    assert found.scores[1] == pytest.approx((0.8 + 0.4) / 2 / (1 + math.log(1.4)))
    apart = [point(0.5, figures(0.8, 1), figures(0.1, 1)), point(0.6, figures(0.1, 1), figures(0.8, 1))]
    assert judge(apart, Criteria(), 12).why == "It steers under each decoding, but at no strength under all of them."
    silent = [point(0.5, figures(0.8, 1.2), figures(0.1, 1.2))]
    assert "rises by 10% at most" in judge(silent, Criteria(), 12).why


def test_similarity_judges_where_no_words_are_known_or_when_it_is_asked_to() -> None:
    points = curve((0.8, 1.1, 1, 0.1), (0.8, 1.2, 1, 0.6))
    assert (judge(points, Criteria(), 12).judge, judge(points, Criteria(), 12).zone) == ("words", (0.1, 0.2))
    by_similarity = judge(points, Criteria(judge="similarity"), 12)
    assert (by_similarity.judge, by_similarity.zone) == ("similarity", (0.2, 0.2))
    wordless = compare(STEERED, UNSTEERED, None, lengths)
    assert judge([Point(1.0, 1.0, {"greedy": wordless})], Criteria(), 12).judge == "similarity"


@pytest.mark.parametrize(("num_strengths", "least"), [(1, 5), (3, 6), (10, 8), (20, 9)])
def test_prompts_are_too_few_where_all_of_them_could_gain_by_chance(num_strengths: int, least: int) -> None:
    assert least_prompts(num_strengths) == least
    by_chance = [num_strengths * 0.5**num for num in (least - 1, least)]
    assert by_chance[0] > 0.05 >= by_chance[1]


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_three_prompts_tell_nothing_however_large_the_gain(gain: float) -> None:
    found = judge(curve((gain, 1.0), (gain, 1.2)), Criteria(), 3)
    assert (found.zone, found.best, found.green, found.is_told) == (None, None, (False, False), False)
    assert found.why == "Too few prompts to tell. There are 3 prompts, and with 2 strengths at least 6 are needed."
    assert judge(curve((gain, 1.0), (gain, 1.2)), Criteria(), 6).is_told


def test_a_gain_that_its_prompts_cannot_tell_from_nothing_is_not_taken_for_one() -> None:
    def gained(number: int) -> list[MeasuredAnswer]:
        texts = ["The bridge is long."] * number + ["The day is long."] * (12 - number)
        return [MeasuredAnswer(prompt, text, 10, 20.0) for prompt, text in enumerate(texts)]

    three, five = (Point(0.5, 50.0, {"greedy": compare(gained(number), gained(0), BRIDGE, None)}) for number in (3, 5))
    found = judge([three], Criteria(), 12)
    assert (found.zone, found.is_told) == (None, False)
    assert found.why == (
        "Too few prompts to tell. At 0.5 x max_act the share of answers about it rises by 25%, which 12 prompts cannot tell "
        "from nothing (0% to 50%)."
    )
    assert judge([five], Criteria(), 12).zone == (0.5, 0.5)


def test_the_bundled_curves_judged_again_give_the_green_zones_of_the_feature_book() -> None:
    curves = json.loads((ENTRY.path / "calibration.json").read_text())["features"]
    for index, record in curves.items():
        found = judge(read_points(record), Criteria(**record["criteria"]), record["prompts"]["count"])
        note = ENTRY.features[int(index)]
        assert (found.zone, found.best) == (note.clamp, note.best), record["name"]
