"""Which files of a folder or a repository make up one SAE."""

from __future__ import annotations

import pytest

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.library.checkpoint_files import select_files


def sizes(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, 10)


def test_an_sae_is_its_weights_and_the_configurations_around_them() -> None:
    here = sizes(
        "config.json", "notes.json", "a/cfg.json", "a/sae.safetensors", "a/sparsity.safetensors", "b/sae.safetensors"
    )
    chosen = select_files(here, "a")
    assert (chosen.path, chosen.weights, chosen.configs) == ("a", ("a/sae.safetensors",), ("a/cfg.json", "config.json"))
    assert select_files(sizes("x/hyperparams.json", "x/checkpoints/final.safetensors"), "x").all == (
        "x/hyperparams.json",
        "x/checkpoints/final.safetensors",
    )
    assert select_files({**sizes("a/w.npz"), "a/huge.json": 1 << 30}, "a").all == ("a/w.npz",)


def test_a_readable_file_is_preferred_to_a_pickle() -> None:
    assert select_files(sizes("ae.pt", "ae.safetensors"), "").weights == ("ae.safetensors",)
    assert select_files(sizes("ae.pt", "config.json"), "").is_pickled


def test_among_several_layers_one_is_chosen() -> None:
    layers = sizes("config.yaml", "layer_0.safetensors", "layer_1.safetensors", "layer_11.safetensors")
    chosen = select_files(layers, "", layer=1)
    assert (chosen.path, chosen.all) == ("layer_1.safetensors", ("config.yaml", "layer_1.safetensors"))
    assert chosen.chosen_by_layer
    assert select_files(layers, "layer_11.safetensors").all == ("config.yaml", "layer_11.safetensors")
    with pytest.raises(
        CheckpointError, match=r"layer_3\.safetensors is named after layer 3, so \?layer=7 cannot be right"
    ):
        select_files(sizes("layer_3.safetensors"), "", layer=7)
    with pytest.raises(CheckpointError, match=r"name one file, or choose with \?layer=N"):
        select_files(layers, "")
    with pytest.raises(CheckpointError, match="has no weights file for layer 7"):
        select_files(layers, "", 7)


def test_a_cross_layer_transcoders_decoder_comes_along() -> None:
    files = sizes(
        "config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors", "W_enc_1.safetensors", "W_dec_1.safetensors"
    )
    assert select_files(files, "", layer=1).weights == ("W_dec_1.safetensors", "W_enc_1.safetensors")
    assert select_files(files, "W_enc_0.safetensors").weights == ("W_dec_0.safetensors", "W_enc_0.safetensors")
