"""
The file of labels of an SAE's features: Parquet, one row a feature, with the weights, model and text in its metadata.

A feature's number means nothing by itself: labels belong to the very decoder they were measured on, so the file holds that
decoder's hash, and is refused for any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from saeclamp_saes.errors import LabelError
from saeclamp_saes.io.atomic import replacing
from saeclamp_saes.io.checkpoint import LABELS
from saeclamp_saes.io.hashes import tensor_sha256
from saeclamp_saes.io.sanitize import first_line, one_line
from saeclamp_saes.labelling.schema import SCHEMA, schema_of, with_later_columns
from saeclamp_saes.sae import SAE

Kind = Literal["input", "say", "output", "none"]

_METADATA = b"saeclamp_labels"
_VERSION = 3
_OLDEST = 2


@dataclass(frozen=True)
class Example:
    """A piece of text with a feature, or without it."""

    quantile: int
    """Tenth of the feature's positive activations: 9 is the strongest. -1: the feature is not active here."""
    tokens: tuple[str, ...]
    acts: tuple[float, ...]
    """The feature's activation on each token; 0 on those that do not count (first of a sequence, special, sink)."""
    peak: int
    """Index, among the tokens, of the one that the example was chosen for."""
    peak_act: float
    document: int
    """Number of the document in the data, from 0."""


@dataclass(frozen=True)
class TokenLogit:
    """A token, and the amount that a feature's decoder row adds to its logit, up to the final norm's own scale."""

    token: str
    id: int
    value: float


@dataclass(frozen=True)
class Neighbour:
    """A feature whose decoder row points the same way."""

    index: int
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """A label in prose, which was not made by counting."""

    text: str
    source: str
    """Its author: `llm:<model>` or `neuronpedia:<model>/<type>`."""
    score: float | None = None
    """Score of the source's own kind; None: not measured."""


@dataclass(frozen=True)
class Feature:
    """A feature's measurements and labels: a row of the file, whose columns have these names."""

    index: int
    density: float
    """Share of the tokens that count on which it is active."""
    num_active: int
    """Number of these tokens."""
    max_act: float | None
    """99.9th percentile of its positive activations. None: it was never active."""
    top_act: float | None
    """Its largest activation. None: it was never active."""
    kind: Kind
    """The one of the three typed labels below that holds; `none` where no score passes its bar."""
    label: str | None
    label_score: float | None
    input_label: str | None
    """Tokens on which it is active: `token " bridge"`."""
    input_score: float | None
    say_label: str | None
    """Token before which it is active: `say " the"`."""
    say_score: float | None
    output_label: str | None
    """Tokens that become likelier when it is amplified: `promotes " bridge"`. None: none becomes twice as likely."""
    output_score: float | None
    """Output score: effect of amplifying it on its own tokens, with or without a label."""
    top_logits: tuple[TokenLogit, ...] | None
    """Tokens whose logits it raises most, largest first. None: not known for this model or SAE."""
    bottom_logits: tuple[TokenLogit, ...] | None
    """Tokens whose logits it lowers most, smallest first."""
    neighbours: tuple[Neighbour, ...]
    """Features whose decoder rows point the same way, largest cosine first."""
    examples: tuple[Example, ...]
    """Pieces with the feature: strongest quantile first, and in it the strongest first."""
    inactive: tuple[Example, ...]
    """Pieces of text, drawn by chance, in which it is active on no token that counts."""
    explanation: str | None = None
    explanation_source: str | None = None
    explanation_score: float | None = None
    histogram: tuple[int, ...] | None = None
    """
    Number of tokens by activation, in bins of equal width from 0 to `top_act`. None: it was never active, or the labels are
    of a version that did not count them.
    """


