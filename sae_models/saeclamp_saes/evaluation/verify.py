"""The verdict on an SAE: its metrics on real tokens of a model, and whether another interpretation fits better."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.evaluation import metrics
from saeclamp_saes.evaluation.interpretations import (
    COMPARED_TOKENS,
    Interpretation,
    activity_of,
    at_other_sites,
    declared,
    score,
    with_other_preprocessing,
)
from saeclamp_saes.evaluation.report import (
    LEAST,
    NEAR_MARGIN,
    CrossEntropy,
    InterpretationScore,
    Verification,
    best_of,
    too_many_active,
)
from saeclamp_saes.evaluation.topk_threshold import estimate_threshold
from saeclamp_saes.lm import token_mask
from saeclamp_saes.lm.architectures import has_site
from saeclamp_saes.lm.capture import ActivationRecording, Progress, edited_cross_entropy, record
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site

FEW_TOKENS = 2000
ENOUGH_FOR_PCA = 4
"""Least number of tokens per dimension for a comparison with principal components."""
FEW = "Only {0} tokens were measured; give a longer text for figures that can be relied on."

DENSE = (
    "{:.0f} active features a token explain {:.2f}, and as many principal components {:.2f}: compare that number with the "
    "L0 on its card."
)


def _silent(doing: str, done: int, total: int) -> None:
    pass


@torch.no_grad()
def verify(
    sae: SAE,
    model: nn.Module,
    sequences: Sequence[Tensor],
    special_ids: Collection[int] = (),
    progress: Progress = _silent,
) -> Verification:
    """
    Measure an SAE on a causal language model of transformers, on the model's device.

    sequences:   (length,) int64 token ids each, of `text.tokenize_sequences`
    special_ids: tokens that are left out, as the server leaves them out
    Raises VerificationError when it cannot be measured: another width, no such layer, an unknown architecture.
    """
    if sae.kind == "clt_layer":
        raise VerificationError(
            "One layer of a cross-layer transcoder makes only a part of what it writes to, so it cannot be measured alone."
        )
    device = next(model.parameters()).device
    sae, sequences = sae.to(device, torch.float32), [sequence.to(device) for sequence in sequences]
    others = _fitting_in_width(sae, model, sequences[0], list(at_other_sites(sae, lambda site: has_site(model, site))))
    sites = dict.fromkeys(site for reading in (declared(sae), *others) for site in (*reading.reads, *reading.writes))
    recording = record(model, sequences, sites, special_ids, progress)

    mask = _ordinary(recording, [*sae.reads, *sae.writes])
    x, target = (recording.at(places)[mask] for places in (sae.reads, sae.writes))
    if len(x) < 2:
        there = "only one ordinary token" if len(x) else "no ordinary tokens"
        raise VerificationError(f"The text has {there} to measure, and two or more are needed: give more of it.")
    activity = activity_of(sae, x)
    explained = metrics.explained_variance(target, activity.reconstruction)
    l0 = float(activity.l0.double().mean())
    by_pca = metrics.pca_explained_variance(target, round(l0))
    readings = _compare(sae, recording, others, round(l0))
    num_tokens = len(x)
    return Verification(
        reads=tuple(map(str, sae.reads)),
        writes=tuple(map(str, sae.writes)),
        verdict=_verdict(sae, explained, readings),
        warnings=_warnings(num_tokens, target.shape[1], l0, explained, by_pca),
        num_tokens=num_tokens,
        num_sinks=int((_may_count(recording) & ~mask).sum()),
        explained_variance=explained,
        pca_explained_variance=by_pca,
        l0_mean=l0,
        l0_p5=float(activity.l0.double().quantile(0.05)),
        l0_p95=float(activity.l0.double().quantile(0.95)),
        dead_share=metrics.dead_share(activity.num_active),
        dense_share=metrics.dense_share(activity.num_active, num_tokens),
        cross_entropy=_cross_entropies(sae, model, recording, mask, activity.reconstruction, progress),
        readings=readings,
        calibrated_threshold=estimate_threshold(sae, x),
    )


def _warnings(num_tokens: int, width: int, l0: float, explained: float, by_pca: float) -> tuple[str, ...]:
    if num_tokens < FEW_TOKENS:
        return (FEW.format(num_tokens),)
    # of few tokens their own principal components explain more than they would of others
    is_dense = num_tokens >= ENOUGH_FOR_PCA * width and explained < by_pca - NEAR_MARGIN
    return (DENSE.format(l0, explained, by_pca),) if is_dense else ()


def _fitting_in_width(
    sae: SAE, model: nn.Module, sequence: Tensor, others: list[Interpretation]
) -> list[Interpretation]:
    """Check, on two tokens, that the claimed sites exist and have the SAE's widths; drop interpretations whose do not."""
    # all in one run of the model
    sites = {*sae.reads, *sae.writes, *(site for other in others for site in (*other.reads, *other.writes))}
    recording = record(model, [sequence[:2]], sites, (), _silent)

    def width(places: tuple[Site, ...]) -> int:
        return recording.at(places).shape[1]

    for places, wanted, does in ((sae.reads, sae.d_in, "reads"), (sae.writes, sae.d_out, "writes")):
        if width(places) != wanted:
            raise VerificationError(
                f"The SAE {does} vectors of width {wanted}, and {_listed(places)} of this model is {width(places)} wide: "
                "it was made for another model, or for another place."
            )
    return [other for other in others if width(other.reads) == sae.d_in and width(other.writes) == sae.d_out]


