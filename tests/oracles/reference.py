"""
The oracle: steering written the obvious way, sharing no code with what it judges.

A plain transformers forward in fp32. At each steered layer the whole SAE encodes the stream, the activations of the
request's features are overwritten, the whole SAE decodes them, and the reconstruction error is added back. Generation
recomputes the full sequence for every token: no cache, no batch, no custom op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from tests.oracles.reference_sae import ReferenceSAE
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

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


@dataclass(frozen=True)
class Compared:
    """Whether a feature's activation, or what it was so far where its rule was looked at, is above a value or below it."""

    sae: str
    index: int
    bound: float
    above: bool = True
    over: str | int = "token"
    """`token`, `max`, `mean`, or the number of the last tokens whose mean it is."""

    def values(self, acts: Tensor) -> list[float]:
        """What is compared at each of some tokens, in order; `acts` are those there."""
        read = acts[:, self.index].tolist()
        each = []
        for at in range(len(read)):
            so_far = read[: at + 1]
            last = so_far[-self.over :] if isinstance(self.over, int) else so_far
            each.append({"token": read[at], "max": max(so_far)}.get(str(self.over), sum(last) / len(last)))
        return each


Condition: TypeAlias = "Compared | tuple[str, tuple[Condition, ...]]"
"""Nested by all, any and not."""


@dataclass(frozen=True)
class When:
    """A rule: moves that are made where a condition holds, or from there on."""

    condition: Condition
    then: tuple[Move, ...] = ()
    lasting: bool = False
    tokens: Tokens = "all"
    special: bool = False


class Pass(NamedTuple):
    """What one forward has shown."""

    logprobs: Tensor
    """(num_tokens, vocab)"""
    acts: dict[str, Tensor]
    """By SAE, (num_tokens, d_sae), before its moves."""
    held: list[list[int]]
    """Of each rule, the positions at which its condition held."""