@dataclass(frozen=True)
class LabelsInfo:
    """Metadata of labels: the weights, model, data and settings they were made with."""

    sae: str
    """Name of the SAE."""
    decoder_sha256: str
    """Hex digest from the function `decoder_sha256`."""
    model: str
    model_sha256: Mapping[str, str]
    """Hex digests of its weights, by file name."""
    data_sha256: Mapping[str, str]
    """Hex digests of the data, by file name."""
    num_tokens: int
    """Tokens that count: not the first of a sequence, no special token, no sink."""
    settings: Mapping[str, Any]
    """Settings of the measurement, JSON-able."""
    warnings: tuple[str, ...]
    """Sentences for the user."""
    versions: Mapping[str, str]
    """Versions of packages, by name."""
    date: str
    """Time in ISO 8601, UTC."""


@dataclass(frozen=True)
class LabelTable:
    """Labels of all features of an SAE; row i is feature i."""

    info: LabelsInfo
    table: Any
    """pyarrow.Table with `SCHEMA`."""

    @classmethod
    def of(cls, info: LabelsInfo, features: Iterable[Feature]) -> LabelTable:
        """Make a table of features, which come in order of index, from 0."""
        return cls(info, pa.Table.from_batches([to_batch(list(features))], SCHEMA))

    @classmethod
    def read(cls, path: Path) -> LabelTable:
        """
        Read a file, of whatever weights.

        Raises LabelError where there is none, or something else than labels, one row a feature in their order.
        """
        return cls(*_read(path))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> Feature:
        """Return a feature's row. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        (row,) = self.table.slice(index, 1).to_pylist()
        return to_feature(row)

    def __iter__(self) -> Iterator[Feature]:
        for batch in self.table.to_batches(max_chunksize=256):
            yield from map(to_feature, batch.to_pylist())

    def with_explanations(self, explanations: Mapping[int, Explanation | None]) -> LabelTable:
        """
        Return a copy in which these features have these explanations (None removes one); others keep theirs.

        explanations: by index
        Raises LabelError for an index that is no feature's.
        """
        if unknown := sorted(index for index in explanations if not 0 <= index < len(self)):
            raise LabelError(f"There is no feature {unknown[0]}: the labels are of features 0 to {len(self) - 1}.")
        table = self.table
        for column, field in (
            ("explanation", "text"),
            ("explanation_source", "source"),
            ("explanation_score", "score"),
        ):
            values = table[column].to_pylist()
            for index, explanation in explanations.items():
                values[index] = None if explanation is None else getattr(explanation, field)
            at = table.schema.get_field_index(column)
            table = table.set_column(at, SCHEMA.field(column), pa.array(values, SCHEMA.field(column).type))
        return replace(self, table=table)

    def explanations(self) -> dict[int, Explanation]:
        """Return all explanations, by index."""
        columns = ("explanation", "explanation_source", "explanation_score")
        rows = zip(*(self.table[name].to_pylist() for name in columns), strict=True)
        return {
            index: Explanation(text, source, score)
            for index, (text, source, score) in enumerate(rows)
            if text is not None
        }

    def write(self, path: Path) -> None:
        """Write the file, as a whole or not at all. Raises LabelError."""
        write_labels(path, self.info, self.table.to_batches(max_chunksize=1024))


def read_labels(path: Path, sae: SAE) -> LabelTable:
    """
    Read an SAE's labels.

    path: a file, or the folder it lies in under its usual name
    Raises LabelError where there are none, and for labels of other weights.
    """
    path = path / LABELS if path.is_dir() else path
    labels = LabelTable.read(path)
    if labels.info.decoder_sha256 != decoder_sha256(sae):
        raise LabelError(
            f"The labels in {path} are of other weights (of {one_line(labels.info.sae)}, labelled "
            f"{one_line(labels.info.date[:10])}), so their feature numbers mean other features: make new ones with "
            "`saeclamp label`."
        )
    if len(labels) != sae.d_sae:
        raise LabelError(
            f"{path} is damaged: it has labels of {len(labels)} features, and the SAE has {sae.d_sae}. Move it away and "
            "make new ones."
        )
    return labels


def write_labels(path: Path, info: LabelsInfo, batches: Iterable[Any]) -> None:
    """
    Write labels that need not be in memory all at once; the file appears as a whole or not at all.

    batches: pyarrow.RecordBatch of `SCHEMA`, in order of index
    Raises LabelError when it cannot be written.
    """
    noted = json.dumps({"version": _VERSION, "info": asdict(info)})
    schema = SCHEMA.with_metadata({_METADATA: noted})
    try:
        with replacing(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            # each batch becomes a row group, and `LabelFile` reads a whole one to show a feature: so batches are small
            for batch in batches:
                writer.write_batch(batch)
    except OSError as exc:
        raise LabelError(f"{path} cannot be written: {exc.strerror or exc}.") from None


def to_batch(features: Sequence[Feature]) -> Any:
    """Make rows of features: pyarrow.RecordBatch of `SCHEMA`."""
    return pa.RecordBatch.from_pylist([asdict(feature) for feature in features], SCHEMA)


def labels_path(sae: Path) -> Path:
    """
    Return the default path of an SAE's labels.

    sae: its folder; or its file, beside which others may lie, so that the labels are named after it
    """
    return sae / LABELS if sae.is_dir() else sae.with_name(f"{sae.stem}.{LABELS}")


def decoder_sha256(sae: SAE) -> str:
    """Hash the canonical decoder: hex digest of `W_dec` as float32, little-endian, feature after feature."""
    return tensor_sha256(sae.W_dec)


def _read(path: Path) -> tuple[LabelsInfo, Any]:
    with readable(path):
        info = read_info(path, pq.read_schema(path))
        table = with_later_columns(pq.read_table(path))
    check_order(path, table["index"].to_pylist())
    return info, table


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a file of labels into LabelError."""
    try:
        yield
    except FileNotFoundError:
        raise LabelError(f"There are no labels at {path}: make them with `saeclamp label`.") from None
    except (OSError, pa.ArrowException) as exc:
        raise LabelError(f"{path} cannot be read as Parquet: {first_line(exc)}") from None


