"""Things beside an SAE's weights, in their file or folder, are used or known to be harmless, else refused by name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import dictionary_learning, goodfire, pickles, saelens, sparsify
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Options, Site, read_sae
from saeclamp_saes.cli import library as library_commands
from saeclamp_saes.conversion import convert
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.library.add import add
from saeclamp_saes.library.resolve import find_sae, open_entry
from saeclamp_saes.loaders import summarize

# ------------------------------------------------------------------------------------------------------------ in a file


def backup(folder: Path, **changes: Any) -> Path:
    """A run's backup, with other things in it; `...` leaves something out."""
    path = dictionary_learning.write(folder, norm_factor=2.0).path
    content = torch.load(path / "ae.pt") | changes
    pickles.save(path / "ae.pt", {name: value for name, value in content.items() if value is not ...})
    return path


def test_a_backups_factor_may_be_a_tensor_and_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    expected = read(backup(tmp_path / "number"))
    missing = backup(tmp_path / "missing", norm_factor=...)
    assert "what its inputs were divided by (norm_factor): give ?input_scale=1 if by nothing" in refusal(missing)
    for sae in (read(backup(tmp_path / "tensor", norm_factor=torch.tensor(2.0))), read(missing, "input_scale=0.5")):
        assert torch.equal(sae.b_enc, expected.b_enc)
        assert torch.equal(sae.threshold, expected.threshold)
    assert float(read(missing, "input_scale=1").threshold[0]) == float(expected.threshold[0]) / 2


def test_a_backup_says_itself_of_what_class_it_is(tmp_path: Path) -> None:
    path = backup(tmp_path)
    (path / "config.json").unlink()
    assert read(path).architecture == "jumprelu"


@pytest.mark.parametrize("factor", [0.0, -1.0, "2", True])
def test_a_factor_that_is_none_is_refused(tmp_path: Path, factor: Any) -> None:
    assert "norm_factor must be a positive number" in refusal(backup(tmp_path, norm_factor=factor))


def test_what_else_a_backup_holds_is_refused_by_name(tmp_path: Path) -> None:
    plain, tensor = backup(tmp_path / "a", whitening="zca"), backup(tmp_path / "b", input_mean=torch.ones(16))
    with pytest.raises(CheckpointError, match="holds whitening beside its tensors, whose meaning is not known"):
        read(plain)
    assert "has input_mean, whose meaning is not known" in refusal(tensor)


def test_a_number_beside_a_published_files_tensors_is_refused_by_name(tmp_path: Path) -> None:
    path = goodfire.write(tmp_path).path
    pickles.save(path, torch.load(path) | {"epoch": 3})
    assert read(path).d_sae == 40
    pickles.save(path, torch.load(path) | {"input_scale": 0.1})
    with pytest.raises(CheckpointError, match="holds input_scale beside its tensors, whose meaning is not known"):
        convert(path, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


# ---------------------------------------------------------------------------------------------------------- in a folder


def test_what_a_trainer_needs_to_go_on_is_no_sae(tmp_path: Path) -> None:
    """SAELens's `checkpoints/<n>`, and what the trainer of transformers leaves."""
    path = saelens.write(tmp_path).path
    save_file({"n": torch.ones(1)}, tmp_path / "activations_store_state.safetensors")
    save_file({"sparsity": torch.ones(40)}, tmp_path / "sparsity.safetensors")
    for name in ("trainer_state.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (tmp_path / name).write_bytes(b"not looked at")
    assert read_sae(path).d_sae == 40


def test_a_pickle_of_another_name_may_be_a_part_and_is_refused_by_name(tmp_path: Path) -> None:
    path = saelens.write(tmp_path).path
    (path / "sae_weights.pt").write_bytes(b"what it was converted from")
    assert read_sae(path).d_sae == 40
    (path / "input_stats.pt").write_bytes(b"who knows")
    with pytest.raises(
        CheckpointError, match=r"holds input_stats\.pt beside sae_weights\.safetensors, and it is not kn"
    ):
        read_sae(path)
    assert read_sae(path / "sae_weights.safetensors").d_sae == 40


def test_a_factor_that_the_configuration_does_not_ask_for_is_refused(tmp_path: Path) -> None:
    path = saelens.write(tmp_path).path
    (path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None, "has_whitening": False}))
    assert read(path).d_sae == 40
    (path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    assert "activation_scaler.json holds a factor, and normalize_activations is 'none'" in refusal(path)
    assert read(path, "normalize=none").d_sae == 40


def test_shards_are_called_so(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"x": torch.ones(1)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"holds an SAE in 2 parts .*save it as one file"):
        read_sae(tmp_path)


def test_earlier_steps_stand_beside_the_sae_and_can_be_named(tmp_path: Path) -> None:
    """dictionary_learning's `save_steps`: the configuration is one folder up."""
    written = dictionary_learning.write(tmp_path, submodule_name=..., layer=7)
    earlier = dictionary_learning.write(tmp_path / "earlier", seed=3).path / "ae.pt"
    steps = written.path / "checkpoints"
    steps.mkdir()
    for name in ("ae_4.pt", "ae_8.pt"):
        (steps / name).write_bytes(earlier.read_bytes())
    assert check(written, "dictionary_learning").site == Site("resid_post", 7)
    step = read(steps / "ae_8.pt")
    assert (step.architecture, step.site) == ("jumprelu", Site("resid_post", 7))
    assert torch.equal(step.W_enc, read(earlier.parent).W_enc)
    with pytest.raises(CheckpointError, match=r"holds several SAEs \(ae_4\.pt, ae_8\.pt \.\.\.\): name one file\.$"):
        read_sae(steps)


def test_an_earlier_step_is_kept_in_the_library_with_its_configuration(tmp_path: Path, library: Path) -> None:
    path = dictionary_learning.write(tmp_path, submodule_name=..., layer=7).path
    (path / "checkpoints").mkdir()
    (path / "ae.pt").rename(path / "checkpoints" / "ae_8.pt")
    record = add(str(path / "checkpoints" / "ae_8.pt"), "step", None)
    assert (record.summary["architecture"], record.summary["reads"]) == ("jumprelu", ["resid_post 7"])


def run_of(folder: Path) -> Path:
    """A folder as sparsify's trainer leaves it, with SAEs of several modules, and of several seeds."""
    for layer in (3, 15):
        sparsify.write(folder, layer=layer, transcode=False)
    sparsify.write(folder, layer=4, module="layers.{layer}.mlp.down_proj", transcode=False)
    for seed in (0, 1):
        sparsify.write(folder, layer=9, seed=seed, module=f"layers.{{layer}}/seed{seed}", transcode=False)
    for name in ("optimizer_0.pt", "lr_scheduler_0.pt", "rank_0_state.pt", "state.pt"):
        (folder / name).write_bytes(b"not looked at")
    (folder / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "sae": {"transcode": False}}))
    return folder


