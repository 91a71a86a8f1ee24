"""Llama Scope: both mean lengths are folded, rows brought to unit length, then the one threshold gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.saes.loaders.layouts import llama_scope, tokens
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal

from saeclamp_saes import Site


@pytest.mark.parametrize(
    ("part", "reads", "writes"),
    [
        ("R", Site("resid_post", 5), Site("resid_post", 5)),
        ("A", Site("attn_out", 5), Site("attn_out", 5)),
        ("M", Site("mlp_out", 5), Site("mlp_out", 5)),
    ],
)
def test_every_part_is_its_own_equations(tmp_path: Path, part: str, reads: Site, writes: Site) -> None:
    sae = check(llama_scope.write(tmp_path, part=part), "llama_scope")
    assert (sae.kind, sae.reads, sae.writes) == ("sae", (reads,), (writes,))
    assert (sae.architecture, sae.unit, sae.model_name) == ("jumprelu", "decoder_norm", "meta-llama/Llama-3.1-8B")


def test_a_transcoder_has_a_mean_length_on_each_side(tmp_path: Path) -> None:
    sae = check(llama_scope.write(tmp_path, part="TC", length_in=4.0, length_out=1.25), "llama_scope")
    assert (sae.kind, sae.reads, sae.writes) == ("transcoder", (Site("mlp_in_no_gain", 5),), (Site("mlp_out", 5),))


def test_activations_are_lengths_along_the_decoders_rows(tmp_path: Path) -> None:
    sae = read(llama_scope.write(tmp_path, part="TC", length_in=4.0, length_out=1.25).path)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert sae.threshold.tolist() == [llama_scope.THRESHOLD] * 40


def test_activations_of_sae_lens_are_larger_by_the_scaling_factor_and_gated_alike(tmp_path: Path) -> None:
    path = llama_scope.write(tmp_path, unit_rows=True, length_in=2.5, length_out=2.5).path
    W = {name: t.double() for name, t in load_file(path / "checkpoints" / "final.safetensors").items()}
    factor = 4.0 / 2.5  # sqrt(d_model) over the mean length
    x, lengths = tokens(16), W["decoder.weight"].norm(dim=0)  # unit but for bfloat16
    pre = factor * x @ W["encoder.weight"].T + W["encoder.bias"]
    theirs = pre * (pre * lengths > llama_scope.THRESHOLD * factor)
    torch.testing.assert_close(read(path).encode(x).double() * factor / lengths, theirs, rtol=1e-4, atol=1e-4)


def test_the_weights_or_their_folder_can_be_named(tmp_path: Path) -> None:
    written = llama_scope.write(tmp_path)
    check(written._replace(path=written.path / "checkpoints"), "llama_scope")
    check(written._replace(path=written.path / "checkpoints" / "final.safetensors"), "llama_scope")


def test_a_hook_that_we_do_not_know_is_for_the_user_to_place(tmp_path: Path) -> None:
    written = llama_scope.write(tmp_path, hook_point_in="blocks.5.hook_q", hook_point_out="blocks.5.hook_q")
    assert "hook 'blocks.5.hook_q' is no known place: add ?site=" in refusal(written.path)
    assert check(written, "llama_scope", "site=resid_post.4").writes == (Site("resid_post", 4),)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": ({"act_fn": "topk"}, "act_fn is 'topk'; only 'jumprelu' is supported"),
    "another norm": ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
    "a gate without lengths": ({"sparsity_include_decoder_norm": False}, "sparsity_include_decoder_norm is False"),
    "a gated linear unit": ({"use_glu_encoder": True}, "use_glu_encoder is True"),
    "a bias before": ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder is True"),
    "no mean length": (
        {"dataset_average_activation_norm": {"in": 2.0}},
        "the mean length 'out' must be a positive number",
    ),
    "no mean lengths": ({"dataset_average_activation_norm": None}, "the mean length 'in' must be a positive number"),
    "a negative threshold": ({"jump_relu_threshold": -1.0}, "jump_relu_threshold must be a positive number, not -1.0"),
    "another width": ({"d_model": 17}, "d_model is 17; the weights have 16"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_what_is_not_published_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in refusal(llama_scope.write(tmp_path, **changes).path)


def test_hyperparameters_of_something_else_are_not_this_family(tmp_path: Path) -> None:
    path = llama_scope.write(tmp_path).path
    (path / "hyperparams.json").write_text(json.dumps({"d_model": 16}))
    assert "llama_scope" not in recognised(path)
