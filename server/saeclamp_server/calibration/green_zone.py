"""From a dose curve to the strengths that work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from saeclamp_server.calibration.metrics import AnswerMetrics, Estimate

SHARE_OF_BEST = 0.5
MAX_PERPLEXITY = 2.0
MIN_DISTINCT_2 = 0.85
MIN_GAIN = 0.2

LEVEL = 0.05
"""Probability with which a feature that does nothing may be taken for one that steers."""

ROUNDING = 1e-5
"""Tolerance for metrics that were rounded to be stored, so that a curve which is judged again gets the same verdict."""

Judge = Literal["words", "similarity"]


@dataclass(frozen=True)
class Criteria:
    """Criteria of the green zone. A strength must meet all of them under every decoding."""

    judge: Judge | None = None
    """Kind of a hit: a word of the concept, or more similarity than 95 % of unsteered answers have. None: words if known."""
    share_of_best: float = SHARE_OF_BEST
    """Share of the largest gain at a fluent strength to be reached. A gain is the share of hits, less the unsteered one."""
    max_perplexity: float = MAX_PERPLEXITY
    """Largest perplexity, in multiples of the unsteered one."""
    min_distinct_2: float = MIN_DISTINCT_2
    """Smallest distinct-2, in multiples of the unsteered one."""
    min_gain: float = MIN_GAIN
    """Gain that the best fluent strength must reach for the feature to steer at all."""


@dataclass(frozen=True)
class Point:
    """One strength of a curve."""

    strength: float
    """The clamp, in multiples of max_act."""
    act: float
    """Clamp in the encoder's units."""
    figures: Mapping[str, AnswerMetrics]
    """Metrics of the answers, by decoding."""


@dataclass(frozen=True)
class Verdict:
    """Verdict on a curve."""

    judge: Judge
    scores: tuple[float, ...]
    """Per strength: gain x fluency, averaged over decodings."""
    green: tuple[bool, ...]
    """Per strength: True if it is in the green zone."""
    zone: tuple[float, float] | None
    """Lowest and highest strength of the zone. None: there is none."""
    best: float | None
    """The strength of the zone with the highest score."""
    why: str
    """Reason, in a sentence."""
    is_told: bool = True
    """False if there were too few prompts for a verdict either way."""


def least_prompts(num_strengths: int) -> int:
    """
    Return the number of prompts below which there is no verdict, however large the gain.

    If a feature did nothing, the answers to all n prompts would still gain with probability 2**-n (a sign test), and at the
    best of several strengths with as many times that. The bounds of a gain, drawn from the prompts, do not see this: of
    three that all gain, every draw gains.
    """
    return math.ceil(math.log2(num_strengths / LEVEL))


def judge(points: Sequence[Point], criteria: Criteria, num_prompts: int) -> Verdict:
    """
    Find the longest run of neighbouring strengths that meet the criteria; of two, the one with the higher score.

    points: by rising strength, at least one; each has the metrics that the criteria need
    """
    by = criteria.judge or _fixed_judge(points[0])
    scores = tuple(_score(point, by) for point in points)
    least = least_prompts(len(points))
    if num_prompts < least:
        said = "There is 1 prompt" if num_prompts == 1 else f"There are {num_prompts} prompts"
        return _untold(by, scores, f"{said}, and with {len(points)} strengths at least {least} are needed.")
    fluent = [point for point in points if _is_fluent(point, criteria)]
    # broken text may well be full of the concept, so it sets no bar
    bars = {name: criteria.share_of_best * gain for name, gain in _best_gains(fluent, by).items()}
    fit = [point in fluent and _reaches(point, bars, by) for point in points]
    runs = [[number for number, _ in run] for good, run in groupby(enumerate(fit), lambda item: item[1]) if good]
    if not runs or min(_best_gains(fluent, by).values()) < criteria.min_gain:
        return Verdict(by, scores, (False,) * len(points), None, None, _why_not(points, criteria, by))
    zone = max(runs, key=lambda run: (len(run), max(scores[number] for number in run)))
    best = max(zone, key=lambda number: scores[number])
    gains = [_bounded_gain(figures, by) for figures in points[best].figures.values()]
    if any(gain.low <= 0 for gain in gains):
        least_sure = min(gains, key=lambda gain: gain.low)
        return _untold(
            by,
            scores,
            f"At {points[best].strength:g} x max_act the share of answers about it rises by {least_sure.value:.0%}, which "
            f"{num_prompts} prompts cannot tell from nothing ({least_sure.low:.0%} to {least_sure.high:.0%}).",
        )
    low, high = points[zone[0]].strength, points[zone[-1]].strength
    many = f"from {low:g} to {high:g} x max_act, best at {points[best].strength:g}"
    why = f"It steers {many if low < high else f'at {low:g} x max_act'}."
    green = tuple(number in zone for number in range(len(points)))
    return Verdict(by, scores, green, (low, high), points[best].strength, why)


