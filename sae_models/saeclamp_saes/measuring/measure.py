"""Several SAEs of one model on the same tokens: one pass over the data, which goes on where it was stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.measuring.result import Measurement
from saeclamp_saes.measuring.source import Source, Survey, survey
from saeclamp_saes.measuring.tally import Tally
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site
from saeclamp_saes.training.harvest import GROUP_TOKENS, Part, Reader, norm_limits, width_of
from saeclamp_saes.training.progress import Report, silent
from saeclamp_saes.verification.result import Verification
from saeclamp_saes.verification.verify import verify

VERIFIED_TOKENS = 8192
"""On which the cross-entropies and the verdict are measured; they need the whole model, and vectors of many places."""
SAVE_SECONDS = 20.0


class NamedSAE(NamedTuple):
    """An SAE, and what the user calls it."""

    name: str
    sae: SAE


@dataclass(frozen=True)
class Measured:
    """What was measured, and on what."""

    survey: Survey
    measurements: list[Measurement]
    """In the order of the SAEs"""


def sites_of(saes: Sequence[SAE]) -> tuple[Site, ...]:
    """All places where they read or write, each once: what a Reader for them records."""
    return tuple(dict.fromkeys(site for sae in saes for site in (*sae.reads, *sae.writes)))


def measure(
    saes: Sequence[NamedSAE],
    reader: Reader,
    source: Source,
    report: Report = silent,
    state: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Measured:
    """
    Measure SAEs on the model's device.

    reader: of the places of `sites_of`
    state:  a file to keep the sums in while this runs, and to go on from; it must be of the same SAEs, model and data
    Raises VerificationError for an SAE that cannot be measured on the model, TrainingError for data that cannot be used.
    """
    _check_widths(saes, reader)
    # data with a mistake somewhere are refused here, before the long part
    found = survey(source, reader, VERIFIED_TOKENS, report)
    verifications = [_verified(named, reader, found, report) for named in saes]
    device = next(reader.model.parameters()).device
    saes = [NamedSAE(name, sae.to(device, torch.float32)) for name, sae in saes]
    tallies = _tally(saes, reader, source, found, report, state, save_seconds)
    results = zip(saes, tallies, verifications, strict=True)
    measured = Measured(found, [Measurement.of(*named, tally, verification) for named, tally, verification in results])
    if state:
        state.unlink(missing_ok=True)
    return measured


def _check_widths(saes: Sequence[NamedSAE], reader: Reader) -> None:
    widths: dict[int, str] = {}
    for name, sae in saes:
        for does, width in (("reads", sae.d_in // len(sae.reads)), ("writes", sae.d_out // len(sae.writes))):
            widths.setdefault(width, f"{name} {does} vectors of width {width}")
    if len(widths) > 1:
        raise VerificationError(
            f"Places of different widths cannot be measured at once: {', and '.join(widths.values())}."
        )
    ((width, says),) = widths.items()
    if (own := width_of(reader)) != width:
        raise VerificationError(
            f"{says}, and {', '.join(map(str, reader.sites))} of this model is {own} wide: it was made for another model, "
            "or for another place."
        )


def _verified(named: NamedSAE, reader: Reader, found: Survey, report: Report) -> Verification:
    def progress(doing: str, done: int, total: int) -> None:
        report(f"{named.name}: {doing}", done, total, {})

    return verify(named.sae, reader.model, found.chosen, reader.tokenizer.all_special_ids, progress)


def _tally(
    saes: Sequence[NamedSAE],
    reader: Reader,
    source: Source,
    found: Survey,
    report: Report,
    state: Path | None,
    save_seconds: float,
) -> list[Tally]:
    limits = norm_limits(reader, source.files)
    tallies, num_done = _begin(saes, reader, state)
    saved = time.monotonic()
    for first, group in _groups(source, reader):
        if first >= num_done:
            _add(saes, tallies, reader, group, limits)
            num_done = first + len(group)
            if state and time.monotonic() - saved >= save_seconds:
                _save(state, tallies, num_done)
                saved = time.monotonic()
        report("measuring", num_done, found.num_parts, {})
    if not all(int(tally.num_tokens) for tally in tallies):
        raise VerificationError("The data have no ordinary tokens to measure.")
    return tallies


def _groups(source: Source, reader: Reader) -> Iterator[tuple[int, list[Part]]]:
    """Put sequences together until the model's batches are of like length; with each, how many came before."""
    first, group, num_tokens = 0, [], 0
    for parts in source.documents(reader):
        for part in parts:
            group.append(part)
            num_tokens += len(part.ids)
            if num_tokens >= max(GROUP_TOKENS, 4 * reader.batch_tokens):
                yield first, group
                first, group, num_tokens = first + len(group), [], 0
    if group:
        yield first, group


def _add(
    saes: Sequence[NamedSAE], tallies: Sequence[Tally], reader: Reader, group: Sequence[Part], limits: Tensor
) -> None:
    x = torch.cat([vectors.float() for vectors in reader.vectors(group)])
    within = x.norm(dim=2) <= limits.to(x.device)
    for (_, sae), tally in zip(saes, tallies, strict=True):
        reads, writes = ([reader.sites.index(site) for site in sites] for sites in (sae.reads, sae.writes))
        # an SAE's own places decide, so that its figures are the same beside any other SAE
        mask = within[:, [*reads, *writes]].all(dim=1)
        kept = x[mask]
        tally.add(sae, kept[:, reads].flatten(1), kept[:, writes].flatten(1), int((~mask).sum()))


def _begin(saes: Sequence[NamedSAE], reader: Reader, state: Path | None) -> tuple[list[Tally], int]:
    device = next(reader.model.parameters()).device
    tallies = [Tally.empty(sae, device) for _, sae in saes]
    if not (state and state.exists()):
        return tallies, 0
    kept = load_file(state, device=str(device))
    return [
        Tally(**{name: kept[f"{index}.{name}"] for name in vars(tally)}) for index, tally in enumerate(tallies)
    ], int(kept["num_done"])


def _save(state: Path, tallies: Sequence[Tally], num_done: int) -> None:
    """Replace the file, as a whole or not at all."""
    tensors = {f"{index}.{name}": tensor for index, tally in enumerate(tallies) for name, tensor in vars(tally).items()}
    unfinished = state.with_name(f"{state.name}.unfinished")
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        save_file({**tensors, "num_done": torch.tensor(num_done)}, unfinished)
        os.replace(unfinished, state)
    except (OSError, SafetensorError) as exc:  # a full disk is either
        raise VerificationError(f"What was measured so far cannot be kept in {state}: {exc}.") from None
