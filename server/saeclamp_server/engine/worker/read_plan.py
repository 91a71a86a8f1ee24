"""
Worker process: which tokens of a step are judged by rules, and which are shown whole. Host-side and free of vLLM,
like `step_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import PlacedRule, Ranges
from saeclamp_server.engine.worker.step_plan import Places, Span, count_within, numbers
from saeclamp_server.steering.program import Form


class RuleRows(NamedTuple):
    """Rules of one form that are decided at one site, and their tokens: one array element per (rule, token)."""

    form: Form
    place: int
    """Number of the site."""
    act: NDArray[np.int64]
    """(num_rows, num_comparisons), places of activations"""
    bounds: NDArray[np.float32]
    """(num_rows, num_comparisons)"""
    above: NDArray[np.bool_]
    """(num_rows, num_comparisons)"""
    batch_row: NDArray[np.int64]
    position: NDArray[np.int64]
    start: NDArray[np.int64]
    """Position of the span's first token: what was seen at it or later in an earlier step is seen anew."""
    in_scope: NDArray[np.bool_]
    """Is the condition looked at here?"""
    special: NDArray[np.bool_]
    """Even if the token is a special one?"""
    lasting: NDArray[np.bool_]
    new: NDArray[np.bool_]
    """Was the position not counted before?"""
    slot: NDArray[np.int64]
    """Of the rule, among the firings."""
    verdict: NDArray[np.int64]
    """Place of the verdict."""


class TopRows(NamedTuple):
    """Tokens whose strongest features of one SAE are shown."""

    batch_row: NDArray[np.int64]
    special: NDArray[np.bool_]
    top_k: int
    """The most that any of them is shown."""


def rule_rows(spans: Sequence[Span], places: Places) -> list[RuleRows]:
    """Group the rules of a step by what is done alike. Raises nothing: placed rules are sound."""
    groups: dict[tuple[Form, int], list[tuple[int, int]]] = {}
    for number, span in enumerate(spans):
        for nth, rule in enumerate(span.program.rules):
            groups.setdefault((rule.form, rule.place), []).append((number, nth))
    return [_rows(form, place, chosen, spans, places) for (form, place), chosen in groups.items()]


def _rows(form: Form, place: int, chosen: Sequence[tuple[int, int]], spans: Sequence[Span], places: Places) -> RuleRows:
    span = numbers(spans, places, [number for number, _ in chosen])
    rules = [spans[number].program.rules[nth] for number, nth in chosen]
    nth = np.array([nth for _, nth in chosen], np.int64)
    of = np.repeat(np.arange(len(rules)), span.num_tokens)
    token = count_within(span.num_tokens)
    position = span.position[of] + token
    first = span.first_act[of] + token * span.num_looks[of]
    special = np.array([rule.special for rule in rules], np.bool_)[of]
    return RuleRows(
        form=form,
        place=place,
        act=first[:, None] + np.stack([rule.looks for rule in rules])[of],
        bounds=np.stack([rule.bounds for rule in rules])[of],
        above=np.stack([rule.above for rule in rules])[of],
        batch_row=span.first_row[of] + token,
        position=position,
        start=span.position[of],
        in_scope=np.concatenate([_in_scope(rules[n], span.position[n], span.num_tokens[n]) for n in range(len(rules))]),
        special=special,
        lasting=np.array([rule.lasting for rule in rules], np.bool_)[of],
        new=position >= span.counted[of],
        slot=(span.first_rule_slot + nth)[of],
        verdict=(span.first_verdict + nth * span.num_tokens)[of] + token,
    )


def _in_scope(rule: PlacedRule, position: int, num_tokens: int) -> NDArray[np.bool_]:
    return within(rule.ranges, np.arange(position, position + num_tokens), rule.special)


def within(ranges: Ranges, positions: NDArray[np.int64], special: bool) -> NDArray[np.bool_]:
    """Whether each position is in one of the ranges; position 0 only with `special`."""
    inside = np.zeros(len(positions), np.bool_)
    for start, end in ranges:
        inside |= (positions >= start) & (positions < end)
    return inside & ((positions > 0) | special)


def top_rows(spans: Sequence[Span]) -> dict[str, TopRows]:
    """Find the tokens of a step whose strongest features are shown, by SAE."""
    found: dict[str, list[tuple[NDArray[np.int64], bool, int]]] = {}
    for span in spans:
        readout = span.program.readout
        if readout is None or not readout.top_k:
            continue
        rows = span.first_row + np.flatnonzero(shown(span))
        for sae in readout.saes:
            if len(rows):
                found.setdefault(sae, []).append((rows, readout.special, readout.top_k))
    return {
        sae: TopRows(
            batch_row=np.concatenate([rows for rows, _, _ in parts]),
            special=np.concatenate([np.full(len(rows), special) for rows, special, _ in parts]),
            top_k=max(top_k for _, _, top_k in parts),
        )
        for sae, parts in found.items()
    }


def shown(span: Span) -> NDArray[np.bool_]:
    """Whether each of a span's tokens is in its readout's scope."""
    readout = span.program.readout
    positions = np.arange(span.position, span.position + span.num_tokens)
    return within(readout.ranges, positions, readout.special) if readout else np.zeros(len(positions), np.bool_)
