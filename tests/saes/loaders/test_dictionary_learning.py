"""All seven classes of dictionary_learning, with and without a calibrated threshold, a configuration, and an optimiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.saes.loaders.layouts import dictionary_learning as layout
from tests.saes.loaders.layouts import pickles, tokens
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal, source_of

from saeclamp_saes import Site
from saeclamp_saes.loaders import dictionary_learning
from saeclamp_saes.sae import SAE, TopK

ARCHITECTURES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
BATCHED = ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"]


def approximation(path: Path, options: str) -> str | None:
    source = source_of(path, options)
    dictionary_learning.read(source)
    return source.approximation


def per_token_topk(path: Path, k: int, x: torch.Tensor) -> torch.Tensor:
    """What `AutoEncoderTopK` would do with a BatchTopK SAE's weights."""
    raw = {name: tensor.double() for name, tensor in torch.load(path / "ae.pt").items()}
    return layout.encode("AutoEncoderTopK", {**raw, "k": torch.tensor(k)}, x)


@pytest.mark.parametrize("norm_factor", [None, 2.0])
@pytest.mark.parametrize(("dict_class", "architecture"), ARCHITECTURES.items())
def test_every_class_is_read_exactly(
    tmp_path: Path, dict_class: str, architecture: str, norm_factor: float | None
) -> None:
    sae = check(layout.write(tmp_path, dict_class=dict_class, norm_factor=norm_factor), "dictionary_learning")
    assert sae.reads == sae.writes == (Site("resid_post", 5),)
    assert (sae.kind, sae.architecture, sae.unit) == ("sae", architecture, "native")
    assert sae.model_name == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize("dict_class", ARCHITECTURES)
def test_square_matrices_are_read_as_the_class_stores_them(tmp_path: Path, dict_class: str) -> None:
    check(layout.write(tmp_path, dict_class=dict_class, d_in=24, d_sae=24), "dictionary_learning")


def test_decoder_rows_stay_as_long_as_they_are_stored(tmp_path: Path) -> None:
    written = layout.write(tmp_path, dict_class="AutoEncoder")
    stored = torch.load(written.path / "ae.pt")["decoder.weight"]
    assert torch.equal(read(written.path).W_dec, stored.T)


@pytest.mark.parametrize("dict_class", BATCHED)
def test_a_batch_topk_sae_has_one_threshold(tmp_path: Path, dict_class: str) -> None:
    sae = read(layout.write(tmp_path, dict_class=dict_class, threshold=0.75).path)
    assert (sae.top_k, sae.threshold.tolist()) == (None, [0.75] * 40)


@pytest.mark.parametrize("threshold", [-1.0, None])
@pytest.mark.parametrize("dict_class", BATCHED)
def test_a_threshold_that_was_never_calibrated_is_refused(
    tmp_path: Path, dict_class: str, threshold: float | None
) -> None:
    path = layout.write(tmp_path, dict_class=dict_class, threshold=threshold).path
    assert refusal(path).endswith(
        "its threshold was never calibrated; add ?threshold=VALUE, or ?activation=topk to keep each token's k largest, "
        "which is not how it was trained."
    )
    assert read(path, "threshold=0.375").threshold.tolist() == [0.375] * 40
    assert approximation(path, "threshold=0.375") is None


@pytest.mark.parametrize("k_stored", [True, False])
@pytest.mark.parametrize("dict_class", BATCHED)
def test_a_batch_topk_sae_can_be_used_per_token_and_says_so(tmp_path: Path, dict_class: str, k_stored: bool) -> None:
    path = layout.write(tmp_path, dict_class=dict_class, threshold=-1.0, k=6, k_stored=k_stored).path
    sae = read(path, "activation=topk")
    assert (sae.architecture, sae.top_k) == ("topk", TopK(6))
    assert approximation(path, "activation=topk") == "each token's k largest in place of BatchTopK's threshold"
    if dict_class == "BatchTopKSAE":
        x = tokens(16)
        torch.testing.assert_close(sae.encode(x).double(), per_token_topk(path, 6, x), rtol=1e-4, atol=1e-4)


def test_a_topk_sae_keeps_its_k_although_it_has_a_threshold(tmp_path: Path) -> None:
    path = layout.write(tmp_path, dict_class="AutoEncoderTopK", threshold=0.6).path
    assert read(path).top_k == read(path, "activation=topk").top_k == TopK(8)
    assert approximation(path, "activation=topk") is None


def test_a_topk_sae_can_be_used_with_its_threshold_and_says_so(tmp_path: Path) -> None:
    path = layout.write(tmp_path, dict_class="AutoEncoderTopK", threshold=0.625).path
    sae = read(path, "activation=jumprelu")
    assert (sae.architecture, sae.top_k, sae.threshold.tolist()) == ("jumprelu", None, [0.625] * 40)
    assert approximation(path, "activation=jumprelu") == "threshold 0.625 in place of TopK"


def test_a_topk_sae_whose_threshold_was_never_calibrated_has_none_to_use(tmp_path: Path) -> None:
    path = layout.write(tmp_path, dict_class="AutoEncoderTopK", threshold=-1.0).path
    assert refusal(path, "activation=jumprelu").endswith("or ?activation=topk to keep each token's k largest.")


