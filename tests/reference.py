"""
The oracle: steering written the obvious way, sharing no code with what it judges.

A plain transformers forward in fp32. At each steered layer the whole SAE encodes the stream, the activations of the
request's features are overwritten, the whole SAE decodes them, and the reconstruction error is added back. Generation
recomputes the full sequence for every token: no cache, no batch, no custom op.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


class ReferenceSAE:
    """A SAELens checkpoint of any architecture, computed as its own documentation describes it, all features at once."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.cfg = json.loads((folder / "cfg.json").read_text())
        self.tensors = {
            name: tensor.to(dtype) for name, tensor in load_file(folder / "sae_weights.safetensors").items()
        }
        self.architecture = self.cfg["architecture"]
        self.reads = one_name(self.cfg["metadata"]["hook_name"])
        self.writes = one_name(self.cfg["metadata"].get("hook_name_out", self.reads))

    def encode(self, x: Tensor) -> Tensor:
        t = self.tensors
        x = self._normalised(x)
        if self.cfg["apply_b_dec_to_input"]:
            x = x - t["b_dec"]
        if self.architecture == "gated":
            is_open = x @ t["W_enc"] + t["b_gate"] > 0
            return is_open * torch.relu(x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
        pre = x @ t["W_enc"] + t["b_enc"]
        if self.architecture in ("topk", "abstopk"):
            size = pre.abs() if self.architecture == "abstopk" else pre
            rank = size.argsort(dim=-1, descending=True).argsort(dim=-1)
            kept = pre * (rank < self.cfg["k"])
            return kept if self.architecture == "abstopk" else torch.relu(kept)
        acts = torch.relu(pre)
        return acts * (pre > t["threshold"]) if "threshold" in t else acts

    def to_jump(self, x: Tensor) -> Tensor:
        """How far each feature is from where its activation jumps: there, the last bit of x decides; inf without a jump."""
        t = self.tensors
        if self.architecture != "jumprelu" or "threshold" not in t:
            return torch.full((*x.shape[:-1], len(t["W_dec"])), float("inf"))
        x = self._normalised(x)
        pre = (x - t["b_dec"] if self.cfg["apply_b_dec_to_input"] else x) @ t["W_enc"] + t["b_enc"]
        return torch.where(t["threshold"] > 0, (pre - t["threshold"]).abs(), float("inf"))

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        """x: what was encoded; where the input is normalised, the output has its scale."""
        out = acts @ self.tensors["W_dec"] + self.tensors["b_dec"]
        norm = self.cfg.get("normalize_activations", "none")
        if norm == "layer_norm":
            out = out * x.std(dim=-1, keepdim=True) + x.mean(dim=-1, keepdim=True)
        if norm == "constant_norm_rescale":
            out = out * x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return out + x @ self.tensors["W_skip"].T if "W_skip" in self.tensors else out

    def _normalised(self, x: Tensor) -> Tensor:
        norm = self.cfg.get("normalize_activations", "none")
        if norm == "layer_norm":
            return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1e-5)
        if norm == "constant_norm_rescale":
            return x * x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x


def one_name(hook: str) -> str:
    """What enters a block is what the one before it leaves: SAEs of both names read the same unsteered stream."""
    _, layer, point = hook.split(".", 2)
    return f"blocks.{int(layer) - 1}.hook_resid_post" if point == "hook_resid_pre" and layer != "0" else hook


Tokens: TypeAlias = str | Mapping[str, Any]
"""As on the wire, without roles."""


@dataclass(frozen=True)
class Move:
    """One intervention on a feature, in the encoder's units; `value` is a factor where it scales."""

    sae: str
    index: int
    op: str
    value: float = 0.0
    tokens: Tokens = "all"
    special: bool = False


def moved(act: Tensor, op: str, value: float) -> Tensor:
    """The activation after an operation."""
    if op == "add":
        return act + value
    if op == "scale":
        return act * value
    if (op == "at_least" and act > value) or (op == "at_most" and act < value):
        return act
    return torch.full_like(act, 0.0 if op == "ablate" else value)


