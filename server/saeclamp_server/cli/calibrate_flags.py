"""Flags of `saeclamp calibrate`, by which features, prompts and criteria are chosen."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from saeclamp_saes.cli.arg_types import count_arg, positive_arg
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.green_zone import Criteria
from saeclamp_server.calibration.settings import AT_ONCE, MAX_TOKENS, STRENGTHS
from saeclamp_server.calibration.text_metrics import WordSet

T = TypeVar("T")
Given = tuple[str | None, T]
"""A feature and the value that was given for it; None for the only feature."""


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is measured."""
    group = parser.add_argument_group("what is measured")
    default = ",".join(f"{strength:g}" for strength in STRENGTHS)
    group.add_argument(
        "--strengths",
        type=_strengths,
        default=STRENGTHS,
        metavar="X,...",
        help=f"clamps, x max_act (default {default})",
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, instead of the packaged ones")
    group.add_argument(
        "--plain", action="store_true", help="continue the prompts as text, for a model without chat template"
    )
    group.add_argument(
        "--tokens", type=count_arg, default=MAX_TOKENS, metavar="N", help="of an answer (default %(default)s)"
    )
    group.add_argument(
        "--sampled", type=count_arg, default=0, metavar="N", help="besides greedy answers, N sampled at temperature 0.7"
    )
    group.add_argument(
        "--concept",
        type=_words,
        action="append",
        default=[],
        metavar="[FEATURE=]WORDS",
        help="'word;some phrase;begin*' of which an answer about the feature holds one; default: from the labels",
    )
    group.add_argument(
        "--examples", type=Path, metavar="FILE", help="table of labels; default: that beside the SAE, if there is one"
    )
    group.add_argument(
        "--no-similarity", action="store_true", help="do not compare answers with the feature's examples"
    )
    group.add_argument(
        "--max-act",
        type=_scale,
        action="append",
        default=[],
        metavar="[FEATURE=]VALUE",
        help="scale of the strengths; default: from the feature book, else the labels",
    )
    group.add_argument("--at-once", type=count_arg, default=AT_ONCE, metavar="N", help="requests (default %(default)s)")


def add_judging(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say when a strength works."""
    group = parser.add_argument_group(
        "when a strength is in the green zone (a curve that is kept is judged again at once)"
    )
    group.add_argument(
        "--judge", choices=("words", "similarity"), help="what a hit is; default: words, if any are known"
    )
    for option, field, what in (
        ("--share-of-best", "share_of_best", "of the largest gain in hits at a fluent strength, that it must reach"),
        ("--max-perplexity", "max_perplexity", "times the unsteered one"),
        ("--min-distinct-2", "min_distinct_2", "times the unsteered one"),
        ("--min-gain", "min_gain", "in hits, that the feature must reach at a fluent strength"),
    ):
        value = getattr(Criteria, field)
        group.add_argument(option, type=positive_arg, default=value, metavar="X", help=f"{what} (default %(default)s)")


def by_feature(given: Sequence[Given[T]], option: str) -> Mapping[str | None, T]:
    """Sort what was given by feature. Raises CalibrationError where one has two values."""
    found = dict(given)
    if len(found) != len(given):
        raise CalibrationError(f"{option} is given twice for one feature.")
    return found


def _strengths(text: str) -> tuple[float, ...]:
    return tuple(sorted({positive_arg(part) for part in text.split(",")}))


def _words(text: str) -> Given[WordSet]:
    feature, words = _split(text)
    try:
        return feature, WordSet.parse(words)
    except CalibrationError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _scale(text: str) -> Given[float]:
    feature, value = _split(text)
    return feature, positive_arg(value)


def _split(text: str) -> tuple[str | None, str]:
    """Split FEATURE=VALUE; what holds no `=` is for the only feature."""
    feature, equals, value = text.partition("=")
    return (feature, value) if equals else (None, text)
