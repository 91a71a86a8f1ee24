"""
Worker process: the step plan of rules and strongest features, which need all tokens in their ranges. Host-side and free
of vLLM, like `step_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import CompiledRule, Ranges
from saeclamp_server.engine.worker.step_plan import RequestSlice, StepLayout, count_within, slice_columns
from saeclamp_server.steering.program import Form


class RuleRows(NamedTuple):
    """Rules of one form that are evaluated at one site, and their tokens: one array element per (rule, token)."""

    form: Form
    place: int
    """Number of the site where the rules are evaluated."""
    act: NDArray[np.int64]
    """(num_rows, num_comparisons), places of activations"""
    bounds: NDArray[np.float32]
    """(num_rows, num_comparisons)"""
    above: NDArray[np.bool_]
    """(num_rows, num_comparisons)"""
    batch_row: NDArray[np.int64]
    position: NDArray[np.int64]
    start: NDArray[np.int64]
    """Position of the slice's first token: from there on, results of an earlier step are void."""
    in_scope: NDArray[np.bool_]
    """True if the position is in the rule's ranges."""
    special: NDArray[np.bool_]
    """True if the condition is evaluated even if the token is a special one."""
    lasting: NDArray[np.bool_]
    new: NDArray[np.bool_]
    """True if the position was not counted before."""
    slot: NDArray[np.int64]
    """Slot of the rule in the rule state."""
    verdict: NDArray[np.int64]
    """Place of the verdict in the step outputs."""


class TopFeatureRows(NamedTuple):
    """Tokens whose strongest features of one SAE are shown."""

    batch_row: NDArray[np.int64]
    special: NDArray[np.bool_]
    top_k: int
    """Largest `top_k` of their requests; each is cut to its own when it is read."""


def plan_rules(slices: Sequence[RequestSlice], layout: StepLayout) -> list[RuleRows]:
    """Group the rules of a step by form and site, to evaluate them at once. Raises nothing: compiled rules are sound."""
    groups: dict[tuple[Form, int], list[tuple[int, int]]] = {}
    for number, req_slice in enumerate(slices):
        for nth, rule in enumerate(req_slice.program.rules):
            groups.setdefault((rule.form, rule.site_index), []).append((number, nth))
    return [_rows(form, place, chosen, slices, layout) for (form, place), chosen in groups.items()]


def _rows(
    form: Form, place: int, chosen: Sequence[tuple[int, int]], slices: Sequence[RequestSlice], layout: StepLayout
) -> RuleRows:
    req_slice = slice_columns(slices, layout, [number for number, _ in chosen])
    rules = [slices[number].program.rules[nth] for number, nth in chosen]
    nth = np.array([nth for _, nth in chosen], np.int64)
    # also tokens outside the rule's ranges: a lasting rule that held before holds at them
    of = np.repeat(np.arange(len(rules)), req_slice.num_tokens)
    token = count_within(req_slice.num_tokens)
    position = req_slice.position[of] + token
    first = req_slice.first_act[of] + token * req_slice.num_reads[of]
    special = np.array([rule.special for rule in rules], np.bool_)[of]
    return RuleRows(
        form=form,
        place=place,
        act=first[:, None] + np.stack([rule.reads for rule in rules])[of],
        bounds=np.stack([rule.bounds for rule in rules])[of],
        above=np.stack([rule.above for rule in rules])[of],
        batch_row=req_slice.first_row[of] + token,
        position=position,
        start=req_slice.position[of],
        in_scope=np.concatenate(
            [_in_scope(rules[n], req_slice.position[n], req_slice.num_tokens[n]) for n in range(len(rules))]
        ),
        special=special,
        lasting=np.array([rule.lasting for rule in rules], np.bool_)[of],
        new=position >= req_slice.counted[of],
        slot=(req_slice.first_rule_slot + nth)[of],
        verdict=(req_slice.first_verdict + nth * req_slice.num_tokens)[of] + token,
    )


def _in_scope(rule: CompiledRule, position: int, num_tokens: int) -> NDArray[np.bool_]:
    return within(rule.ranges, np.arange(position, position + num_tokens), rule.special)


def within(ranges: Ranges, positions: NDArray[np.int64], special: bool) -> NDArray[np.bool_]:
    """Tell for each position whether it is in one of the ranges; position 0, a sink, only with `special`."""
    inside = np.zeros(len(positions), np.bool_)
    for start, end in ranges:
        inside |= (positions >= start) & (positions < end)
    return inside & ((positions > 0) | special)


def plan_top_features(slices: Sequence[RequestSlice]) -> dict[str, TopFeatureRows]:
    """Find the tokens of a step whose strongest features are shown, by SAE."""
    found: dict[str, list[tuple[NDArray[np.int64], bool, int]]] = {}
    for req_slice in slices:
        readout = req_slice.program.readout
        if readout is None or not readout.top_k:
            continue
        rows = req_slice.first_row + np.flatnonzero(plan_shown(req_slice))
        for sae in readout.saes:
            if len(rows):
                found.setdefault(sae, []).append((rows, readout.special, readout.top_k))
    return {
        sae: TopFeatureRows(
            batch_row=np.concatenate([rows for rows, _, _ in parts]),
            special=np.concatenate([np.full(len(rows), special) for rows, special, _ in parts]),
            top_k=max(top_k for _, _, top_k in parts),
        )
        for sae, parts in found.items()
    }


def plan_shown(req_slice: RequestSlice) -> NDArray[np.bool_]:
    """Tell for each token of a slice whether it is in its readout's ranges: (num_tokens,) bool."""
    readout = req_slice.program.readout
    positions = np.arange(req_slice.position, req_slice.position + req_slice.num_tokens)
    return within(readout.ranges, positions, readout.special) if readout else np.zeros(len(positions), np.bool_)
