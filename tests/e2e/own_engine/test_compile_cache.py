"""What vLLM compiles is kept between starts; it must fit what is steered."""

from __future__ import annotations

from pathlib import Path

from tests.oracles.reference import Move, ReferenceModel, ReferenceSAE
from tests.support.agreement import assert_agreement
from tests.support.checkpoints import SPECIAL_IDS, make_model, make_sae
from tests.support.serving import serve
from transformers import PreTrainedTokenizerBase

TEXT = "The old lighthouse keeper counted the ships that passed the bay at night and wrote their names in a book."


def test_a_compiled_graph_is_not_reused_for_another_site(
    tmp_path: Path, model_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(tmp_path / "model", model_folder, num_layers=2)
    prompt = tokenizer(TEXT)["input_ids"]
    flags = ("--dtype", "float32", "--max-model-len", "512", "--served-model-name", "tiny")
    for layer in (0, 1):
        sae = make_sae(tmp_path / f"at-{layer}", layer=layer, d_in=64, threshold=0.5)
        with serve(tmp_path / "log", str(model), "--sae", f"sae={sae}", *flags, name="tiny") as server:
            oracle = ReferenceModel(model, {"sae": ReferenceSAE(sae)}, SPECIAL_IDS)
            assert_agreement(server, oracle, prompt, [Move("sae", 3, "clamp", 9.0)])
