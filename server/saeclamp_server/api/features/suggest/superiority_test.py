"""
Tests of whether a steering picked among many brings answers nearer to a wish than chance and any other change would.

Two things could make a useless one look good. Answers differ from draw to draw: a permutation test on questions that had no
part in picking it asks for that. And whatever moves the stream changes answers, in some direction, at every question alike:
more questions do not help against that, so gains are compared with those of random features moved as far, the control arm.
Picking the best of many inflates the second on fresh questions too, so that p is multiplied by the number of all that was
tried (Bonferroni), the first by the number of those that were put to the test.
"""

from __future__ import annotations

from math import atan, cos, pi, sin, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
LEAST_CONTROLS = 4
"""Fewer say too little of how far the gains of random features go apart."""
MAX_QUESTIONS = 16
"""Questions of a test, because all ways to flip their signs are tried: 2 to the power of this."""

Floats = NDArray[np.float64]


class Superiority(NamedTuple):
    """Evidence for one steering."""

    gain: float
    """Mean over questions, against unsteered answers."""
    control: float | None
    """Mean gain of the control arm; None, as the next: it was not asked, because chance alone gains as much."""
    p_baseline: float
    """Probability that chance alone gains as much, were steered and unsteered answers alike."""
    p_controls: float | None
    """Probability that a random feature, moved as far, gains as much."""
    p: float
    """The larger of the two, each corrected for having picked the best of many."""


def judge_by_baseline(gains: Floats, num_tested: int) -> Superiority:
    """
    Judge one steering by its answers to questions that had no part in picking it, without a control arm.

    gains:      (num_questions,), similarity of each steered answer to the wish less that of an unsteered one
    num_tested: steerings that are judged so
    """
    p = p_of_signs(gains)
    return Superiority(float(gains.mean()), None, p, None, min(1.0, num_tested * p))


def judge_superiority(gains: Floats, controls: Floats, num_tested: int, num_tried: int) -> Superiority:
    """
    Judge one steering against unsteered answers and against the control arm.

    gains, num_tested: as in `judge_by_baseline`
    controls:          (num_controls, num_questions), as `gains`, of random features moved as far
    num_tried:         steerings of which those that are judged were picked
    """
    assert len(controls) >= LEAST_CONTROLS, "its caller has drawn enough"
    means = controls.mean(axis=1)
    by_baseline = judge_by_baseline(gains, num_tested)
    p_controls = p_of_control(by_baseline.gain, means)
    return by_baseline._replace(
        control=float(means.mean()),
        p_controls=p_controls,
        # both must hold, which needs no correction of its own (an intersection-union test)
        p=min(1.0, max(by_baseline.p, num_tried * p_controls)),
    )


def p_of_signs(gains: Floats) -> float:
    """
    Exact one-sided permutation test of pairs: what share of all ways to swap the members of pairs gains as much.

    gains: (num_pairs,)
    """
    num = len(gains)
    assert 0 < num <= MAX_QUESTIONS, "all ways are tried"
    signs = 1 - 2 * ((np.arange(2**num)[:, None] >> np.arange(num)) & 1)
    sums = signs @ gains
    # ties are as large: what the same sum in another order gives must not count as smaller
    return float((sums >= gains.sum() - 1e-12 * max(1.0, np.abs(gains).sum())).mean())


def p_of_control(gain: float, controls: Floats) -> float:
    """
    One-sided test of one case against a small control sample (Crawford and Howell, 1998): Student's t, one degree less.

    controls: (num_controls,), whose spread is estimated, which the t distribution accounts for
    """
    num = len(controls)
    spread = float(controls.std(ddof=1)) * sqrt(1 + 1 / num)
    difference = gain - float(controls.mean())
    if spread == 0:
        return 0.0 if difference > 0 else 1.0
    return upper_tail(difference / spread, num - 1)


def upper_tail(t: float, degrees: int) -> float:
    """Share of Student's t distribution above `t`, by its finite series (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = atan(abs(t) / sqrt(degrees))
    odd = degrees % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for number in range(1 + odd, degrees, 2):
        total += term
        term *= cos(angle) ** 2 * number / (number + 1)
    within = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    half = (1 - min(1.0, within)) / 2
    return half if t >= 0 else 1 - half
