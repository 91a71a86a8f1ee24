"""A tiny random model of every architecture that is steered, against the oracle, at the sites that it has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.oracles.reference import Move, ReferenceModel, ReferenceSAE
from tests.support.agreement import assert_agreement
from tests.support.checkpoints import SPECIAL_IDS, make_model, make_sae
from tests.support.serving import serve
from transformers import PreTrainedTokenizerBase

TEXT = "The old lighthouse keeper counted the ships that passed the bay at night and wrote their names in a book."

STREAM = {"first": (0, "hook_resid_pre"), "middle": (1, "hook_resid_post"), "last": (3, "hook_resid_post")}
ADDED = {"attention": (2, "hook_attn_out"), "mlp": (1, "hook_mlp_out")}

FAMILIES = {
    "qwen2": STREAM | ADDED,
    "qwen3": STREAM | ADDED,
    "mistral": STREAM | ADDED,
    "phi3": STREAM | ADDED,
    "qwen2_moe": STREAM | ADDED,
    "qwen3_moe": STREAM | ADDED,
    "gemma2": STREAM | ADDED,
    "gemma3": STREAM | ADDED,
    "gpt2": STREAM | ADDED,
    "gpt_neox": STREAM,
    "olmo2": STREAM,
    "gpt_oss": STREAM | ADDED,
}
"""By kind: layer and hook of each SAE."""

ALWAYS = {"gemma2", "gpt2", "qwen3_moe", "olmo2"}
"""One of each way to build a layer. Starting an engine takes half a minute, so the others are run on request."""
ON_REQUEST = pytest.mark.skipif("SAECLAMP_ALL_MODELS" not in os.environ, reason="set SAECLAMP_ALL_MODELS=1 to run it")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in ALWAYS else ON_REQUEST) for kind in FAMILIES])
def test_edits_at_every_site_are_the_oracles(
    tmp_path: Path, model_folder: Path, tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    model = make_model(tmp_path / "model", model_folder, kind)
    saes = {
        name: make_sae(tmp_path / name, layer=layer, d_in=64, seed=layer, threshold=0.1, hooks=(hook,))
        for name, (layer, hook) in FAMILIES[kind].items()
    }
    oracle = ReferenceModel(model, {name: ReferenceSAE(path) for name, path in saes.items()}, SPECIAL_IDS)
    named = [part for name, path in saes.items() for part in ("--sae", f"{name}={path}")]
    flags = ("--dtype", "float32", "--max-model-len", "512", "--served-model-name", "tiny", "--enforce-eager")
    prompt = tokenizer(TEXT)["input_ids"]
    with serve(tmp_path / "log", str(model), *named, *flags, name="tiny") as server:
        assert_agreement(server, oracle, prompt, [])
        for name in saes:
            assert_agreement(server, oracle, prompt, [Move(name, 3, "add", 30.0), Move(name, 9, "clamp", -20.0)])
        everywhere = [Move(name, 5, "clamp", 20.0, "generated") for name in saes]
        assert_agreement(server, oracle, prompt, everywhere)
