"""
Looking for features: three rankings made into one, by words of what people say, by tokens, and by meaning.

Ranks are fused, not scores, which have no common scale: a feature's score is the sum of weight / (60 + rank) over the
rankings that hold it (Cormack, Clarke, Buettcher, SIGIR 2009, with weights). The weight is 1 by meaning; by words it is the
square of the share of the query's words that the feature holds: whoever asks for "climate change" does not mean "change".
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice

import numpy as np

from saeclamp.types import FeatureHit, FeatureHits, FeatureQuery, Label
from saeclamp_saes.errors import LabelError
from saeclamp_server.api.features.embedding_index import EmbeddingIndex, Mask
from saeclamp_server.api.features.full_text_index import SAID, TOKENS, FullTextIndex, Match
from saeclamp_server.api.features.search_documents import SearchDocuments
from saeclamp_server.errors import SearchUnavailableError
from saeclamp_server.sentence_encoder import SentenceEncoder, SentenceEncoderMissingError
from saeclamp_server.served_sae import ServedSAE

logger = logging.getLogger("saeclamp.server")

NUM_RANKED = 200
"""Features that each ranking holds."""
FUSION = 60
LEAST_SIMILARITY = 0.25
"""Cosine below which a sentence is not about what was asked for."""
POLL_S = 0.05
NUM_TOKENS = 5
"""Tokens of each kind that a hit shows."""
NO_WORDS = "None of the labels and tokens that were searched has one of these words; these are nearest in meaning."
NO_TEXT = (
    "No feature of these SAEs has a name or a label, so there is nothing to search: make labels with `saeclamp label`, or "
    "look in a text, or at what tells two sets of texts apart."
)
PREPARING = "Embeddings are still being computed, so this is a search by words."


class FeatureSearch:
    """Searches all SAEs of a server. Features are numbered through, one SAE after the other."""

    def __init__(self, served_saes: Mapping[str, ServedSAE]) -> None:
        self._served_saes = served_saes
        self._saes: Sequence[SearchDocuments] = ()
        self._starts: list[int] = []
        self._words: FullTextIndex | None = None
        self._meanings: EmbeddingIndex | None = None
        self.note: str | None = PREPARING
        """Reason why meaning takes no part in searches; None: it does."""
        self.encoder: SentenceEncoder | None = None
        """Encoder of sentences; None until it is loaded."""
        self._is_ready = threading.Event()
        # meaning is ranked while words are: each takes half of a search, most of it outside of Python's lock
        self._beside = ThreadPoolExecutor(thread_name_prefix="meaning")

    def prepare(self) -> None:
        """Read what is searched, then embed it. Until the first is done, searches wait; until both are, words decide."""
        try:
            self._saes = [_readable(sae) for sae in self._served_saes.values()]
            self._starts = [0, *accumulate(map(len, self._saes))]
            texts = [text for sae in self._saes for text in sae.texts()]
            self._words = FullTextIndex(texts)
        finally:
            self._is_ready.set()
        try:
            self.encoder = SentenceEncoder()
            self._meanings = EmbeddingIndex.build([text.sentence for text in texts], self.encoder)
            self.note = None
        except SentenceEncoderMissingError as exc:
            self.note = f"This is a search by words. {exc}"
        except Exception as exc:  # noqa: BLE001 - whatever ends this thread, searches must not be told to wait for it
            self.note = "This is a search by words: features could not be embedded."
            logger.warning(f"features cannot be looked for by meaning: {exc!r}")

    async def until_ready(self) -> None:
        """Wait until it can be searched, in no thread: more might wait than there are, and outlast the server."""
        while not self._is_ready.is_set():
            await asyncio.sleep(POLL_S)

    def find(self, query: FeatureQuery) -> FeatureHits:
        """Find a page of features. The query's SAEs must be loaded. Raises SearchUnavailableError."""
        self._is_ready.wait()
        if self._words is None:
            raise SearchUnavailableError
        wanted = self._wanted(query)
        page = slice(query.offset, query.offset + query.limit)
        if not query.query.strip():
            numbers = np.flatnonzero(wanted)
            return FeatureHits(data=tuple(self._hit(int(number)) for number in numbers[page]), num_found=len(numbers))
        meanings = self._meanings
        near: Future[list[int]] | None = None
        if meanings is not None:
            near = self._beside.submit(meanings.nearest, query.query, wanted, NUM_RANKED, LEAST_SIMILARITY)
        rankings = [self._by_words(query.query, columns, wanted) for columns in (SAID, TOKENS)]
        has_words = any(rankings)
        if near is not None:
            rankings.append([Match(number, 1.0) for number in near.result()])
        scores: dict[int, float] = defaultdict(float)
        for ranking in rankings:
            for rank, match in enumerate(ranking, 1):
                scores[match.number] += match.coverage**2 / (FUSION + rank)
        best = sorted(scores, key=lambda number: (-scores[number], number))
        cosines = meanings.cosines(query.query, best[page]) if meanings else [None] * len(best[page])
        return FeatureHits(
            data=tuple(
                self._hit(number, scores[number], cosine) for number, cosine in zip(best[page], cosines, strict=True)
            ),
            num_found=len(best),
            rankings=("words", "tokens", "meaning") if meanings else ("words", "tokens"),
            note=self._note(has_words, bool(best)),
        )

    def _note(self, has_words: bool, has_hits: bool) -> str | None:
        if not has_hits and not any(sae.has_text for sae in self._saes):
            return NO_TEXT
        if self._meanings is None:
            return self.note
        return NO_WORDS if has_hits and not has_words else None

    def _by_words(self, query: str, columns: str, wanted: Mask) -> list[Match]:
        assert self._words is not None, "it is ready"
        # where a query filters, those that pass may rank anywhere
        limit = NUM_RANKED if wanted.all() else None
        matches = (match for match in self._words.search(query, columns, limit) if wanted[match.number])
        return [*islice(matches, NUM_RANKED)]

    def label(self, sae: str, index: int) -> Label | None:
        """Look up the best label of a feature; None until labels have been read."""
        found = self._of(sae)
        return found.label(index) if found else None

    def description(self, sae: str, index: int) -> str | None:
        """Describe a feature in words; None until labels have been read."""
        found = self._of(sae)
        return found.description(index) if found else None

    def output_score(self, sae: str, index: int) -> float | None:
        """Look up how well amplifying a feature brings out its own tokens; None until labels have been read."""
        found = self._of(sae)
        return _nan_to_none(found.output_score[index]) if found else None

    def density(self, sae: str, index: int) -> float | None:
        """Look up the share of tokens at which a feature is active; None until labels have been read."""
        found = self._of(sae)
        return _nan_to_none(found.density[index]) if found else None

    def _of(self, sae: str) -> SearchDocuments | None:
        return next((found for found in self._saes if found.sae.entry.name == sae), None)

    def _wanted(self, query: FeatureQuery) -> Mask:
        masks = [_passes(sae, query) for sae in self._saes]
        return np.concatenate(masks) if masks else np.zeros(0, np.bool_)

    def _hit(self, number: int, score: float | None = None, similarity: float | None = None) -> FeatureHit:
        of = int(np.searchsorted(self._starts, number, side="right")) - 1
        sae, index = self._saes[of], number - self._starts[of]
        name, note = sae.sae.entry.name, sae.sae.entry.features.get(index)
        return FeatureHit(
            feature=f"{name}/{index}",
            sae=name,
            index=index,
            name=note.name if note else None,
            label=sae.label(index),
            description=sae.description(index),
            tokens=tuple(sae.tokens[index][:NUM_TOKENS]),
            promotes=tuple(sae.promotes[index][:NUM_TOKENS]),
            density=_nan_to_none(sae.density[index]),
            max_act=self._served_saes[name].max_act(index),
            output_score=_nan_to_none(sae.output_score[index]),
            green_zone=note.clamp if note else None,
            best=note.best if note else None,
            similarity=similarity,
            score=score,
        )


def _readable(sae: ServedSAE) -> SearchDocuments:
    try:
        return SearchDocuments.build(sae)
    except LabelError as exc:
        logger.warning(f"SAE {sae.entry.name}: its features are found by the feature book alone. {exc}")
        return SearchDocuments.build(sae.without_labels())


def _passes(sae: SearchDocuments, query: FeatureQuery) -> Mask:
    """Tell which of an SAE's features a query lets through. NaN, which is unknown, passes no bound."""
    if query.sae and sae.sae.entry.name not in query.sae:
        return np.zeros(len(sae), np.bool_)
    passes = np.ones(len(sae), np.bool_)
    if query.min_density is not None:
        passes &= sae.density >= query.min_density
    if query.max_density is not None:
        passes &= sae.density <= query.max_density
    if query.min_output_score is not None:
        passes &= sae.output_score >= query.min_output_score
    if query.green_zone:
        calibrated = [index for index, note in sae.sae.entry.features.items() if note.clamp is not None]
        passes &= np.isin(np.arange(len(sae)), calibrated)
    return passes


def _nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