def test_k_comes_from_the_weights_then_the_configuration_then_the_user(tmp_path: Path) -> None:
    def k(name: str, options: str = "", **variant: Any) -> TopK | None:
        return read(layout.write(tmp_path / name, dict_class="AutoEncoderTopK", **variant).path, options).top_k

    assert k("tensor", k=4) == TopK(4)
    assert k("configuration", k=4, k_stored=False) == TopK(4)
    nowhere = layout.write(tmp_path / "nowhere", dict_class="AutoEncoderTopK", k_stored=False, config={})
    assert "add ?k=64" in refusal(nowhere.path, "activation=topk&site=resid_post.5")
    assert read(nowhere.path, "activation=topk&site=resid_post.5&k=3").top_k == TopK(3)


def site(tmp_path: Path, options: str = "", **variant: Any) -> Site:
    return read(layout.write(tmp_path, **variant).path, options).site


def test_the_site_is_what_the_trainer_says(tmp_path: Path) -> None:
    assert site(tmp_path / "a", submodule_name="resid_post_layer_7") == Site("resid_post", 7)
    assert site(tmp_path / "b", submodule_name="model.layers.7.mlp") == Site("mlp_out_raw", 7)
    assert site(tmp_path / "c", submodule_name=..., layer=9) == Site("resid_post", 9)
    assert site(tmp_path / "d", submodule_name=None, layer=9) == Site("resid_post", 9)


def test_a_module_that_is_no_place_of_ours_needs_a_site(tmp_path: Path) -> None:
    path = layout.write(tmp_path, submodule_name="mlp_hidden_5").path
    assert "add ?site=resid_post.19" in refusal(path)
    assert read(path, "site=mlp_out.5").site == Site("mlp_out", 5)


def test_a_buffer_of_inputs_is_no_buffer_of_outputs(tmp_path: Path) -> None:
    trainer = {"dict_class": "AutoEncoder", "layer": 5, "submodule_name": "model.layers.5.mlp"}
    inputs = layout.write(
        tmp_path / "in", dict_class="AutoEncoder", config={"trainer": trainer, "buffer": {"io": "in"}}
    )
    assert "add ?site=resid_post.19" in refusal(inputs.path)
    config = {"trainer": trainer, "buffer": {"io": "in_and_out"}}
    both = layout.write(tmp_path / "both", dict_class="AutoEncoder", config=config)
    assert "from a module's input to its output, which is not supported" in refusal(both.path)


@pytest.mark.parametrize("dict_class", ["AutoEncoder", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_a_lost_configuration_matters_little_where_names_give_the_class_away(tmp_path: Path, dict_class: str) -> None:
    sae: SAE = check(layout.write(tmp_path, dict_class=dict_class, config={}), "dictionary_learning")
    assert (sae.architecture, sae.site) == (ARCHITECTURES[dict_class], Site("resid_post", 5))


def test_a_lost_configuration_leaves_topk_and_batch_topk_to_the_user(tmp_path: Path) -> None:
    path = layout.write(tmp_path, dict_class="BatchTopKSAE", config={}).path
    assert recognised(path) == ["dictionary_learning"]
    assert "?activation=topk (AutoEncoderTopK), or ?activation=jumprelu (BatchTopKSAE" in refusal(path)
    assert read(path, "activation=jumprelu").architecture == "jumprelu"
    assert read(path, "activation=topk").architecture == "topk"


@pytest.mark.parametrize("dict_class", ["AutoEncoderNew", "JumpReluAutoEncoder"])
def test_a_lost_configuration_makes_other_classes_a_matter_of_naming_the_format(
    tmp_path: Path, dict_class: str
) -> None:
    path = layout.write(tmp_path, dict_class=dict_class, config={}).path
    assert "dictionary_learning" not in recognised(path)
    assert read(path, "format=dictionary_learning").architecture == ARCHITECTURES[dict_class]


def test_a_class_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    trainer = {"dict_class": "CrossCoder", "layer": 5}
    path = layout.write(tmp_path, dict_class="AutoEncoder", config={"trainer": trainer}).path
    assert "dict_class 'CrossCoder' is not supported; supported: AutoEncoder, AutoEncoderNew" in refusal(path)


def test_tensors_of_another_class_are_refused(tmp_path: Path) -> None:
    path = layout.write(tmp_path, dict_class="AutoEncoder").path
    stored = torch.load(path / "ae.pt")
    pickles.save(path / "ae.pt", {**stored, "threshold": torch.ones(40)})
    assert "has threshold, whose meaning is not known" in refusal(path)


def test_a_calibrated_threshold_cannot_be_overridden(tmp_path: Path) -> None:
    path = layout.write(tmp_path).path
    assert refusal(path, "threshold=0.9") == "Option threshold has no meaning for this checkpoint."


def test_on_how_long_texts_it_was_trained_is_in_its_buffer_s_settings(tmp_path: Path) -> None:
    written = layout.write(tmp_path, dict_class="AutoEncoder")
    path = written.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"buffer": {"ctx_len": 128}}))
    source = source_of(written.path, "")
    dictionary_learning.read(source)
    assert source.context_size == 128
