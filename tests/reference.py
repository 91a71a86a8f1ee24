"""
The oracle: steering written the obvious way, sharing no code with what it judges.

A plain transformers forward in fp32. At each steered layer the whole SAE encodes the stream, the activations of the
request's features are overwritten, the whole SAE decodes them, and the reconstruction error is added back. Generation
recomputes the full sequence for every token: no cache, no batch, no custom op.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM


class ReferenceSAE:
    """A SAELens checkpoint, as its own documentation describes it."""

    def __init__(self, folder: Path) -> None:
        cfg = json.loads((folder / "cfg.json").read_text())
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
        self.layer = int(cfg["metadata"]["hook_name"].split(".")[1])
        self.W_enc, self.b_enc = tensors["W_enc"], tensors["b_enc"]
        self.W_dec, self.b_dec = tensors["W_dec"], tensors["b_dec"]
        self.threshold = tensors.get("threshold")
        self.subtracts_b_dec = cfg["apply_b_dec_to_input"]

    def encode(self, x: Tensor) -> Tensor:
        pre = (x - self.b_dec if self.subtracts_b_dec else x) @ self.W_enc + self.b_enc
        acts = torch.relu(pre)
        return acts if self.threshold is None else acts * (pre > self.threshold)

    def decode(self, acts: Tensor) -> Tensor:
        return acts @ self.W_dec + self.b_dec


@dataclass(frozen=True)
class Move:
    """One intervention: set a feature's activation to `value`, or raise it by `value`, in the encoder's units."""

    sae: str
    index: int
    op: str
    value: float = 0.0
    tokens: str = "all"


class ReferenceModel:
    """Steered forward passes of one sequence at a time."""

    def __init__(self, folder: Path, saes: dict[str, ReferenceSAE], special_ids: Sequence[int]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.saes = saes
        self.special_ids = set(special_ids)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], prompt_len: int, moves: Sequence[Move]) -> Tensor:
        """(len(ids), vocab): row i is the distribution of the token after ids[: i + 1]."""
        with ExitStack() as stack:
            for layer in {self.saes[move.sae].layer for move in moves}:
                edit = self._edit(layer, ids, prompt_len, moves)
                handle = self.model.model.layers[layer].register_forward_hook(edit)
                stack.callback(handle.remove)
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0], dim=-1)

    def _edit(
        self, layer: int, ids: Sequence[int], prompt_len: int, moves: Sequence[Move]
    ) -> Callable[[object, object, Tensor], Tensor]:
        def hook(module: object, args: object, x: Tensor) -> Tensor:
            changed = x.clone()
            for name, sae in self.saes.items():
                here = [move for move in moves if move.sae == name and sae.layer == layer]
                if not here:
                    continue
                acts = sae.encode(x)
                error = x - sae.decode(acts)
                edited = acts.clone()
                for move in here:
                    for position in self._positions(ids, prompt_len, move.tokens):
                        if move.op == "add":
                            edited[0, position, move.index] += move.value
                        else:
                            edited[0, position, move.index] = 0.0 if move.op == "ablate" else move.value
                changed += (sae.decode(edited) + error) - x
            return changed

        return hook

    def _positions(self, ids: Sequence[int], prompt_len: int, tokens: str) -> list[int]:
        scope = {"all": range(len(ids)), "prompt": range(prompt_len), "generated": range(prompt_len, len(ids))}[tokens]
        return [position for position in scope if position > 0 and ids[position] not in self.special_ids]

    def prompt_logprobs(self, ids: Sequence[int], moves: Sequence[Move]) -> list[float]:
        """Logprob of each prompt token but the first, given those before it."""
        logprobs = self.logprobs(ids, len(ids), moves)
        return [float(logprobs[position - 1, ids[position]]) for position in range(1, len(ids))]

    def generated_logprobs(
        self, prompt: Sequence[int], generated: Sequence[int], moves: Sequence[Move]
    ) -> tuple[list[float], list[float]]:
        """Logprob of each generated token, and of the likeliest token in its place."""
        logprobs = self.logprobs([*prompt, *generated], len(prompt), moves)
        rows = [logprobs[len(prompt) - 1 + step] for step in range(len(generated))]
        own = [float(row[token]) for row, token in zip(rows, generated, strict=True)]
        return own, [float(row.max()) for row in rows]


def touched_positions(num_tokens: int, prompt_len: int, tokens: str) -> list[int]:
    """Positions of one request that an intervention touches, special tokens aside: the slow twin of the step mapping."""
    touched = []
    for position in range(num_tokens):
        if position == 0:
            continue
        generated = position >= prompt_len
        if tokens == "all" or (tokens == "generated") == generated:
            touched.append(position)
    return touched


def clamped_stream(x: Tensor, sae: ReferenceSAE, moves: Sequence[tuple[int, int, str, float]]) -> Tensor:
    """
    Encode everything, overwrite, decode everything, add the error back: the slow twin of `residual_delta`.

    x: (num_tokens, d_in); moves: (token, feature, "clamp" or "add", value)
    """
    acts = sae.encode(x)
    edited = acts.clone()
    for token, feature, op, value in moves:
        edited[token, feature] = value if op == "clamp" else acts[token, feature] + value
    return sae.decode(edited) + (x - sae.decode(acts))
