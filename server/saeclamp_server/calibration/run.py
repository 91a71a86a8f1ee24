"""The run: asks for answers that are missing, and stores them as soon as they are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.concurrency import gather_first_error
from saeclamp_saes.library.feature_book import update_feature_book
from saeclamp_server.calibration.client import AnswerClient, CalibrationDose
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.features import CalibrationTarget
from saeclamp_server.calibration.green_zone import Point, judge
from saeclamp_server.calibration.metrics import AnswerMetrics, compare
from saeclamp_server.calibration.records import (
    MEASURED,
    CalibrationRecord,
    measurement_record,
    read_points,
    read_unsteered,
)
from saeclamp_server.calibration.settings import CalibrationSettings
from saeclamp_server.calibration.storage import UNSTEERED, AnswerJournal, AnswerKey, Answers, CurveFile
from saeclamp_server.calibration.text_metrics import WordSet

if TYPE_CHECKING:
    from saeclamp_server.sentence_encoder import SentenceEncoder


SAME_ACT = 1e-6
"""Relative tolerance between a strength's clamp and that of a stored point, as clamps once had fewer digits."""


class CalibrationPlan:
    """Curves of an SAE's features: the stored points, the missing ones, and the verdicts."""

    def __init__(self, settings: CalibrationSettings, folder: Path, encoder: SentenceEncoder | None) -> None:
        """
        Read the folder's answers and curves.

        encoder: None where no feature has texts to compare with
        Raises CalibrationError.
        """
        self.settings = settings
        self.answers = AnswerJournal(folder, settings.identity, settings.questions)
        self._curves = CurveFile(folder, settings.sae.sha256)
        self._folder = folder
        self._encoder = encoder

    def kept(self, target: CalibrationTarget) -> dict[float, Point]:
        """Return the stored points of the feature's curve that were measured as they would be now, by strength."""
        record = self._curves.curves.get(target.index)
        if record is None or record["identity"] != self.settings.identity_of(target):
            return {}
        return {
            point.strength: point
            for point in read_points(record)
            if math.isclose(point.act, target.act_at(point.strength), rel_tol=SAME_ACT)
        }

    def missing(self, target: CalibrationTarget) -> list[float]:
        """List the strengths that have no point yet; of those with the same clamp one."""
        known = {target.act_at(strength) for strength in self.kept(target)}
        # reversed, so that the lowest of the strengths with one clamp is kept
        by_act = {target.act_at(strength): strength for strength in reversed(self.settings.strengths)}
        return sorted(strength for act, strength in by_act.items() if act not in known)

    def words_of(self, target: CalibrationTarget) -> WordSet | None:
        """
        Choose the words to look for, once there are unsteered answers.

        Raises CalibrationError where no word is left, and there are no texts to compare with.
        """
        texts = [answer.text for some in self.answers[UNSTEERED].values() for answer in some]
        words = target.concept.telling_words(texts)
        if words is None and not target.concept.texts:
            raise _no_words(target)
        return words

    def figures(self, answers: Answers, target: CalibrationTarget, words: WordSet | None) -> dict[str, AnswerMetrics]:
        """Compare answers with the unsteered ones, by decoding."""
        similarity = None
        if self._encoder is not None and target.concept.texts:
            similarity = partial(self._encoder.similarity, examples=target.concept.texts)
        unsteered = self.answers[UNSTEERED]
        return {name: compare(some, unsteered[name], words, similarity) for name, some in answers.items()}

    def judge_again(self, target: CalibrationTarget) -> CalibrationRecord:
        """Judge a stored curve without missing points, and store the verdict. Raises CalibrationError."""
        record = self._curves.curves[target.index]
        said = {name: record[name] for name in MEASURED}
        return self.judge(target, self.kept(target), read_unsteered(record), said)

    def judge(
        self,
        target: CalibrationTarget,
        points: Mapping[float, Point],
        unsteered: Mapping[str, AnswerMetrics],
        said: Mapping[str, Any],
    ) -> CalibrationRecord:
        """
        Judge a whole curve, and store it with its verdict.

        said: from `measurement_record`
        Raises CalibrationError where words are to judge by, and none are left.
        """
        curve, criteria = tuple(points[strength] for strength in sorted(points)), self.settings.criteria
        if criteria.judge == "words" and not said["concept"]["words"]:
            raise _no_words(target)
        verdict = judge(curve, criteria, said["prompts"]["count"])
        calibrated = CalibrationRecord(target, curve, unsteered, verdict, criteria, said)
        sample = self._sample(target, calibrated.shown)
        self._curves.put(target.index, {**calibrated.to_json(), "sample": sample})
        # what cannot be told takes nothing out of the book that was found with more prompts
        if verdict.is_told and (note := calibrated.to_note()):
            sae = self.settings.sae
            beside = sae.path if sae.path.is_dir() else sae.path.parent
            update_feature_book(self._folder, note, sae.summary.d_sae, source=beside)
        return calibrated

    def record(self, calibrated: CalibrationRecord) -> dict[str, Any]:
        """Return the stored record of a feature, JSON-able."""
        return {"index": calibrated.target.index, **self._curves.curves[calibrated.target.index]}

    def _sample(self, target: CalibrationTarget, shown: Point) -> dict[str, Any] | None:
        """Show one prompt with both its answers; None where the answers are not at hand any more."""
        key = AnswerKey(target.index, shown.act)
        if key not in self.answers or UNSTEERED not in self.answers:
            old = self._curves.curves.get(target.index, {}).get("sample")
            return old if old and old["strength"] == shown.strength else None
        decoding = self.settings.decodings[0].name
        steered, unsteered = (self.answers[one][decoding][0].text for one in (key, UNSTEERED))
        prompt = self.settings.prompts.texts[0]
        return {"strength": shown.strength, "prompt": prompt, "unsteered": unsteered, "steered": steered}