class ReferenceModel:
    """Steered forward passes of one sequence at a time."""

    def __init__(self, folder: Path, saes: dict[str, ReferenceSAE], special_ids: Sequence[int]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.saes = saes
        self.special_ids = set(special_ids)
        self.to_jump = float("inf")
        """Of all activations that moves were applied to since it was set: the nearest to where they jump."""

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], prompt_len: int, moves: Sequence[Move]) -> Tensor:
        """(len(ids), vocab): row i is the distribution of the token after ids[: i + 1]."""
        with ExitStack() as stack:
            moved = {name: [move for move in moves if move.sae == name] for name in self.saes}
            saes = {name: sae for name, sae in self.saes.items() if moved[name]}
            seen: dict[str, Tensor] = {}
            hooks = {hook for sae in saes.values() for hook in (sae.reads, sae.writes)}
            # two of them may hang on one module, whose hooks run as they were registered: attn_out comes before resid_mid
            for hook in sorted(hooks):
                self._hook(stack, hook, self._change(hook, saes, seen, ids, prompt_len, moved))
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0], dim=-1)

    def _change(
        self,
        hook: str,
        saes: dict[str, ReferenceSAE],
        seen: dict[str, Tensor],
        ids: Sequence[int],
        prompt_len: int,
        moved: dict[str, list[Move]],
    ) -> Callable[[Tensor], Tensor]:
        """All SAEs of a hook read the same unsteered vectors, which `seen` carries to where they write."""

        def change(here: Tensor) -> Tensor:
            seen.update({name: here for name, sae in saes.items() if sae.reads == hook})
            out = here
            for name, sae in saes.items():
                if sae.writes == hook:
                    x = seen[name]
                    acts = sae.encode(x)
                    edited = self._overwrite(acts, ids, prompt_len, moved[name])
                    self._note_jumps(sae.to_jump(x), ids, prompt_len, moved[name])
                    error = here - sae.decode(acts, x)
                    out = out + (sae.decode(edited, x) + error - here)
            return out

        return change

    def _overwrite(self, acts: Tensor, ids: Sequence[int], prompt_len: int, moves: Sequence[Move]) -> Tensor:
        edited = acts.clone()
        for move in moves:
            for position in self._positions(ids, prompt_len, move):
                edited[0, position, move.index] = moved(acts[0, position, move.index], move.op, move.value)
        return edited

    def _note_jumps(self, to_jump: Tensor, ids: Sequence[int], prompt_len: int, moves: Sequence[Move]) -> None:
        for move in moves:
            for position in self._positions(ids, prompt_len, move):
                if move.op != "add":
                    self.to_jump = min(self.to_jump, float(to_jump[0, position, move.index]))

    def _hook(self, stack: ExitStack, name: str, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensor that TransformerLens calls `name` (without a gain folded away) by `change` of it."""
        _, number, point = name.split(".", 2)
        layer = self._layers()[int(number)]

        def before(module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (change(args[0]), *args[1:])

        def after(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        # some architectures norm what attention and the MLP add once more before it is added
        adds_mlp = getattr(layer, "post_feedforward_layernorm", None) or layer.mlp
        attention = next(part for name, part in layer.named_children() if name in ("self_attn", "attn", "attention"))
        adds_attention = layer.post_attention_layernorm if adds_mlp is not layer.mlp else attention
        entered: list[Tensor] = []

        def remember(module: object, args: tuple[Tensor, ...]) -> None:
            entered[:] = args[:1]

        def between(module: object, args: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # transformers branches off the residual before the norm, so the stream is changed through what attention adds
            stream = entered[0] + output[0]
            return (output[0] + (change(stream) - stream), *output[1:])

        def normed(module: object, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            change(x / (x.square().mean(dim=-1, keepdim=True) + layer.post_attention_layernorm.variance_epsilon).sqrt())

        handle = {
            "hook_resid_post": lambda: layer.register_forward_hook(after),
            "hook_resid_pre": lambda: layer.register_forward_pre_hook(before),
            "hook_resid_mid": lambda: layer.self_attn.register_forward_hook(between),
            "hook_mlp_out": lambda: adds_mlp.register_forward_hook(after),
            "hook_attn_out": lambda: adds_attention.register_forward_hook(after),
            "attn.hook_z": lambda: layer.self_attn.o_proj.register_forward_pre_hook(before),
            "mlp.hook_in": lambda: layer.mlp.register_forward_pre_hook(before),
            "ln2.hook_normalized": lambda: layer.post_attention_layernorm.register_forward_pre_hook(normed),
        }[point]()
        stack.callback(handle.remove)
        stack.callback(layer.register_forward_pre_hook(remember).remove)

    def _layers(self) -> nn.ModuleList:
        """The decoder's blocks, whatever the architecture calls them."""
        num = self.model.config.num_hidden_layers
        return next(part for part in self.model.modules() if isinstance(part, nn.ModuleList) and len(part) == num)

    def _positions(self, ids: Sequence[int], prompt_len: int, move: Move) -> list[int]:
        touched = touched_positions(len(ids), prompt_len, move.tokens, move.special)
        return [position for position in touched if move.special or ids[position] not in self.special_ids]

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


def touched_positions(num_tokens: int, prompt_len: int, tokens: Tokens, special: bool = False) -> list[int]:
    """Positions of one request that an intervention touches, special tokens aside: the slow twin of the step mapping."""
    return [
        position
        for position in range(num_tokens)
        if (position > 0 or special) and _is_in_scope(position, prompt_len, tokens)
    ]


def _is_in_scope(position: int, prompt_len: int, tokens: Tokens) -> bool:
    if isinstance(tokens, str):
        return {"all": True, "prompt": position < prompt_len, "generated": position >= prompt_len}[tokens]
    ((kind, value),) = tokens.items()
    if kind == "positions":
        return position in value
    return position < value if kind == "first" else position >= value


def clamped(x: Tensor, y: Tensor, sae: ReferenceSAE, moves: Sequence[tuple[int, int, str, float]]) -> Tensor:
    """
    Encode everything, overwrite, decode everything, add the error back: the slow twin of `read_acts` and `written`.

    x: (num_tokens, d_in), what the SAE reads; y: (num_tokens, d_out), what it writes to
    moves: (token, feature, operation, value)
    """
    acts = sae.encode(x)
    edited = acts.clone()
    for token, feature, op, value in moves:
        edited[token, feature] = moved(acts[token, feature], op, value)
    return sae.decode(edited, x) + (y - sae.decode(acts, x))