def check_order(path: Path, indices: Sequence[int]) -> None:
    """Raise LabelError unless row i is feature i."""
    if list(indices) != list(range(len(indices))):
        raise LabelError(f"{path} is damaged: its features are not in order. Move it away and make new ones.")


def read_info(path: Path, schema: Any) -> LabelsInfo:
    """Read a file's metadata. Raises LabelError where they are not those of labels of this version."""
    try:
        noted = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
    except (ValueError, RecursionError):
        noted = None
    match noted:
        case {"version": int() as version, "info": dict() as info} if (
            _OLDEST <= version <= _VERSION
            and schema.equals(schema_of(version), check_metadata=False)
            and _says_all(info)
        ):
            return LabelsInfo(**{**info, "warnings": tuple(info["warnings"])})
    raise LabelError(f"{path} holds no labels that this version of saeclamp knows: move it away and make new ones.")


def _says_all(info: dict[str, Any]) -> bool:
    return (
        info.keys() == {field.name for field in fields(LabelsInfo)}
        and all(isinstance(info[name], str) for name in ("sae", "decoder_sha256", "model", "date"))
        and all(isinstance(info[name], dict) for name in ("model_sha256", "data_sha256", "settings", "versions"))
        and isinstance(info["num_tokens"], int)
        and isinstance(info["warnings"], list)
    )


def to_feature(row: dict[str, Any]) -> Feature:
    """Read a row of the file."""
    for name in ("top_logits", "bottom_logits"):
        if row[name] is not None:
            row[name] = tuple(TokenLogit(**item) for item in row[name])
    if row["histogram"] is not None:
        row["histogram"] = tuple(row["histogram"])
    row["neighbours"] = tuple(Neighbour(**item) for item in row["neighbours"])
    for name in ("examples", "inactive"):
        row[name] = tuple(
            Example(**{**item, "tokens": tuple(item["tokens"]), "acts": tuple(item["acts"])}) for item in row[name]
        )
    return Feature(**row)
