"""
A feature's effect on the next token: its logit lens, and its output score.

The output score is that of Arad, Mueller and Belinkov, "SAEs Are Good for Steering - If You Select the Right Features"
(arXiv:2505.20063): the feature is amplified at the last token of a neutral prefix, and of the 20 first tokens t of its logit
lens the best gives max_t (1 - rank(t) / |V|) p(t), with the rank (from 0) and probability of t as the next token. Each
feature takes one token's forward, behind a prefix that is read once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saeclamp_saes.clamping import UPDATES, EditRows, decoder_delta, read_acts
from saeclamp_saes.labelling.column_store import ColumnStore, StoredColumn
from saeclamp_saes.lm.architectures import Edit, apply_edits
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.lm.logit_lens import LogitLens, edits_resid
from saeclamp_saes.lm.text import bos_id
from saeclamp_saes.progress import ProgressCallback
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site

PREFIX = "From my experience,"
"""Neutral prefix of the authors' program."""
STRENGTH = 2.0
"""
Multiple of its own max_act that a feature is clamped to. The authors amplify every feature to ten times the largest
activation of any, which is far beyond the range in which a model still writes sentences. On a typical SAE (1,024 features at
80 % of the depth) twice max_act moves the residual stream by half its norm, and as many features as the authors report,
three in five, score below 0.01.
"""
NUM_SHOWN, NUM_SCORED = 10, 20
"""Numbers of the lens's first tokens: those in the labels, and those that count for the score."""
NUM_NAMED, NAMED_SHARE = 3, 0.1
"""Likeliest of those tokens that a label names, and the share of the first one's probability that each must have."""
LOGITS_AT_ONCE = 1 << 25
"""Logits in memory at once: 128 MB."""
_COLUMNS = {
    "top": StoredColumn("<i4", NUM_SCORED),
    "top_value": StoredColumn("<f4", NUM_SCORED),
    "bottom": StoredColumn("<i4", NUM_SHOWN),
    "bottom_value": StoredColumn("<f4", NUM_SHOWN),
    "score": StoredColumn("<f4"),
    "before": StoredColumn("<f4"),
    "named": StoredColumn("<i4", NUM_NAMED),
}


class PromotedTokens(NamedTuple):
    """Logit lens and output score of every feature."""

    top: NDArray[Any]
    """(d_sae, 20) int32: tokens with the largest logits, largest first"""
    top_value: NDArray[Any]
    bottom: NDArray[Any]
    """(d_sae, 10) int32: those with the smallest, smallest first"""
    bottom_value: NDArray[Any]
    score: NDArray[Any]
    """(d_sae,) float32: output score; NaN where there is none"""
    before: NDArray[Any]
    """(d_sae,) float32: probability, without the feature's amplification, of the token that gives the score"""
    named: NDArray[Any]
    """(d_sae, 3) int32: of the 20 tokens, the likeliest once it is amplified; -1 for none"""


