"""OpenMOSS's llamascopium: its activations are of scaled vectors along stored rows, ours are lengths of what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import Written, openmoss, tokens
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal
from torch import Tensor

from saeclamp_saes import Options, Site
from saeclamp_saes.loaders import summarize

S_FIRST, S_SECOND = 4.0 / openmoss.LENGTHS[0], 4.0 / openmoss.LENGTHS[1]
"""sqrt(d_model) over the mean lengths at the first and the second hook."""


def in_units(written: Written, factor: Tensor) -> Written:
    """factor: (d_sae,), our activations over the family's."""
    return Written(written.path, lambda x: written.encode(x) * factor, lambda acts, x: written.decode(acts / factor, x))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stored(written: Written) -> dict[str, Tensor]:
    return {name: t.double() for name, t in load_file(written.path / "sae_weights.safetensors").items()}


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
@pytest.mark.parametrize("bias", [True, False])
def test_activations_are_the_families_times_the_length_of_what_a_feature_writes(
    tmp_path: Path, act_fn: str, transcoder: bool, norm: str, bias: bool
) -> None:
    written = openmoss.write(
        tmp_path, act_fn=act_fn, transcoder=transcoder, norm_activation=norm, use_decoder_bias=bias
    )
    s_out = 1.0 if norm == "inference" else S_SECOND if transcoder else S_FIRST
    sae = check(in_units(written, stored(written)["W_D"].norm(dim=1) / s_out), "openmoss")
    assert (sae.architecture, sae.unit) == (act_fn, "decoder_norm")
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    reads, writes = (Site("mlp_in_no_gain", 5), Site("mlp_out", 5)) if transcoder else (Site("resid_post", 5),) * 2
    assert (sae.reads, sae.writes) == ((reads,), (writes,))
    assert sae.kind == ("transcoder" if transcoder else "sae")


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_gates_that_ignore_the_decoders_lengths_leave_activations_as_they_are(tmp_path: Path, act_fn: str) -> None:
    written = openmoss.write(tmp_path, act_fn=act_fn, transcoder=True, sparsity_include_decoder_norm=False)
    assert check(written, "openmoss").unit == "native"


def test_a_batch_topk_is_used_with_a_threshold(tmp_path: Path) -> None:
    written = openmoss.write(tmp_path, act_fn="batchtopk", threshold=0.8)
    assert "act_fn 'batchtopk' looks at other tokens or layers: give ?threshold=NUMBER" in refusal(written.path)
    units = in_units(written, stored(written)["W_D"].norm(dim=1) / S_FIRST)
    assert check(units, "openmoss", "threshold=0.8").architecture == "jumprelu"
    assert (
        summarize(written.path, Options.parse("threshold=0.8")).approximation == "threshold 0.8 in place of batchtopk"
    )


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_of_a_clt_writes_to_its_own_and_later_layers(
    tmp_path: Path, act_fn: str, weighted: bool, layer: int
) -> None:
    written = openmoss.write_clt(tmp_path, act_fn=act_fn, sparsity_include_decoder_norm=weighted)[layer]
    W, targets = stored(written), range(layer, 3)
    rows = torch.cat([W[f"W_D.{n}"][layer] for n in targets], dim=1)
    scales = [4.0 / openmoss.LENGTHS[3 + n] for n in targets]
    brought_back = torch.cat([W[f"W_D.{n}"][layer] / s for n, s in zip(targets, scales, strict=True)], dim=1)
    factor = rows.norm(dim=1) / scales[0] if act_fn == "topk" else brought_back.norm(dim=1)
    sae = check(in_units(written, factor) if weighted else written, "openmoss", f"layer={layer}")
    assert (sae.kind, sae.reads) == ("clt_layer", (Site("mlp_in_no_gain", layer),))
    assert sae.writes == tuple(Site("mlp_out", n) for n in targets)
    assert sae.unit == ("decoder_norm" if weighted else "native")


