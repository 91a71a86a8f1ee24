"""
SAELens's own and Gemma Scope's files through sae-lens: equal, but for known differences, each tested to exist.

The files lie in a cache of the Hub, so that sae-lens's own loaders find them there by repository and name.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.saes.loaders.against_sae_lens.agreement import SMALL, assert_agree, assert_other_features
from tests.saes.loaders.layouts import (
    gemma_scope,
    gemma_scope_2,
    saelens,
    tokens,
)
from tests.saes.loaders.layouts.agreement import read, refusal
from tests.saes.loaders.layouts.hub import Lens

from saeclamp_saes import Site
from saeclamp_saes.io.contents import WHITENING
from saeclamp_saes.loaders import summarize

# ------------------------------------------------------------------------------------------------------------- SAELens

PLAIN = [
    *({"architecture": name, "subtract": say} for name in ("standard", "jumprelu", "gated") for say in (False, True)),
    *({"architecture": name, "rescale": say} for name in ("topk", "abstopk") for say in (False, True)),
    *({"architecture": name} for name in ("transcoder", "jumprelu_transcoder")),
    *({"architecture": name} for name in ("skip_transcoder", "jumprelu_skip_transcoder")),
    *({"architecture": name, "normalize": "layer_norm"} for name in ("standard", "topk")),
    *({"architecture": name, "normalize": "constant_norm_rescale"} for name in ("jumprelu", "gated")),
    {"architecture": "topk", "rescale": True, "normalize": "layer_norm"},
    {"architecture": "topk", "version": 5},
    {"architecture": "gated", "version": 5, "normalize": None},
    {"architecture": "jumprelu", "version": 5, "normalize": False},
    {"architecture": "jumprelu", "dtype": torch.float16},
]


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_saelens(lens: Lens, tmp_path: Path, variant: dict[str, Any]) -> None:
    written = saelens.write(tmp_path / "sae", **variant)
    assert_agree(lens.SAE.load_from_disk(written.path, dtype="float32"), written)


@pytest.mark.parametrize("normalize", ["expected_average_only_in", True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk", "jumprelu_transcoder"])
def test_saelens_with_a_factor(lens: Lens, tmp_path: Path, architecture: str, normalize: str | bool) -> None:
    version = 5 if normalize is True else 6
    written = saelens.write(tmp_path, architecture=architecture, normalize=normalize, version=version)
    theirs = lens.SAE.load_from_disk(written.path)
    theirs.fold_activation_norm_scaling_factor(saelens.FACTOR)
    assert_agree(theirs, written, f"input_scale={saelens.FACTOR}")


def test_saelens_changes_the_unit_when_it_folds_a_factor_into_a_rescaled_topk(lens: Lens, tmp_path: Path) -> None:
    """It multiplies by the decoder's row lengths at run time, which the fold has divided by the factor."""
    written = saelens.write(tmp_path, architecture="topk", rescale=True, normalize="expected_average_only_in")
    theirs = lens.SAE.load_from_disk(written.path)
    theirs.fold_activation_norm_scaling_factor(saelens.FACTOR)
    assert_agree(theirs, written, f"input_scale={saelens.FACTOR}", unit=1 / saelens.FACTOR)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_saelens_with_a_whitening(lens: Lens, tmp_path: Path, architecture: str, subtract: bool) -> None:
    written = saelens.write(tmp_path, architecture=architecture, subtract=subtract, normalize="covariance_whitening")
    generator = torch.Generator().manual_seed(5)
    matrix = torch.eye(16) + 0.1 * torch.randn(16, 16, generator=generator)
    whitening = {"mean": torch.randn(16, generator=generator), "matrix": matrix, "inverse_matrix": matrix.inverse()}
    theirs = lens.SAE.load_from_disk(written.path)
    theirs.fold_activation_whitening(whitening["mean"], whitening["matrix"], whitening["inverse_matrix"])
    assert "put activation_whitening.safetensors" in refusal(written.path)
    save_file({name: tensor.contiguous() for name, tensor in whitening.items()}, tmp_path / WHITENING)
    assert_agree(theirs, written)
    assert {file.name for file in summarize(written.path).weights} == {"sae_weights.safetensors", WHITENING}
    change_normalisation(written.path, "none")
    assert "activation_whitening.safetensors holds a whitening, and normalize_activations is 'none'" in refusal(
        tmp_path
    )


