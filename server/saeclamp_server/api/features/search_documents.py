"""Documents by which features are found, with what a hit shows of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Label
from saeclamp_saes.labelling.token_labels import tokens_of
from saeclamp_server.api.features.description import description
from saeclamp_server.api.features.sae_info import feature_book_label
from saeclamp_server.served_sae import ServedSAE

Floats = NDArray[np.float64]


class FeatureDocument(NamedTuple):
    """Texts by which a feature is found."""

    name: str
    said: str
    """Labels in prose."""
    tokens: str
    """Tokens on which it is active and those that it promotes, with blanks between them."""

    @property
    def sentence(self) -> str:
        """Sentence that is embedded for its meaning; empty where nothing is known."""
        if self.said:
            return f"{self.name.replace('-', ' ')}: {self.said}" if self.name else self.said
        return " ".join(word for word in f"{self.name} {self.tokens}".split() if any(map(str.isalnum, word)))


@dataclass(frozen=True)
class SearchDocuments:
    """All features of an SAE; entry i is feature i."""

    sae: ServedSAE
    explained: list[Label | None]
    """Labels in prose, from the file beside the SAE."""
    counted: list[Label | None]
    """Counted labels that hold."""
    tokens: list[list[str]]
    promotes: list[list[str]]
    density: Floats
    """NaN where it is not known, as in `output_score`."""
    output_score: Floats

    @classmethod
    def build(cls, known: ServedSAE) -> SearchDocuments:
        """Read the labels' columns. Raises LabelError."""
        labels, num = known.labels, known.entry.summary.d_sae
        nothing: list[Label | None] = [None] * num
        unknown = np.full(num, np.nan)
        if labels is None:
            return cls(known, nothing, nothing, [[]] * num, [[]] * num, unknown, unknown)
        explained = zip(*(labels.column(f"explanation{part}") for part in ("", "_source", "_score")), strict=True)
        counted = zip(*(labels.column(part) for part in ("label", "kind", "label_score")), strict=True)
        return cls(
            known,
            [_label(text, source or "unknown", score) for text, source, score in explained],
            [_label(text, kind, score) for text, kind, score in counted],
            [tokens_of(text) if text else [] for text in labels.column("input_label")],
            labels.top_tokens(),
            _floats(labels.column("density")),
            _floats(labels.column("output_score")),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def texts(self) -> Iterator[FeatureDocument]:
        """Yield the document of each feature, in order."""
        for index in range(len(self)):
            note, explained = self.sae.entry.features.get(index), self.explained[index]
            said = [note.description if note else None, explained.text if explained else None]
            tokens = [*self.tokens[index], *self.promotes[index]]
            yield FeatureDocument(
                note.name if note else "",
                " ".join(filter(None, said)),
                " ".join(token.strip() for token in tokens if token.strip()),
            )

    @property
    def has_text(self) -> bool:
        """True if there is anything to search."""
        return self.sae.labels is not None or bool(self.sae.entry.features)

    def label(self, index: int) -> Label | None:
        """Choose the best of a feature's labels."""
        said = feature_book_label(self.sae.entry.features.get(index))
        return said or self.explained[index] or self.counted[index]

    def description(self, index: int) -> str | None:
        """Describe a feature."""
        return description(self.label(index), self.tokens[index], self.promotes[index])


def _label(text: str | None, source: str, score: float | None) -> Label | None:
    return None if text is None else Label(text=text, source=source, score=score)


def _floats(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)
