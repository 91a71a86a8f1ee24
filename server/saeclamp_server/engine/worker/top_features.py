"""Worker process: the strongest features of tokens that a readout shows, for which the whole SAE is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes import SAE
from saeclamp_saes.parts import PART_BYTES, parts_of
from saeclamp_server.engine.worker.device_copies import upload
from saeclamp_server.engine.worker.readout_plan import TopFeatureRows
from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.step_tables import StepTables


class TopFeaturesInputs(NamedTuple):
    """Tokens whose strongest features of an SAE are wanted."""

    rows: Tensor
    """(num_rows,) int64, row of the batch"""
    is_seen: Tensor
    """(num_rows,) bool; False for special tokens that are left out"""
    with_sinks: Tensor
    """(num_rows,) bool, True where sinks are not left out"""
    top_k: int


class TopFeatures(NamedTuple):
    """Strongest features of some tokens, strongest first."""

    acts: Tensor
    """(num_rows, top_k); 0 where there is none, NaN in a row that is not to be seen"""
    features: Tensor
    """(num_rows, top_k) int64"""


class TopFeatureFinder:
    """Finder of the strongest features: wanted ones of a step, and those that its sites have found."""

    def __init__(self) -> None:
        self.wanted: dict[str, TopFeaturesInputs] = {}
        """(name of the SAE: its tokens); and so is `found`."""
        self.found: dict[str, TopFeatures] = {}
        self._is_edited: Tensor | None = None
        """Column of the step tables; None before the first step."""

    def begin(self, planned: Mapping[str, TopFeatureRows], step: StepTables) -> None:
        """Begin a step, whose tokens have been mapped."""
        # new dictionaries each time: what the last step has found may not have been fetched yet
        self.wanted, self.found, self._is_edited = {}, {}, step.is_edited
        for name, plan in planned.items():
            rows, special = (upload(column, step.position.device) for column in (plan.batch_row, plan.special))
            self.wanted[name] = TopFeaturesInputs(rows, ~step.is_sink[rows] | special, special, plan.top_k)

    def find(self, name: str, sae: SAE, vectors: SiteVectors, sink_norm: Tensor) -> None:
        """
        Find what is wanted of an SAE, whole and wherever it is, at the site where it reads.

        sink_norm: () norm above which a vector is that of a sink
        """
        wanted, found = self.wanted[name], []
        for part in vectors.parts(len(wanted.rows)):
            rows, with_sinks = wanted.rows[part], wanted.with_sinks[part]
            x = vectors.gather(rows)
            is_no_sink = (x.norm(dim=1) <= sink_norm) | with_sinks
            if self._is_edited is not None:
                is_no_sink |= self._is_edited[rows]
            is_seen = wanted.is_seen[part] & is_no_sink
            found.append(strongest_features(sae, x, TopFeaturesInputs(rows, is_seen, with_sinks, wanted.top_k)))
        self.found[name] = _joined(found)


def strongest_features(sae: SAE, x: Tensor, wanted: TopFeaturesInputs, part_bytes: int = PART_BYTES) -> TopFeatures:
    """
    Find the strongest of all features.

    x:          (num_rows, d_in)
    part_bytes: memory that encoding takes at a time
    """
    found = []
    for part in parts_of(len(x), 4 * sae.d_sae * x.element_size(), part_bytes):  # a few tensors of this size
        # the vectors go to the SAE, which may be whole in the host's memory alone
        acts = sae.encode(x[part].to(sae.W_enc.device)).to(x.device)
        index = acts.abs().topk(min(wanted.top_k, acts.shape[1]), dim=1).indices  # those of AbsTopK have either sign
        shown = torch.where(wanted.is_seen[part, None], acts.gather(1, index), torch.nan)
        found.append(TopFeatures(shown, index))
    return _joined(found)


def _joined(parts: Sequence[TopFeatures]) -> TopFeatures:
    return TopFeatures(torch.cat([one.acts for one in parts]), torch.cat([one.features for one in parts]))
