"""
The activation index: active features of every token, from one pass over the documents, kept on disk.

The pass writes one entry for each active feature of each token, in the order of the text; then the entries are sorted by
feature. Memory holds one group of documents at a time, and the disk 20 bytes an entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes.io.vector_files import allocate
from saeclamp_saes.labelling.column_store import STATE, ColumnStore, StoredColumn, check_size, damaged
from saeclamp_saes.lm.documents import documents
from saeclamp_saes.lm.harvest import ActivationReader, TokenSequence, report_forwards
from saeclamp_saes.progress import ProgressCallback
from saeclamp_saes.sae import SAE

ENCODED_AT_ONCE = 1 << 26
"""Activations in memory at once: 256 MB."""
SORTED_AT_ONCE = 1 << 22
"""Entries that are sorted at once."""
_COLUMNS = {
    "ids": StoredColumn("<i4"),
    "counts": StoredColumn("?"),
    "lengths": StoredColumn("<i4"),
    "documents": StoredColumn("<i8"),
    "token": StoredColumn("<i4"),
    "feature": StoredColumn("<i4"),
    "value": StoredColumn("<f4"),
}


class FeatureActivations(NamedTuple):
    """The tokens on which a feature is active, and its activations there."""

    token: NDArray[Any]
    """(n,) int32, places in the stream of tokens, ascending"""
    value: NDArray[Any]
    """(n,) float32, positive"""


@dataclass(frozen=True)
class ActivationIndex:
    """A text as a stream of tokens, and the activations of each feature in it."""

    ids: NDArray[Any]
    """(num_read,) int32: token ids, sequence after sequence"""
    counts: NDArray[Any]
    """(num_read,) bool: not the first of its sequence, no special token, no sink"""
    starts: NDArray[Any]
    """(num_sequences + 1,) int64: places in the stream at which sequences begin, and at which the last one ends"""
    documents: NDArray[Any]
    """(num_sequences,) int64: number of each sequence's document"""
    quotable: NDArray[Any]
    """(num_sequences,) bool: true for those that may be shown as examples"""
    offsets: NDArray[Any]
    """(d_sae + 1,) int64: index of each feature's first entry, and the number of entries"""
    token: NDArray[Any]
    """(num_entries,) int32: place in the stream"""
    value: NDArray[Any]
    """(num_entries,) float32: activation there"""

    def __getitem__(self, feature: int) -> FeatureActivations:
        """Return a feature's tokens and activations."""
        here = slice(self.offsets[feature], self.offsets[feature + 1])
        return FeatureActivations(np.asarray(self.token[here]), np.asarray(self.value[here]))

    @property
    def d_sae(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens that count."""
        return int(self.counts.sum())

    @cached_property
    def num_active(self) -> NDArray[Any]:
        """Number of tokens on which each feature is active: (d_sae,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def quotable_places(self) -> NDArray[Any]:
        """Places in the stream that may be shown: (n,) int64."""
        places: NDArray[Any] = np.repeat(self.quotable, np.diff(self.starts)).nonzero()[0]
        return places

    def sequence_of(self, token: NDArray[Any]) -> NDArray[Any]:
        """
        Return the number of the sequence that each place of the stream is in.

        token: (n,) int
        """
        return np.searchsorted(self.starts, token, side="right") - 1


def sequences_of_files(firings: ActivationIndex, files: Sequence[Path], chosen: Sequence[Path]) -> NDArray[Any]:
    """
    Tell which sequences come from some of the files that were read.

    chosen:  among `files`
    returns: (num_sequences,) bool
    """
    is_chosen: list[bool] = []
    last = int(firings.documents.max(initial=-1))
    for file in files:
        if len(is_chosen) > last:
            break
        is_chosen += [file in chosen] * sum(1 for _ in documents([file]))
    of_sequences: NDArray[Any] = np.array(is_chosen, bool)[firings.documents]
    return of_sequences


def build_index(
    folder: Path,
    sae: SAE,
    reader: ActivationReader,
    files: Sequence[Path],
    limits: Tensor,
    tokens: int,
    report: ProgressCallback,
    *,
    encoded_at_once: int = ENCODED_AT_ONCE,
    sorted_at_once: int = SORTED_AT_ONCE,
) -> ActivationIndex:
    """
    Read the documents, or resume an interrupted pass.

    folder: folder of this step, which is made; it keeps the state to resume from
    sae:    on the model's device
    limits: (num_sites,), from `norm_limits`: a token whose vector's norm is larger at any site is a sink
    tokens: tokens to read, at most; the last sequence is cut there
    Raises LabelError where the state is damaged.
    """
    columns = ColumnStore(folder, _COLUMNS)
    at: dict[str, Any] = {"document": 0, "read": 0, "ended": False, "sorted": False}
    if columns.state:
        if {name: type(value) for name, value in columns.state.items()} != {name: type(at[name]) for name in at}:
            raise damaged(folder / STATE)
        at = dict(columns.state)
    num_rows = max(1, encoded_at_once // sae.d_sae)
    for group in _groups(reader, files, at["document"], tokens - at["read"]) if not at["ended"] else ():
        read = report_forwards(report, "reading documents", at["read"], tokens, lambda part: len(part.ids))
        _append(columns, sae, limits, group, reader.vectors(group.parts, read), at["read"], num_rows)
        at["read"] += sum(len(part.ids) for part in group.parts)
        at["document"] = group.end
        columns.commit(**at)
        report("reading documents", at["read"], tokens, {})
    columns.commit(**{**at, "ended": True})
    return _sorted(folder, columns, sae.d_sae, report, sorted_at_once)


class _FeatureGroup(NamedTuple):
    parts: list[TokenSequence]
    documents: list[int]
    """Number of each part's document."""
    end: int
    """Number of the next document."""


def _groups(reader: ActivationReader, files: Sequence[Path], start: int, tokens: int) -> Iterator[_FeatureGroup]:
    """Yield groups of documents, so that sequences of like length run at once. A group depends only on where it starts."""
    parts: list[TokenSequence] = []
    owners: list[int] = []
    held, at = 0, start
    for document in documents(files, start):
        if tokens <= 0:
            break
        for part in reader.parts(document):
            cut = TokenSequence(part.ids[:tokens], part.counts[:tokens])
            if len(cut.ids):
                parts.append(cut)
                owners.append(at)
                tokens -= len(cut.ids)
                held += len(cut.ids)
        at += 1
        if held >= reader.least_group:
            yield _FeatureGroup(parts, owners, at)
            parts, owners, held = [], [], 0
    if parts:
        yield _FeatureGroup(parts, owners, at)


def _append(
    columns: ColumnStore,
    sae: SAE,
    limits: Tensor,
    group: _FeatureGroup,
    found: Sequence[Tensor],
    num_read: int,
    at_once: int,
) -> None:
    for part, vectors, document in zip(group.parts, found, group.documents, strict=True):
        norms = vectors.float().norm(dim=2)
        ordinary = (norms <= limits.to(norms.device)).all(dim=1)
        counts = part.counts.clone()
        counts[part.counts] = ordinary.cpu()
        place = num_read + counts.nonzero()[:, 0]
        x = vectors[ordinary].flatten(1)
        for first in range(0, len(x), at_once):
            acts = sae.encode(x[first : first + at_once])
            row, feature = (acts > 0).nonzero(as_tuple=True)
            columns.append(
                token=place[first + row.cpu()].numpy(),
                feature=feature.cpu().numpy(),
                value=acts[row, feature].cpu().numpy(),
            )
        columns.append(
            ids=part.ids.numpy(),
            counts=counts.numpy(),
            lengths=np.array([len(part.ids)]),
            documents=np.array([document]),
        )
        num_read += len(part.ids)


def _sorted(folder: Path, columns: ColumnStore, d_sae: int, report: ProgressCallback, at_once: int) -> ActivationIndex:
    feature, token, value = columns["feature"], columns["token"], columns["value"]
    total = len(feature)
    firsts = range(0, total, at_once)
    num_active = np.zeros(d_sae, np.int64)
    for first in firsts:
        num_active += np.bincount(feature[first : first + at_once], minlength=d_sae)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(num_active)])
    by_feature = {"token": "<i4", "value": "<f4"}
    paths = {name: folder / f"{name}-by-feature" for name in by_feature}
    if not columns.state["sorted"]:
        out = {name: _mapped(paths[name], dtype, total) for name, dtype in by_feature.items()}
        free = offsets[:-1].copy()
        for first in firsts:
            here = slice(first, first + at_once)
            # stable, so that a feature's tokens stay in the order of the text
            order = np.argsort(feature[here], kind="stable")
            features = feature[here][order]
            run = np.searchsorted(features, features)  # where the run of equal ones begins
            place = free[features] + np.arange(len(features)) - run
            out["token"][place], out["value"][place] = token[here][order], value[here][order]
            free += np.bincount(features, minlength=d_sae)
            report("sorting by feature", min(first + at_once, total), total, {})
        columns.commit(**{**columns.state, "sorted": True})
    for name, dtype in by_feature.items():
        check_size(paths[name], total * np.dtype(dtype).itemsize)
    lengths = columns["lengths"].astype(np.int64)
    return ActivationIndex(
        ids=columns["ids"],
        counts=columns["counts"],
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        documents=columns["documents"],
        quotable=np.ones(len(lengths), bool),
        offsets=offsets,
        **{
            name: np.memmap(paths[name], dtype, mode="r", shape=(total,)) if total else np.empty(0, dtype)
            for name, dtype in by_feature.items()
        },
    )


def _mapped(path: Path, dtype: str, size: int) -> Any:
    if not size:
        return np.empty(0, dtype)
    allocate(path, size * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, mode="r+")
