"""What the bundled feature is compared with: directions that are added to the stream, served as an SAE that never fires."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saeclamp_saes import Site
from saeclamp_saes.lm.documents import Document
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.lm.load import load_model

NUM_NOISE = 3
ANSWER_TOKENS = 80
DIFFERENCE = 0
"""Index of the difference of means; the noise follows."""


def difference_of_means(model_folder: str, site: Site, about: Sequence[str], plain: Sequence[str]) -> Tensor:
    """
    Subtract the mean vector of the model's answers to plain questions from that of its answers about the concept.

    about, plain: questions
    returns:      (width,) of unit length
    """
    model, tokenizer = load_model(model_folder, "cpu", "float32")
    reader = ActivationReader(model, tokenizer, (site,), context=512, batch_tokens=1024)

    def mean(questions: Sequence[str]) -> Tensor:
        documents = [Document(None, _answered(model, tokenizer, question)) for question in questions]
        vectors = torch.cat(reader.vectors([part for document in documents for part in reader.parts(document)]))[:, 0]
        norms = vectors.norm(dim=1)
        return vectors[norms <= 10 * norms.median()].mean(dim=0)

    return torch.nn.functional.normalize(mean(about) - mean(plain), dim=0)


@torch.no_grad()
def _answered(model: Any, tokenizer: Any, question: str) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False, repetition_penalty=1.1)
    answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return [*asked, {"role": "assistant", "content": answer}]


def write_controls(folder: Path, site: Site, difference: Tensor) -> None:
    """
    Write an SAE whose features are the directions. Its encoder is zero and its bias negative, so clamping one to v adds v
    times its direction.

    difference: (width,)
    """
    noise = torch.randn(NUM_NOISE, len(difference), generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(torch.cat([difference[None], noise]), dim=1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "W_enc": torch.zeros(len(difference), len(rows)),
            "b_enc": torch.full((len(rows),), -1.0),
            "W_dec": rows.contiguous(),
            "b_dec": torch.zeros(len(difference)),
        },
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "standard",
        "d_in": len(difference),
        "d_sae": len(rows),
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": f"blocks.{site.layer}.hook_{site.point}", "model_name": "smollm2-135m-instruct"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
