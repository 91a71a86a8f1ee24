"""OpenAI's GPT-2 autoencoders normalise their input exactly when they are TopK, and their path says where they act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.saes.loaders.layouts import openai_gpt2, pickles
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site
from saeclamp_saes.sae import InputNorm, TopK

SITES = {
    "resid_post_attn": Site("resid_mid", 5),
    "resid_post_mlp": Site("resid_post", 5),
    "resid_delta_attn": Site("attn_out", 5),
    "resid_delta_mlp": Site("mlp_out", 5),
}


@pytest.mark.parametrize("width", ["32k", "128k"])
@pytest.mark.parametrize(("location", "site"), SITES.items())
def test_version_5_is_layer_normalised_topk(tmp_path: Path, location: str, site: Site, width: str) -> None:
    sae = check(openai_gpt2.write(tmp_path, location=f"{location}_v5_{width}"), "openai_gpt2", scale=3.0)
    assert sae.reads == sae.writes == (site,)
    assert (sae.architecture, sae.top_k) == ("topk", TopK(8))
    assert sae.input_norm == InputNorm(center=True, scale="std", eps=1e-5)


@pytest.mark.parametrize("location", ["resid_delta_mlp", "resid_delta_mlp_v4"])
def test_versions_1_and_4_are_a_plain_relu(tmp_path: Path, location: str) -> None:
    sae = check(openai_gpt2.write(tmp_path, location=location, activation="ReLU"), "openai_gpt2")
    assert (sae.site, sae.architecture, sae.top_k) == (Site("mlp_out", 5), "relu", None)
    assert sae.input_norm.is_identity


def test_a_token_of_hardly_any_spread_is_divided_by_its_spread_and_a_little(tmp_path: Path) -> None:
    check(openai_gpt2.write(tmp_path), "openai_gpt2", scale=1e-4)  # std about the eps of 1e-5: 10 % apart without it


def test_k_may_be_a_tensor(tmp_path: Path) -> None:
    state = {"k": torch.tensor(6), "postact_fn": "ReLU"}
    assert check(openai_gpt2.write(tmp_path, state=state, k=6), "openai_gpt2").top_k == TopK(6)


@pytest.mark.parametrize("location", ["elsewhere", "resid_post_head_v5_32k"])
def test_another_path_needs_a_site(tmp_path: Path, location: str) -> None:
    path = openai_gpt2.write(tmp_path, location=location).path
    assert "add ?site=resid_post.19" in refusal(path)
    assert read(path, "site=resid_mid.8").site == Site("resid_mid", 8)


def test_the_mlps_inside_is_no_place_of_ours(tmp_path: Path) -> None:
    path = openai_gpt2.write(tmp_path, location="mlp_post_act", activation="ReLU").path
    assert "reads mlp_post_act, inside the MLP, which is no place that can be steered" in refusal(path)
    assert read(path, "site=mlp_out.8").site == Site("mlp_out", 8)


def test_a_file_that_lost_what_was_no_tensor_needs_its_activation(tmp_path: Path) -> None:
    path = openai_gpt2.write(tmp_path, activation=None).path
    assert "add ?activation=topk&k=32 (version 5" in refusal(path)
    assert "add ?k=32" in refusal(path, "activation=topk")
    topk, relu = read(path, "activation=topk&k=8"), read(path, "activation=relu")
    assert (topk.top_k, topk.input_norm.scale) == (TopK(8), "std")
    assert (relu.top_k, relu.input_norm.scale) == (None, "none")


BAD: dict[str, tuple[str, dict[str, Any] | None, str]] = {
    "another activation": ("Identity", None, "activation Identity with ReLU is not supported; supported: ReLU, TopK."),
    "TopK that keeps signs": (
        "TopK",
        {"k": 8, "postact_fn": "Identity"},
        "activation TopK with Identity is not supported",
    ),
    "k of none": ("TopK", {"k": 0, "postact_fn": "ReLU"}, "add ?k=32"),
}


@pytest.mark.parametrize(("activation", "state", "says"), BAD.values(), ids=BAD.keys())
def test_another_activation_is_refused(
    tmp_path: Path, activation: str, state: dict[str, Any] | None, says: str
) -> None:
    assert says in refusal(openai_gpt2.write(tmp_path, activation=activation, state=state).path)


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = openai_gpt2.write(tmp_path).path
    pickles.save(path, {**torch.load(path), "latent_scale": torch.ones(40)})
    assert "has latent_scale, whose meaning is not known" in refusal(path)
