"""Random work for the kernel, and its slow twin: one token, one entry after the other, in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from saeclamp_server.engine.worker.kernel import END, GENERATED, PROMPT, UNCOUNTED, UNTOUCHED, Entry
from torch import Tensor

from saeclamp_saes import clamping

OPS: dict[str, tuple[float, Callable[[float, float], float]]] = {
    "clamp": (8.0, lambda act, value: value),
    "add": (6.0, lambda act, value: act + value),
    "at_least": (5.0, max),
    "at_most": (2.0, min),
    "scale": (3.0, lambda act, value: act * value),
    "ablate": (0.0, lambda act, value: 0.0),
}
"""How far values go in both directions, and the activation after the operation."""


class Edit(NamedTuple):
    """An entry before its operation becomes a `Move`."""

    row: int
    op: str
    value: float
    slot: int = 0
    first: int = 0
    last: int = END
    special: bool = False

    def entry(self) -> Entry:
        move = clamping.UPDATES["clamp" if self.op == "ablate" else self.op](self.value)
        return Entry(self.row, move, self.slot, self.first, self.last, self.special)


@dataclass(frozen=True)
class Case:
    """One launch: the vectors, what each token is, the programs and the rows they name."""

    hidden: Tensor
    """(num_rows, d), of which those beyond the step are padding"""
    residual: Tensor | None
    program_of_token: Tensor
    """(num_tokens,), as the others; see `StepBuffers`"""
    position: Tensor
    is_sink: Tensor
    counts_as: Tensor
    programs: list[list[Edit]]
    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    W_dec: Tensor
    num_slots: int = 1


@dataclass(frozen=True)
class Outcome:
    hidden: Tensor
    """(num_rows, d); the twin's is fp64 and unrounded"""
    sums: Tensor
    peaks: Tensor
    touched: set[int] = field(default_factory=set)
    """Rows; the kernel does not tell."""


def random_case(
    seed: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    bank_dtype: torch.dtype = torch.float32,
    with_residual: bool = True,
    max_entries: int = 12,
    num_tokens: int = 7,
) -> Case:
    """Three programs with up to `max_entries` entries each over 80 rows, two rows of padding."""
    torch.manual_seed(seed)
    num_programs, num_rows, num_slots = 3, 80, 40
    hidden, residual = torch.randn(2, num_tokens + 2, d)
    programs = [
        [_random_edit(num_rows, num_slots) for _ in range(int(torch.randint(1, max_entries + 1, ())))]
        for _ in range(num_programs)
    ]
    return Case(
        hidden=hidden.to(dtype),
        residual=(2 * residual).to(dtype) if with_residual else None,
        program_of_token=torch.randint(UNTOUCHED, num_programs, (num_tokens,)),
        position=torch.randint(0, 40, (num_tokens,)),
        is_sink=torch.rand(num_tokens) < 0.3,
        counts_as=torch.randint(UNCOUNTED, GENERATED + 1, (num_tokens,)),
        programs=programs,
        W_enc=(2 * torch.randn(num_rows, d) / d**0.5).to(bank_dtype),
        b_enc=torch.randn(num_rows),
        threshold=torch.rand(num_rows) * (torch.rand(num_rows) < 0.5),
        W_dec=(torch.randn(num_rows, d) / 4).to(bank_dtype),
        num_slots=num_slots,
    )


def _random_edit(num_rows: int, num_slots: int) -> Edit:
    op = [*OPS][int(torch.randint(len(OPS), ()))]
    first, length = torch.randint(0, 30, (2,)).tolist()
    return Edit(
        row=int(torch.randint(num_rows, ())),
        op=op,
        value=float(OPS[op][0] * (2 * torch.rand(()) - 1)),
        slot=int(torch.randint(num_slots, ())),
        first=first if length % 2 else 0,
        last=first + length if length % 3 else END,
        special=bool(torch.rand(()) < 0.5),
    )


def one_token(x: list[float], edits: list[Edit], dtype: torch.dtype = torch.float32, **step: int) -> Case:
    """Build a token whose features are its elements: feature i reads and writes element i."""
    d = len(x)
    return Case(
        hidden=torch.tensor([x], dtype=dtype),
        residual=None,
        program_of_token=torch.tensor([step.get("program", 0)]),
        position=torch.tensor([step.get("position", 5)]),
        is_sink=torch.tensor([step.get("is_sink", 0)]),
        counts_as=torch.tensor([step.get("counts_as", PROMPT)]),
        programs=[edits],
        W_enc=torch.eye(d),
        b_enc=torch.zeros(d),
        threshold=torch.zeros(d),
        W_dec=torch.eye(d),
    )


def slow_twin(case: Case) -> Outcome:
    """Do what the kernel does, the obvious way."""
    out = Outcome(
        case.hidden.double(), torch.zeros(case.num_slots, 4).double(), torch.zeros(case.num_slots, 2).double()
    )
    for token, program in enumerate(case.program_of_token.tolist()):
        if program == UNTOUCHED:
            continue
        x = case.hidden[token].double()
        if case.residual is not None:
            x = x + case.residual[token].double()
        for edit in case.programs[program]:
            in_scope = edit.first <= int(case.position[token]) < edit.last
            if in_scope and (edit.special or not case.is_sink[token]):
                _edit(case, token, x, edit, out)
    return out


def _edit(case: Case, token: int, x: Tensor, edit: Edit, out: Outcome) -> None:
    pre = float(x @ case.W_enc[edit.row].double()) + float(case.b_enc[edit.row])
    act = pre if pre > float(case.threshold[edit.row]) else 0.0
    push = (OPS[edit.op][1](act, edit.value) - act) * case.W_dec[edit.row].double()
    out.hidden[token] += push
    out.touched.add(token)
    side = int(case.counts_as[token])
    if side != UNCOUNTED:
        dose = float(push.norm() / x.norm())
        out.sums[edit.slot] += torch.tensor([side == PROMPT, side == GENERATED, act, dose])
        out.peaks[edit.slot] = torch.maximum(out.peaks[edit.slot], torch.tensor([act, dose]))
