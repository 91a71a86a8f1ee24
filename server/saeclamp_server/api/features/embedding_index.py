"""Features ranked by meaning: cosines of sentence embeddings, which are computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from saeclamp_saes.io.atomic import replacing
from saeclamp_saes.io.locks import exclusive_lock
from saeclamp_saes.io.paths import cache_folder
from saeclamp_server.sentence_encoder import WEIGHTS_SHA256, SentenceEncoder

FOLDER = "embeddings"
PART = 512
"""Sentences that are embedded at a time."""
NUM_REMEMBERED = 256
"""Queries whose embeddings are remembered: people type, and turn pages."""

Rows = NDArray[np.float32]
Mask = NDArray[np.bool_]


class EmbeddingIndex:
    """Sentence embeddings of features, numbered as their sentences came. Those without a sentence are near nothing."""

    def __init__(self, encoder: SentenceEncoder, rows: Rows) -> None:
        """rows: (num_features, width), of unit norm or zero."""
        # of half the size they are read in half the time, which is what a search takes: cosines are wrong by about 0.002
        self._rows = torch.from_numpy(rows).bfloat16()
        self._embed = lru_cache(NUM_REMEMBERED)(lambda query: torch.from_numpy(encoder.encode([query])[0]))

    @classmethod
    def build(cls, sentences: Sequence[str], encoder: SentenceEncoder) -> EmbeddingIndex:
        """Embed sentences, unless that was done before; of many, it takes minutes, so one process of a machine does it."""
        path = cache_folder() / FOLDER / f"{_key(sentences)}.npy"
        rows = _kept(path)
        if rows is None:
            with ExitStack() as stack:
                with suppress(OSError):  # a folder that takes no lock takes no rows either
                    path.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(exclusive_lock(path.with_suffix(".lock")))
                rows = _kept(path)  # another one may have embedded them meanwhile
                if rows is None:
                    rows = _embedded(sentences, encoder)
                    _keep(path, rows)
        return cls(encoder, rows)

    def nearest(self, query: str, wanted: Mask, count: int, least: float) -> list[int]:
        """
        Return the numbers of the nearest features, nearest first.

        wanted: (num_features,)
        least:  cosine
        """
        cosines = (self._rows @ self._embed(query).bfloat16()).float()
        cosines[~torch.from_numpy(wanted)] = -1
        best = cosines.topk(min(count, len(cosines))).indices.sort().values
        # products in bfloat16 choose well enough, but are too coarse to order by
        exact = self.cosines(query, best.tolist())
        order = sorted(zip(exact, best.tolist(), strict=True), key=lambda one: (-one[0], one[1]))
        return [number for cosine, number in order if cosine >= least and wanted[number]]

    def cosines(self, query: str, numbers: Sequence[int]) -> list[float]:
        """Compare a query with some features."""
        cosines: list[float] = (self._rows[list(numbers)].float() @ self._embed(query)).tolist()
        return cosines


def _embedded(sentences: Sequence[str], encoder: SentenceEncoder) -> Rows:
    # a server without SAEs has none
    parts = [encoder.encode(sentences[start : start + PART]) for start in range(0, max(1, len(sentences)), PART)]
    rows: Rows = np.concatenate(parts)
    rows[np.array([not sentence for sentence in sentences], np.bool_)] = 0
    return rows


def _key(sentences: Sequence[str]) -> str:
    digest = hashlib.sha256(WEIGHTS_SHA256.encode())
    for sentence in sentences:
        digest.update(sentence.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _kept(path: Path) -> Rows | None:
    try:
        rows: Rows = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError):  # not there, or cut short
        return None
    return rows


def _keep(path: Path, rows: Rows) -> None:
    """Write rows in half precision, as a whole or not at all; a disk that takes nothing costs a repetition."""
    with suppress(OSError), replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, rows.astype(np.float16))
