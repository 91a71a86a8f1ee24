"""A feature's row of labels of which nothing is known."""

from __future__ import annotations

from typing import Any

from saeclamp_saes.labelling.table import Feature


def blank_label(**known: Any) -> Feature:
    unknown = (
        "max_act label label_score input_label input_score say_label say_score output_label output_score top_logits "
        "bottom_logits"
    )
    return Feature(
        **{
            **dict.fromkeys(unknown.split()),
            "kind": "none",
            "density": 0.01,
            "neighbours": (),
            "examples": (),
            "inactive": (),
            **known,
        }
    )
