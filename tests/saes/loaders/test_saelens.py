"""SAELens checkpoints are read exactly, or refused with a sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import saelens, tokens
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site, read_sae
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.loaders import summarize
from saeclamp_saes.loaders.builder import GATE_TOLERANCE
from saeclamp_saes.sae import InputNorm, TopK

FACTOR = f"input_scale={saelens.FACTOR}"
SAES = ("standard", "jumprelu", "gated", "topk", "abstopk")
TRANSCODERS = ("transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saelens.write(tmp_path / "sae", d_sae=24, architecture="jumprelu").path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    ("architecture", "version"),
    [(name, version) for name in SAES for version in (5, 6) if (name, version) != ("abstopk", 5)],
)
def test_every_architecture_is_its_own_equations(
    tmp_path: Path, architecture: str, subtract: bool, version: int
) -> None:
    sae = check(saelens.write(tmp_path, architecture=architecture, subtract=subtract, version=version), "saelens")
    assert sae.kind == "sae"
    assert sae.architecture == {"standard": "relu"}.get(architecture, architecture)
    assert sae.reads == sae.writes == (Site("resid_post", 5),)
    assert sae.model_name == "gemma-2-2b"


@pytest.mark.parametrize("architecture", TRANSCODERS)
@pytest.mark.parametrize("version", [5, 6])
def test_every_transcoder_is_its_own_equations(tmp_path: Path, architecture: str, version: int) -> None:
    hook = "ln2.hook_normalized"
    sae = check(saelens.write(tmp_path, architecture=architecture, hook=hook, version=version), "saelens")
    assert sae.kind == ("skip_transcoder" if "skip" in architecture else "transcoder")
    assert sae.architecture == ("jumprelu" if "jumprelu" in architecture else "relu")
    assert (sae.reads, sae.writes) == ((Site("mlp_in_no_gain", 5),), (Site("mlp_out", 5),))
    assert (sae.d_in, sae.d_out) == (16, 12)


@pytest.mark.parametrize("architecture", SAES)
@pytest.mark.parametrize(
    "normalize", ["expected_average_only_in", True, "layer_norm", "constant_norm_rescale", None, False]
)
def test_every_normalisation_is_its_own_equations(
    tmp_path: Path, architecture: str, normalize: str | bool | None
) -> None:
    """Activations keep the units of training: a constant factor changes the weights only."""
    options = FACTOR if normalize in (True, "expected_average_only_in") else ""
    norms = {"layer_norm": InputNorm(True, "std", 1e-5), "constant_norm_rescale": InputNorm(False, "l2")}
    sae = check(saelens.write(tmp_path, architecture=architecture, normalize=normalize), "saelens", options)
    assert sae.input_norm == norms.get(str(normalize), InputNorm())


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "layer_norm"])
def test_topk_of_activations_along_unit_decoder_rows(tmp_path: Path, architecture: str, normalize: str) -> None:
    options = FACTOR if normalize == "expected_average_only_in" else ""
    written = saelens.write(tmp_path, architecture=architecture, rescale=True, normalize=normalize, k=6)
    sae = check(written, "saelens", options)
    assert sae.top_k == TopK(6, signed=architecture == "abstopk")


def test_version_5_names_its_topk_as_an_activation(tmp_path: Path) -> None:
    written = saelens.write(tmp_path, architecture="topk", version=5, k=5)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "standard"
    assert check(written, "saelens").top_k == TopK(5)


@pytest.mark.parametrize("architecture", saelens.THRESHOLDED)
def test_a_threshold_may_be_stored_as_its_logarithm(tmp_path: Path, architecture: str) -> None:
    check(saelens.write(tmp_path, architecture=architecture, log_threshold=True), "saelens")


@pytest.mark.parametrize("architecture", ["gated", "jumprelu"])
def test_an_activation_function_beside_the_architectures_own_is_refused(tmp_path: Path, architecture: str) -> None:
    """Version 5 applies it too: a gated TopK keeps k of the open gates."""
    path = saelens.write(tmp_path, architecture=architecture, version=5).path
    change_config(path, activation_fn_str="topk", activation_fn_kwargs={"k": 4})
    says = f"architecture '{architecture}' with the activation function 'topk' is not supported; supported: relu"
    assert says in refusal(path)


def change_gates(folder: Path, r_mag: float, b_mag: float) -> dict[str, torch.Tensor]:
    """Give every feature the same gain and bias. Returns the stored tensors in fp64."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {"r_mag": torch.full((40,), r_mag), "b_mag": torch.full((40,), b_mag)}
        tensors["b_gate"].fill_(-0.1)

    change_tensors(folder, change)
    return {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}


