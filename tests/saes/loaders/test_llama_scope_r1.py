"""Llama-Scope-R1-Distill: vectors are scaled by their mean length, which is in the weights, the configuration or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import llama_scope_r1, tokens
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site

HOOK = "blocks.5.hook_resid_post"


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
def test_every_variant_is_its_own_equations(tmp_path: Path, weighted: bool, norm: str) -> None:
    written = llama_scope_r1.write(tmp_path, sparsity_include_decoder_norm=weighted, norm_activation=norm)
    sae = check(written, "llama_scope_r1")
    assert sae.reads == sae.writes == (Site("resid_post", 5),)
    assert (sae.kind, sae.architecture, sae.unit) == ("sae", "jumprelu", "native")


@pytest.mark.parametrize("key", [HOOK, "in"])
def test_the_configuration_may_hold_the_mean_length(tmp_path: Path, key: str) -> None:
    lengths = {key: llama_scope_r1.LENGTH, "out": 99.0}
    check(
        llama_scope_r1.write(tmp_path, length_stored=False, dataset_average_activation_norm=lengths), "llama_scope_r1"
    )


def test_without_a_mean_length_the_user_gives_the_factor(tmp_path: Path) -> None:
    written = llama_scope_r1.write(tmp_path, length_stored=False)
    assert "give ?input_scale=FACTOR (sqrt(d_model) over that length)" in refusal(written.path)
    check(written, "llama_scope_r1", f"input_scale={4.0 / llama_scope_r1.LENGTH}")


def test_activations_are_those_of_sae_lens_where_rows_are_of_unit_length(tmp_path: Path) -> None:
    path = llama_scope_r1.write(tmp_path, unit_rows=True).path
    W = {name: t.double() for name, t in load_file(path / "sae_weights.safetensors").items()}
    x = tokens(16)
    pre = 4.0 / llama_scope_r1.LENGTH * x @ W["encoder.weight"].T + W["encoder.bias"]
    theirs = pre * (pre > W["log_jumprelu_threshold"].exp())
    torch.testing.assert_close(read(path).encode(x).double(), theirs, rtol=1e-4, atol=1e-4)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another norm": ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' is not supported"),
    "another activation": ({"act_fn": "topk"}, "only JumpReLU SAEs that write where they read"),
    "a transcoder": ({"hook_point_out": "blocks.5.hook_mlp_out"}, "only JumpReLU SAEs that write where they read"),
    "no width": ({"d_model": None}, "give d_model as a positive integer"),
    "another width": ({"d_model": 17}, "expected (17,)"),
    "an unknown hook": ({"hook_point_in": "blocks.5.q", "hook_point_out": "blocks.5.q"}, "resid_post, whose meaning"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_what_is_not_published_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    # the sentence about the unknown hook: the mean length is that of another hook, so it is not known what it means
    assert says in refusal(llama_scope_r1.write(tmp_path, **changes).path)


def test_a_mean_length_that_is_none_is_refused(tmp_path: Path) -> None:
    weights = llama_scope_r1.write(tmp_path).path / "sae_weights.safetensors"
    save_file(load_file(weights) | {f"dataset_average_activation_norm.{HOOK}": torch.tensor(-2.0)}, weights)
    assert "is -2.0, which is no length" in refusal(weights.parent)


def test_a_vector_without_dimensions_is_refused(tmp_path: Path) -> None:
    weights = llama_scope_r1.write(tmp_path).path / "sae_weights.safetensors"
    save_file(load_file(weights) | {"encoder.bias": torch.tensor(0.5)}, weights)
    assert "encoder.bias has shape (), expected (40,)" in refusal(weights.parent)
