"""Metrics of an SAE on held-out vectors, as many as there are, in two passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.evaluation import metrics
from saeclamp_saes.evaluation.interpretations import token_chunks
from saeclamp_saes.sae import SAE
from saeclamp_saes.training.batchtopk_threshold import Chunks


@dataclass(frozen=True)
class HeldOutMetrics:
    """Metrics on held-out documents, sinks left out; JSON-able."""

    num_tokens: int
    explained_variance: float
    pca_explained_variance: float
    """Share that as many principal components as features are active explain, chosen on these tokens: an upper yardstick."""
    l0: float
    dead_share: float
    """Share of features that were active on none of these tokens."""
    dense_share: float
    """Share of features that were active on more than 10 % of them."""


@torch.no_grad()
def evaluate_held_out(sae: SAE, chunks: Chunks) -> HeldOutMetrics:
    """Measure an SAE. Sums are in fp64."""
    device = sae.W_enc.device
    num_tokens, mean = 0, torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    for chunk in chunks():
        num_tokens += len(chunk)
        mean += chunk.to(device).double().sum(dim=0)
    mean /= num_tokens
    gram = torch.zeros(sae.d_in, sae.d_in, dtype=torch.float64, device=device)
    missing, num_active = 0.0, torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    for chunk in chunks():
        for x in token_chunks(chunk.to(device), sae):
            acts = sae.encode(x)
            missing += float((x - sae.decode(acts, x)).double().square().sum())
            num_active += acts.count_nonzero(dim=0)
            # centred by the mean of the first pass: sums of squares less the mean's would lose digits
            centered = x.double() - mean
            gram += centered.T @ centered
    if not gram.trace() > 0:
        raise TrainingError("The held-out vectors do not vary, so nothing can be explained of them: give other data.")
    l0 = float(num_active.sum()) / num_tokens
    return HeldOutMetrics(
        num_tokens=num_tokens,
        explained_variance=metrics.explained_share(missing, float(gram.trace())),
        pca_explained_variance=metrics.share_of(metrics.variances_of(gram), round(l0)),
        l0=l0,
        dead_share=metrics.dead_share(num_active),
        dense_share=metrics.dense_share(num_active, num_tokens),
    )
