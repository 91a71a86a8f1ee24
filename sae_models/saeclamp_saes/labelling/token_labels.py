"""
Typed labels: strings that counting can check, chosen on one half of the text and scored on the other.

input   `token " bridge", " Bridge"`: it is active on these tokens. Chosen: at most five, those with the most activation mass
        times the share of their occurrences on which it is active; as many of them as score best on the choosing half.
        Score: the harmonic mean of recall (share of its activation mass that is on them) and precision (share of their
        occurrences on which it is active).
say     `say " the"`: it is active before this token. Chosen: the next token with the most activation mass. Score: the share
        of its activation mass behind which that token follows.
output  `promotes " bridge", " Bridge"`: amplified, it makes these tokens likelier. Chosen: of the first 20 of its logit lens
        the three likeliest once it is amplified (less those a tenth as likely as the first); none, where the one that
        scores is less than twice as likely as without.
        Score: the output score (see `output_scores`), measured behind a sentence that is not of the text.
none    no score passes its bar.

Mass is the sum of positive activations. Even sequences choose, and odd ones score.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.labelling.activation_index import ActivationIndex, FeatureActivations
from saeclamp_saes.labelling.examples import TokenStrings
from saeclamp_saes.labelling.table import Kind

BARS: dict[Kind, float] = {"input": 0.5, "say": 0.5, "output": 0.1}
"""Least scores with which labels hold."""
MOST_TOKENS = 5
"""Most tokens of an input label."""
PROMOTED = 2.0
"""Least factor by which a feature makes a token likelier that it is said to promote."""
LEAST_ACTIVE = 5
"""Tokens on which a feature must be active in each half, to be labelled by what it reads."""


class Candidate(NamedTuple):
    """A label with its score, whether it holds or not."""

    text: str
    score: float


@dataclass(frozen=True)
class SplitHalves:
    """A text in two halves: even sequences to choose on, odd ones to score on."""

    firings: ActivationIndex
    vocabulary: int

    @cached_property
    def occurrences(self) -> NDArray[Any]:
        """Number of times that each token occurs where it counts: (2, vocabulary) int64."""
        counted = self.firings.counts.nonzero()[0]
        half = self.firings.sequence_of(counted) % 2
        ids = self.firings.ids[counted]
        return np.stack([np.bincount(ids[half == side], minlength=self.vocabulary) for side in (0, 1)])

    def split(self, active: FeatureActivations) -> tuple[FeatureActivations, FeatureActivations]:
        """Divide a feature's entries between the halves."""
        half = self.firings.sequence_of(active.token) % 2
        even, odd = (FeatureActivations(active.token[half == side], active.value[half == side]) for side in (0, 1))
        return even, odd

    def next_ids(self, active: FeatureActivations) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the tokens that follow, and the activations before them, where one follows: (n,) int32; (n,)."""
        followed = active.token + 1 < self.firings.starts[self.firings.sequence_of(active.token) + 1]
        return self.firings.ids[active.token[followed] + 1], active.value[followed]


def input_label(halves: SplitHalves, active: FeatureActivations, strings: TokenStrings) -> Candidate | None:
    """Label a feature by the tokens that it is active on. None where it is too rarely active."""
    choosing, scoring = halves.split(active)
    if min(len(choosing.token), len(scoring.token)) < LEAST_ACTIVE:
        return None
    ids, mass, num = _by_token(halves.firings.ids[choosing.token], choosing.value)
    occurrences = halves.occurrences[0][ids]
    best = np.argsort(-mass * num / occurrences, kind="stable")[:MOST_TOKENS]
    recall = np.cumsum(mass[best]) / mass.sum()
    precision = np.cumsum(num[best]) / np.cumsum(occurrences[best])
    size = int(np.argmax(_harmonic(precision, recall))) + 1
    chosen = ids[best[:size]]
    text = "token " + ", ".join(_quoted(strings(int(token))) for token in chosen)
    return Candidate(text, _input_score(halves, scoring, chosen))


def next_token_label(halves: SplitHalves, active: FeatureActivations, strings: TokenStrings) -> Candidate | None:
    """Label a feature by the token that it is active before. None where it is too rarely active."""
    (chosen_from, chosen_mass), (following, mass) = map(halves.next_ids, halves.split(active))
    if min(len(chosen_from), len(following)) < LEAST_ACTIVE:
        return None
    ids, total, _ = _by_token(chosen_from, chosen_mass)
    said = int(ids[np.argmax(total)])
    share = mass[following == said].sum(dtype=np.float64) / mass.sum(dtype=np.float64)
    return Candidate(f"say {_quoted(strings(said))}", float(share))


def output_label(named: list[str], score: float, before: float) -> Candidate | None:
    """
    Label a feature by the tokens that it promotes. None where it does not promote them.

    named:  tokens of its lens that are likeliest once it is amplified
    score:  its output score; NaN where there is none
    before: probability, without amplification, of the token that gives the score
    """
    if not score > PROMOTED * before:
        return None
    return Candidate("promotes " + ", ".join(map(_quoted, named)), score)


def best_candidate(candidates: dict[Kind, Candidate | None]) -> Kind:
    """Choose, of the labels that pass their bar, the one with the highest score."""
    holding = {
        kind: candidate.score for kind, candidate in candidates.items() if candidate and candidate.score >= BARS[kind]
    }
    return max(holding, key=holding.__getitem__, default="none")


def _input_score(halves: SplitHalves, scoring: FeatureActivations, chosen: NDArray[Any]) -> float:
    on_chosen = np.isin(halves.firings.ids[scoring.token], chosen)
    recall = scoring.value[on_chosen].sum(dtype=np.float64) / scoring.value.sum(dtype=np.float64)
    precision = on_chosen.sum() / max(1, halves.occurrences[1][chosen].sum())
    return float(_harmonic(np.asarray(precision), np.asarray(recall)))


def _by_token(ids: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Sum by token. Returns the tokens, ascending; their mass, in float64; their numbers of entries. (n,) each."""
    unique, inverse = np.unique(ids, return_inverse=True)
    return unique, np.bincount(inverse, weights=values), np.bincount(inverse)


def _harmonic(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    # tiny, because 0 / 0 should be 0 where both are
    result: NDArray[Any] = 2 * a * b / np.maximum(a + b, np.finfo(np.float64).tiny)
    return result


def _quoted(token: str) -> str:
    return json.dumps(token, ensure_ascii=False)


def tokens_of(label: str) -> list[str]:
    """
    List the tokens that a typed label names; none where it is not one.

    >>> tokens_of('token " bridge", " Bridge"')
    [' bridge', ' Bridge']
    """
    try:
        return [json.loads(quoted) for quoted in re.findall(r'"(?:[^"\\]|\\.)*"', label)]
    except ValueError:
        return []
