"""The same numbers from engines that cut, compile or build the forward differently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.bundled import ACT, GOLDEN_GATE, LAYER
from tests.e2e.agreement import assert_agreement
from tests.e2e.checkpoints import SPECIAL_IDS, make_model, make_sae
from tests.e2e.serving import Server, serve
from tests.reference import Move, ReferenceModel, ReferenceSAE
from transformers import PreTrainedTokenizerBase

from saeclamp_saes.library.names import BUNDLED
from saeclamp_server.packaged_model import PACKAGED_MODEL

TEXT = "The old lighthouse keeper counted the ships that passed the bay at night and wrote their names in a book. "

MOVES = [
    Move("low", 3, "clamp", 9.0),
    Move("low", 40, "add", -4.0, "generated"),
    Move("high", 3, "clamp", -6.0, "prompt"),
    Move("high", 11, "ablate"),
    Move("other", 3, "add", 5.0),
]


@contextmanager
def tiny_engine(
    folder: Path, tokenizer_folder: Path, kind: str, *flags: str
) -> Iterator[tuple[Server, ReferenceModel]]:
    """A random four-layer model with SAEs behind layers 0 and 3 (the last), two of them behind layer 3."""
    model = make_model(folder / "model", tokenizer_folder, kind)
    saes = {
        "low": make_sae(folder / "low", layer=0, d_in=64, seed=1, threshold=0.5),
        "high": make_sae(folder / "high", layer=3, d_in=64, seed=2, threshold=0.5),
        "other": make_sae(folder / "other", layer=3, d_in=64, d_sae=32, seed=3, threshold=0.0),
    }
    named = [part for name, path in saes.items() for part in ("--sae", f"{name}={path}")]
    flags = ("--dtype", "float32", "--max-model-len", "1024", "--served-model-name", "tiny", *flags)
    with serve(folder / "server.log", str(model), *named, *flags, name="tiny") as server:
        yield server, ReferenceModel(model, {name: ReferenceSAE(path) for name, path in saes.items()}, SPECIAL_IDS)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        pytest.param("llama", [], id="llama, compiled"),
        pytest.param("qwen2", ["--enforce-eager"], id="qwen2"),
        pytest.param("qwen3", ["--enforce-eager"], id="qwen3"),
    ],
)
def test_tiny_models_agree_with_the_oracle(
    tmp_path: Path, model_folder: Path, tokenizer: PreTrainedTokenizerBase, kind: str, flags: list[str]
) -> None:
    with tiny_engine(tmp_path, model_folder, kind, *flags) as (server, oracle):
        prompt = tokenizer(TEXT * 2)["input_ids"]
        assert_agreement(server, oracle, prompt, [])
        assert_agreement(server, oracle, prompt, MOVES)
        for move in MOVES:
            assert_agreement(server, oracle, prompt[:20], [move])


def test_a_compiled_graph_is_not_reused_for_another_site(
    tmp_path: Path, model_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(tmp_path / "model", model_folder)
    prompt = tokenizer(TEXT)["input_ids"]
    flags = ("--dtype", "float32", "--max-model-len", "512", "--served-model-name", "tiny")
    for layer in (1, 2):
        sae = make_sae(tmp_path / f"at-{layer}", layer=layer, d_in=64, threshold=0.5)
        with serve(tmp_path / "log", str(model), "--sae", f"sae={sae}", *flags, name="tiny") as server:
            oracle = ReferenceModel(model, {"sae": ReferenceSAE(sae)}, SPECIAL_IDS)
            assert_agreement(server, oracle, prompt, [Move("sae", 3, "clamp", 9.0)])


def test_chunked_prefill_changes_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, oracle: ReferenceModel, second_sae: Path
) -> None:
    prompt = tokenizer(TEXT * 40)["input_ids"][:600]
    flags = ["--enforce-eager", "--max-model-len", "2048", "--max-num-batched-tokens", "64", "--max-num-seqs", "8"]
    with serve(
        tmp_path / "log", PACKAGED_MODEL, "--sae", "bundled", "--sae", f"second={second_sae}", *flags
    ) as chunked:
        for tokens in ("all", "prompt", "generated"):
            moves = [Move("bundled", GOLDEN_GATE, "clamp", ACT, tokens), Move("second", 7, "clamp", 40.0, tokens)]
            assert_agreement(chunked, oracle, prompt, moves, num_new=6)


def test_the_bundled_sae_is_the_one_the_oracle_reads() -> None:
    assert ReferenceSAE(BUNDLED["bundled"]).reads == f"blocks.{LAYER}.hook_resid_post"
