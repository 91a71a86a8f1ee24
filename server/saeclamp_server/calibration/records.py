"""Record of a calibrated feature: its curve, and its entry in the feature book."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.calibration.features import CalibrationTarget
from saeclamp_server.calibration.green_zone import Criteria, Point, Verdict
from saeclamp_server.calibration.metrics import AnswerMetrics
from saeclamp_server.calibration.settings import CalibrationSettings
from saeclamp_server.calibration.text_metrics import WordSet

SHOWN_DIGITS = 3
"""Decimals of a metric in the feature book."""


@dataclass(frozen=True)
class CalibrationRecord:
    """A feature, its curve and the verdict on it."""

    target: CalibrationTarget
    points: tuple[Point, ...]
    """Curve, by rising strength."""
    unsteered: Mapping[str, AnswerMetrics]
    """Metrics of the unsteered answers, by decoding."""
    verdict: Verdict
    criteria: Criteria
    measured: Mapping[str, Any]
    """Settings, versions and date of the measurement, from `measurement_record`; JSON-able."""

    @property
    def shown(self) -> Point:
        """Best point of the curve; without a green zone, the one with the highest score."""
        scores = self.verdict.scores
        at_best = [point for point in self.points if point.strength == self.verdict.best]
        return at_best[0] if at_best else self.points[scores.index(max(scores))]

    def to_json(self) -> dict[str, Any]:
        """Return JSON for the file of curves."""
        verdict = self.verdict
        curve = [
            {
                "strength": point.strength,
                "act": point.act,
                "green": green,
                "score": round(score, 5),
                **{name: figures.to_json() for name, figures in point.figures.items()},
            }
            for point, green, score in zip(self.points, verdict.green, verdict.scores, strict=True)
        ]
        return {
            "name": self.target.name,
            "green_zone": verdict.zone and list(verdict.zone),
            "best": verdict.best,
            "verdict": verdict.why,
            "max_act": self.target.max_act,
            "max_act_from": self.target.max_act_from,
            **self.measured,
            "judged_by": verdict.judge,
            "criteria": asdict(self.criteria),
            "unsteered": {name: figures.to_json() for name, figures in self.unsteered.items()},
            "curve": curve,
        }

    def to_note(self) -> FeatureNote | None:
        """Write the feature book's entry; None for a feature without a name."""
        if self.target.name is None:
            return None
        return FeatureNote(
            self.target.index,
            self.target.name,
            self.target.max_act,
            clamp=self.verdict.zone,
            best=self.verdict.best,
            evidence=self._evidence(),
        )

    def _evidence(self) -> dict[str, str | float]:
        figures = {
            f"{'' if number == 0 else f'{name}_'}{what}": round(value.value, SHOWN_DIGITS)
            for number, (name, of) in enumerate(self.shown.figures.items())
            for what, value in (
                ("hit", of.hit if self.verdict.judge == "words" else of.similar),
                ("perplexity_ratio", of.perplexity_ratio),
                ("distinct_2_ratio", of.distinct_2_ratio),
            )
            if value is not None
        }
        how: dict[str, str | float] = {
            "at": self.shown.strength,
            "judged_by": self.verdict.judge,
            "prompts": self.measured["prompts"]["count"],
            "date": self.measured["date"],
        }
        return {**figures, **how, **({} if self.verdict.zone else {"verdict": self.verdict.why})}


def read_points(record: Mapping[str, Any]) -> list[Point]:
    """Read the curve that `to_json` wrote."""
    names = record["unsteered"].keys()
    return [
        Point(item["strength"], item["act"], {name: AnswerMetrics.from_json(item[name]) for name in names})
        for item in record["curve"]
    ]


def read_unsteered(record: Mapping[str, Any]) -> dict[str, AnswerMetrics]:
    """Read the unsteered answers' metrics that `to_json` wrote."""
    return {name: AnswerMetrics.from_json(value) for name, value in record["unsteered"].items()}


MEASURED = (
    "model",
    "sae",
    "prompts",
    "form",
    "max_tokens",
    "decodings",
    "concept",
    "identity",
    "server",
    "versions",
    "date",
)


def measurement_record(
    settings: CalibrationSettings, target: CalibrationTarget, words: WordSet | None, server: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Record the settings, versions and date of a measurement that is made now.

    words:  words that were looked for in answers
    server: facts of the server
    """
    concept, used = target.concept, words.words if words else ()
    return {
        **settings.asked,
        "concept": {
            "words": list(used),
            "words_from": concept.words_from,
            "common_words_left_out": [word for word in concept.words if word not in used],
            "texts": len(concept.texts),
            "texts_from": concept.texts_from,
            "texts_sha256": _sha256(concept.texts),
        },
        "identity": settings.identity_of(target),
        "server": dict(server),
        "versions": _versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _sha256(texts: Sequence[str]) -> str | None:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else None


def _versions() -> dict[str, str]:
    known = {}
    for package in ("saeclamp", "transformers", "torch"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known
