"""Metrics of one text: words of a concept, distinct bigrams, repetition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from saeclamp_server.calibration.errors import CalibrationError

WORD = re.compile(r"\w+(?:['’]\w+)*")
LAST_WORDS = 20
"""Words at the end of an answer in which repetition is counted."""


def tokenize_words(text: str) -> list[str]:
    """Split into lowercase words; what is no letter, digit or apostrophe inside a word separates."""
    return WORD.findall(text.lower())


def distinct_2(text: str) -> float | None:
    """Compute the share of different pairs among all pairs of neighbouring words. None for fewer than two words."""
    words = tokenize_words(text)
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else None


def repetition(text: str) -> float | None:
    """Compute the share of the last 20 words that have stood among these before. None for a text without words."""
    last = tokenize_words(text)[-LAST_WORDS:]
    return 1 - len(set(last)) / len(last) if last else None


class WordSet:
    """Words and phrases to look for in texts. Case is ignored; `*` at the end stands for any ending."""

    def __init__(self, words: Sequence[str]) -> None:
        """Take words and phrases. Raises CalibrationError where there are none, or one holds no letter or digit."""
        if not words or not all(WORD.search(word) for word in words):
            raise CalibrationError(f"{'; '.join(words)!r} are no words to look for: write 'word;some phrase;begin*'.")
        self.words = tuple(words)

    @classmethod
    def parse(cls, text: str) -> WordSet:
        """Read words that semicolons separate. Raises CalibrationError, also for a comma, which may be meant to."""
        if "," in text:
            raise CalibrationError(
                f"{text!r} holds a comma: separate words with semicolons, as in 'word;some phrase;begin*', and leave the "
                "comma out of a phrase."
            )
        return cls([word.strip() for word in text.split(";") if word.strip()])

    def found_in(self, text: str) -> bool:
        """Tell whether the text holds one of them, as whole words."""
        return self._pattern.search(text) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(r"(?<!\w)(?:" + "|".join(map(_pattern_of, self.words)) + r")(?!\w)", re.IGNORECASE)


def _pattern_of(words: str) -> str:
    stem = words.removesuffix("*")
    return r"\s+".join(map(re.escape, stem.split())) + (r"\w*" if stem != words else "")