def test_a_runs_folder_names_its_saes_and_a_layer_chooses_one(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    folders = r"name one: layers\.15, layers\.3, layers\.4\.mlp\.down_proj, layers\.9/seed0, layers\.9/seed1"
    with pytest.raises(CheckpointError, match=folders):
        read_sae(run)
    with pytest.raises(CheckpointError, match=r"name one: layers\.9/seed0, layers\.9/seed1"):
        read_sae(run, Options.parse("layer=9"))
    assert summarize(run, Options.parse("layer=15")).site == Site("resid_post", 15)
    assert summarize(run, Options.parse("layer=4")).site == Site("mlp_out_raw", 4)
    seed = summarize(run / "layers.9" / "seed1")
    assert (seed.site, seed.model_name) == (Site("resid_post", 9), "EleutherAI/pythia-70m")


@pytest.mark.parametrize(
    ("what", "inside", "layer"),
    [("?layer=15", "layers.15", 15), ("/layers.15", "layers.15", 15), ("/layers.9/seed1", "layers.9/seed1", 9)],
)
def test_the_library_takes_one_out_of_a_run(tmp_path: Path, library: Path, what: str, inside: str, layer: int) -> None:
    run = run_of(tmp_path / "run")
    record = add(f"{run}{what}", "mine", None)
    assert (record.summary["reads"], record.model) == ([f"resid_post {layer}"], "EleutherAI/pythia-70m")
    address = find_sae("mine")
    assert torch.equal(read_sae(address.path, address.options).W_enc, read_sae(run / inside).W_enc)
    assert open_entry(address).summary.site == Site("resid_post", layer)


# ------------------------------------------------------------------------------------------- dictionary_learning's fork


def test_the_forks_normalisation_is_folded_and_nan_means_none(tmp_path: Path) -> None:
    check(dictionary_learning.write(tmp_path / "none", normalisation="none"), "dictionary_learning")
    path = dictionary_learning.write(tmp_path / "pickle", normalisation="none").path
    assert convert(path, tmp_path / "converted").summary.architecture == "jumprelu"
    check(dictionary_learning.write(tmp_path / "global", normalisation="global", threshold=0.2), "dictionary_learning")


def test_the_forks_hub_layout_names_its_class_at_the_top(tmp_path: Path) -> None:
    written = dictionary_learning.write(tmp_path / "pickle", normalisation="global", threshold=0.2)
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file(torch.load(written.path / "ae.pt"), hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps({"activation_dim": 16, "dict_class": "BatchTopKSAE", "dict_size": 40}))
    assert "add ?site=resid_post.19" in refusal(hub)
    sae = check(written._replace(path=hub), "dictionary_learning", "site=resid_post.5")
    assert sae.architecture == "jumprelu"
    (hub / "config.json").write_text(json.dumps({"activation_dim": 16}))
    assert "has no config.json that says how it is used (dict_class)" in refusal(hub, "site=resid_post.5")


def test_units_that_differ_from_a_loaders_are_said(tmp_path: Path) -> None:
    path = dictionary_learning.write(tmp_path, dict_class="AutoEncoder").path
    convert(path, tmp_path / "converted")
    note = summarize(tmp_path / "converted").unit_note
    assert note is not None
    assert "its activations are these, times the length of the feature's row" in note
    assert summarize(saelens.write(tmp_path / "other").path).unit_note is None


def test_sae_info_says_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(dictionary_learning.write(tmp_path, dict_class="AutoEncoder").path, tmp_path / "converted")
    parser = argparse.ArgumentParser()
    library_commands.register(parser.add_subparsers())
    args = parser.parse_args(["info", str(tmp_path / "converted"), "--json"])
    assert args.run(args) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unit"] == "native"
    assert told["units elsewhere"].startswith("AutoEncoder.from_pretrained measures along decoder rows of unit length")
