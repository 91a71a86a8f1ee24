"""Circuit-tracer's sets of single layers' transcoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import mwhanna
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal

from saeclamp_saes import Site
from saeclamp_saes.errors import CheckpointError


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_every_variant_is_its_own_equations(tmp_path: Path, jumps: bool, skips: bool) -> None:
    sae = check(mwhanna.write(tmp_path, jumps=jumps, skips=skips), "mwhanna")
    assert sae.kind == ("skip_transcoder" if skips else "transcoder")
    assert sae.architecture == ("jumprelu" if jumps else "relu")
    assert (sae.reads, sae.writes) == ((Site("mlp_in", 5),), (Site("mlp_out", 5),))
    assert sae.model_name == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("hook_in", "hook_out", "reads", "writes"),
    [
        ("mlp.hook_in", "mlp.hook_out", Site("mlp_in", 5), Site("mlp_out_raw", 5)),
        ("hook_resid_mid", "hook_mlp_out", Site("resid_mid", 5), Site("mlp_out", 5)),
        ("ln2.hook_normalized", "hook_mlp_out", Site("mlp_in_no_gain", 5), Site("mlp_out", 5)),
    ],
)
def test_the_configuration_says_where_it_acts(
    tmp_path: Path, hook_in: str, hook_out: str, reads: Site, writes: Site
) -> None:
    hooks = {"feature_input_hook": hook_in, "feature_output_hook": hook_out}
    sae = check(mwhanna.write(tmp_path, hooks=hooks), "mwhanna")
    assert (sae.reads, sae.writes) == ((reads,), (writes,))


@pytest.mark.parametrize("name", ["wandb-config.yaml", "wanb-config.yaml"])
def test_a_set_with_the_trainers_configuration_alone_acts_where_the_family_does(tmp_path: Path, name: str) -> None:
    sae = check(mwhanna.write(tmp_path, config=False, trainer_config=name), "mwhanna")
    assert (sae.reads, sae.writes) == ((Site("mlp_in", 5),), (Site("mlp_out", 5),))


def test_a_folder_is_served_layer_by_layer(tmp_path: Path) -> None:
    written = {layer: mwhanna.write(tmp_path, layer=layer) for layer in (0, 3, 12)}
    for layer, one in written.items():
        sae = check(one, "mwhanna", f"layer={layer}")
        assert sae.reads == (Site("mlp_in", layer),)
        check(one._replace(path=tmp_path / f"layer_{layer}.safetensors"), "mwhanna")
    assert "choose with ?layer=N" in refusal(tmp_path)
    assert "no weights file for layer 4" in refusal(tmp_path, "layer=4")


@pytest.mark.parametrize("name", ["qwen3-0.6b-layer_17", "16k_layer_17", "gemma-2-2b-layer17", "sae_16k_L17"])
def test_the_layer_is_the_number_that_is_called_one(tmp_path: Path, name: str) -> None:
    written = mwhanna.write(tmp_path)
    (tmp_path / "layer_5.safetensors").rename(tmp_path / f"{name}.safetensors")
    assert check(written, "mwhanna").reads == (Site("mlp_in", 17),)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "layer_3-layer_5", "16k_L0_50"])
def test_a_name_without_one_layer_needs_the_option(tmp_path: Path, name: str) -> None:
    written = mwhanna.write(tmp_path)
    (tmp_path / "layer_5.safetensors").rename(tmp_path / f"{name}.safetensors")
    assert "does not say where it reads" in refusal(tmp_path)
    assert check(written, "mwhanna", "layer=12").reads == (Site("mlp_in", 12),)


def test_a_layer_that_the_files_name_contradicts_is_refused(tmp_path: Path) -> None:
    written = mwhanna.write(tmp_path, layer=3)
    for path in (tmp_path, tmp_path / "layer_3.safetensors"):
        assert "layer_3.safetensors is named after layer 3, so ?layer=12 cannot be right." in refusal(path, "layer=12")
        check(written._replace(path=path), "mwhanna", "layer=3")


def test_features_that_would_be_active_below_zero_are_refused(tmp_path: Path) -> None:
    """circuit-tracer's JumpReLU is x * (x > threshold)."""
    path = mwhanna.write(tmp_path, jumps=True).path / "layer_5.safetensors"
    stored = load_file(path)
    stored["activation_function.threshold"][7] = -0.1
    save_file(stored, path)
    with pytest.raises(CheckpointError, match="threshold has negative values, with which features would be active"):
        read(tmp_path)


def test_without_any_configuration_the_user_says_where_it_acts(tmp_path: Path) -> None:
    written = mwhanna.write(tmp_path, config=False, trainer_config=None)
    assert "does not say where it reads" in refusal(tmp_path)
    assert "does not say where it writes" in refusal(tmp_path, "site=resid_mid.5")
    sae = check(written, "mwhanna", "site=resid_mid.5&site_out=mlp_out.6")
    assert (sae.reads, sae.writes) == ((Site("resid_mid", 5),), (Site("mlp_out", 6),))


def test_square_matrices_are_told_by_the_configuration_only(tmp_path: Path) -> None:
    assert recognised(mwhanna.write(tmp_path / "set", d_sae=16, skips=True).path) == ["mwhanna"]
    bare = mwhanna.write(tmp_path / "bare", d_sae=16, config=False, trainer_config=None)
    assert "mwhanna" not in recognised(bare.path)
    unnamed = mwhanna.write(tmp_path / "unnamed", config=False, trainer_config=None).path
    (unnamed / "layer_5.safetensors").rename(unnamed / "mine.safetensors")
    assert recognised(unnamed) == []
    sae = read(bare.path, "format=mwhanna&site=mlp_in.5&site_out=mlp_out.5")
    assert sae.reads == (Site("mlp_in", 5),)


def test_a_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = mwhanna.write(tmp_path).path / "layer_5.safetensors"
    whole = load_file(path)
    save_file(whole | {"colour": torch.ones(3)}, path)
    assert "colour, whose meaning is not known" in refusal(tmp_path, "format=mwhanna")
    save_file({name: tensor for name, tensor in whole.items() if name != "b_enc"}, path)
    assert "lacks the vector b_enc" in refusal(tmp_path, "format=mwhanna")


def test_a_list_of_files_elsewhere_names_the_one_to_fetch(tmp_path: Path) -> None:
    entries = [f"hf://google/gemma-scope-2b-pt-transcoders/layer_{layer}/params.npz" for layer in range(4)]
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    config = {"model_name": "google/gemma-2-2b", "model_kind": "transcoder_set", **hooks, "transcoders": entries}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    says = refusal(tmp_path, "layer=2")
    assert f"fetch {entries[2]} for layer 2 and name that file" in says
    assert "with ?site=mlp_in_no_gain.2&site_out=mlp_out.2" in says
    assert entries[0] in refusal(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"feature_input_hook": None}))
    assert refusal(tmp_path).endswith("name that file.")
