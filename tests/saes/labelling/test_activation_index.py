"""Before the model reads anything for labels, what would stop it later is found, and nothing is left of the attempt."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_labels import D_SAE, replace_point, sae, settings
from tests.support.tiny_training import corpus, reader, tokenizer

from saeclamp_saes import SAE, Site
from saeclamp_saes.errors import SAEError
from saeclamp_saes.labelling.run import run_labelling

FEW = {"tokens": 300}
"""
Fewer than the first file has, as are those on which lengths are measured, so that what is wrong in the last one lies behind
all that is read.
"""


def begun(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    pytest.fail(f"{doing} began")


def refuse(tmp_path: Path, data: Path, said: str, of: SAE | None = None, **reading: Any) -> None:
    out = tmp_path / "out" / "labels.parquet"
    with pytest.raises(SAEError, match=said):
        run_labelling(settings(out, data, **FEW), of or sae(), replace(reader(), **reading), begun)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("z.jsonl", b'{"text": "fine"}\n{"txt": 1}\n', r"z\.jsonl, line 2 is neither"),
        ("z.jsonl", b"not json\n", r"z\.jsonl, line 1 is not JSON"),
        ("z.txt", b"\xff\xfe\x00", r"z\.txt is not text in UTF-8"),
        ("z.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:40], r"z\.jsonl\.gz cannot be read"),
    ],
)
def test_bad_data_in_the_last_file_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    data = corpus(tmp_path / "data")
    (data / name).write_bytes(content)
    refuse(tmp_path, data, said)
    (data / name).unlink()
    run_labelling(settings(tmp_path / "out" / "labels.parquet", data, **FEW), sae(), reader())


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    (data / "z.jsonl").write_text(json.dumps({"messages": [{"role": "tool", "content": "x"}]}))
    users = "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no users') }}{% endif %}{% endfor %}hi"
    refuse(tmp_path, data, r"the conversation of .*z\.jsonl, line 1: no users", tokenizer=tokenizer(users))


@pytest.mark.parametrize(
    ("of", "said"),
    [
        pytest.param(
            replace(sae(), W_enc=torch.zeros(8, D_SAE)),
            "reads vectors of width 8, and resid_post 1 .* is 16",
            id="reads",
        ),
        pytest.param(
            replace(
                sae(),
                reads=(replace_point("mlp_in"),),
                writes=(replace_point("mlp_out"),),
                W_dec=torch.zeros(D_SAE, 8),
                b_dec=torch.zeros(8),
                kind="transcoder",
            ),
            "writes vectors of width 8, and mlp_out 1 of this model is 16 wide",
            id="writes",
        ),
        pytest.param(
            replace(sae(), writes=(Site("mlp_out", 7),), kind="transcoder"), "There is no layer 7", id="writes-nowhere"
        ),
    ],
)
def test_a_model_that_the_sae_does_not_fit_is_refused(tmp_path: Path, of: SAE, said: str) -> None:
    refuse(tmp_path, corpus(tmp_path / "data"), said, of, sites=of.reads)