def measure_outputs(
    folder: Path,
    sae: SAE,
    reader: ActivationReader,
    max_acts: Tensor,
    report: ProgressCallback,
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
    named_share: float = NAMED_SHARE,
) -> PromotedTokens:
    """
    Measure every feature, or resume an interrupted measurement.

    folder:   folder of this step, which is made
    sae:      an SAE that writes to the residual stream, on the model's device
    max_acts: (d_sae,), NaN for features that were never active, which cannot be amplified
    Raises LabelError for a model whose final norm is not known.
    """
    lens = LogitLens(reader.model, len(reader.tokenizer))
    prefix = Prefix.read(reader, PREFIX) if edits_resid(sae) else None
    columns = ColumnStore(folder, _COLUMNS)
    step = max(1, logits_at_once // lens.num_tokens)
    for first in range(columns.num_done, sae.d_sae, step):
        features = torch.arange(first, min(first + step, sae.d_sae), device=sae.W_dec.device)
        logits = lens.logits(sae.W_dec[features])
        top, bottom = logits.topk(NUM_SCORED), logits.topk(NUM_SHOWN, largest=False)
        targets = STRENGTH * max_acts[features]
        scores = (
            output_scores(prefix, sae, features, targets, top.indices, named_share)
            if prefix
            else OutputScores.unknown(top.indices)
        )
        columns.append(
            top=top.indices.cpu().numpy(),
            top_value=top.values.cpu().numpy(),
            bottom=bottom.indices.cpu().numpy(),
            bottom_value=bottom.values.cpu().numpy(),
            **{name: values.cpu().numpy() for name, values in scores._asdict().items()},
        )
        columns.commit(done=first + len(features))
        report("logit lens and output scores", first + len(features), sae.d_sae, {})
    return PromotedTokens(**{name: columns[name] for name in _COLUMNS})


class OutputScores(NamedTuple):
    """Scores of some features; see the fields of `PromotedTokens` with these names."""

    score: Tensor
    before: Tensor
    named: Tensor

    @classmethod
    def unknown(cls, top: Tensor) -> OutputScores:
        """Return scores that say that there are none."""
        nothing = torch.full(top.shape[:1], nan)
        return cls(nothing, nothing, torch.full((len(top), NUM_NAMED), -1))


@dataclass(frozen=True)
class Prefix:
    """The beginning of a sentence, read once up to its last token, which is then read with many edits at once."""

    model: nn.Module
    before: Any
    """transformers.Cache of all tokens but the last."""
    last: Tensor
    """(1, 1) int64"""

    @classmethod
    @torch.no_grad()
    def read(cls, reader: ActivationReader, text: str) -> Prefix:
        """Run the model over all tokens but the last."""
        ids = [*bos_id(reader.tokenizer), *reader.tokenizer(text, add_special_tokens=False).input_ids]
        tokens = torch.tensor([ids], device=next(reader.model.parameters()).device)
        return cls(reader.model, reader.model(input_ids=tokens[:, :-1], use_cache=True).past_key_values, tokens[:, -1:])

    @torch.no_grad()
    def logits(self, num: int, site: Site, edit: Edit) -> Tensor:
        """
        Run the last token `num` times, edited at a site.

        edit:    takes (num, 1, width)
        returns: (num, vocabulary) fp32, of the next token
        """
        before = copy.deepcopy(self.before)  # which the forward adds to
        before.batch_repeat_interleave(num)
        with apply_edits(self.model, {site: edit}):
            out = self.model(input_ids=self.last.expand(num, 1), past_key_values=before, use_cache=True)
        logits: Tensor = out.logits[:, -1].float()
        return logits


def output_scores(
    prefix: Prefix, sae: SAE, features: Tensor, targets: Tensor, top: Tensor, named_share: float = NAMED_SHARE
) -> OutputScores:
    """
    Measure output scores.

    features:    (n,) int64
    targets:     (n,), activation that each feature is clamped to at the prefix's last token; NaN gives NaN
    top:         (n, num_scored) int64, first tokens of each feature's lens
    named_share: share of the likeliest one's probability that a token must have to be named
    """
    num = len(features)
    rows = torch.arange(num, device=features.device)
    moves = torch.tensor(UPDATES["clamp"](0.0), device=targets.device).repeat(num, 1)
    moves[:, 0] = targets
    edits = EditRows(rows, features, moves)

    def clamp(x: Tensor) -> Tensor:
        at_last = x[:, -1].to(sae.W_dec.dtype)
        delta, _ = decoder_delta(sae, edits, read_acts(at_last, sae, edits), num)
        return (at_last + delta).to(x.dtype)[:, None]

    logits = prefix.logits(num, sae.site, clamp)
    chosen = logits.gather(1, top)
    # one token of the lens at a time: all at once would take num_scored times the memory of the logits
    rank = torch.stack([(logits > chosen[:, [which]]).sum(dim=1) for which in range(top.shape[1])], dim=1)
    probability = (chosen - logits.logsumexp(dim=1, keepdim=True)).exp()
    best = ((1 - rank / logits.shape[1]) * probability).max(dim=1)
    likeliest = probability.topk(NUM_NAMED)
    is_named = likeliest.values >= named_share * likeliest.values[:, :1]
    clean = prefix.logits(1, sae.site, lambda x: None)[0].softmax(dim=0)
    return OutputScores(
        score=best.values,
        before=clean[top.gather(1, best.indices[:, None])[:, 0]],
        named=torch.where(is_named, top.gather(1, likeliest.indices), -1),
    )