class RequestLogprobs(NamedTuple):
    """Of a request's tokens, each given those before it."""

    prompt: list[float]
    """Of all tokens of the prompt but the first."""
    generated: list[float]
    likeliest: list[float]
    """Of the likeliest token in the place of each generated one."""

    @property
    def tokens(self) -> list[float]:
        return self.prompt + self.generated


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

    def logprobs(
        self, ids: Sequence[int], prompt_len: int, moves: Sequence[Move], rules: Sequence[When] = ()
    ) -> Tensor:
        """(len(ids), vocab): row i is the distribution of the token after ids[: i + 1]."""
        return self.forward(ids, prompt_len, moves, rules).logprobs

    @torch.no_grad()
    def forward(
        self,
        ids: Sequence[int],
        prompt_len: int,
        moves: Sequence[Move],
        rules: Sequence[When] = (),
        reads: Sequence[str] = (),
    ) -> Pass:
        """
        Everything that one pass over a request shows, with its moves and rules.

        reads: SAEs whose activations are wanted besides those of moves and rules
        """
        named = {*reads, *(move.sae for move in moves), *(move.sae for rule in rules for move in rule.then)}
        named |= {compared.sae for rule in rules for compared in comparisons(rule.condition)}
        saes = {name: sae for name, sae in self.saes.items() if name in named}
        shown = Pass(torch.empty(0), {}, [[] for _ in rules])

        def moves_of(name: str) -> list[Move]:
            """Those whose rules hold are of single positions; a rule's SAEs have all been read by now."""
            made = [move for move in moves if move.sae == name]
            for rule, held in zip(rules, shown.held, strict=True):
                held[:] = self._held(rule, shown.acts, ids, prompt_len) if self._is_known(rule, shown.acts) else []
                active = [*range(min(held), len(ids))] if held and rule.lasting else held
                for move in rule.then:
                    touched = [at for at in self._positions(ids, prompt_len, move) if at in active]
                    made += [replace(move, tokens={"positions": touched})] if move.sae == name and touched else []
            return made

        with ExitStack() as stack:
            seen: dict[str, Tensor] = {}
            hooks = {hook for sae in saes.values() for hook in (sae.reads, sae.writes)}
            # two of them may hang on one module, whose hooks run as they were registered: attn_out comes before resid_mid
            for hook in sorted(hooks):
                self._hook(stack, hook, self._change(hook, saes, seen, shown, ids, prompt_len, moves_of))
            logits = self.model(torch.tensor([ids])).logits[0]
        for rule, held in zip(rules, shown.held, strict=True):
            held[:] = self._held(rule, shown.acts, ids, prompt_len)
            for compared in comparisons(rule.condition):
                looked_at = self._positions(ids, prompt_len, Move("", 0, "", tokens=rule.tokens, special=rule.special))
                values = compared.values(shown.acts[compared.sae][looked_at])
                self.to_jump = min([self.to_jump, *(abs(value - compared.bound) for value in values)])
        return shown._replace(logprobs=torch.log_softmax(logits, dim=-1))

    def _change(
        self,
        hook: str,
        saes: Mapping[str, ReferenceSAE],
        seen: dict[str, Tensor],
        shown: Pass,
        ids: Sequence[int],
        prompt_len: int,
        moves_of: Callable[[str], list[Move]],
    ) -> Callable[[Tensor], Tensor]:
        """All SAEs of a hook read the same unsteered vectors, which `seen` carries to where they write."""

        def change(here: Tensor) -> Tensor:
            for name, sae in saes.items():
                if sae.reads == hook:
                    seen[name] = here
                    shown.acts[name] = sae.encode(here)[0]
            out = here
            for name, sae in saes.items():
                if sae.writes == hook and (moves := moves_of(name)):
                    x, acts = seen[name], shown.acts[name][None]
                    edited = self._overwrite(acts, ids, prompt_len, moves)
                    self._note_jumps(sae.to_jump(x), ids, prompt_len, moves)
                    error = here - sae.decode(acts, x)
                    out = out + (sae.decode(edited, x) + error - here)
            return out

        return change

    def _is_known(self, rule: When, acts: Mapping[str, Tensor]) -> bool:
        return all(compared.sae in acts for compared in comparisons(rule.condition))

    def _held(self, rule: When, acts: Mapping[str, Tensor], ids: Sequence[int], prompt_len: int) -> list[int]:
        looked_at = self._positions(ids, prompt_len, Move("", 0, "", tokens=rule.tokens, special=rule.special))
        values = {compared: compared.values(acts[compared.sae][looked_at]) for compared in comparisons(rule.condition)}
        return [at for nth, at in enumerate(looked_at) if holds(rule.condition, values, nth)]

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

    def prompt_logprobs(self, ids: Sequence[int], moves: Sequence[Move], rules: Sequence[When] = ()) -> list[float]:
        """Logprob of each prompt token but the first, given those before it."""
        logprobs = self.logprobs(ids, len(ids), moves, rules)
        return [float(logprobs[position - 1, ids[position]]) for position in range(1, len(ids))]

    def generated_logprobs(
        self, prompt: Sequence[int], generated: Sequence[int], moves: Sequence[Move], rules: Sequence[When] = ()
    ) -> tuple[list[float], list[float]]:
        """Logprob of each generated token, and of the likeliest token in its place."""
        found = self.request_logprobs(prompt, generated, moves, rules)
        return found.generated, found.likeliest

    def request_logprobs(
        self, prompt: Sequence[int], generated: Sequence[int], moves: Sequence[Move], rules: Sequence[When] = ()
    ) -> RequestLogprobs:
        """Everything that is told of a request's tokens, from one pass: no position sees what comes behind it."""
        ids = [*prompt, *generated]
        logprobs = self.logprobs(ids, len(prompt), moves, rules)
        own = [float(logprobs[position - 1, ids[position]]) for position in range(1, len(ids))]
        likeliest = [float(row.max()) for row in logprobs[len(prompt) - 1 : -1]]
        return RequestLogprobs(own[: len(prompt) - 1], own[len(prompt) - 1 :], likeliest)


def comparisons(condition: Condition) -> list[Compared]:
    """All of a condition's."""
    if isinstance(condition, Compared):
        return [condition]
    return [compared for part in condition[1] for compared in comparisons(part)]


def holds(condition: Condition, values: Mapping[Compared, Sequence[float]], nth: int) -> bool:
    """Whether a condition holds at the nth token at which it is looked at."""
    if isinstance(condition, Compared):
        value = values[condition][nth]
        return value > condition.bound if condition.above else value < condition.bound
    kind, parts = condition
    each = [holds(part, values, nth) for part in parts]
    return {"all": all(each), "any": any(each), "not": not each[0]}[kind]


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
        return position in value or (position - prompt_len in value and position < prompt_len)
    if kind == "last":
        return prompt_len - value <= position < prompt_len
    if kind == "generated":
        start, end = value
        return prompt_len + start <= position and (end is None or position < prompt_len + end)
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
