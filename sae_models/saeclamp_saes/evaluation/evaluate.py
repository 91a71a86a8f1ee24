"""Evaluating several SAEs of one model on the same tokens: one pass over the data, which resumes where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.evaluation.eval_data import EvalData, EvalDataSummary, survey_data
from saeclamp_saes.evaluation.measurement import Measurement
from saeclamp_saes.evaluation.report import Verification
from saeclamp_saes.evaluation.running_sums import RunningSums
from saeclamp_saes.evaluation.verify import verify
from saeclamp_saes.lm.harvest import ActivationReader, TokenSequence, d_in_of, norm_limits, report_forwards
from saeclamp_saes.progress import ProgressCallback, no_progress
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site

VERIFIED_TOKENS = 8192
"""Tokens for the cross-entropies and the verdict, which need the whole model, and vectors of many sites."""
SAVE_SECONDS = 20.0
"""Seconds between two writes of the sums."""


class NamedSAE(NamedTuple):
    """An SAE, under the name that the user gave."""

    name: str
    sae: SAE


@dataclass(frozen=True)
class EvaluatedSAE:
    """The measurements of all SAEs, and a survey of the data."""

    survey: EvalDataSummary
    measurements: list[Measurement]
    """One for each SAE, in their order."""


def sites_of(saes: Sequence[SAE]) -> tuple[Site, ...]:
    """List all sites that SAEs read or write, each once, for an `ActivationReader` to record."""
    return tuple(dict.fromkeys(site for sae in saes for site in (*sae.reads, *sae.writes)))


def evaluate(
    saes: Sequence[NamedSAE],
    reader: ActivationReader,
    source: EvalData,
    report: ProgressCallback = no_progress,
    state: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    verified_tokens: int = VERIFIED_TOKENS,
) -> EvaluatedSAE:
    """
    Measure SAEs on the model's device.

    reader: reads the sites of `sites_of`
    state:  file to keep the sums in while this runs, and to resume from; it must be of the same SAEs, model and data
    Raises VerificationError for an SAE that cannot be measured on the model or a damaged state, TrainingError for data that
    cannot be used.
    """
    _check_widths(saes, reader)
    device = next(reader.model.parameters()).device
    # a damaged file is refused before the data are read
    sums = RunningSums.begin([sae for _, sae in saes], device, state, save_seconds)
    # data with a mistake somewhere are refused here, before the long part
    found = survey_data(source, reader, verified_tokens, report)
    verifications = [_verified(named, reader, found, report) for named in saes]
    saes = [NamedSAE(name, sae.to(device, torch.float32)) for name, sae in saes]
    _sum_up(sums, saes, reader, source, found, report)
    results = zip(saes, sums.sums_by_sae, verifications, strict=True)
    measured = EvaluatedSAE(
        found,
        [Measurement.from_sums(*named, sums_of_sae, verification) for named, sums_of_sae, verification in results],
    )
    # last, so that after any failure the pass need not be made again
    sums.discard()
    return measured


def _check_widths(saes: Sequence[NamedSAE], reader: ActivationReader) -> None:
    widths: dict[int, str] = {}
    for name, sae in saes:
        for does, width in (("reads", sae.d_in // len(sae.reads)), ("writes", sae.d_out // len(sae.writes))):
            widths.setdefault(width, f"{name} {does} vectors of width {width}")
    if len(widths) > 1:
        raise VerificationError(
            f"Places of different widths cannot be measured at once: {', and '.join(widths.values())}."
        )
    ((width, says),) = widths.items()
    if (own := d_in_of(reader)) != width:
        raise VerificationError(
            f"{says}, and {', '.join(map(str, reader.sites))} of this model is {own} wide: it was made for another model, "
            "or for another place."
        )


def _verified(
    named: NamedSAE, reader: ActivationReader, found: EvalDataSummary, report: ProgressCallback
) -> Verification:
    def progress(doing: str, done: int, total: int) -> None:
        report(f"{named.name}: {doing}", done, total, {})

    return verify(named.sae, reader.model, found.chosen, reader.tokenizer.all_special_ids, progress)


def _sum_up(
    sums: RunningSums,
    saes: Sequence[NamedSAE],
    reader: ActivationReader,
    source: EvalData,
    found: EvalDataSummary,
    report: ProgressCallback,
) -> None:
    limits = norm_limits(reader, source.files, report)
    for first, group in _groups(source, reader):
        if first >= sums.num_done:
            read = report_forwards(report, "measuring", first, found.num_parts, lambda part: 1)
            _add(sums, saes, reader.sites, reader.vectors(group, read), limits)
            sums.commit(first + len(group))
        report("measuring", sums.num_done, found.num_parts, {})
    if not all(int(sums_of_sae.num_tokens) for sums_of_sae in sums.sums_by_sae):
        raise VerificationError("The data have no ordinary tokens to measure.")


def _groups(source: EvalData, reader: ActivationReader) -> Iterator[tuple[int, list[TokenSequence]]]:
    """Yield groups of sequences, enough for batches of like length, each with the number of sequences before it."""
    first, group, num_tokens = 0, [], 0
    for parts in source.documents(reader):
        for part in parts:
            group.append(part)
            num_tokens += len(part.ids)
            if num_tokens >= reader.least_group:
                yield first, group
                first, group, num_tokens = first + len(group), [], 0
    if group:
        yield first, group


def _add(
    sums: RunningSums, saes: Sequence[NamedSAE], sites: Sequence[Site], found: Sequence[Tensor], limits: Tensor
) -> None:
    x = torch.cat([vectors.float() for vectors in found])
    within = x.norm(dim=2) <= limits.to(x.device)
    for (_, sae), sums_of_sae in zip(saes, sums.sums_by_sae, strict=True):
        reads, writes = ([sites.index(site) for site in places] for places in (sae.reads, sae.writes))
        # an SAE's own sites decide, so that its metrics are the same beside any other SAE
        mask = within[:, [*reads, *writes]].all(dim=1)
        kept = x[mask]
        sums_of_sae.add(sae, kept[:, reads].flatten(1), kept[:, writes].flatten(1), int((~mask).sum()))