def fluency(figures: AnswerMetrics) -> float:
    """
    Score fluency: 1 for answers as fluent as unsteered ones, less for others; 0 where it cannot be measured.

    The ratio of distinct-2, divided by 1 + the nats a token by which the answers are less likely; what is better than
    unsteered counts as equal.
    """
    if figures.perplexity_ratio is None or figures.distinct_2_ratio is None:
        return 0.0
    nats = math.log(max(1.0, figures.perplexity_ratio.value))
    return min(1.0, figures.distinct_2_ratio.value) / (1 + nats)


def _untold(by: Judge, scores: tuple[float, ...], reason: str) -> Verdict:
    return Verdict(by, scores, (False,) * len(scores), None, None, f"Too few prompts to tell. {reason}", is_told=False)


def _fixed_judge(point: Point) -> Judge:
    return "words" if all(figures.hit_gain is not None for figures in point.figures.values()) else "similarity"


def _score(point: Point, by: Judge) -> float:
    scores = [max(0.0, _gain(figures, by)) * fluency(figures) for figures in point.figures.values()]
    return sum(scores) / len(scores)


def _gain(figures: AnswerMetrics, by: Judge) -> float:
    return _bounded_gain(figures, by).value


def _bounded_gain(figures: AnswerMetrics, by: Judge) -> Estimate:
    gain = figures.hit_gain if by == "words" else figures.similar_gain
    assert gain is not None
    return gain


def _best_gains(points: Sequence[Point], by: Judge) -> dict[str, float]:
    """Find the largest gain under each decoding; empty where there is no point."""
    names = points[0].figures if points else ()
    return {name: max(_gain(point.figures[name], by) for point in points) for name in names}


def _reaches(point: Point, bars: Mapping[str, float], by: Judge) -> bool:
    return all(_gain(figures, by) >= bars[name] - ROUNDING for name, figures in point.figures.items())


def _is_fluent(point: Point, criteria: Criteria) -> bool:
    return all(
        figures.perplexity_ratio is not None
        and figures.perplexity_ratio.value <= criteria.max_perplexity
        and figures.distinct_2_ratio is not None
        and figures.distinct_2_ratio.value >= criteria.min_distinct_2
        for figures in point.figures.values()
    )


def _why_not(points: Sequence[Point], criteria: Criteria, by: Judge) -> str:
    bars = dict.fromkeys(points[0].figures, criteria.min_gain)
    reached = min(_best_gains(points, by).values())
    if reached < criteria.min_gain:
        return (
            f"It does not steer: from {points[0].strength:g} to {points[-1].strength:g} x max_act the share of answers "
            f"about it rises by {max(0.0, reached):.0%} at most, which is below {criteria.min_gain:.0%}."
        )
    shows = next((point for point in points if _reaches(point, bars, by)), None)
    if shows is None or _is_fluent(shows, criteria):
        return "It steers under each decoding, but at no strength under all of them."
    broken = min(shows.figures.values(), key=fluency)
    perplexity, pairs = (
        "unknown" if ratio is None else f"{ratio.value:.2f} x unsteered"
        for ratio in (broken.perplexity_ratio, broken.distinct_2_ratio)
    )
    lowest = shows is points[0]
    return (
        f"Where it begins to show, at {shows.strength:g} x max_act{' or below' if lowest else ''}, answers are no longer "
        f"fluent: perplexity {perplexity}, distinct-2 {pairs}.{' Try lower strengths.' if lowest else ''}"
    )
