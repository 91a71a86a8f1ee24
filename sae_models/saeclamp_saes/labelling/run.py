"""A labelling run, from an SAE, a model and documents to a file of labels; stopped, it can be resumed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeclamp_saes.errors import LabelError, TrainingError
from saeclamp_saes.io.hashes import tensor_sha256
from saeclamp_saes.io.work_folder import check_identity, locked
from saeclamp_saes.labelling import examples, feature_rows, output_scores, token_labels
from saeclamp_saes.labelling.activation_index import (
    ENCODED_AT_ONCE,
    SORTED_AT_ONCE,
    build_index,
    sequences_of_files,
)
from saeclamp_saes.labelling.examples import TokenStrings
from saeclamp_saes.labelling.feature_rows import ROWS_AT_ONCE, FeatureStats, max_acts
from saeclamp_saes.labelling.neighbours import COSINES_AT_ONCE, measure_neighbours
from saeclamp_saes.labelling.output_scores import LOGITS_AT_ONCE, measure_outputs
from saeclamp_saes.labelling.table import (
    Explanation,
    LabelsInfo,
    LabelTable,
    decoder_sha256,
    write_labels,
)
from saeclamp_saes.lm.documents import data_files
from saeclamp_saes.lm.harvest import ActivationReader, check_documents, d_in_of, norm_limits
from saeclamp_saes.lm.logit_lens import edits_resid, writes_to_resid
from saeclamp_saes.lm.provenance import data_hashes
from saeclamp_saes.lm.text import SAMPLE
from saeclamp_saes.progress import ProgressCallback, no_progress
from saeclamp_saes.sae import SAE

DEFAULT_TOKENS = 1_000_000
MOST_TOKENS = 2**31 - 1
"""Largest number of tokens, because places in the text are int32."""

SMALL_SAMPLE = (
    "The labels come from the packaged sample text, which is small: rare features have few examples or none, and max_act is "
    "too low for many. Give --data for labels to rely on."
)
NO_LENS = "The SAE does not write to the residual stream at one place: no logit lens, and no output scores."
NO_OUTPUT_SCORE = "The SAE does not edit the residual stream at the place it reads: no output scores."


@dataclass(frozen=True)
class LabelSettings:
    """Settings of a labelling run: the SAE, the model, the data and the file."""

    out: Path
    """File of labels to write."""
    sae_name: str
    model_name: str
    model_sha256: Mapping[str, str]
    """Hex digests of its weights, by file name."""
    data: tuple[Path, ...] = (SAMPLE,)
    """Files and folders."""
    tokens: int = DEFAULT_TOKENS
    """Tokens to read, at most."""
    quote: tuple[Path, ...] = ()
    """Files of the data that examples may be taken from; empty: all."""


@dataclass(frozen=True)
class BatchSizes:
    """Bounds on what each step has in memory at once; the labels are the same with any."""

    encoded: int = ENCODED_AT_ONCE
    sorted: int = SORTED_AT_ONCE
    logits: int = LOGITS_AT_ONCE
    cosines: int = COSINES_AT_ONCE
    rows: int = ROWS_AT_ONCE


SIZES = BatchSizes()


def run_labelling(
    settings: LabelSettings,
    sae: SAE,
    reader: ActivationReader,
    report: ProgressCallback = no_progress,
    sizes: BatchSizes = SIZES,
) -> LabelTable:
    """
    Label every feature, write the file, and return its labels; or resume a run.

    The state lies in a folder beside the file until that is written. Explanations in a file of the same weights are kept.

    reader: reads the sites that the SAE reads
    Raises SAEError with a sentence: labels of other weights in the way, a model or data that do not fit, a full disk.
    """
    check(settings, sae)
    files = data_files(settings.data)
    _check_widths(sae, reader)
    work = settings.out.with_name(f"{settings.out.name}.work")
    if not work.exists():  # the same data were looked at before
        check_documents(reader, files, report)
    limits = norm_limits(reader, files, report)
    identity = _identity(settings, sae, reader, files)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _check_identity(work, identity)
        with locked(work):
            moved = sae.to(_device(reader), torch.float32)
            measured = _measure(work, settings, moved, reader, files, limits, report, sizes)
            info = _info(settings, sae, reader, identity, measured.firings.num_tokens)
            write_labels(settings.out, info, measured.batches(report, sizes.rows))
    except OSError as exc:
        raise LabelError(f"{work} cannot be written: {exc.strerror or exc}.") from exc
    shutil.rmtree(work)
    return LabelTable.read(settings.out)


def check(settings: LabelSettings, sae: SAE) -> None:
    """Check, before the model is loaded, that the file may be written. Raises LabelError."""
    if settings.tokens > MOST_TOKENS:
        raise LabelError(f"At most {MOST_TOKENS:,} tokens can be read.")
    if settings.out.is_dir():
        raise LabelError(f"{settings.out} is a folder: give a file's name.")
    _quoted(settings)
    _explanations(settings.out, sae)


def _quoted(settings: LabelSettings) -> list[Path]:
    files = {file.resolve(): file for file in data_files(settings.data)}
    wanted = data_files(settings.quote)
    for file in wanted:
        if file.resolve() not in files:
            raise LabelError(f"{file} cannot be quoted: it is not among the data.")
    return [files[file.resolve()] for file in wanted]


def _explanations(out: Path, sae: SAE) -> dict[int, Explanation]:
    if not out.exists():
        return {}
    labels = LabelTable.read(out)
    if labels.info.decoder_sha256 != decoder_sha256(sae):
        raise LabelError(
            f"{out} holds labels of other weights (of {labels.info.sae}): delete it, or give another --out."
        )
    return labels.explanations()


def _check_widths(sae: SAE, reader: ActivationReader) -> None:
    for does, sites, width in (("reads", reader.sites, sae.d_in), ("writes", sae.writes, sae.d_out)):
        own = len(sites) * d_in_of(replace(reader, sites=sites))
        if own != width:
            raise LabelError(
                f"The SAE {does} vectors of width {width}, and {', '.join(map(str, sites))} of this model is {own} wide: it "
                "was made for another model, or for another place."
            )


def _check_identity(work: Path, identity: dict[str, Any]) -> None:
    try:
        check_identity(work / "label.json", identity)
    except TrainingError as exc:
        raise LabelError(f"{exc} To begin anew, delete that folder.") from None


def _identity(settings: LabelSettings, sae: SAE, reader: ActivationReader, files: Sequence[Path]) -> dict[str, Any]:
    """Return all that the labels depend on, JSON-able."""
    hashes, quoted = data_hashes(files), _quoted(settings)
    return {
        "sae": {
            **{name: tensor_sha256(tensor) for name, tensor in sae.tensors().items()},
            **{name: str(getattr(sae, name)) for name in ("reads", "writes", "kind", "top_k", "input_norm")},
        },
        "model": {"name": settings.model_name, "sha256": dict(settings.model_sha256)},
        "dtype": str(next(reader.model.parameters()).dtype).removeprefix("torch."),
        "device": _device(reader).type,
        "data_sha256": hashes,
        "quoted": sorted(name for name, file in zip(hashes, files, strict=True) if file in quoted),
        "tokens": settings.tokens,
        "context": reader.context,
        "batch_tokens": reader.batch_tokens,
        "prefix": output_scores.PREFIX,
        "strength": output_scores.STRENGTH,
    }


def _measure(
    work: Path,
    settings: LabelSettings,
    sae: SAE,
    reader: ActivationReader,
    files: Sequence[Path],
    limits: Tensor,
    report: ProgressCallback,
    sizes: BatchSizes,
) -> FeatureStats:
    firings = build_index(
        work / "firings",
        sae,
        reader,
        files,
        limits,
        settings.tokens,
        report,
        encoded_at_once=sizes.encoded,
        sorted_at_once=sizes.sorted,
    )
    if not firings.num_tokens:
        shutil.rmtree(work)  # so that the same command with more tokens begins anew
        raise LabelError(f"Of the first {settings.tokens} tokens of the data none counts: read more.")
    if quoted := _quoted(settings):
        firings = replace(firings, quotable=sequences_of_files(firings, files, quoted))
    maxima = max_acts(firings)
    found = None
    if writes_to_resid(reader.model, sae):
        targets = torch.tensor(maxima, dtype=torch.float32, device=sae.W_dec.device)
        found = measure_outputs(work / "outputs", sae, reader, targets, report, logits_at_once=sizes.logits)
    return FeatureStats(
        firings=firings,
        vocabulary=max(len(reader.tokenizer), int(firings.ids.max()) + 1),
        max_acts=maxima,
        outputs=found,
        neighbours=measure_neighbours(work / "neighbours", sae.W_dec, report, cosines_at_once=sizes.cosines),
        strings=token_strings(reader.tokenizer),
        explanations=_explanations(settings.out, sae),
    )


def _info(
    settings: LabelSettings, sae: SAE, reader: ActivationReader, identity: Mapping[str, Any], num_tokens: int
) -> LabelsInfo:
    return LabelsInfo(
        sae=settings.sae_name,
        decoder_sha256=decoder_sha256(sae),
        model=settings.model_name,
        model_sha256=settings.model_sha256,
        data_sha256=identity["data_sha256"],
        num_tokens=num_tokens,
        settings={
            **{
                key: identity[key]
                for key in ("dtype", "device", "tokens", "context", "batch_tokens", "quoted", "prefix", "strength")
            },
            "reads": list(map(str, sae.reads)),
            "writes": list(map(str, sae.writes)),
            "unit": sae.unit,
            "max_act_quantile": feature_rows.MAX_ACT_QUANTILE,
            "quantiles": examples.NUM_QUANTILES,
            "bars": token_labels.BARS,
        },
        warnings=tuple(_warnings(settings, sae, reader)),
        versions={name: version(name) for name in ("saeclamp", "torch", "transformers")},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _warnings(settings: LabelSettings, sae: SAE, reader: ActivationReader) -> Iterator[str]:
    if settings.data == (SAMPLE,):
        yield SMALL_SAMPLE
    if not writes_to_resid(reader.model, sae):
        yield NO_LENS
    elif not edits_resid(sae):
        yield NO_OUTPUT_SCORE


def _device(reader: ActivationReader) -> torch.device:
    return next(reader.model.parameters()).device


def token_strings(tokenizer: Any) -> TokenStrings:
    """
    Return a function from a token's id to its text, with the blank that it begins with.

    A token that is a part of a character has the text that decoding it alone gives: the replacement character.
    """

    @cache
    def string(token: int) -> str:
        text = str(tokenizer.decode([token]))
        # what sentencepiece marks so is dropped by decoding where nothing stands before it
        starts_a_word = str(tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
        return f" {text}" if starts_a_word and not text.startswith(" ") else text

    return string
