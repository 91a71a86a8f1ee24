"""Worker process: the step inputs, which are the step plan as tensors on the device, by SAE, site and rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes.clamping import EditRows, UniqueFeatures
from saeclamp_server.engine.worker.ops import HookState, LoadedSAE, Reads, SAEStep
from saeclamp_server.engine.worker.read_plan import RuleRows, TopFeatureRows, plan_rules, plan_top_features
from saeclamp_server.engine.worker.step_outputs import RuleInputs, StepOutputs, TopFeaturesInputs
from saeclamp_server.engine.worker.step_plan import (
    EditPairs,
    ReadPairs,
    RequestSlice,
    StepLayout,
    no_pairs,
    pairs_by_sae,
    reads_by_sae,
)

PRODUCT_PER_PAIR = 16
"""Entries of a (tokens x distinct features) product that cost as much as gathering the two rows of one pair."""


class _StepRows(NamedTuple):
    """A step's plan, by SAE."""

    pairs: Mapping[str, EditPairs]
    reads: Mapping[str, ReadPairs]
    tops: Mapping[str, TopFeatureRows]


class StepInputBuilder:
    """Builds the step inputs of the SAEs and sites of one worker."""

    def __init__(
        self, saes: Sequence[LoadedSAE], sites: Sequence[HookState], step_outputs: StepOutputs, is_special: Tensor
    ) -> None:
        """
        sites:      in the order of their numbers
        is_special: (vocab_size,) bool, on the model's device
        """
        self._saes = saes
        self._sites = sites
        self._step_outputs = step_outputs
        self._is_special = is_special

    def build(self, slices: Sequence[RequestSlice], input_ids: Tensor) -> StepLayout:
        """
        Build the inputs of the coming forward, which edits nothing where there are no slices; return the outputs' layout.

        input_ids: (max_num_tokens,), the step's, on the device: under asynchronous scheduling the host does not know the
                   last sampled ones yet
        """
        layout = StepLayout(slices)
        step_rows = _StepRows(pairs_by_sae(slices, layout), reads_by_sae(slices, layout), plan_top_features(slices))
        is_special = self._is_special[input_ids] if slices else self._is_special[:0]
        rules: dict[int, list[RuleInputs]] = {}
        for rows in plan_rules(slices, layout):
            rules.setdefault(rows.place, []).append(self._rule(rows, is_special))
        num_rows = max((req_slice.first_row + req_slice.num_tokens for req_slice in slices), default=0)
        self._step_outputs.begin(layout.num_acts, layout.num_verdicts, rules, layout.all_items, num_rows)
        gathered = [self._gather(number, step_rows) for number in range(len(self._sites))]
        for loaded in self._saes:
            # also where it has nothing to do: the op must not find the last step's
            loaded.before = None
            loaded.step = None
            if any(loaded.name in part for part in step_rows):
                loaded.step = self._step(loaded, step_rows, gathered, is_special)
        return layout

    def _gather(self, number: int, step_rows: _StepRows) -> _Gathered:
        """
        Make one list of rows for all SAEs of a site, and return each SAE's place in it.

        One list, so that the SAEs' changes are summed in fp32 before the one rounding to the model's dtype.
        """
        state = self._sites[number]
        reading = [loaded.name for loaded in state.reads]
        here = {(name, "edits"): step_rows.pairs[name].batch_row for name in state.sae_names if name in step_rows.pairs}
        here |= {(name, "reads"): step_rows.reads[name].batch_row for name in reading if name in step_rows.reads}
        here |= {(name, "top"): step_rows.tops[name].batch_row for name in reading if name in step_rows.tops}
        state.tokens = None
        if not here:
            return {}
        rows, token = np.unique(np.concatenate([*here.values()]), return_inverse=True)
        state.tokens = self._to_device(rows)
        parts = np.split(token, np.cumsum([len(part) for part in here.values()])[:-1])
        return {key: self._to_device(part) for key, part in zip(here, parts, strict=True)}

    def _step(
        self, loaded: LoadedSAE, step_rows: _StepRows, gathered: Sequence[_Gathered], is_special: Tensor
    ) -> SAEStep:
        name, row_cache = loaded.name, loaded.row_cache
        sae_pairs, reads = step_rows.pairs.get(name) or no_pairs(), step_rows.reads.get(name)
        if row_cache is not None:
            # rows come in on the device's stream, so after the last forward, which may still read what they replace
            row_cache.ensure_resident(
                np.concatenate((sae_pairs.feature, reads.feature)) if reads else sae_pairs.feature
            )
            loaded.sae = row_cache.sae  # a new one where the cache has grown
            sae_pairs = sae_pairs._replace(feature=row_cache.rows(sae_pairs.feature))
            reads = reads and reads._replace(feature=row_cache.rows(reads.feature))
        # a mask of pairs, not a selection: how many tokens are special is known on the device alone
        mask = self._token_mask(sae_pairs.batch_row, sae_pairs.special, is_special).float()
        feature, moves = self._to_device(sae_pairs.feature), self._to_device(sae_pairs.moves)
        distinct = self._unique_features(sae_pairs.feature, sae_pairs.batch_row)
        nothing = self._to_device(np.zeros(0, np.int64))
        sites = [number for number, state in enumerate(self._sites) if name in state.sae_names]
        return SAEStep(
            edits={
                number: EditRows(gathered[number].get((name, "edits"), nothing), feature, moves, mask, distinct)
                for number in sites
            },
            slot=self._to_device(sae_pairs.slot),
            counts=self._to_device(np.stack((sae_pairs.prompt, sae_pairs.generated), axis=1)).float(),
            batch_row=self._to_device(sae_pairs.batch_row),
            verdict=self._to_device(sae_pairs.verdict) if sae_pairs.verdict.any() else None,
            item=self._to_device(sae_pairs.item) if sae_pairs.item.any() else None,
            reads=self._reads(name, reads, gathered, is_special),
            top=self._top(name, step_rows.tops.get(name), gathered, is_special),
        )

    def _reads(
        self, name: str, reads: ReadPairs | None, gathered: Sequence[_Gathered], is_special: Tensor
    ) -> Reads | None:
        if reads is None:
            return None
        (token,) = [here[name, "reads"] for here in gathered if (name, "reads") in here]
        is_seen = self._token_mask(reads.batch_row, reads.special, is_special)
        return Reads(token, self._to_device(reads.feature), is_seen, self._to_device(reads.act))

    def _top(
        self, name: str, rows: TopFeatureRows | None, gathered: Sequence[_Gathered], is_special: Tensor
    ) -> TopFeaturesInputs | None:
        if rows is None:
            return None
        (token,) = [here[name, "top"] for here in gathered if (name, "top") in here]
        return TopFeaturesInputs(token, self._token_mask(rows.batch_row, rows.special, is_special), rows.top_k)

    def _rule(self, rows: RuleRows, is_special: Tensor) -> RuleInputs:
        is_seen = self._token_mask(rows.batch_row, rows.special, is_special) & self._to_device(rows.in_scope)
        return RuleInputs(
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

    def _unique_features(self, feature: NDArray[np.int64], batch_row: NDArray[np.int64]) -> UniqueFeatures | None:
        """Find the distinct features of an SAE's pairs, where one product is cheaper than gathering rows for each pair."""
        features, which = np.unique(feature, return_inverse=True)
        num_tokens = len(np.unique(batch_row))
        if num_tokens * len(features) > PRODUCT_PER_PAIR * len(feature):
            return None
        return UniqueFeatures(self._to_device(features), self._to_device(which))

    def _token_mask(self, batch_row: NDArray[np.int64], special: NDArray[np.bool_], is_special: Tensor) -> Tensor:
        """Tell for each pair whether its token may be touched, as an ordinary one or with `special`: (num_pairs,) bool."""
        return ~is_special[self._to_device(batch_row)] | self._to_device(special)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._is_special.device)


_Gathered = dict[tuple[str, str], Tensor]
"""Rows of a site's gathered vectors, by SAE and purpose: `edits`, `reads` or `top`."""