@pytest.mark.parametrize(("r_mag", "b_mag"), [(6.0, 1.0), (-3.0, 1.0), (-6.0, 1.0), (-17.0, 1e-5), (-30.0, 0.0)])
def test_gates_are_kept_over_all_gains_that_are_read(tmp_path: Path, r_mag: float, b_mag: float) -> None:
    path = saelens.write(tmp_path, architecture="gated").path
    W, x, sae = change_gates(path, r_mag, b_mag), tokens(16, num_tokens=4000), read(path)
    p = (x - W["b_dec"]) @ W["W_enc"]
    # what the fold may lose of p, as a user of the SAE would notice it: a gate that is wrong
    sure = (p + W["b_gate"]).abs() > GATE_TOLERANCE * torch.maximum(W["b_gate"].abs(), W["W_enc"].norm(dim=0))
    theirs = (p + W["b_gate"] > 0) * torch.relu(p * W["r_mag"].exp() + W["b_mag"])
    ours = sae.encode(x).double()
    torch.testing.assert_close(ours[sure], theirs[sure], rtol=1e-4, atol=1e-5 * max(b_mag, math.exp(r_mag)))
    assert ((ours > 0) == (theirs > 0))[sure].all()


@pytest.mark.parametrize("r_mag", [-7.5, -17.0, -800.0])
def test_a_gain_that_would_lose_the_gate_is_refused(tmp_path: Path, r_mag: float) -> None:
    path = saelens.write(tmp_path, architecture="gated").path
    change_gates(path, r_mag, b_mag=1.0)
    with pytest.raises(CheckpointError, match=r"feature \d+ has the gain exp\(-\d+.*too small beside its b_mag 1 for"):
        read(path)


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk"])
def test_version_5s_finetuning_factor_changes_the_reconstruction_only(tmp_path: Path, architecture: str) -> None:
    written = saelens.write(tmp_path, architecture=architecture, scaling_factor=True, version=5)
    plain = saelens.write(tmp_path / "plain", architecture=architecture, version=5)
    sae = check(written, "saelens")
    assert torch.equal(sae.encode(tokens(16)), read(plain.path).encode(tokens(16)))


def test_heads_outputs_are_read_side_by_side(tmp_path: Path) -> None:
    for version in (5, 6):
        written = saelens.write(tmp_path / str(version), hook="attn.hook_z", version=version)
        assert check(written, "saelens").reads == (Site("attn_z", 5),)


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale", "expected_average_only_in"])
def test_a_centred_stream_is_centred_again(tmp_path: Path, version: int, normalize: str) -> None:
    written = saelens.write(tmp_path, model_name="gpt2-small", center=True, version=version, normalize=normalize)
    sae = check(written, "saelens", FACTOR if normalize == "expected_average_only_in" else "")
    assert sae.input_norm.center


def test_a_transcoder_of_a_centred_stream_does_not_write_the_mean(tmp_path: Path) -> None:
    written = saelens.write(tmp_path, architecture="transcoder", hook="hook_resid_mid", model_name="gpt2", center=True)
    assert check(written, "saelens").input_norm == InputNorm()


