"""Output of a run: a line per point while it goes on, and each feature's curve at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any, Protocol

from saeclamp_saes.cli.output import print_facts, print_table
from saeclamp_saes.io.sanitize import escape_control_chars
from saeclamp_server.calibration.features import CalibrationTarget
from saeclamp_server.calibration.green_zone import Point
from saeclamp_server.calibration.metrics import AnswerMetrics, Estimate
from saeclamp_server.calibration.records import CalibrationRecord

logger = logging.getLogger("saeclamp.server")

COLUMNS = ("x max", "hit", "similar", "perplexity x", "distinct-2 x", "repeated", "dose", "score", "green")
SHOWN_LETTERS = 240
"""Characters of an answer that are shown."""


class CurveProgress(Protocol):
    """Function that counts points: called with each one, and with None and None for the unsteered answers."""

    def __call__(self, target: CalibrationTarget | None, point: Point | None) -> None: ...


@contextmanager
def progress(total: int) -> Iterator[CurveProgress]:
    """Print each point's metrics on stderr, one line per point; on a terminal with a bar below them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("strengths", total=total)
        done = 0

        def report(target: CalibrationTarget | None, point: Point | None) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done)
            if target is None or point is None:
                logger.info(f"[{done}/{total}] unsteered answers")
            else:
                # escaped: a name in a label or a file may hold sequences that steer the terminal
                line = f"{target.title} at {point.strength:g}: {_line(point.figures)}"
                logger.info(f"[{done}/{total}] {escape_control_chars(line)}")

        yield report


def print_curve(calibrated: CalibrationRecord, sample: Mapping[str, Any] | None) -> None:
    """
    Print a feature's curve with its green zone, and the verdict.

    sample: a prompt and its answers; None where none are at hand
    """
    verdict, several = calibrated.verdict, len(calibrated.unsteered) > 1
    print_facts({name: escape_control_chars(fact) for name, fact in _facts(calibrated, sample)})
    rows = []
    for name, figures in calibrated.unsteered.items():
        rows.append((name, "0", *_row(figures), "", ""))
        for point, score, green in zip(calibrated.points, verdict.scores, verdict.green, strict=True):
            mark = ("best" if point.strength == verdict.best else "green") if green else ""
            rows.append((name, f"{point.strength:g}", *_row(point.figures[name]), f"{score:.2f}", mark))
    columns = ("decoding", *COLUMNS)
    print_table(columns if several else columns[1:], rows if several else [row[1:] for row in rows])


def _facts(calibrated: CalibrationRecord, sample: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    measured, verdict = calibrated.measured, calibrated.verdict
    concept = measured["concept"]
    yield "feature", f"{measured['sae']['name']}/{calibrated.target.title}"
    yield "max act", f"{calibrated.target.max_act:g} ({calibrated.target.max_act_from})"
    yield "words", "; ".join(concept["words"]) + f" ({concept['words_from']})" if concept["words"] else "none"
    if left_out := concept["common_words_left_out"]:
        yield "common words left out", "; ".join(left_out)
    yield "similar to", f"{concept['texts']} texts ({concept['texts_from']})" if concept["texts"] else "nothing"
    yield "a hit is", "one of the words" if verdict.judge == "words" else "similarity above 95 % of unsteered answers"
    yield "prompts", f"{measured['prompts']['count']} ({measured['prompts']['from']})"
    for name, figures in calibrated.unsteered.items():
        yield f"unsteered, {name}", f"perplexity {_one(figures.perplexity)}, distinct-2 {_one(figures.distinct_2)}"
    yield "green zone", "none" if verdict.zone is None else f"{verdict.zone[0]:g} to {verdict.zone[1]:g}"
    yield "best", "none" if verdict.best is None else f"{verdict.best:g}"
    yield "verdict", verdict.why
    if sample is not None:
        yield "for example", _short(sample["prompt"])
        yield "  unsteered", _short(sample["unsteered"])
        yield f"  at {sample['strength']:g}", _short(sample["steered"])


def _row(figures: AnswerMetrics) -> tuple[str, ...]:
    return (
        _bounds(figures.hit),
        _bounds(figures.similar),
        _bounds(figures.perplexity_ratio),
        _bounds(figures.distinct_2_ratio),
        _one(figures.repetition),
        _one(figures.dose),
    )


def _short(text: str) -> str:
    return shorten(text, SHOWN_LETTERS, placeholder=" ...")


def _line(figures: Mapping[str, AnswerMetrics]) -> str:
    return "; ".join(
        f"{name}: hit {_value(of.hit)}, similar {_value(of.similar)}, perplexity {_value(of.perplexity_ratio)} x, "
        f"distinct-2 {_value(of.distinct_2_ratio)} x"
        for name, of in figures.items()
    )


def _value(figure: Estimate | None) -> str:
    return "-" if figure is None else f"{figure.value:.2f}"


def _bounds(figure: Estimate | None) -> str:
    return "-" if figure is None else f"{figure.value:.2f} ({figure.low:.2f}-{figure.high:.2f})"


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