class CalibrationRun:
    """One pass over features, through one server."""

    def __init__(
        self,
        calibration: CalibrationPlan,
        asker: AnswerClient,
        server: Mapping[str, Any],
        report: Callable[[CalibrationTarget | None, Point | None], None],
    ) -> None:
        """
        Prepare a run.

        server: facts of the server, to be stored with the curves
        report: called with each feature and point that is measured, and with None and None for the unsteered answers
        """
        self._calibration = calibration
        self._asker = asker
        self._server = server
        self._report = report

    async def measure(self, targets: Sequence[CalibrationTarget]) -> list[CalibrationRecord]:
        """
        Measure the missing points of each feature's curve. Answers are stored as soon as a point has all of its own.

        Raises CalibrationError.
        """
        settings = self._calibration.settings
        doses = [
            CalibrationDose(settings.sae.name, target.index, target.act_at(missing[-1]))
            for target in targets
            if (missing := self._calibration.missing(target))
        ]
        # with the largest doses, before anything takes long: a server with a bound refuses them now
        await self._asker.check(settings.prompts.texts[0], settings.decodings[0], doses)
        # before all others, as common words of the labels are found in them
        await self._answers(UNSTEERED)
        self._report(None, None)
        return await gather_first_error(self._measure_feature(target) for target in targets)

    async def _measure_feature(self, target: CalibrationTarget) -> CalibrationRecord:
        calibration = self._calibration
        words = calibration.words_of(target)
        measured = await gather_first_error(
            self._measure_point(target, strength, words) for strength in calibration.missing(target)
        )
        points = {point.strength: point for point in measured}
        unsteered = calibration.figures(calibration.answers[UNSTEERED], target, words)
        said = measurement_record(calibration.settings, target, words, self._server)
        return calibration.judge(target, {**calibration.kept(target), **points}, unsteered, said)

    async def _measure_point(self, target: CalibrationTarget, strength: float, words: WordSet | None) -> Point:
        act = target.act_at(strength)
        answers = await self._answers(AnswerKey(target.index, act))
        point = Point(strength, act, self._calibration.figures(answers, target, words))
        self._report(target, point)
        return point

    async def _answers(self, key: AnswerKey) -> Answers:
        settings, kept = self._calibration.settings, self._calibration.answers
        if key not in kept:
            dose = (
                None
                if key.feature is None or key.act is None
                else CalibrationDose(settings.sae.name, key.feature, key.act)
            )
            kept.add(key, await self._asker.answers(settings.prompts.texts, settings.decodings, dose))
        return kept[key]


def _no_words(target: CalibrationTarget) -> CalibrationError:
    return CalibrationError(
        f"The words that the labels give feature {target.title} ({', '.join(target.concept.words)}) stand in unsteered "
        f"answers too: give others with --concept '{target.title}=word;some phrase', or judge by similarity."
    )
