"""Worker process: makes the step report of each request, from the step tables on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.step_report import ReadoutChunk, RequestStepReport
from saeclamp_server.engine.worker.device_copies import CopyStream
from saeclamp_server.engine.worker.program_layout import FOREVER
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.readout_plan import RequestSlice, plan_shown
from saeclamp_server.engine.worker.step_tables import StepTables
from saeclamp_server.engine.worker.top_features import TopFeatures


class BatchRows(NamedTuple):
    """The rows of each request in a step's batch, as the host knows them."""

    request_ids: Sequence[str]
    first_row: NDArray[np.int64]
    """(num_requests,), row of each request's first token"""
    position: NDArray[np.int64]
    """(num_requests,), position of that token"""


def collect_step_report(
    telling: Mapping[str, RequestSlice],
    rows: BatchRows,
    programs: ProgramTables,
    step: StepTables,
    top: Mapping[str, TopFeatures],
    failures: Mapping[str, str],
    copy_stream: CopyStream,
) -> Callable[[], dict[str, RequestStepReport]]:
    """
    Send for what a forward has found, and return the function that makes step reports of it, by request id.

    The function waits for what was sent for alone. It may be called later, when the next step has begun.

    telling:  requests of the step whose programs report on each step, in the order of the batch
    top:      strongest features of the tokens that show them, by SAE, in the order of the batch
    failures: reasons of requests that cannot be steered, by request id
    """
    num, slices = step.num_tokens, [*telling.values()]
    sent = [step.is_lost[:num]]
    if slices:
        num_reads = max(req_slice.program.num_reads for req_slice in slices)
        shows_edits = any(req_slice.program.itemised for req_slice in slices)
        # of all programs, as a choice of them would have to be sent to the device first
        sent += [step.acts[:num, :num_reads], step.items[: num if shows_edits else 0], programs.first_held]
        sent += [part for found in top.values() for part in found]
    fetched = copy_stream.fetch(sent)

    def fetch() -> dict[str, RequestStepReport]:
        report = {request_id: RequestStepReport(0, 0, failure=reason) for request_id, reason in failures.items()}
        is_lost, *rest = (tensor.numpy() for tensor in fetched.wait())
        report |= _lost_requests(rows, is_lost)
        if not rest:
            return report
        acts, items, first_held, *found = rest
        tops = {
            sae: _TopFeatureReader(found[2 * nth].tolist(), found[2 * nth + 1].tolist()) for nth, sae in enumerate(top)
        }
        for request_id, req_slice in telling.items():
            own = slice(req_slice.first_row, req_slice.first_row + req_slice.num_tokens)
            # also of a request that is lost: the rows of strongest features are taken in order
            readout = _readout_chunk(req_slice, acts[own], items[own], tops)
            first = min(
                (int(first_held[req_slice.number, n]) for n, rule in enumerate(req_slice.program.rules) if rule.aborts),
                default=FOREVER,
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


def _lost_requests(rows: BatchRows, is_lost: NDArray[np.bool_]) -> dict[str, RequestStepReport]:
    report: dict[str, RequestStepReport] = {}
    for row in np.flatnonzero(is_lost).tolist():
        nth = int(np.searchsorted(rows.first_row, row, side="right")) - 1
        at = int(rows.position[nth]) + row - int(rows.first_row[nth])
        # the first position of each request, as positions ascend
        reason = f"its edits left no finite vector at position {at}; ask for smaller values"
        report.setdefault(rows.request_ids[nth], RequestStepReport(0, 0, failure=reason))
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