def _may_count(recording: ActivationRecording) -> Tensor:
    return (recording.position > 0) & ~recording.is_special


def _ordinary(recording: ActivationRecording, sites: Collection[Site]) -> Tensor:
    """Select the tokens that are ordinary at every one of these sites: (num_tokens,) bool."""
    masks = [
        token_mask.scored_token_mask(recording.vectors[site], recording.position, recording.is_special)
        for site in sites
    ]
    return torch.stack(masks).all(dim=0)


def _compare(
    sae: SAE, recording: ActivationRecording, others: list[Interpretation], num_components: int
) -> tuple[InterpretationScore, ...]:
    """Measure all interpretations on the same tokens: `COMPARED_TOKENS` at most, evenly chosen, ordinary at all sites."""
    index = _ordinary(recording, recording.vectors).nonzero()[:, 0]
    index = index[:: max(1, -(-len(index) // COMPARED_TOKENS))]
    x, target = recording.at(sae.reads)[index], recording.at(sae.writes)[index]
    variances: dict[tuple[Site, ...], Tensor] = {}

    def measure(reading: Interpretation) -> InterpretationScore:
        x, target = recording.at(reading.reads)[index], recording.at(reading.writes)[index]
        if reading.writes not in variances:
            variances[reading.writes] = metrics.principal_variances(target)
        return score(reading, x, target, variances[reading.writes], num_components)

    found = [measure(reading) for reading in (*others, *with_other_preprocessing(sae, x, target))]
    return measure(declared(sae)), *sorted(found, key=lambda figure: -figure.explained_variance)


def _verdict(sae: SAE, explained: float, readings: tuple[InterpretationScore, ...]) -> str:
    own, *others = readings
    best = best_of(own, others)
    if best is not None:
        by, instead = (
            (f" by {best.l0:.0f} active features", f" by {own.l0:.0f}") if best.changes_activation else ("", "")
        )
        return (
            f"It fits better {best.name} ({best.explained_variance:.2f} of the variance explained{by}, against "
            f"{own.explained_variance:.2f}{instead} as claimed): {best.hint}."
        )
    if problem := too_many_active(own.l0, min(sae.d_in, sae.d_out)):
        return f"It is not used as it was trained: {problem}."
    if explained < LEAST:
        return (
            f"It does not fit this model: it explains {explained:.2f} of the variance at {_listed(sae.writes)} (at least "
            f"{LEAST} is asked for), and no other way to read it fits better."
        )
    return "ok"


def _cross_entropies(
    sae: SAE, model: nn.Module, recording: ActivationRecording, mask: Tensor, reconstruction: Tensor, progress: Progress
) -> CrossEntropy:
    target = recording.at(sae.writes)
    spliced = target.clone()
    spliced[mask] = reconstruction

    def run(vectors: Tensor, doing: str) -> float:
        parts = zip(sae.writes, vectors.chunk(len(sae.writes), dim=1), strict=True)
        return edited_cross_entropy(model, recording, dict(parts), mask, doing, progress)

    losses = {
        "clean": recording.cross_entropy,
        "spliced": run(spliced, "with the reconstruction"),
        "zero": run(torch.zeros_like(target[:1]), "with nothing"),
        "mean": run(target[mask].mean(dim=0, keepdim=True), "with the mean"),
    }
    return CrossEntropy(
        **losses,
        recovered_against_zero=metrics.loss_recovered(losses["clean"], losses["spliced"], losses["zero"]),
        recovered_against_mean=metrics.loss_recovered(losses["clean"], losses["spliced"], losses["mean"]),
    )


def _listed(sites: tuple[Site, ...]) -> str:
    return ", ".join(map(str, sites))
