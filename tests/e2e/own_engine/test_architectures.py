"""One server with SAEs of every architecture, at every kind of site, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.oracles.reference import Move, ReferenceModel, ReferenceSAE
from tests.support.agreement import assert_agreement
from tests.support.checkpoints import SPECIAL_IDS, make_model, make_sae
from tests.support.serving import Server, serve
from transformers import PreTrainedTokenizerBase

from saeclamp_saes import SAE, Site, read_sae
from saeclamp_saes.loaders import native

TEXT = "The old lighthouse keeper counted the ships that passed the bay at night and wrote their names in a book."

SAES: dict[str, dict[str, Any]] = {
    "jumprelu": {"layer": 1},
    "topk": {"layer": 1, "architecture": "topk", "k": 6},
    "abstopk": {"layer": 2, "architecture": "abstopk", "k": 6},
    "gated": {"layer": 2, "architecture": "gated", "hooks": ("hook_resid_mid",)},
    "layer-norm": {"layer": 2, "normalize_activations": "layer_norm", "hooks": ("hook_resid_pre",)},
    "constant-norm": {"layer": 0, "normalize_activations": "constant_norm_rescale", "hooks": ("hook_resid_pre",)},
    "attention": {"layer": 1, "hooks": ("hook_attn_out",)},
    "heads": {"layer": 2, "hooks": ("attn.hook_z",)},
    "mlp": {"layer": 0, "architecture": "standard", "hooks": ("hook_mlp_out",)},
    "mlp-input": {"layer": 3, "architecture": "standard", "hooks": ("mlp.hook_in",)},
    "transcoder": {"layer": 1, "architecture": "transcoder", "hooks": ("mlp.hook_in", "hook_mlp_out")},
    "skip": {
        "layer": 3,
        "architecture": "jumprelu_skip_transcoder",
        "hooks": ("ln2.hook_normalized", "hook_mlp_out"),
    },
}

SMALL = {"attention", "heads", "mlp", "mlp-input"}
"""SAEs of vectors that are much shorter than the stream: their edits must be larger to show."""


def cross_layer(folder: Path) -> tuple[Path, dict[str, Path]]:
    """
    Write a transcoder that reads layer 1 and writes to layers 1 and 3, in our own layout.

    Returns it, and for the oracle two transcoders that are its two halves.
    """
    halves = {
        f"clt-{layer}": make_sae(
            folder / f"clt-{layer}", layer=1, d_in=64, seed=50, architecture="transcoder", hooks=("mlp.hook_in", "x")
        )
        for layer in (1, 3)
    }
    for layer, path in halves.items():
        weights = path / "sae_weights.safetensors"
        tensors = load_file(weights)
        torch.manual_seed(int(layer[-1]))
        save_file(tensors | {"W_dec": torch.randn(64, 64)}, weights)
        cfg = (path / "cfg.json").read_text()
        (path / "cfg.json").write_text(cfg.replace("blocks.1.x", f"blocks.{layer[-1]}.hook_mlp_out"))
    one, three = (read_sae(path) for path in halves.values())
    both = SAE(
        reads=one.reads,
        writes=(Site("mlp_out", 1), Site("mlp_out", 3)),
        W_enc=one.W_enc,
        b_enc=one.b_enc,
        W_dec=torch.cat((one.W_dec, three.W_dec), dim=1),
        b_dec=torch.cat((one.b_dec, three.b_dec)),
        threshold=one.threshold,
        kind="clt_layer",
    )
    native.write(both, folder / "clt", {})
    return folder / "clt", halves


def _kill_every_eighth_feature(folder: Path) -> None:
    """Empty decoder rows, as dead features may have: the check at start must look at others."""
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][::8] = 0
    save_file(tensors, folder / "sae_weights.safetensors")


ENGINES = {
    "eager": ["--enforce-eager"],
    "compiled": [],
    # the first two layers in one process, the others in another; one transcoder reads in one and writes in both
    "pipeline": ["--enforce-eager", "--pipeline-parallel-size", "2"],
}


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[tuple[Server, ReferenceModel]]:
    folder = tmp_path_factory.mktemp("architectures")
    model = make_model(folder / "model", model_folder)
    paths = {
        name: make_sae(folder / name, d_in=64, seed=seed, **({"threshold": 0.3} | settings))
        for seed, (name, settings) in enumerate(SAES.items())
    }
    _kill_every_eighth_feature(paths["jumprelu"])
    clt, halves = cross_layer(folder)
    named = [part for name, path in {**paths, "clt": clt}.items() for part in ("--sae", f"{name}={path}")]
    named += ["--sae", f"approximate={paths['topk']}?threshold=0.9"]
    flags = ("--dtype", "float32", "--max-model-len", "512", "--served-model-name", "tiny", *request.param)
    with serve(folder / "server.log", str(model), *named, *flags, name="tiny") as server:
        saes = {name: ReferenceSAE(path) for name, path in {**paths, **halves}.items()}
        yield server, ReferenceModel(model, saes, SPECIAL_IDS)


@pytest.fixture
def prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(TEXT)["input_ids"]
    return ids


@pytest.mark.parametrize("name", SAES)
def test_each_architecture_and_site_is_the_oracles(
    engine: tuple[Server, ReferenceModel], prompt: list[int], name: str
) -> None:
    size = 20.0 if name in SMALL else 6.0
    moves = [Move(name, 3, "clamp", size), Move(name, 17, "add", -size, "generated"), Move(name, 30, "ablate")]
    assert_agreement(*engine, prompt, moves)


def test_all_of_them_at_once_are_the_oracles(engine: tuple[Server, ReferenceModel], prompt: list[int]) -> None:
    assert_agreement(*engine, prompt, [Move(name, 5, "clamp", 3.0) for name in SAES])


def test_a_cross_layer_feature_is_moved_at_every_layer_it_writes_to(
    engine: tuple[Server, ReferenceModel], prompt: list[int]
) -> None:
    server, oracle = engine
    answer = server.complete(
        prompt, [{"op": "clamp", "feature": "clt/3", "value": 4.0, "unit": "act"}], max_tokens=1, prompt_logprobs=0
    )
    found = answer["choices"][0]["prompt_logprobs"][1:]
    measured = [entry[str(token)]["logprob"] for entry, token in zip(found, prompt[1:], strict=True)]
    both = [Move("clt-1", 3, "clamp", 4.0), Move("clt-3", 3, "clamp", 4.0)]
    assert measured == pytest.approx(oracle.prompt_logprobs(prompt, both), abs=1e-3)
    for half in both:
        assert measured != pytest.approx(oracle.prompt_logprobs(prompt, [half]), abs=1e-2)


def test_the_receipt_says_where_and_in_what_an_sae_is_approximate(
    engine: tuple[Server, ReferenceModel], prompt: list[int]
) -> None:
    server, _ = engine
    names = ("approximate", "topk", "heads", "transcoder", "gated")
    interventions = [{"op": "clamp", "feature": f"{name}/3", "value": 1.0, "unit": "act"} for name in names]
    receipts = server.complete(prompt, interventions, max_tokens=2)["steering"]["interventions"]
    assert [receipt["site"] for receipt in receipts] == [
        "resid_post 1",
        "resid_post 1",
        "attn_z 2",
        "mlp_out 1",
        "resid_mid 2",
    ]
    assert [receipt["approximation"] for receipt in receipts] == ["threshold 0.9 in place of TopK", *[None] * 4]
    assert [receipt["dose"]["unit"] for receipt in receipts] == [
        "token_resid_norm",
        "token_resid_norm",
        "token_site_norm",
        "token_resid_norm",
        "token_resid_norm",
    ]
