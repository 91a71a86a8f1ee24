"""A worker keeps an SAE that is stored in bf16 so where kernels steer, and in fp32 elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.checkpoints import make_sae

from saeclamp_saes import find_sae, open_entry
from saeclamp_server.engine.worker.worker import SteeringWorker


@pytest.mark.parametrize("num_rows", [None, 4])
@pytest.mark.parametrize(
    ("has_kernels", "stored", "config", "kept"),
    [
        pytest.param(True, torch.bfloat16, {}, torch.bfloat16, id="on a GPU"),
        pytest.param(False, torch.bfloat16, {}, torch.float32, id="on a CPU"),
        pytest.param(True, torch.float32, {}, torch.float32, id="stored in fp32"),
        pytest.param(True, torch.bfloat16, {"architecture": "topk", "k": 3}, torch.float32, id="TopK"),
    ],
)
def test_what_is_stored_in_bf16_is_kept_so_where_kernels_steer(
    tmp_path: Path,
    num_rows: int | None,
    has_kernels: bool,
    stored: torch.dtype,
    config: dict[str, Any],
    kept: torch.dtype,
) -> None:
    entry = open_entry(find_sae(str(make_sae(tmp_path / "sae", layer=0, d_in=8, dtype=stored, **config))))
    sae = {
        "name": "mine",
        "path": str(entry.path),
        "options": str(entry.options),
        "files": [str(path) for path in entry.summary.files],
        "sha256": entry.sha256,
        "num_rows": num_rows,
    }
    worker: Any = SimpleNamespace(use_v2_model_runner=has_kernels, device=torch.device("cpu"))
    loaded = SteeringWorker._load(worker, sae, range(4))
    assert (loaded.row_cache is None) == (num_rows is None or loaded.whole.top_k is not None)
    for one in (loaded.whole, loaded.sae):
        assert (one.W_enc.dtype, one.W_dec.dtype, one.b_enc.dtype) == (kept, kept, torch.float32)
