"""sparsify's SAEs and transcoders: which bias is subtracted, which way round W_skip is, and what a folder's name means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import sparsify, tokens
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site, read_sae
from saeclamp_saes.conversion import convert
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.loaders import summarize
from saeclamp_saes.sae import TopK

SITES = {
    "layers.{layer}": Site("resid_post", 5),
    "layers.{layer}.mlp": Site("mlp_out_raw", 5),
    "layers.{layer}.self_attn": Site("attn_out_raw", 5),
    "h.{layer}": Site("resid_post", 5),
    "layers.{layer}.mlp.down_proj": Site("mlp_out_raw", 5),
    "layers.{layer}/seed0": Site("resid_post", 5),
    "embed_tokens": Site("embed", 0),
}


@pytest.mark.parametrize(("module", "site"), SITES.items(), ids=SITES.keys())
def test_an_sae_reads_and_writes_the_output_of_the_module_that_its_folder_names(
    tmp_path: Path, module: str, site: Site
) -> None:
    sae = check(sparsify.write(tmp_path, module=module, run={"model": "EleutherAI/pythia-70m"}), "sparsify")
    assert sae.reads == sae.writes == (site,)
    assert (sae.kind, sae.architecture, sae.top_k) == ("sae", "topk", TopK(8))
    assert sae.model_name == "EleutherAI/pythia-70m"


VARIANTS: dict[str, dict[str, Any]] = {
    "multi_topk": {"multi_topk": True},  # of training only
    "width by expansion": {"num_latents": ..., "expansion_factor": 2.5},
    "width zero": {"num_latents": 0, "expansion_factor": 2.5},
    "expansion_factor that is not true": {"expansion_factor": 32},
    "decoder not normalised": {"normalize_decoder": False},
    "version 1": {"activation": ..., "multi_topk": ..., "skip_connection": ..., "signed": False},
}


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_flags_that_change_nothing_change_nothing(tmp_path: Path, flags: dict[str, Any]) -> None:
    assert check(sparsify.write(tmp_path, **flags), "sparsify").d_sae == 40


def test_signed_keeps_the_largest_by_size(tmp_path: Path) -> None:
    written = sparsify.write(tmp_path, signed=True, activation=...)
    sae = check(written, "sparsify")
    assert (sae.architecture, sae.top_k) == ("abstopk", TopK(8, signed=True))
    assert (written.encode(tokens(16)) < 0).any()


def test_a_transcoder_subtracts_nothing_and_reads_the_modules_input(tmp_path: Path) -> None:
    sae = check(sparsify.write(tmp_path, module="layers.{layer}.mlp", transcode=True), "sparsify")
    assert (sae.kind, sae.reads, sae.writes) == ("transcoder", (Site("mlp_in", 5),), (Site("mlp_out_raw", 5),))


def test_a_transcoder_of_a_whole_block_reads_what_the_block_before_it_leaves(tmp_path: Path) -> None:
    sae = read(sparsify.write(tmp_path, transcode=True).path)
    assert (sae.reads, sae.writes) == ((Site("resid_post", 4),), (Site("resid_post", 5),))


def test_a_skip_connection_maps_inputs_to_outputs_as_a_linear_layer_does(tmp_path: Path) -> None:
    written = sparsify.write(tmp_path, module="layers.{layer}.mlp", transcode=True, skip_connection=True)
    sae = check(written, "sparsify")
    assert sae.kind == "skip_transcoder"
    stored = load_file(written.path / "sae.safetensors")["W_skip"]
    assert sae.W_skip is not None
    assert torch.equal(sae.W_skip, stored.T)
    unit = torch.eye(16)[3:4]
    skipped = sae.decode(torch.zeros(1, 40), unit) - sae.b_dec
    torch.testing.assert_close(skipped[0], stored[:, 3])  # column 3: what input 3 writes


EARLY: dict[str, Any] = {"activation": ..., "transcode": ...}


def test_an_early_skip_transcoder_does_not_say_transcode_and_subtracts_its_bias(tmp_path: Path) -> None:
    sae = check(sparsify.write(tmp_path, module="layers.{layer}.mlp", skip_connection=True, **EARLY), "sparsify")
    assert (sae.kind, sae.reads, sae.writes) == ("skip_transcoder", (Site("mlp_in", 5),), (Site("mlp_out_raw", 5),))


def test_an_early_transcoder_without_skip_is_told_by_the_runs_configuration(tmp_path: Path) -> None:
    written = sparsify.write(tmp_path, module="layers.{layer}.mlp", run={"transcode": True}, **EARLY)
    sae = check(written, "sparsify")
    assert (sae.kind, sae.reads, sae.writes) == ("transcoder", (Site("mlp_in", 5),), (Site("mlp_out_raw", 5),))


def test_newer_files_say_that_a_skip_connection_makes_no_transcoder(tmp_path: Path) -> None:
    written = sparsify.write(tmp_path, skip_connection=True, transcode=False, run={"sae": {"transcode": False}})
    sae = check(written, "sparsify")
    assert (sae.kind, sae.reads, sae.writes) == ("sae", (Site("resid_post", 5),), (Site("resid_post", 5),))
    copy = read_sae(convert(written.path, tmp_path / "converted").path)
    assert (copy.kind, copy.site) == ("sae", Site("resid_post", 5))
    assert copy.W_skip is not None
    assert torch.equal(copy.W_skip, load_file(written.path / "sae.safetensors")["W_skip"].T)


def test_a_module_that_is_no_place_of_ours_needs_a_site(tmp_path: Path) -> None:
    path = sparsify.write(tmp_path, module="layers.{layer}.attention").path
    assert "add ?site=resid_post.19" in refusal(path)
    assert read(path, "site=attn_out_raw.5").site == Site("attn_out_raw", 5)


def test_a_transcoder_of_such_a_module_needs_both_sites(tmp_path: Path) -> None:
    path = sparsify.write(tmp_path, module="mlp_of_{layer}", transcode=True).path
    assert "where it writes: add ?site_out=" in refusal(path, "site=mlp_in.5")
    sae = read(path, "site=mlp_in.5&site_out=mlp_out.5")
    assert (sae.reads, sae.writes) == ((Site("mlp_in", 5),), (Site("mlp_out", 5),))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "groupmax": ({"activation": "groupmax"}, "activation 'groupmax' is not supported; supported: topk."),
    "a table of means": ({"gram_lookup": True}, "gram_lookup is not supported"),
    "a skip from the embedding": ({"embed_skip": True}, "embed_skip is not supported"),
    "another width": ({"num_latents": 48}, "are not those of the weights, 16 and 40"),
    "another model's width": ({"d_in": 40}, "are not those of the weights, 16 and 40"),
    "no k": ({"k": None}, "must give k as a positive integer"),
}


@pytest.mark.parametrize(("flags", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_what_cannot_be_followed_is_refused(tmp_path: Path, flags: dict[str, Any], says: str) -> None:
    path = sparsify.write(tmp_path).path
    config = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(config | flags))
    assert says in refusal(path)


def test_a_skip_that_the_configuration_does_not_know_is_refused(tmp_path: Path) -> None:
    path = sparsify.write(tmp_path).path
    stored = load_file(path / "sae.safetensors")
    save_file({**stored, "W_skip": torch.eye(16)}, path / "sae.safetensors")
    assert "has W_skip, whose meaning is not known" in refusal(path)


def test_a_repository_of_several_layers_names_its_folders(tmp_path: Path) -> None:
    for layer in (3, 5):
        sparsify.write(tmp_path, layer=layer, run={"model": "m"})
    with pytest.raises(CheckpointError, match=r"name one: layers\.3, layers\.5"):
        read_sae(tmp_path)


def test_the_folder_can_be_named_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sparsify.write(tmp_path, module="layers.{layer}.mlp").path)
    assert summarize(Path()).site == Site("mlp_out_raw", 5)
    assert summarize(Path("sae.safetensors")).site == Site("mlp_out_raw", 5)