def test_a_model_with_layer_norm_must_say_whether_its_stream_was_centred(tmp_path: Path) -> None:
    silent = saelens.write(tmp_path / "silent", model_name="gpt2-small", version=5)
    assert "does not say whether gpt2-small's vectors were centred" in refusal(silent.path)
    assert "center=maybe must be one of yes, no" in refusal(silent.path, "center=maybe")
    check(silent, "saelens", "center=no")
    check(saelens.write(tmp_path / "centred", model_name="gpt2-small", center=True), "saelens", "center=yes")
    stated = saelens.write(tmp_path / "stated", model_name="gpt2-small", center=False)
    assert not check(stated, "saelens").input_norm.center
    # inside the heads nothing depends on the stream's mean
    heads = saelens.write(tmp_path / "heads", model_name="gpt2-small", version=5, hook="attn.hook_z")
    check(heads, "saelens")
    assert "center has no meaning" in refusal(heads.path, "center=no")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_stored_in_half_is_read_in_single_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    sae = check(saelens.write(tmp_path, architecture="jumprelu", dtype=dtype), "saelens")
    assert sae.W_enc.dtype is sae.threshold.dtype is torch.float32


def test_a_standard_sae_is_a_relu(folder: Path) -> None:
    change_config(folder, architecture="standard")
    change_tensors(folder, lambda tensors: tensors.pop("threshold"))
    assert read_sae(folder).threshold.tolist() == [0.0] * 24


def test_a_negative_threshold_is_a_relu(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors["threshold"].fill_(-3.0))
    assert read_sae(folder).threshold.tolist() == [0.0] * 24


def test_what_enters_a_block_is_what_the_one_before_it_leaves(folder: Path) -> None:
    change_config(folder, metadata={"hook_name": "blocks.5.hook_resid_pre"})
    assert summarize(folder).site == Site("resid_post", 4)


def test_the_oldest_versions_call_a_hook_a_hook_point(folder: Path) -> None:
    change_config(folder, metadata=..., hook_point="blocks.7.hook_resid_post", model_name="gemma-2b")
    summary = summarize(folder)
    assert (summary.site.layer, summary.model_name) == (7, "gemma-2b")


def test_the_factor_of_inputs_may_stand_in_the_file_that_training_leaves(tmp_path: Path) -> None:
    written = saelens.write(tmp_path, normalize="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": saelens.FACTOR}))
    check(written, "saelens")
    for wrong in (None, 0, -1, "0.5"):
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": wrong}))
        assert "give ?input_scale=FACTOR" in refusal(tmp_path)


BAD_CONFIGS = {
    "a temporal SAE": ({"architecture": "temporal"}, "architecture 'temporal'"),
    "matching pursuit": (
        {"architecture": "matching_pursuit"},
        "is a matching pursuit SAE, which finds its features one",
    ),
    "BatchTopK in training": ({"architecture": "batchtopk"}, "save the SAE with save_inference_model"),
    "Matryoshka in training": ({"architecture": "matryoshka_batchtopk"}, "save the SAE with save_inference_model"),
    "another activation": ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "architecture 'tanh-relu'"),
    "an architecture that is a list": ({"architecture": ["standard"]}, "architecture ['standard']"),
    "a k that is none": ({"architecture": "topk", "k": 0}, "has threshold, whose meaning"),
    "an unknown norm": ({"normalize_activations": "batch_norm"}, "normalize_activations 'batch_norm'"),
    "whitening without its matrices": (
        {"normalize_activations": "covariance_whitening"},
        "put activation_whitening.safetensors, which training writes, beside the weights",
    ),
    "a norm that is a list": ({"normalize_activations": []}, "normalize_activations []"),
    "expected average": ({"normalize_activations": "expected_average_only_in"}, "give ?input_scale=FACTOR"),
    "another shape": ({"reshape_activations": "patches"}, "reshape_activations 'patches'"),
    "a head": ({"metadata": {"hook_name": "blocks.5.attn.hook_z", "hook_head_index": 3}}, "single attention head 3"),
    "another hook": (
        {"metadata": {"hook_name": "blocks.5.hook_q"}},
        "hook 'blocks.5.hook_q' is no known place: add ?si",
    ),
    "no hook": ({"metadata": {}}, "does not say where it reads"),
    "width as text": ({"d_in": "16"}, "d_in"),
    "width of another model": ({"d_in": 17}, "has shape (24, 16)"),
    "swapped": ({"d_in": 24, "d_sae": 16}, "stored the other way round"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_configuration_that_we_cannot_follow_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    change_config(folder, **changes)
    assert says in refusal(folder)


def test_topk_needs_a_k(tmp_path: Path) -> None:
    path = saelens.write(tmp_path, architecture="topk").path
    for k in (0, -1, 8.0, None, True):
        change_config(path, k=k)
        assert "k as a positive integer" in refusal(path)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
def test_a_transcoder_that_normalises_each_token_is_refused(tmp_path: Path, normalize: str) -> None:
    path = saelens.write(tmp_path, architecture="transcoder", normalize=normalize).path
    assert "a transcoder that normalises each token's input" in refusal(path)


@pytest.mark.parametrize("say", [True, ...])
def test_a_transcoder_never_subtracts_what_it_adds(tmp_path: Path, say: Any) -> None:
    written = saelens.write(tmp_path, architecture="transcoder", d_out=16, hook="mlp.hook_in")
    change_config(tmp_path, apply_b_dec_to_input=say)
    check(written, "saelens")


def test_a_transcoder_must_say_where_it_writes(tmp_path: Path) -> None:
    path = saelens.write(tmp_path, architecture="transcoder", hook="mlp.hook_in").path
    change_config(path, metadata={"hook_name": "blocks.5.mlp.hook_in"})
    assert "does not say where it writes" in refusal(path)
    assert read(path, "site_out=mlp_out.5").writes == (Site("mlp_out", 5),)


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a missing tensor": (lambda tensors: tensors.pop("threshold"), "lacks threshold"),
    "an unknown tensor": (lambda tensors: tensors.update(colour=torch.ones(24)), "colour, whose meaning"),
    "a transposed tensor": (lambda tensors: tensors.update(W_enc=tensors["W_enc"].T.contiguous()), "W_enc has shape"),
}

