"""Worker process: makes the step report of each request, from the step outputs on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_server.engine.step_report import ReadoutChunk, RequestStepReport
from saeclamp_server.engine.worker.read_plan import plan_shown
from saeclamp_server.engine.worker.step_outputs import StepOutputs
from saeclamp_server.engine.worker.step_plan import RequestSlice, StepLayout
from saeclamp_server.steering.token_ranges import NO_END


def abort_rule_slots(slices: Iterable[RequestSlice]) -> list[int]:
    """List the slots, in the rule state, of the rules that end an answer."""
    return [slot for req_slice in slices for slot in _aborting(req_slice)]


def collect_step_report(
    slices: Mapping[str, RequestSlice],
    layout: StepLayout,
    step_outputs: StepOutputs,
    first_aborts: Tensor,
    failures: Mapping[str, str],
    last_hidden: Tensor | None = None,
) -> Callable[[], dict[str, RequestStepReport]] | None:
    """
    Keep a forward's outputs, and return the function that makes step reports of them, by request id; None without any.

    The function fetches from the device. It may be called later, when the next step's outputs have been allocated.

    slices:       of all steered requests of the step, by request id, in the order of the batch
    layout:       of these slices
    step_outputs: the step outputs
    first_aborts: (num_rules,), for each of `abort_rule_slots` the first position at which its rule held
    failures:     reasons of requests that cannot be steered, by request id
    last_hidden:  (num_tokens, width), the model's last hidden states
    """
    telling = {request_id: req_slice for request_id, req_slice in slices.items() if req_slice.program.reports_steps}
    editing = {request_id: req_slice for request_id, req_slice in slices.items() if req_slice.program.num_edits}
    if not telling and not editing and not failures:
        return None
    # references, because the next step replaces the tensors in the step outputs, and leaves these as they are
    acts, items, top = step_outputs.acts, step_outputs.items, dict(step_outputs.top)
    starts = dict(zip(slices, zip(layout.first_act.tolist(), layout.first_item.tolist(), strict=True), strict=True))
    is_lost = _lost(step_outputs, last_hidden) if editing else step_outputs.lost

    def fetch() -> dict[str, RequestStepReport]:
        report = {request_id: RequestStepReport(0, 0, failure=reason) for request_id, reason in failures.items()}
        report |= _lost_requests(editing, is_lost.cpu().numpy())
        all_firsts, all_acts, all_items = first_aborts.tolist(), acts.cpu().numpy(), items.cpu().numpy()
        tops = {sae: _TopFeatureReader(found.acts.tolist(), found.features.tolist()) for sae, found in top.items()}
        next_first = 0
        for request_id, req_slice in telling.items():
            num = len(_aborting(req_slice))
            first = min(all_firsts[next_first : next_first + num], default=NO_END)
            next_first += num
            first_act, first_item = starts[request_id]
            readout = _readout_chunk(  # also of a request that is lost: the rows of strongest features are taken in order
                req_slice,
                all_acts[first_act : first_act + req_slice.num_tokens * req_slice.program.num_reads],
                all_items[first_item : first_item + req_slice.num_tokens * req_slice.program.num_items],
                tops,
            )
            if request_id not in report:
                report[request_id] = RequestStepReport(
                    position=req_slice.position,
                    num_tokens=req_slice.num_tokens,
                    abort=None if first == NO_END else first,
                    readout=readout,
                )
        return report

    return fetch


def _lost(step_outputs: StepOutputs, last_hidden: Tensor | None) -> Tensor:
    """
    Find the rows of tokens whose vectors are not finite, or were too long: (num_rows,) bool, on the device.

    A vector that becomes infinite behind an edit stays so: each layer adds to the residual stream, and attends to the token
    itself. So the last hidden state tells whether all keys and values of its token are finite.
    """
    if last_hidden is None:
        return step_outputs.lost
    # the batch is longer where unsteered requests and padding follow
    return step_outputs.lost | ~last_hidden[: len(step_outputs.lost)].isfinite().all(dim=1)


def _lost_requests(editing: Mapping[str, RequestSlice], is_lost: NDArray[np.bool_]) -> dict[str, RequestStepReport]:
    report = {}
    for request_id, req_slice in editing.items():
        lost = np.flatnonzero(is_lost[req_slice.first_row : req_slice.first_row + req_slice.num_tokens])
        if lost.size:
            position = req_slice.position + int(lost[0])
            reason = f"its edits left no finite vector at position {position}; ask for smaller values"
            report[request_id] = RequestStepReport(0, 0, failure=reason)
    return report


def _aborting(req_slice: RequestSlice) -> list[int]:
    return [req_slice.first_rule_slot + nth for nth, rule in enumerate(req_slice.program.rules) if rule.aborts]


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

    acts:  (num_tokens * num_reads,)
    items: (num_tokens * num_items, 2)
    """
    program, readout = req_slice.program, req_slice.program.readout
    if readout is None and not program.itemised:
        return None
    items = items.reshape(req_slice.num_tokens, program.num_items, 2)
    is_shown = plan_shown(req_slice)
    # edits are shown wherever they were made, also outside the readout's ranges
    at = np.flatnonzero(is_shown | ~np.isnan(items[:, :, 0]).all(axis=1))
    named = acts.reshape(req_slice.num_tokens, program.num_reads)[:, readout.reads if readout else []]
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
