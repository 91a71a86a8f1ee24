"""Worker process: makes the step report of each request, from the step tables on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from saeclamp_server.engine.step_report import ReadoutChunk, RequestStepReport
from saeclamp_server.engine.worker.program_layout import FOREVER, NUM_EDITS
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.readout_plan import RequestSlice, plan_shown
from saeclamp_server.engine.worker.step_tables import StepTables
from saeclamp_server.engine.worker.top_features import TopFeatures


def collect_step_report(
    telling: Mapping[str, RequestSlice],
    steered: Mapping[int, str],
    programs: ProgramTables,
    step: StepTables,
    top: Mapping[str, TopFeatures],
    failures: Mapping[str, str],
    last_hidden: Tensor | None = None,
) -> Callable[[], dict[str, RequestStepReport]] | None:
    """
    Copy a forward's outputs, and return the function that makes step reports of them, by request id; None without any.

    The function fetches from the device. It may be called later, when the next step has begun.

    telling:     requests of the step whose programs report on each step, in the order of the batch
    steered:     id of each steered request of the step, by the number of its program
    top:         strongest features of the tokens that show them, by SAE, in the order of the batch
    failures:    reasons of requests that cannot be steered, by request id
    last_hidden: (num_tokens, width), the model's last hidden states
    """
    if not steered and not failures:
        return None
    # copies, because the next step writes to the same tables
    num = step.num_tokens
    is_lost = _is_lost(programs, step, last_hidden)
    program, position = step.program[:num].clone(), step.position[:num].clone()
    num_reads = max((req_slice.program.num_reads for req_slice in telling.values()), default=0)
    acts = step.acts[:num, :num_reads].clone()
    shows_edits = any(req_slice.program.itemised for req_slice in telling.values())
    items = step.items[: num if shows_edits else 0].clone()
    first_held = programs.first_held[[req_slice.number for req_slice in telling.values()]]

    def fetch() -> dict[str, RequestStepReport]:
        report = {request_id: RequestStepReport(0, 0, failure=reason) for request_id, reason in failures.items()}
        report |= _lost_requests(steered, program, position, is_lost)
        all_acts, all_items, all_first = acts.cpu().numpy(), items.cpu().numpy(), first_held.cpu().numpy()
        tops = {sae: _TopFeatureReader(found.acts.tolist(), found.features.tolist()) for sae, found in top.items()}
        for (request_id, req_slice), held in zip(telling.items(), all_first, strict=True):
            rows = slice(req_slice.first_row, req_slice.first_row + req_slice.num_tokens)
            # also of a request that is lost: the rows of strongest features are taken in order
            readout = _readout_chunk(req_slice, all_acts[rows], all_items[rows], tops)
            first = min(
                (int(held[n]) for n, rule in enumerate(req_slice.program.rules) if rule.aborts), default=FOREVER
            )
            if request_id not in report:
                report[request_id] = RequestStepReport(
                    position=req_slice.position,
                    num_tokens=req_slice.num_tokens,
                    abort=None if first == FOREVER else first,
                    readout=readout,
                )
        return report

    return fetch


def _is_lost(programs: ProgramTables, step: StepTables, last_hidden: Tensor | None) -> Tensor:
    """
    Find the rows of tokens whose vectors are not finite, or were too long: (num_tokens,) bool, on the device.

    A vector that becomes infinite behind an edit stays so: each layer adds to the residual stream, and attends to the token
    itself. So the last hidden state tells whether all keys and values of its token are finite.
    """
    num = step.num_tokens
    if last_hidden is None:
        return step.is_lost[:num].clone()
    program = step.program[:num]
    # of requests that are not edited nothing is asked; whatever their vectors are is the model's own
    is_edited = (program >= 0) & (programs.headers[program, NUM_EDITS] > 0)
    # smallest and largest: NaN among them is both, and nothing of the size of all hidden states is made
    low, high = last_hidden[:num].aminmax(dim=1)
    is_lost: Tensor = step.is_lost[:num] | (is_edited & ~(low.isfinite() & high.isfinite()))
    return is_lost


def _lost_requests(
    steered: Mapping[int, str], program: Tensor, position: Tensor, is_lost: Tensor
) -> dict[str, RequestStepReport]:
    rows = is_lost.cpu().nonzero()[:, 0]
    report: dict[str, RequestStepReport] = {}
    for number, at in zip(program.cpu()[rows].tolist(), position.cpu()[rows].tolist(), strict=True):
        # the first position of each request, as positions ascend
        reason = f"its edits left no finite vector at position {at}; ask for smaller values"
        report.setdefault(steered[number], RequestStepReport(0, 0, failure=reason))
    return report


class _TopFeatureReader:
    """Hands out an SAE's rows of strongest features, in the order of the batch, which is that of the plan."""

    def __init__(self, acts: list[list[float]], index: list[list[int]]) -> None:
        self._acts, self._index, self._next = acts, index, 0

    def take(self, num: int, top_k: int) -> list[list[tuple[int, float]] | None]:
        rows = range(self._next, self._next + num)
        self._next += num
        return [self._active(row, top_k) for row in rows]

    def _active(self, row: int, top_k: int) -> list[tuple[int, float]] | None:
        acts, index = self._acts[row][:top_k], self._index[row][:top_k]
        # NaN marks a token that is not to be read; 0 a feature that is not active, but was among the largest
        return None if math.isnan(acts[0]) else [(i, act) for i, act in zip(index, acts, strict=True) if act != 0]


def _readout_chunk(
    req_slice: RequestSlice, acts: Any, items: Any, tops: Mapping[str, _TopFeatureReader]
) -> ReadoutChunk | None:
    """
    Make the readout of a slice from its parts of the step outputs; None for a request that shows nothing.

    acts:  (num_tokens, num_reads or more)
    items: (num_tokens, EDITS, 2), NaN where an edit was not made; (0, ...) where no request of the step shows edits
    """
    program, readout = req_slice.program, req_slice.program.readout
    if readout is None and not program.itemised:
        return None
    items = items[:, : program.num_edits] if program.itemised else np.zeros((req_slice.num_tokens, 0, 2))
    is_shown = plan_shown(req_slice)
    # edits are shown wherever they were made, also outside the readout's ranges
    at = np.flatnonzero(is_shown | ~np.isnan(items[:, :, 0]).all(axis=1))
    named = acts[:, readout.columns if readout else []]
    top: dict[str, list[list[tuple[int, float]] | None]] = {}
    if readout is not None:
        num_shown = int(is_shown.sum())
        top = {sae: tops[sae].take(num_shown, readout.top_k) if num_shown else [] for sae in readout.saes}
    nth_shown = np.cumsum(is_shown) - 1
    return ReadoutChunk(
        positions=(req_slice.position + at).tolist(),
        acts=[[float(act) if is_shown[n] and not np.isnan(act) else None for act in named[n]] for n in at],
        top={sae: [rows[nth_shown[n]] if is_shown[n] else None for n in at] for sae, rows in top.items()},
        edits=[_edits_made(items[n]) for n in at],
    )


def _edits_made(items: Any) -> list[tuple[int, float, float]]:
    """List the edits that were made at a token, from its (num_items, 2) items: number, activation before, dose."""
    return [(edit, act, dose) for edit, (act, dose) in enumerate(items.tolist()) if not math.isnan(act)]
