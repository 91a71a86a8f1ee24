"""Circuit-tracer's cross-layer transcoders, read one layer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import mntss, tokens
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Options, Site
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.loaders import summarize


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_layer_writes_to_itself_and_all_above(tmp_path: Path, layer: int, jumps: bool) -> None:
    sae = check(mntss.write(tmp_path, layer=layer, jumps=jumps), "mntss", f"layer={layer}")
    assert sae.kind == "clt_layer"
    assert sae.reads == (Site("mlp_in", layer),)
    assert sae.writes == tuple(Site("mlp_out", above) for above in range(layer, 4))
    assert sae.d_out == (4 - layer) * 16
    assert (sae.architecture, sae.model_name) == ("jumprelu" if jumps else "relu", "google/gemma-2-2b")


def test_the_layers_outputs_add_up_to_the_transcoders(tmp_path: Path) -> None:
    """`recon[l] = sum over i <= l of acts_i @ W_dec_i[:, l - i] + b_dec_l`, of the stored tensors."""
    mntss.write_all(tmp_path)
    inputs = [tokens(16, seed=layer) for layer in range(4)]
    saes = [read(tmp_path, f"layer={layer}") for layer in range(4)]
    acts = [sae.encode(x) for sae, x in zip(saes, inputs, strict=True)]
    for target in range(4):
        ours = torch.zeros(200, 16)
        expected = load_file(tmp_path / f"W_enc_{target}.safetensors")[f"b_dec_{target}"].expand(200, 16)
        for layer in range(target + 1):
            above = target - layer
            ours += saes[layer].decode(acts[layer])[:, above * 16 : (above + 1) * 16]
            decoder = load_file(tmp_path / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"]
            expected = expected + acts[layer] @ decoder[:, above]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_both_files_belong_to_the_weights(tmp_path: Path) -> None:
    mntss.write_all(tmp_path)
    weights = summarize(tmp_path, Options({"layer": "2"})).weights
    assert [path.name for path in weights] == ["W_enc_2.safetensors", "W_dec_2.safetensors"]


def test_the_encoders_file_can_be_named_itself(tmp_path: Path) -> None:
    written = mntss.write(tmp_path, layer=2)
    assert check(written._replace(path=tmp_path / "W_enc_2.safetensors"), "mntss").reads == (Site("mlp_in", 2),)


def test_a_layer_that_the_files_contradict_is_refused(tmp_path: Path) -> None:
    mntss.write(tmp_path, layer=2)
    path = tmp_path / "W_enc_2.safetensors"
    assert "W_enc_2.safetensors is named after layer 2, so ?layer=3 cannot be right." in refusal(path, "layer=3")
    assert read(path, "layer=2").reads == (Site("mlp_in", 2),)
    path.rename(tmp_path / "W_enc_3.safetensors")
    assert "W_enc_3.safetensors holds layer 2, not layer 3." in refusal(tmp_path, "layer=3")


def test_features_that_would_be_active_below_zero_are_refused(tmp_path: Path) -> None:
    """circuit-tracer's JumpReLU is x * (x > threshold)."""
    mntss.write(tmp_path, layer=2, jumps=True)
    stored = load_file(tmp_path / "W_enc_2.safetensors")
    stored["threshold_2"][7] = -0.1
    save_file(stored, tmp_path / "W_enc_2.safetensors")
    with pytest.raises(CheckpointError, match="threshold_2 has negative values, with which features would be active"):
        read(tmp_path, "layer=2")


def test_the_user_may_say_where_it_acts(tmp_path: Path) -> None:
    written = mntss.write(tmp_path, layer=2)
    (tmp_path / "config.yaml").unlink()
    assert "does not say where it writes" in refusal(tmp_path, "layer=2")
    assert "does not say where it reads" in refusal(tmp_path, "layer=2&site_out=mlp_out.2")
    sae = check(written, "mntss", "layer=2&site=resid_mid.2&site_out=mlp_out_raw.2")
    assert sae.writes == (Site("mlp_out_raw", 2), Site("mlp_out_raw", 3))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    mntss.write_all(tmp_path)
    assert "choose with ?layer=N" in refusal(tmp_path)
    assert "no weights file for layer 4" in refusal(tmp_path, "layer=4")
    assert "lacks W_enc_<layer>" in refusal(tmp_path / "W_dec_1.safetensors", "format=mntss")
    encoder, decoder = tmp_path / "W_enc_1.safetensors", tmp_path / "W_dec_1.safetensors"
    save_file(load_file(encoder) | {"W_skip_1": torch.ones(16, 16)}, encoder)
    assert "with a skip connection is not supported" in refusal(tmp_path, "layer=1")
    (tmp_path / "W_dec_2.safetensors").unlink()
    assert "has no W_dec_2.safetensors" in refusal(tmp_path, "layer=2")
    save_file({"W_dec_0": load_file(decoder)["W_dec_1"][:, 0].clone()}, tmp_path / "W_dec_0.safetensors")
    assert "W_dec_0 has shape (40, 16), expected (40, 0, 16)" in refusal(tmp_path, "layer=0")