def change_normalisation(folder: Path, value: str) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"normalize_activations": value}))


def test_saelens_matching_pursuit_is_refused_by_name(lens: Lens, tmp_path: Path) -> None:
    """Its files have no encoder."""
    cls = importlib.import_module("sae_lens.saes.matching_pursuit_sae")
    cls.MatchingPursuitSAE(cls.MatchingPursuitSAEConfig(d_in=16, d_sae=40)).save_model(tmp_path)
    assert "is a matching pursuit SAE, which finds its features one after the other" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_saelens_state_of_training_says_what_to_save(lens: Lens, tmp_path: Path, name: str) -> None:
    module = importlib.import_module(f"sae_lens.saes.{name}_sae")
    words = {"batchtopk": "BatchTopK", "matryoshka_batchtopk": "MatryoshkaBatchTopK"}[name]
    sae_class, cfg_class = (getattr(module, f"{words}Training{kind}") for kind in ("SAE", "SAEConfig"))
    matryoshka = {"matryoshka_widths": [10, 40]} if name.startswith("matryoshka") else {}
    sae = sae_class(cfg_class(d_in=16, d_sae=40, k=4, **matryoshka))
    sae.save_model(tmp_path / "training")
    assert "save the SAE with save_inference_model" in refusal(tmp_path / "training")
    sae.topk_threshold.fill_(0.5)
    sae.save_inference_model(tmp_path / "inference")
    assert read(tmp_path / "inference", "site=resid_post.5").architecture == "jumprelu"


def test_saelens_only_warns_without_the_factor(lens: Lens, tmp_path: Path) -> None:
    normalize = "expected_average_only_in"
    written = saelens.write(tmp_path / "files" / "sae", architecture="jumprelu", normalize=normalize)
    lens.publish("someone/saes", tmp_path / "files")
    with pytest.warns(UserWarning, match="norm_scaling_factor not found"):
        theirs = lens.load("sae_lens", "someone/saes", "sae")
    assert_other_features(theirs, written, f"input_scale={saelens.FACTOR}")


def test_saelens_leaves_centring_to_the_model(lens: Lens, tmp_path: Path) -> None:
    written = saelens.write(tmp_path, model_name="gpt2-small", center=True)
    theirs, ours, x = lens.SAE.load_from_disk(written.path), read(written.path), tokens(16).float()
    centered = x - x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(ours.encode(x), theirs.encode(centered), rtol=1e-4, atol=1e-4)


