"""Features ranked by the words of a query: SQLite's full-text index, in memory."""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import NamedTuple

from saeclamp_server.api.features.search_documents import FeatureDocument

COMMON = frozenset(
    """
    a about an and are as at be by can do for from how i in is it me my of on or that the this to was what when where which
    who why with you your
    """.split()  # noqa: SIM905
)
"""Words that say nothing of a subject; they are looked for where a query has no others."""
MAX_WORDS = 32
"""Words of a query; what follows is left out."""
SAID, TOKENS = "{name said}", "{tokens}"
"""Columns: what people say of a feature, and its tokens."""


class Match(NamedTuple):
    """A feature that a query found."""

    number: int
    coverage: float
    """Share of the query's words that it holds."""


class FullTextIndex:
    """Stems of English words, and words of any language as they are. Features are numbered as they were added."""

    def __init__(self, texts: Iterable[FeatureDocument]) -> None:
        self._lock = Lock()  # searches run in several threads, and share this connection
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        # neither texts nor places within them are kept, because numbers are all that is asked for
        self._db.execute(
            "CREATE VIRTUAL TABLE words USING fts5("
            "name, said, tokens, content='', detail=column, tokenize='porter unicode61 remove_diacritics 2')"
        )
        rows = ((number, text.name, text.said, text.tokens) for number, text in enumerate(texts))
        self._db.executemany("INSERT INTO words(rowid, name, said, tokens) VALUES (?, ?, ?, ?)", rows)
        self._db.execute("INSERT INTO words(words) VALUES ('optimize')")

    def search(self, query: str, columns: str, limit: int | None = None) -> list[Match]:
        """
        Rank the matches, best first; those with more of the query's rare words are better.

        columns: `SAID` or `TOKENS`
        limit:   of the matches that are ranked; None ranks all of them, which takes longer
        """
        # once each: the index is read again for every word
        words = [*dict.fromkeys(_words(query))][:MAX_WORDS]
        words = [word for word in words if word.lower() not in COMMON] or words
        if not words:
            return []
        # quoted, so that none is an operator of the query language; the last may be half typed
        terms = [f'"{word}"' for word in words]
        terms[-1] += "*" if len(words[-1]) > 2 else ""
        with self._lock:
            ranked = self._db.execute(
                "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?",
                (f"{columns} : ({' OR '.join(terms)})", -1 if limit is None else limit),
            )
            numbers = [number for (number,) in ranked]
            if len(terms) == 1:
                return [Match(number, 1.0) for number in numbers]
            num_words = dict.fromkeys(numbers, 0)
            for term in terms:
                holders = self._db.execute("SELECT rowid FROM words WHERE words MATCH ?", (f"{columns} : {term}",))
                for (number,) in holders:
                    if number in num_words:
                        num_words[number] += 1
        return [Match(number, num_words[number] / len(words)) for number in numbers]


def _words(query: str) -> Iterator[str]:
    """
    Yield the words of a query as the index has them: of letters and digits alone.

    One that the index would take for several would be a phrase, which it refuses. SQLite knows the letters of an old
    Unicode; those that are newer than its are words by themselves, whichever it takes them for.
    """
    for word in re.findall(r"[^\W_]+", query):
        yield from re.findall(r"\S+", "".join(one if _is_old(one) else f" {one} " for one in word))


def _is_old(character: str) -> bool:
    return unicodedata.ucd_3_2_0.category(character)[0] in "LN"