def test_the_layers_of_a_clt_add_up_to_all_of_it(tmp_path: Path) -> None:
    written = openmoss.write_clt(tmp_path)
    W, x = stored(written[0]), tokens(16)
    total = torch.zeros(len(x), 3, 16)
    for layer in range(3):
        sae = read(tmp_path, f"layer={layer}")
        total[:, layer:] += sae.decode(sae.encode(x)).view(len(x), 3 - layer, 16)
    acts = torch.stack([one.encode(x) for one in written], dim=1)
    for layer in range(3):
        output = torch.einsum("nlf,lfd->nd", acts[:, : layer + 1], W[f"W_D.{layer}"]) + W[f"b_D.{layer}"]
        expected = output / (4.0 / openmoss.LENGTHS[3 + layer])
        torch.testing.assert_close(total[:, layer].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_of_a_clt_must_be_chosen(tmp_path: Path) -> None:
    openmoss.write_clt(tmp_path)
    assert "holds 3 layers of a transcoder: choose one with ?layer=N" in refusal(tmp_path)
    assert "choose one with ?layer=N" in refusal(tmp_path, "layer=3")
    change_config(tmp_path, hook_points_in="blocks.0.ln2.hook_normalized")
    assert "hook_points_in must be a list of hooks, not 'blocks.0" in refusal(tmp_path, "layer=0")


@pytest.mark.parametrize("act_fn", ["layertopk", "batchlayertopk"])
def test_a_clt_that_chooses_among_layers_is_used_with_a_threshold(tmp_path: Path, act_fn: str) -> None:
    openmoss.write_clt(tmp_path, act_fn=act_fn)
    assert f"act_fn {act_fn!r} looks at other tokens or layers" in refusal(tmp_path, "layer=1")
    assert read(tmp_path, "layer=1&threshold=0.5").threshold.tolist() == [0.5] * 40


def test_a_relu_crosscoder_adds_up_what_it_reads(tmp_path: Path) -> None:
    written = openmoss.write_crosscoder(tmp_path)
    scales = [4.0 / length for length in openmoss.LENGTHS[:3]]
    rows = torch.cat([W_D / s for W_D, s in zip(stored(written)["W_D"], scales, strict=True)], dim=1)
    sae = check(in_units(written, rows.norm(dim=1)), "openmoss")
    assert (sae.kind, sae.unit) == ("crosscoder", "decoder_norm")
    assert sae.reads == sae.writes == (Site("resid_post", 4), Site("resid_post", 8), Site("resid_post", 9))


@pytest.mark.parametrize("act_fn", ["jumprelu", "topk"])
def test_a_crosscoder_that_gates_at_each_place_writes_to_one(tmp_path: Path, act_fn: str) -> None:
    written = openmoss.write_crosscoder(tmp_path, act_fn=act_fn, head=1)
    assert "choose ?site_out= of resid_post 4, resid_post 8, resid_post 9" in refusal(tmp_path)
    assert "choose ?site_out= of" in refusal(tmp_path, "site_out=resid_post.5")
    factor = stored(written)["W_D"][1].norm(dim=1) / S_SECOND
    sae = check(in_units(written, factor), "openmoss", "site_out=resid_post.8")
    assert (len(sae.reads), sae.writes) == (3, (Site("resid_post", 8),))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "low-rank attention": ({"sae_type": "lorsa"}, "sae_type 'lorsa' is not supported; supported: sae, clt, crosscoder"),
    "a mixture of transforms": ({"sae_type": "molt"}, "sae_type 'molt' is not supported"),
    "a gated linear unit": ({"use_glu_encoder": True}, "use_glu_encoder is not supported"),
    "a norm of the token": ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' is not supported"),
    "a norm of the batch": ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise' is not supported"),
    "another activation": ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported; supported: relu, jumprelu, topk"),
    "a k that is none": ({"act_fn": "topk", "top_k": 0}, "give top_k as a positive integer, not 0"),
    "thresholds of a topk": ({"act_fn": "topk"}, "log_jumprelu_threshold, whose meaning is not known"),
    "no width": ({"d_model": None}, "give d_model as a positive integer"),
    "another width": ({"d_model": 17}, "W_D has shape (40, 16), expected (40, 17)"),
    "another kind": ({"sae_type": "clt"}, "W_E has shape (16, 40), expected 3 dimensions"),
    "a bias that is not used": ({"use_decoder_bias": False}, "has b_D, whose meaning is not known"),
    "an unknown hook": ({"hook_point_in": "blocks.5.q"}, "lacks dataset_average_activation_norm.blocks.5.q"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_what_cannot_be_followed_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    written = openmoss.write(tmp_path, transcoder="hook_point_in" not in changes)
    change_config(tmp_path, **changes)
    assert says in refusal(written.path)


def test_hooks_that_we_do_not_know_are_for_the_user_to_place(tmp_path: Path) -> None:
    written = openmoss.write(tmp_path, hook="hook_q", act_fn="relu", sparsity_include_decoder_norm=False)
    assert "hook 'blocks.5.hook_q' is no known place: add ?site=" in refusal(tmp_path)
    assert check(written, "openmoss", "site=mlp_out.5").writes == (Site("mlp_out", 5),)
    openmoss.write_crosscoder(tmp_path / "many", hook="hook_q")
    assert "hook 'blocks.4.hook_q' is no known place: add ?site=" in refusal(tmp_path / "many")
    many = read(tmp_path / "many", "site=mlp_out.4")
    assert [site.point for site in many.reads] == ["mlp_out"] * len(many.reads)
    assert many.reads[0].layer == 4


def test_a_mean_length_must_be_there_and_be_one(tmp_path: Path) -> None:
    name, weights = "dataset_average_activation_norm.blocks.5.hook_resid_post", tmp_path / "sae_weights.safetensors"
    openmoss.write(tmp_path)
    tensors = load_file(weights)
    save_file(tensors | {name: torch.tensor(0.0)}, weights)
    assert "is 0.0, which is no length" in refusal(tmp_path)
    tensors.pop(name)
    save_file(tensors, weights)
    assert f"lacks {name}" in refusal(tmp_path)


def test_another_program_with_a_configuration_is_not_this_family(tmp_path: Path) -> None:
    openmoss.write(tmp_path)
    change_config(tmp_path, sae_type=None)
    assert recognised(tmp_path) == []
