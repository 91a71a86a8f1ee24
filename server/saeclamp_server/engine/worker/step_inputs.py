"""Worker process: from what each token of a step gets to tensors on the device: the step of every SAE, site and rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes.clamping import Distinct, Edits
from saeclamp_server.engine.worker.ops import LoadedSAE, Looks, SAEStep, SiteState
from saeclamp_server.engine.worker.read_plan import RuleRows, TopRows, rule_rows, top_rows
from saeclamp_server.engine.worker.step_outputs import Board, RuleStep, TopStep
from saeclamp_server.engine.worker.step_plan import (
    LookPairs,
    Places,
    SAEPairs,
    Span,
    looks_by_sae,
    no_pairs,
    pairs_by_sae,
)

PRODUCT_PER_PAIR = 16
"""Entries of a product of all tokens with all distinct features that cost as much as gathering two rows for a pair."""


class _Wanted(NamedTuple):
    """What a step is to do, by SAE."""

    pairs: Mapping[str, SAEPairs]
    looks: Mapping[str, LookPairs]
    tops: Mapping[str, TopRows]


class Filler:
    """Fills the steps of the SAEs and sites of one worker."""

    def __init__(self, saes: Sequence[LoadedSAE], sites: Sequence[SiteState], board: Board, is_special: Tensor) -> None:
        """
        sites:      by number
        is_special: (vocab_size,) bool, on the model's device
        """
        self._saes = saes
        self._sites = sites
        self._board = board
        self._is_special = is_special

    def fill(self, spans: Sequence[Span], input_ids: Tensor) -> Places:
        """
        Make the coming forward do what its steered requests ask for, nothing for no spans; return where it will lie.

        input_ids: (max_num_tokens,) of the step, on the device: under asynchronous scheduling the host does not know the
                   last sampled ones yet
        """
        places = Places(spans)
        wanted = _Wanted(pairs_by_sae(spans, places), looks_by_sae(spans, places), top_rows(spans))
        is_special = self._is_special[input_ids] if spans else self._is_special[:0]
        rules: dict[int, list[RuleStep]] = {}
        for rows in rule_rows(spans, places):
            rules.setdefault(rows.place, []).append(self._rule(rows, is_special))
        num_rows = max((span.first_row + span.num_tokens for span in spans), default=0)
        self._board.begin(places.num_acts, places.num_verdicts, rules, places.all_items, num_rows)
        gathered = [self._gather(number, wanted) for number in range(len(self._sites))]
        for loaded in self._saes:
            loaded.before = None
            loaded.step = None
            if any(loaded.name in part for part in wanted):
                loaded.step = self._step(loaded, wanted, gathered, is_special)
        return places

    def _gather(self, number: int, wanted: _Wanted) -> _Gathered:
        """One list of rows for all SAEs of a site, so that their changes are summed before the one rounding."""
        state = self._sites[number]
        reading = [loaded.name for loaded in state.reads]
        here = {(name, "edits"): wanted.pairs[name].batch_row for name in state.sae_names if name in wanted.pairs}
        here |= {(name, "looks"): wanted.looks[name].batch_row for name in reading if name in wanted.looks}
        here |= {(name, "top"): wanted.tops[name].batch_row for name in reading if name in wanted.tops}
        state.tokens = None
        if not here:
            return {}
        rows, token = np.unique(np.concatenate([*here.values()]), return_inverse=True)
        state.tokens = self._to_device(rows)
        parts = np.split(token, np.cumsum([len(part) for part in here.values()])[:-1])
        return {key: self._to_device(part) for key, part in zip(here, parts, strict=True)}

    def _step(self, loaded: LoadedSAE, wanted: _Wanted, gathered: Sequence[_Gathered], is_special: Tensor) -> SAEStep:
        name, bank = loaded.name, loaded.bank
        sae_pairs, looks = wanted.pairs.get(name) or no_pairs(), wanted.looks.get(name)
        if bank is not None:
            bank.hold(np.concatenate((sae_pairs.feature, looks.feature)) if looks else sae_pairs.feature)
            loaded.sae = bank.sae
            sae_pairs = sae_pairs._replace(feature=bank.rows(sae_pairs.feature))
            looks = looks and looks._replace(feature=bank.rows(looks.feature))
        live = self._live(sae_pairs.batch_row, sae_pairs.special, is_special).float()
        feature, moves = self._to_device(sae_pairs.feature), self._to_device(sae_pairs.moves)
        distinct = self._distinct(sae_pairs.feature, sae_pairs.batch_row)
        nothing = self._to_device(np.zeros(0, np.int64))
        sites = [number for number, state in enumerate(self._sites) if name in state.sae_names]
        return SAEStep(
            edits={
                number: Edits(gathered[number].get((name, "edits"), nothing), feature, moves, live, distinct)
                for number in sites
            },
            slot=self._to_device(sae_pairs.slot),
            counts=self._to_device(np.stack((sae_pairs.prompt, sae_pairs.generated), axis=1)).float(),
            batch_row=self._to_device(sae_pairs.batch_row),
            verdict=self._to_device(sae_pairs.verdict) if sae_pairs.verdict.any() else None,
            item=self._to_device(sae_pairs.item) if sae_pairs.item.any() else None,
            looks=self._looks(name, looks, gathered, is_special),
            top=self._top(name, wanted.tops.get(name), gathered, is_special),
        )

    def _looks(
        self, name: str, looks: LookPairs | None, gathered: Sequence[_Gathered], is_special: Tensor
    ) -> Looks | None:
        if looks is None:
            return None
        (token,) = [here[name, "looks"] for here in gathered if (name, "looks") in here]
        is_seen = self._live(looks.batch_row, looks.special, is_special)
        return Looks(token, self._to_device(looks.feature), is_seen, self._to_device(looks.act))

    def _top(
        self, name: str, rows: TopRows | None, gathered: Sequence[_Gathered], is_special: Tensor
    ) -> TopStep | None:
        if rows is None:
            return None
        (token,) = [here[name, "top"] for here in gathered if (name, "top") in here]
        return TopStep(token, self._live(rows.batch_row, rows.special, is_special), rows.top_k)

    def _rule(self, rows: RuleRows, is_special: Tensor) -> RuleStep:
        is_seen = self._live(rows.batch_row, rows.special, is_special) & self._to_device(rows.in_scope)
        return RuleStep(
            form=rows.form,
            act=self._to_device(rows.act),
            bounds=self._to_device(rows.bounds),
            above=self._to_device(rows.above),
            position=self._to_device(rows.position),
            start=self._to_device(rows.start),
            is_seen=is_seen,
            lasting=self._to_device(rows.lasting),
            counted=self._to_device(rows.new),
            slot=self._to_device(rows.slot),
            verdict=self._to_device(rows.verdict),
            batch_row=self._to_device(rows.batch_row),
        )

    def _distinct(self, feature: NDArray[np.int64], batch_row: NDArray[np.int64]) -> Distinct | None:
        """Find the distinct features of an SAE's pairs, where one product is cheaper than a row for each pair."""
        features, which = np.unique(feature, return_inverse=True)
        num_tokens = len(np.unique(batch_row))
        if num_tokens * len(features) > PRODUCT_PER_PAIR * len(feature):
            return None
        return Distinct(self._to_device(features), self._to_device(which))

    def _live(self, batch_row: NDArray[np.int64], special: NDArray[np.bool_], is_special: Tensor) -> Tensor:
        """Whether each token may be touched: is it an ordinary one, or are special ones meant too?"""
        return ~is_special[self._to_device(batch_row)] | self._to_device(special)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._is_special.device)


_Gathered = dict[tuple[str, str], Tensor]
"""Rows of a site's gathered vectors, by SAE and what they are gathered for."""