BAD_NUMBERS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "NaN": (lambda tensors: tensors["b_enc"].fill_(float("nan")), "b_enc holds NaN"),
    "infinity": (lambda tensors: tensors["W_dec"][0].fill_(float("inf")), "W_dec holds NaN or infinity"),
    "integers": (lambda tensors: tensors.update(b_dec=torch.ones(16, dtype=torch.int64)), "floating-point"),
}


@pytest.mark.parametrize(("change", "says"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_weights_that_we_cannot_place_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    change_tensors(folder, change)
    assert says in refusal(folder)


@pytest.mark.parametrize(("change", "says"), BAD_NUMBERS.values(), ids=BAD_NUMBERS.keys())
def test_numbers_that_we_cannot_trust_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=says):
        read_sae(folder)


def test_broken_files_are_refused(folder: Path) -> None:
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for content in (b"", b"\x80\x04pickle", whole[: len(whole) // 2]):
        weights.write_bytes(content)
        assert "is not a readable safetensors file" in refusal(folder)
    weights.write_bytes(whole)
    (folder / "cfg.json").write_text("[1]")
    assert "must hold a JSON object" in refusal(folder)
    (folder / "cfg.json").write_text("{")
    assert "is not readable JSON" in refusal(folder)
    weights.unlink()
    assert "has no weights" in refusal(folder)


def test_the_trainers_files_beside_it_are_not_opened(tmp_path: Path) -> None:
    written = saelens.write(tmp_path)
    save_file({"sparsity": torch.ones(40)}, tmp_path / "sparsity.safetensors")
    (tmp_path / "trainer_state.pt").write_bytes(b"no pickle")
    x = tokens(16)
    torch.testing.assert_close(read_sae(tmp_path).encode(x).double(), written.encode(x), rtol=1e-4, atol=1e-4)
    assert [path.name for path in summarize(tmp_path).weights] == ["sae_weights.safetensors"]


@pytest.mark.parametrize(
    ("said", "size"), [(128, 128), (None, None), ("128", None), (True, None), (0, None), (1.5, None)]
)
def test_on_how_long_texts_it_was_trained_is_told_if_it_is_said(folder: Path, said: object, size: int | None) -> None:
    change_config(folder, metadata={"hook_name": "blocks.5.hook_resid_pre", "context_size": said})
    assert summarize(folder).context_size == size
