"""
What an engine does in its steps, the obvious way: one token, one site, one edit after the other, in fp64.

The slow twin of the tables and of everything that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes import SAE
from saeclamp_saes.sae import InputNorm, TopK
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, Form, SteeringProgram
from saeclamp_server.steering.token_ranges import PROMPT_END, TokenRanges

MAX_NORM = 1e12
TINY = float(np.finfo(np.float32).tiny)
Vector = NDArray[np.float64]


class Placed:
    """An SAE, and the numbers of its sites."""

    def __init__(self, sae: SAE, reads_at: int, writes_at: tuple[int, ...]) -> None:
        self.sae, self.reads_at, self.writes_at = sae, reads_at, writes_at
        self.encoder, self.decoder = sae.W_enc.T.double().numpy(), sae.W_dec.double().numpy()
        self.bias, self.threshold = sae.b_enc.double().numpy(), sae.threshold.double().numpy()

    def activation(self, feature: int, x: Vector) -> float:
        """Encode a vector, and return one activation."""
        normed = normalised(self.sae.input_norm, x)[0]
        if self.sae.top_k is None:
            pre = float(self.encoder[feature] @ normed + self.bias[feature])
            return pre if pre > self.threshold[feature] else 0.0
        return largest(self.encoder @ normed + self.bias, self.sae.top_k, feature)


class Token(NamedTuple):
    """A token of a step's batch."""

    request: str | None
    """None for one that is not steered."""
    position: int
    token_id: int


