"""
How long a search takes in a large SAE, and in a small one: median and 99th percentile over many different queries.

    python -m benchmarks.search [--features 131072] [--write]

Labels are made of words drawn as often as words are used, so that common ones match many features. Their embeddings are
drawn by chance: what is timed does not depend on them, and computing them takes minutes. Every query is a new one, so each
is embedded by the sentence encoder.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.machine import RESULTS
from tests.support.blank_label import blank_label
from tests.support.sae_entries import entry

from saeclamp.types import FeatureQuery
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import LabelsInfo, TokenLogit, to_batch, write_labels
from saeclamp_server.api.features import FeatureSearch, embedding_index
from saeclamp_server.sentence_encoder import SentenceEncoder
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import SiteNorms

SMALL = 4096
NUM_WORDS = 20_000
NUM_QUERIES = 200
PART = 8192
TARGET_MS = 50


class Words:
    """
    A vocabulary as rare as real ones without their most common words, of which searches take no notice.

    The n-th word is drawn in proportion to 1 / (n + 40).
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._words = [
            "".join(self._chance.choices("abcdefghijklmnoprstuvw", k=self._chance.randint(3, 9)))
            for _ in range(NUM_WORDS)
        ]
        self._cumulated = [*accumulate(1 / (rank + 40) for rank in range(1, NUM_WORDS + 1))]

    def draw(self, count: int) -> list[str]:
        """Draw words as often as they are used."""
        return self._chance.choices(self._words, cum_weights=self._cumulated, k=count)


def labels(path: Path, num: int, words: Words) -> LabelFile:
    """Write labels of so many features: a sentence of eight words each, five tokens read and ten promoted."""
    info = LabelsInfo("large", "0" * 64, "none", {}, {}, 1, {}, (), {}, date.today().isoformat())

    def row(index: int) -> Any:
        tokens = ", ".join(f'" {word}"' for word in words.draw(5))
        return blank_label(
            index=index,
            num_active=1,
            top_act=1.0,
            explanation=" ".join(words.draw(8)),
            explanation_source="chance",
            input_label=f"token {tokens}",
            top_logits=tuple(TokenLogit(f" {word}", 0, 1.0) for word in words.draw(10)),
        )

    write_labels(
        path, info, (to_batch([row(n) for n in range(first, min(first + PART, num))]) for first in range(0, num, PART))
    )
    return LabelFile(path)


def chance_rows(sentences: Any, encoder: SentenceEncoder) -> embedding_index.EmbeddingIndex:
    """Embeddings of unit length that nothing was embedded for."""
    rows = np.random.default_rng(0).normal(size=(len(sentences), 384)).astype(np.float32)
    return embedding_index.EmbeddingIndex(encoder, rows / np.linalg.norm(rows, axis=1, keepdims=True))


def measure(num: int) -> tuple[float, list[float]]:
    """Return the seconds of preparation, embedding aside, and those of each query."""
    words = Words(seed=num)
    with tempfile.TemporaryDirectory() as folder:
        known = ServedSAE(
            entry("large", 0, num), SiteNorms(1.0, [1.0]), labels=labels(Path(folder) / "labels.parquet", num, words)
        )
        search = FeatureSearch({"large": known})
        embedding_index.EmbeddingIndex.build = chance_rows  # type: ignore[method-assign, assignment]
        started = time.perf_counter()
        search.prepare()
        prepared = time.perf_counter() - started
    seconds = []
    for number in range(NUM_QUERIES + 10):
        query = FeatureQuery(query=" ".join(words.draw(1 + number % 4)))
        started = time.perf_counter()
        found = search.find(query)
        seconds.append(time.perf_counter() - started)
        assert found.rankings == ("words", "tokens", "meaning")
    return prepared, seconds[10:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results")
    args = parser.parse_args()
    set_up_log()
    lines = [
        f"# Searching features, {date.today().isoformat()}",
        "",
        f"`python -m benchmarks.search`: {NUM_QUERIES} queries of one to four words, none asked before; milliseconds.",
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}.",
        "",
        "| features | p50 | p99 | longest | preparing, embedding aside (s) | target, p50 |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for num in (SMALL, args.features):
        prepared, seconds = measure(num)
        cuts = statistics.quantiles(seconds, n=100)
        figures = (cuts[49], cuts[98], max(seconds))
        lines.append(
            f"| {num} | {' | '.join(f'{value * 1000:.1f}' for value in figures)} | {prepared:.1f} | {TARGET_MS} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        (RESULTS / f"{date.today().isoformat()}-search.md").write_text(text)


if __name__ == "__main__":
    main()
