"""The columns of a file of labels, as Parquet types; `table.Feature` documents them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_TOKEN_LOGITS = pa.list_(pa.struct([("token", pa.string()), ("id", pa.int32()), ("value", pa.float32())]))
_EXAMPLE = pa.struct(
    [
        ("quantile", pa.int8()),
        ("tokens", pa.list_(pa.string())),
        ("acts", pa.list_(pa.float32())),
        ("peak", pa.int16()),
        ("peak_act", pa.float32()),
        ("document", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("index", pa.int32()),
        ("density", pa.float64()),
        ("num_active", pa.int64()),
        ("max_act", pa.float32()),
        ("top_act", pa.float32()),
        ("kind", pa.string()),
        ("label", pa.string()),
        ("label_score", pa.float32()),
        ("input_label", pa.string()),
        ("input_score", pa.float32()),
        ("say_label", pa.string()),
        ("say_score", pa.float32()),
        ("output_label", pa.string()),
        ("output_score", pa.float32()),
        ("top_logits", _TOKEN_LOGITS),
        ("bottom_logits", _TOKEN_LOGITS),
        ("neighbours", pa.list_(pa.struct([("index", pa.int32()), ("cosine", pa.float32())]))),
        ("examples", pa.list_(_EXAMPLE)),
        ("inactive", pa.list_(_EXAMPLE)),
        ("explanation", pa.string()),
        ("explanation_source", pa.string()),
        ("explanation_score", pa.float32()),
        ("histogram", pa.list_(pa.int64())),
    ]
)
LATER = {"histogram": 3}
"""Columns that came after version 2 of the file, with the version that brought them."""


def schema_of(version: int) -> Any:
    """Return the pyarrow.Schema of a version of the file."""
    return pa.schema([field for field in SCHEMA if LATER.get(field.name, 0) <= version])


def with_later_columns(table: Any) -> Any:
    """Give a pyarrow.Table of an older version the columns that it lacks, empty."""
    for name in LATER.keys() - set(table.column_names):
        table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    return table