@dataclass
class Made:
    """What was done with one token."""

    acts: dict[tuple[str, int], float] = field(default_factory=dict)
    """Activations that were read, by SAE and feature."""
    held: set[int] = field(default_factory=set)
    """Rules whose condition held."""
    items: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Activation before and dose of the edits that were made, by number."""
    long_at: set[int] = field(default_factory=set)
    """Sites at which the vector is that of a sink."""
    left_out: set[int] = field(default_factory=set)
    """Edits that were not made, because the token is a sink."""
    unjudged: set[int] = field(default_factory=set)
    """Rules that were not judged, because the token is a sink."""
    is_edited: bool = False
    is_lost: bool = False


@dataclass
class Running:
    """A request, with what has been counted of it."""

    program: SteeringProgram
    prompt_len: int
    reached: int = 0
    first_held: dict[int, int] = field(default_factory=dict)
    first_acts: dict[int, list[float]] = field(default_factory=dict)
    num_held: dict[int, int] = field(default_factory=dict)
    num_unjudged: dict[int, int] = field(default_factory=dict)
    looked_at: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)
    """By (rule, comparison): the activation at each position at which it was read."""
    sums: dict[int, list[float]] = field(default_factory=dict)
    peaks: dict[int, list[float]] = field(default_factory=dict)


class SlowEngine:
    """Steers requests step by step."""

    def __init__(self, saes: Mapping[str, Placed], special_ids: Sequence[int], sink_norms: Sequence[float]) -> None:
        """sink_norms: of each site, norm above which a vector is that of a sink"""
        self._saes, self._special_ids, self._sink_norms = saes, set(special_ids), sink_norms
        self.requests: dict[str, Running] = {}

    def step(
        self,
        tokens: Sequence[Token],
        sites: Sequence[tuple[Tensor, Tensor | None]],
        kept_to: Mapping[str, int] | None = None,
    ) -> tuple[list[Tensor], list[Made]]:
        """
        Run a step.

        sites:   hidden and residual of each site, (num_tokens, width)
        kept_to: position behind the last token that stays, of requests with rejected drafts
        returns: hidden of each site afterwards, fp64; what was done with each token
        """
        made = [Made() for _ in tokens]
        carried: dict[tuple[int, int], float] = {}
        counted_to = {}
        for name, request in self.requests.items():
            positions = [token.position for token in tokens if token.request == name]
            if positions:
                counted_to[name] = request.reached
                request.reached = max(request.reached, max(positions) + 1)
                # at positions that are computed again, what was found before is void
                for rule in [rule for rule, first in request.first_held.items() if first >= positions[0]]:
                    del request.first_held[rule]
                for acts_at in request.looked_at.values():
                    for position in [position for position in acts_at if position >= positions[0]]:
                        del acts_at[position]
        after = []
        for site, (hidden, residual) in enumerate(sites):
            out, both = hidden.double().numpy().copy(), hidden.double().numpy().copy()
            if residual is not None:
                both += residual.double().numpy()
            for row, token in enumerate(tokens):
                if token.request is not None:
                    x = both[row]
                    # what was edited at an earlier site is long because of that
                    if np.linalg.norm(x) > self._sink_norms[site] and not made[row].is_edited:
                        made[row].long_at.add(site)
                    self._read(site, token, x, made[row], carried, row)
                    self._judge(site, token, made[row])
                    self._edit(site, row, token, x, out, made[row], carried)
            after.append(torch.from_numpy(out))
        for token, one in zip(tokens, made, strict=True):
            end = (kept_to or {}).get(token.request or "", 2**62)
            if token.request is not None and counted_to[token.request] <= token.position < end:
                self._count(self.requests[token.request], token, one)
        for name, end in (kept_to or {}).items():
            request = self.requests[name]
            request.reached = min(request.reached, end)
            for rule in [rule for rule, first in request.first_held.items() if first >= end]:
                del request.first_held[rule]
        return after, made

    def _read(
        self, site: int, token: Token, x: Vector, made: Made, carried: dict[tuple[int, int], float], row: int
    ) -> None:
        request = self._of(token)
        for rule in request.program.rules:
            if self._in_scope(token, rule.tokens, rule.special):
                for comparison in rule.comparisons:
                    if self._saes[comparison.sae].reads_at == site:
                        key = comparison.sae, comparison.index
                        made.acts[key] = self._saes[comparison.sae].activation(comparison.index, x)
        readout = request.program.readout
        if readout is not None and self._in_scope(token, readout.tokens, readout.special):
            for sae, index in readout.features:
                if self._saes[sae].reads_at == site:
                    made.acts[sae, index] = self._saes[sae].activation(index, x)
        for number, edit in enumerate(request.program.edits):
            placed = self._saes[edit.sae]
            if placed.reads_at == site:
                carried[row, number] = placed.activation(edit.index, x)
                carried[row, -1 - number] = normalised(placed.sae.input_norm, x)[1]

    def _judge(self, site: int, token: Token, made: Made) -> None:
        request = self._of(token)
        for number, rule in enumerate(request.program.rules):
            last = max(self._saes[comparison.sae].reads_at for comparison in rule.comparisons)
            if last != site or not self._in_scope(token, rule.tokens, rule.special):
                continue
            acts = []
            for nth, comparison in enumerate(rule.comparisons):
                if rule.special or not self._is_sink(comparison.sae, made):
                    so_far = request.looked_at.setdefault((number, nth), {})
                    so_far[token.position] = made.acts[comparison.sae, comparison.index]
                    acts.append(aggregated(comparison, [act for _, act in sorted(so_far.items())]))
            if len(acts) < len(rule.comparisons):
                made.unjudged.add(number)
                continue
            compared = [
                act > comparison.bound if comparison.above else act < comparison.bound
                for act, comparison in zip(acts, rule.comparisons, strict=True)
            ]
            if holds(rule.form, compared):
                made.held.add(number)
                if token.position < request.first_held.get(number, 2**62):
                    request.first_held[number], request.first_acts[number] = token.position, acts

    def _edit(
        self,
        site: int,
        row: int,
        token: Token,
        x: Vector,
        out: Vector,
        made: Made,
        carried: dict[tuple[int, int], float],
    ) -> None:
        change = np.zeros_like(x)
        has_edit = False
        for number, edit in enumerate(self._of(token).program.edits):
            placed = self._saes[edit.sae]
            if site not in placed.writes_at or not self._is_made(edit, token, made):
                continue
            if not edit.special and self._is_sink(edit.sae, made):
                made.left_out.add(number)
                continue
            has_edit = True
            write, width = placed.writes_at.index(site), len(x)
            act = carried[row, number]
            after = {
                "clamp": lambda act, value: value,
                "add": lambda act, value: act + value,
                "at_least": max,
                "at_most": min,
                "scale": lambda act, value: act * value,
            }[edit.op](act, edit.value)
            scale = carried[row, -1 - number]
            push = (after - act) * scale * placed.decoder[edit.index, write * width : (write + 1) * width]
            change += push
            if write == 0:
                made.items[number] = (act, float(np.linalg.norm(push) / max(np.linalg.norm(x), TINY)))
        if has_edit:
            # a sink that is edited on purpose is one at later sites too
            made.is_edited |= site not in made.long_at
            is_sound = bool(np.linalg.norm(x + change) <= MAX_NORM)
            made.is_lost |= not is_sound
            out[row] = out[row] + change if is_sound else np.nan

    def _is_made(self, edit: EditSpec, token: Token, made: Made) -> bool:
        if not self._in_scope(token, edit.tokens, edit.special):
            return False
        if edit.rule is None or edit.rule in made.held:
            return True
        request = self._of(token)
        lasts = request.program.rules[edit.rule].lasting
        return lasts and token.position >= request.first_held.get(edit.rule, 2**62)

    def _count(self, request: Running, token: Token, made: Made) -> None:
        for rule in made.held:
            request.num_held[rule] = request.num_held.get(rule, 0) + 1
        for rule in made.unjudged:
            request.num_unjudged[rule] = request.num_unjudged.get(rule, 0) + 1
        is_generated = token.position >= request.prompt_len
        for number in made.left_out:
            request.sums.setdefault(number, [0.0] * 6)[4 + is_generated] += 1
        for number, (act, dose) in made.items.items():
            sums = request.sums.setdefault(number, [0.0] * 6)
            for column, value in enumerate((not is_generated, is_generated, act, dose)):
                sums[column] += value
            peaks = request.peaks.setdefault(number, [-torch.inf] * 2)
            request.peaks[number] = [max(peaks[0], act), max(peaks[1], dose)]

    def _is_sink(self, sae: str, made: Made) -> bool:
        """Tell whether an SAE finds a sink where it reads."""
        return self._saes[sae].reads_at in made.long_at

    def _of(self, token: Token) -> Running:
        assert token.request is not None
        return self.requests[token.request]

    def _in_scope(self, token: Token, scope: TokenRanges, special: bool) -> bool:
        is_sink = token.position == 0 or token.token_id in self._special_ids
        prompt_len = self._of(token).prompt_len
        bounds = [[prompt_len if bound == PROMPT_END else bound for bound in one] for one in scope]
        inside = any(start <= token.position and (end is None or token.position < end) for start, end in bounds)  # type: ignore[operator]
        return inside and (special or not is_sink)


def aggregated(comparison: ComparisonSpec, acts: Sequence[float]) -> float:
    """Return what is compared, of the activations so far."""
    if comparison.over == "token":
        return acts[-1]
    if comparison.over == "max":
        return max(acts)
    last = acts[-comparison.window :] if comparison.window else acts
    return sum(last) / len(last)


def holds(form: Form, compared: Sequence[bool]) -> bool:
    """Evaluate a condition."""
    if isinstance(form, int):
        return compared[form]
    kind, parts = form
    results = [holds(part, compared) for part in parts]
    return {"all": all, "any": any, "not": lambda found: not found[0]}[kind](results)


def normalised(norm: InputNorm, x: Vector) -> tuple[Vector, float]:
    """Normalise a vector as an SAE does before it encodes, and return the scale that undoes it."""
    if norm.center:
        x = x - x.sum() / len(x)
    if norm.scale == "std":
        std = float(np.sqrt(((x - x.sum() / len(x)) ** 2).sum() / (len(x) - 1)))
        return x / (std + norm.eps), std
    if norm.scale == "l2":
        length = float(np.linalg.norm(x)) / len(x) ** 0.5
        return (x / length if length else x), length
    return x, 1.0


def largest(pre: Vector, top_k: TopK, feature: int) -> float:
    """Return one activation of those where only the largest are kept."""
    size = np.abs(pre) if top_k.signed else pre
    kept = sorted(range(len(pre)), key=lambda one: -float(size[one]))[: top_k.k]
    act = float(pre[feature]) if feature in kept else 0.0
    return act if top_k.signed else max(act, 0.0)
