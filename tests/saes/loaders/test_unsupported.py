"""Known checkpoints that cannot be used are refused by name, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import mwhanna, pickles
from tests.saes.loaders.layouts.agreement import refusal

from saeclamp_saes import Options
from saeclamp_saes.loaders import CheckpointError, summarize


def test_a_temporal_sae(tmp_path: Path) -> None:
    tensors = {"D": torch.ones(40, 16), "E": torch.ones(16, 40), "b": torch.ones(16)}
    save_file(tensors | {"attn_layers.0.weight": torch.ones(4, 4)}, tmp_path / "latest_ckpt.safetensors")
    (tmp_path / "conf.yaml").write_text("sae: {n_heads: 4}\nllm: {dimin: 16}\n")
    for path in (tmp_path, tmp_path / "latest_ckpt.safetensors"):
        assert "is a temporal SAE, whose activations attend to the whole sequence" in refusal(path)


def test_a_temporal_sae_whatever_format_the_user_names(tmp_path: Path) -> None:
    save_file({"D": torch.ones(4, 4), "b": torch.ones(4), "attn_layers.0.x": torch.ones(4)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="temporal"):
        summarize(tmp_path, Options({"format": "saelens"}))


@pytest.mark.parametrize("name", ["M0_S-1_B0_P0", "A3_S-2_R1_P2", "Rm1_S-4_R8_P2"])
def test_tinymodels_sparse_mlps(tmp_path: Path, name: str) -> None:
    names = {"encoder.weight": (40, 16), "encoder.bias": (40,), "decoder.weight": (16, 40), "decoder.bias": (16,)}
    path = pickles.save(tmp_path / f"{name}.pt", {key: torch.ones(shape) for key, shape in names.items()})
    assert "is a sparse MLP of TinyModel" in refusal(path)


def test_torch_distributed_checkpoints(tmp_path: Path) -> None:
    inside = tmp_path / "sae_weights.dcp"
    inside.mkdir()
    (inside / ".metadata").write_bytes(b"\x80\x04.")
    (inside / "__0_0.distcp").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, inside):
        assert "is a torch distributed checkpoint (.dcp), whose index is a pickle: save it as safetensors" in refusal(
            path
        )


def test_readable_weights_beside_a_distributed_checkpoint_are_read(tmp_path: Path) -> None:
    mwhanna.write(tmp_path)
    (tmp_path / "layer_5.dcp").mkdir()
    assert summarize(tmp_path).format == "mwhanna"


def test_a_folder_of_something_else_is_not_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("transcoders: []\n")
    assert "has no weights" in refusal(tmp_path)
