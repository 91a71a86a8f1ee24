"""The columns of a file of labels, as Parquet types; `table.Feature` documents them."""

from __future__ import annotations

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
