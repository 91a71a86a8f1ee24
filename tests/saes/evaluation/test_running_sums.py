"""Sums that were kept and are damaged are named before anything long, and measuring begins anew without them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import tiny_evaluation
from tests.support.tiny_evaluation import Stopped, figures, plain_texts, sae_at
from tests.support.tiny_models import make
from torch import nn

from saeclamp_saes.errors import SAEError
from saeclamp_saes.evaluation.eval_data import EvalData

SAID = r"kept\.safetensors, which holds .*, is damaged: move it away, and the command begins anew\."


measured = partial(tiny_evaluation.measured, group_tokens=300)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make("llama")


@pytest.fixture
def source(tmp_path: Path) -> EvalData:
    return EvalData(plain_texts(tmp_path / "data", 40))


@pytest.fixture
def kept(tmp_path: Path, model: nn.Module, source: EvalData) -> Path:
    """The file of a pass that was stopped."""

    def stop(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if path.exists():
            raise Stopped

    path = tmp_path / "kept.safetensors"
    with pytest.raises(Stopped):
        measured({"one": sae_at()}, model, source, report=stop, state=path, save_seconds=0.0)
    return path


def refuse(model: nn.Module, source: EvalData, kept: Path) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("measuring began")

    with pytest.raises(SAEError, match=SAID):
        measured({"one": sae_at()}, model, source, report=fail, state=kept)


@pytest.mark.parametrize("content", ["nothing", "no-safetensors", "cut-short", "folder"])
def test_a_file_that_is_none_is_named(content: str, model: nn.Module, source: EvalData, kept: Path) -> None:
    whole = kept.read_bytes()
    kept.unlink()
    if content == "folder":
        kept.mkdir()
    else:
        kept.write_bytes({"nothing": b"", "no-safetensors": b"\xff" * 99, "cut-short": whole[:-9]}[content])
    refuse(model, source, kept)
    kept.rename(kept.with_name("away"))
    expected = figures(measured({"one": sae_at()}, model, source))
    assert figures(measured({"one": sae_at()}, model, source, state=kept)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"0.num_active": None}, id="missing"),
        pytest.param({"1.num_active": torch.zeros(3)}, id="too-many"),
        pytest.param({"0.num_active": torch.zeros(3, dtype=torch.int64)}, id="another-shape"),
        pytest.param({"0.gram": torch.zeros(16, 16)}, id="another-type"),
        pytest.param({"num_done": None}, id="of-what-is-missing"),
        pytest.param({"num_done": torch.zeros(2, dtype=torch.int64)}, id="of-what-is-two-numbers"),
    ],
)
def test_sums_that_are_not_those_of_the_saes_are_named(
    changes: dict[str, Any], model: nn.Module, source: EvalData, kept: Path
) -> None:
    tensors = {**load_file(kept), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, kept)
    refuse(model, source, kept)