def test_saelens_of_heads(lens: Lens, tmp_path: Path) -> None:
    written = saelens.write(tmp_path, hook="attn.hook_z")
    theirs, x = lens.SAE.load_from_disk(written.path), tokens(16).float()
    torch.testing.assert_close(read(written.path).encode(x), theirs.encode(x.view(-1, 4, 4)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "variant", [{"scaling_factor": True, "version": 5}, {"architecture": "jumprelu", "log_threshold": True}], ids=str
)
def test_saelens_6_cannot_load_what_older_versions_wrote(lens: Lens, tmp_path: Path, variant: dict[str, Any]) -> None:
    written = saelens.write(tmp_path, **variant)
    assert read(written.path).d_sae == 40
    with pytest.raises(RuntimeError, match="Unexpected key"):
        lens.SAE.load_from_disk(written.path)


# -------------------------------------------------------------------------------------------------------- Gemma Scope


@pytest.mark.parametrize("release", ["gemma-scope-2b-pt-res", "gemma-scope-9b-it-res", "gemma-scope-2b-pt-mlp"])
def test_gemma_scope(lens: Lens, tmp_path: Path, release: str) -> None:
    written = gemma_scope.write(tmp_path / "files", release=release)
    lens.publish(f"google/{release}", tmp_path / "files" / release)
    assert_agree(lens.load("gemma_2", f"google/{release}", "layer_5/width_16k/average_l0_71", **SMALL), written)


def test_gemma_scope_of_heads(lens: Lens, tmp_path: Path) -> None:
    release = "gemma-scope-2b-pt-att"
    written = gemma_scope.write(tmp_path / "files", release=release)
    lens.publish(f"google/{release}", tmp_path / "files" / release)
    theirs = lens.load("gemma_2", f"google/{release}", "layer_5/width_16k/average_l0_71", **SMALL)
    x = tokens(16).float()
    torch.testing.assert_close(read(written.path).encode(x), theirs.encode(x.view(-1, 4, 4)), rtol=1e-4, atol=1e-4)


def test_gemma_scope_of_the_embedding(lens: Lens, tmp_path: Path) -> None:
    """Of the output's factor sae-lens leaves b_dec out; in a clamp it cancels."""
    release = "gemma-scope-2b-pt-res"
    written = gemma_scope.write(tmp_path / "files", release=release, embedding=True)
    lens.publish(f"google/{release}", tmp_path / "files" / release)
    theirs = lens.load("gemma_2", f"google/{release}", "embedding/width_16k/average_l0_71", **SMALL)
    ours, x = read(written.path), tokens(16).float()
    torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.W_dec, theirs.W_dec, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.b_dec, 4 * theirs.b_dec, rtol=1e-4, atol=1e-4)


def test_gemma_scope_transcoders(lens: Lens, tmp_path: Path) -> None:
    release = "gemma-scope-2b-pt-transcoders"
    written = gemma_scope.write(tmp_path / "files", release=release)
    lens.publish(f"google/{release}", tmp_path / "files" / release)
    name = "layer_5/width_16k/average_l0_71"
    assert_agree(lens.load("gemma_2_transcoder", f"google/{release}", name, d_out=16, **SMALL), written)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    ("suite", "affine"),
    [
        ("resid_post", False),
        ("attn_out_all", False),
        ("mlp_out", False),
        ("transcoder", False),
        ("transcoder_all", True),
    ],
)
def test_gemma_scope_2(lens: Lens, tmp_path: Path, suite: str, affine: bool, config: bool) -> None:
    written = gemma_scope_2.write(tmp_path / "files", suite=suite, affine=affine, config=config)
    repository = "google/gemma-scope-2-1b-pt"
    lens.publish(repository, tmp_path / "files" / "gemma-scope-2-1b-pt")
    assert_agree(lens.load("gemma_3", repository, f"{suite}/{written.path.name}"), written)


def test_gemma_scope_2s_transcoders_read_elsewhere_than_sae_lens_says(lens: Lens, tmp_path: Path) -> None:
    """TransformerLens's hook_mlp_in is before the norm; the file's own configuration says that they read its result."""
    written = gemma_scope_2.write(tmp_path / "files", suite="transcoder")
    lens.publish("google/gemma-scope-2-1b-pt", tmp_path / "files" / "gemma-scope-2-1b-pt")
    theirs = lens.load("gemma_3", "google/gemma-scope-2-1b-pt", f"transcoder/{written.path.name}")
    assert theirs.cfg.metadata.hook_name == "blocks.5.hook_mlp_in"
    assert theirs.cfg.metadata.hf_hook_name == "model.layers.5.pre_feedforward_layernorm.output"
    assert read(written.path).reads == (Site("mlp_in", 5),)


def test_gemma_scope_2_across_layers(lens: Lens, tmp_path: Path) -> None:
    """Sae-lens adds the decoders of all layers up, so that it has activations only."""
    written = gemma_scope_2.write_many(tmp_path / "files")[2]
    lens.publish("google/gemma-scope-2-1b-pt", tmp_path / "files")
    theirs = lens.load("gemma_3", "google/gemma-scope-2-1b-pt", "clt/width_262k_l0_big/params_layer_2")
    ours, x = read(written.path), tokens(16).float()
    torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.W_dec.view(40, 2, 16).sum(dim=1), theirs.W_dec, rtol=1e-4, atol=1e-4)
