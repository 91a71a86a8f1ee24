"""Gemma Scope 2: single layers, and the files of cross-layer transcoders and crosscoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import Written, gemma_scope_2, tokens
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site
from saeclamp_saes.loaders import native


@pytest.mark.parametrize(
    ("suite", "kind", "reads", "writes"),
    [
        ("resid_post", "sae", Site("resid_post", 5), Site("resid_post", 5)),
        ("attn_out", "sae", Site("attn_z", 5), Site("attn_z", 5)),
        ("mlp_out", "sae", Site("mlp_out", 5), Site("mlp_out", 5)),
        ("transcoder", "transcoder", Site("mlp_in", 5), Site("mlp_out", 5)),
    ],
)
@pytest.mark.parametrize("config", [True, False], ids=["configured", "named"])
def test_single_layers_act_where_their_hooks_or_folders_say(
    tmp_path: Path, suite: str, kind: str, reads: Site, writes: Site, config: bool
) -> None:
    sae = check(gemma_scope_2.write(tmp_path, suite=suite, config=config), "gemma_scope_2")
    assert (sae.kind, sae.architecture, sae.unit) == (kind, "jumprelu", "native")
    assert (sae.reads, sae.writes) == ((reads,), (writes,))
    assert sae.model_name == ("google/gemma-3-1b-pt" if config else None)


@pytest.mark.parametrize("config", [True, False])
def test_an_affine_transcoder_has_a_skip_connection_from_input_to_output(tmp_path: Path, config: bool) -> None:
    written = gemma_scope_2.write(tmp_path, suite="transcoder", affine=True, config=config)
    sae = check(written, "gemma_scope_2")
    assert sae.kind == "skip_transcoder"


def test_layers_of_the_sweep_over_all_of_them_are_named_alike(tmp_path: Path) -> None:
    written = gemma_scope_2.write(tmp_path, suite="resid_post_all", config=False)
    assert check(written, "gemma_scope_2").reads == (Site("resid_post", 5),)


def test_without_configuration_and_published_folders_the_user_says_where_it_acts(tmp_path: Path) -> None:
    written = gemma_scope_2.write(tmp_path, config=False)
    moved = written._replace(path=tmp_path / "mine")
    written.path.rename(moved.path)
    assert "does not say where it reads: add ?site=" in refusal(moved.path)
    assert check(moved, "gemma_scope_2", "site=mlp_out.9").reads == (Site("mlp_out", 9),)


@pytest.mark.parametrize("affine", [False, True])
def test_a_file_of_a_clt_reads_one_layer_and_writes_to_it_and_later_ones(tmp_path: Path, affine: bool) -> None:
    files = gemma_scope_2.write_many(tmp_path, affine=affine)
    for layer, written in enumerate(files):
        sae = check(written, "gemma_scope_2")
        assert (sae.kind, sae.reads) == ("clt_layer", (Site("mlp_in", layer),))
        assert sae.writes == tuple(Site("mlp_out", later) for later in range(layer, 4))
        assert (sae.W_skip is not None) == affine
        check(Written(written.path.parent, written.encode, written.decode), "gemma_scope_2", f"layer={layer}")


def test_the_layers_of_a_clt_add_up_to_all_of_it(tmp_path: Path) -> None:
    files = gemma_scope_2.write_many(tmp_path, affine=True)
    x = tokens(16)
    total = torch.zeros(len(x), 4, 16, dtype=torch.float64)
    whole = torch.zeros_like(total)
    for layer, written in enumerate(files):
        sae = read(written.path)
        total[:, layer:] += sae.decode(sae.encode(x), x).view(len(x), 4 - layer, 16)
        stored = {name: tensor.double() for name, tensor in load_file(written.path).items()}
        whole += torch.einsum("nf,fld->nld", written.encode(x), stored["w_dec"])
        whole[:, layer] += stored["b_dec"] + x @ stored["affine_skip_connection"]
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-4)


def test_a_file_of_a_crosscoder_is_named_by_its_place_in_the_list_of_layers(tmp_path: Path) -> None:
    files = gemma_scope_2.write_many(tmp_path, suite="crosscoder", layers=(5, 9, 12, 15))
    sae = check(files[2], "gemma_scope_2")
    assert (sae.kind, sae.reads) == ("crosscoder", (Site("resid_post", 12),))
    assert sae.writes == (Site("resid_post", 12), Site("resid_post", 15))


def test_a_renamed_file_needs_its_number(tmp_path: Path) -> None:
    written = gemma_scope_2.write_many(tmp_path)[2]
    moved = written._replace(path=written.path.with_name("mine.safetensors"))
    written.path.rename(moved.path)
    assert "none of params_layer_0.safetensors to params_layer_3.safetensors: add ?layer=N" in refusal(moved.path)
    assert "none of params_layer_0" in refusal(moved.path, "layer=4")
    assert check(moved, "gemma_scope_2", "layer=2").reads == (Site("mlp_in", 2),)


def test_a_number_that_the_files_name_contradicts_is_refused(tmp_path: Path) -> None:
    path = gemma_scope_2.write_many(tmp_path)[2].path
    says = "params_layer_2.safetensors is named after layer 2, so ?layer=1 cannot be right."
    assert says in refusal(path, "layer=1")
    assert read(path, "layer=2").reads == (Site("mlp_in", 2),)


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


BAD_SETS = {
    "slots that are not all layers": (
        {"width": 200},
        "w_dec has 4 slots, but a width of 200 and 40 features a file mean 5",
    ),
    "no width": ({"width": ...}, "give width as a positive integer"),
    "a list of other length": ({"hf_hook_point_in": "model.layers.{1,2}.output"}, "does not name the 4 layers"),
    "one layer": ({"hf_hook_point_out": "model.layers.3.output"}, "does not name the 4 layers"),
    "another module": ({"hf_hook_point_in": "model.layers.{all}.q_norm.output"}, "is no known place: add ?site="),
    "no hook": ({"hf_hook_point_in": ...}, "hf_hook_point_in None does not name the 4 layers"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_SETS.values(), ids=BAD_SETS.keys())
def test_what_shapes_and_configuration_of_a_set_cannot_tell_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = gemma_scope_2.write_many(tmp_path)[1].path
    change_config(path.parent, **changes)
    assert says in refusal(path)


def test_a_set_without_configuration_is_refused(tmp_path: Path) -> None:
    path = gemma_scope_2.write_many(tmp_path)[1].path
    (path.parent / "config.json").unlink()
    assert "hf_hook_point_in None does not name the 4 layers" in refusal(path)


def test_what_is_not_published_is_refused(tmp_path: Path) -> None:
    path = gemma_scope_2.write(tmp_path, suite="transcoder").path
    change_config(path, architecture="topk")
    assert "architecture 'topk' is not supported; supported: jump_relu" in refusal(path)
    change_config(path, architecture="jump_relu", affine_connection=True)
    assert "lacks affine_skip_connection" in refusal(path)
    change_config(path, affine_connection=False, hf_hook_point_out="model.layers.5.q_norm.output")
    assert "does not say where it writes: add ?site_out=" in refusal(path)
    stored = load_file(path / "params.safetensors")
    save_file(stored | {"colour": torch.ones(3)}, path / "params.safetensors")
    assert "colour, whose meaning is not known" in refusal(path)
    save_file(stored | {"w_dec": torch.ones(40)}, path / "params.safetensors")
    assert "lacks the matrix w_dec" in refusal(path)


def test_a_converted_layer_of_an_affine_clt_keeps_its_skip_connection(tmp_path: Path) -> None:
    sae = read(gemma_scope_2.write_many(tmp_path, affine=True)[2].path)
    native.write(sae, tmp_path / "converted", {})
    assert sae.W_skip is not None
    torch.testing.assert_close(read(tmp_path / "converted").W_skip, sae.W_skip)
