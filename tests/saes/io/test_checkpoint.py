"""What the names of files say."""

from __future__ import annotations

import pytest

from saeclamp_saes.io.contents import parse_layer


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer_12.safetensors", 12),
        ("layer12.sae.pt", 12),
        ("params_layer_3.safetensors", 3),
        ("W_enc_12.safetensors", 12),
        ("W_dec_0.safetensors", 0),
        ("gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_dc1.00e-06_v9.pt", 0),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", 19),
        ("gemma_2b_blocks.6.hook_resid_post_16384.safetensors", 6),
        ("qwen3-0.6b-layer_17.safetensors", 17),
        ("16k_layer_17.safetensors", 17),
        ("12345_layer_3_L3.safetensors", 3),
        ("sae_16k_L12.safetensors", 12),
        ("layer_12_v2_L0_50.safetensors", 12),
        ("1b_layer5.npz", 5),
        ("12.pt", 12),
        ("12", 12),
    ],
)
def test_the_layer_is_what_is_called_one_or_all_of_the_name(name: str, layer: int) -> None:
    assert parse_layer(name) == layer


@pytest.mark.parametrize(
    "name",
    [
        "transcoder.0.safetensors",
        "gemma-2-2b.safetensors",
        "average_l0_71.npz",
        "sae_L0_71.safetensors",
        "sublayer_5.safetensors",
        "layer_3_to_layer_5.safetensors",
        "layer_12345.safetensors",
        "ae.pt",
    ],
)
def test_other_numbers_are_no_layers(name: str) -> None:
    assert parse_layer(name) is None
