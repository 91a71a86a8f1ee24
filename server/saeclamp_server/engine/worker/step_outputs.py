"""
Worker process: the step outputs, which the ops write in a forward: activations that were read, verdicts of rules, items
and strongest features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_server.engine.worker.rule_state import RuleState
from saeclamp_server.steering.program import Form


class RuleInputs(NamedTuple):
    """`read_plan.RuleRows` on the model's device, one row per (rule, token)."""

    form: Form
    act: Tensor
    """(num_rows, num_comparisons) int64, places of activations"""
    bounds: Tensor
    """(num_rows, num_comparisons)"""
    above: Tensor
    """(num_rows, num_comparisons) bool"""
    position: Tensor
    start: Tensor
    is_seen: Tensor
    """(num_rows,) bool; False where the rule's condition is not evaluated at the token"""
    lasting: Tensor
    counted: Tensor
    slot: Tensor
    verdict: Tensor
    batch_row: Tensor


class TopFeaturesInputs(NamedTuple):
    """Tokens whose strongest features are wanted."""

    token: Tensor
    """(num_rows,) int64, row of the gathered vectors"""
    is_seen: Tensor
    """(num_rows,) bool"""
    top_k: int


class TopFeatures(NamedTuple):
    """Strongest features of some tokens, strongest first."""

    acts: Tensor
    """(num_rows, top_k); 0 where there is none, NaN in a row that is not to be seen"""
    features: Tensor
    """(num_rows, top_k) int64"""


@dataclass
class StepOutputs:
    """Outputs of one forward; the op at each site writes to them."""

    rule_states: RuleState
    acts: Tensor = field(default_factory=lambda: torch.empty(0))
    """(num_acts,) fp32, activations that were read; NaN where none was"""
    verdicts: Tensor = field(default_factory=lambda: torch.empty(0))
    """(num_verdicts,) fp32: 1 where a rule holds, else 0; the first is 1, for edits without a rule"""
    items: Tensor = field(default_factory=lambda: torch.empty(0, 2))
    """(num_items, 2) fp32, for edits that are shown: activation before, dose; NaN where the edit was not made"""
    lost: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    """(num_rows,) bool, by row of the batch: True where an edit left a vector that is not finite, or too long"""
    rules: Mapping[int, Sequence[RuleInputs]] = field(default_factory=dict)
    """Rules, by number of the site where they are evaluated."""
    top: dict[str, TopFeatures] = field(default_factory=dict)
    """Strongest features, by SAE."""

    def begin(
        self,
        num_acts: int,
        num_verdicts: int,
        rules: Mapping[int, Sequence[RuleInputs]],
        num_items: int = 1,
        num_rows: int = 0,
    ) -> None:
        """Allocate the outputs of the coming forward. The batch's steered requests are in its first `num_rows` rows."""
        device = self.rule_states.device
        # new tensors each time: the step report of the last forward may not have been fetched yet
        self.acts = torch.full((num_acts,), float("nan"), device=device)
        self.items = torch.full((num_items, 2), float("nan"), device=device)
        self.verdicts = torch.zeros(num_verdicts, device=device)
        self.verdicts[0] = 1.0
        self.lost = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.rules, self.top = rules, {}

    def evaluate_rules(self, site: int) -> None:
        """Evaluate the rules whose last activation is read at this site."""
        for rule in self.rules.get(site, ()):
            acts = self.acts[rule.act]
            # an activation that was not read, NaN, is neither above nor below; `is_seen` keeps its `not` from holding
            compared = torch.where(rule.above, acts > rule.bounds, acts < rule.bounds)
            is_met = _holds(rule.form, compared) & rule.is_seen
            first = self.rule_states.update(
                rule.slot, rule.position, rule.start, is_met, acts, rule.counted, rule.batch_row
            )
            since = rule.lasting & (rule.position >= first)
            self.verdicts[rule.verdict] = (is_met | since).float()


def _holds(form: Form, compared: Tensor) -> Tensor:
    """
    Evaluate a condition at every row.

    form:     the condition, whose numbers are columns of `compared`
    compared: (num_rows, num_comparisons) bool
    returns:  (num_rows,) bool
    """
    if isinstance(form, int):
        return compared[:, form]
    kind, parts = form
    met = torch.stack([_holds(part, compared) for part in parts])
    if kind == "not":
        return ~met[0]
    return met.all(dim=0) if kind == "all" else met.any(dim=0)


def top_features(acts: Tensor, top: TopFeaturesInputs) -> TopFeatures:
    """
    Pick each token's strongest features.

    acts: (num_rows, d_sae)
    """
    index = acts.abs().topk(min(top.top_k, acts.shape[1]), dim=1).indices  # those of AbsTopK have either sign
    return TopFeatures(torch.where(top.is_seen[:, None], acts.gather(1, index), float("nan")), index)
