"""A training run from vectors to files, in a folder of its own; started again, it resumes where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saeclamp_saes.errors import SAEError, TrainingError
from saeclamp_saes.io.vector_files import VectorFile, VectorTable
from saeclamp_saes.io.work_folder import (
    RUN,
    SAE_FOLDER,
    DamagedFolderError,
    check_identity,
    locked,
    read_json,
    reporting_disk_errors,
)
from saeclamp_saes.lm.harvest import ActivationReader, ActivationStream, d_in_of
from saeclamp_saes.lm.text import bos_id
from saeclamp_saes.progress import ProgressCallback, no_progress
from saeclamp_saes.sites import Site
from saeclamp_saes.training.activations_store import DOING, HELD_OUT, ActivationsStore, check_held_out, fill_in_order
from saeclamp_saes.training.batchtopk_threshold import Chunks
from saeclamp_saes.training.config import TrainingConfig
from saeclamp_saes.training.export import CONFIG, ExportedSAE, export
from saeclamp_saes.training.harvest_config import HarvestConfig, norm_limits_from
from saeclamp_saes.training.held_out import HeldOutMetrics
from saeclamp_saes.training.log import check_tensorboard
from saeclamp_saes.training.loop import CHECKPOINT, train_loop
from saeclamp_saes.training.mixing_buffer import MixingBuffer, Schedule, check_enough
from saeclamp_saes.training.run_settings import RunSettings

LIMITS, POOL = "limits.json", "pool"


class VectorInput(NamedTuple):
    """The vectors that a run is trained and measured on."""

    buffer: MixingBuffer
    harvest: ActivationStream | None
    """Stream that fills the mixing buffer; None if it holds all vectors from the start."""
    held_out: Chunks


def train(
    settings: RunSettings,
    config: TrainingConfig,
    wanted: HarvestConfig,
    reader: ActivationReader,
    report: ProgressCallback = no_progress,
) -> ExportedSAE:
    """
    Harvest into a mixing buffer, train, calibrate and export; or resume a run.

    reader: reads one site
    Raises TrainingError with a sentence: a folder that holds another run, data that are too few or no data, a full disk.
    """
    (site,), width = reader.sites, d_in_of(reader)

    device = next(reader.model.parameters()).device
    _check_memory(config, width, device)

    def rows(name: str, num_rows: int) -> tuple[VectorFile, Path]:
        state = settings.out / f"{name}.json"
        return VectorFile(settings.out / f"{name}.rows", num_rows, width, wanted.store, begun=state.exists()), state

    def vectors() -> VectorInput:
        most = wanted.most_held_out
        schedule = Schedule.plan(config.num_steps, settings.pool_tokens // config.batch)
        # both, so that a disk without room for them is known before anything long begins
        held_out, held_out_state = rows(HELD_OUT, most)
        buffer, pool_state = rows(POOL, schedule.size * config.batch)
        limits = norm_limits_from(settings.out / LIMITS, reader, wanted.files, report)
        harvest = wanted.harvest(reader, limits, held_out=True)
        num_held_out = fill_in_order([held_out], harvest, held_out_state, most, DOING[HELD_OUT], report)
        check_held_out(num_held_out)
        return VectorInput(
            MixingBuffer.filled(buffer, pool_state, schedule, config.batch, config.seed),
            wanted.harvest(reader, limits, held_out=False),
            lambda: VectorTable([held_out.tensor]).chunks(num_held_out),
        )

    return _run(
        settings,
        config,
        site,
        {**wanted.identity(reader), "pool_tokens": settings.pool_tokens},
        bool(bos_id(reader.tokenizer)),
        vectors,
        device,
        report,
    )


def train_from(
    settings: RunSettings,
    config: TrainingConfig,
    stores: Sequence[ActivationsStore],
    site: Site,
    device: torch.device,
    report: ProgressCallback = no_progress,
) -> ExportedSAE:
    """
    Train on vectors that were harvested before, calibrate and export; or resume a run.

    stores: of one model; one that is named twice counts twice
    Raises TrainingError with a sentence: a folder that holds another run, vectors that are too few or of another model.
    """
    first, each = stores[0], list({store.folder: store for store in stores}.values())
    for store in each:
        if (store.identity["model"], store.width) != (first.identity["model"], first.width):
            raise TrainingError(f"{first.folder} and {store.folder} hold vectors of different models.")
    kept = {
        f"{number} {store.folder.name}": {**store.identity, "times": stores.count(store)}
        for number, store in enumerate(each, 1)
    }

    _check_memory(config, first.width, device)

    def vectors() -> VectorInput:
        table = VectorTable([store.rows(site).tensor for store in stores])
        check_enough(len(table), config.batch)
        held_out = VectorTable([store.held_out(site).tensor for store in each])
        schedule = Schedule.plan(config.num_steps, len(table) // config.batch)
        return VectorInput(MixingBuffer(table, schedule, config.batch, config.seed), None, held_out.chunks)

    identity = {"model": first.identity["model"], "context": first.identity["context"], "vectors": kept}
    return _run(settings, config, site, identity, first.prepends_bos, vectors, device, report)


def _run(
    settings: RunSettings,
    config: TrainingConfig,
    site: Site,
    source: dict[str, Any],
    prepends_bos: bool,
    vectors: Callable[[], VectorInput],
    device: torch.device,
    report: ProgressCallback,
) -> ExportedSAE:
    if settings.tensorboard:
        check_tensorboard()
    identity = {
        **source,
        "device": device.type,
        "site": str(site),
        "recipe": asdict(config),
        "dtype": settings.dtype,
    }
    finished = settings.out / SAE_FOLDER / CONFIG
    with reporting_disk_errors(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
        check_identity(settings.out / RUN, identity)
        with locked(settings.out):
            if not finished.exists():
                try:
                    buffer, harvest, held_out = vectors()
                    trainer, resume_point = train_loop(settings, config, buffer, harvest, device, report)
                except DamagedFolderError:
                    raise
                except SAEError:
                    _clear_unless_begun(settings.out)
                    raise
                report("calibrating and measuring", 0, 1, {})
                export(
                    settings.out / SAE_FOLDER,
                    trainer.sae,
                    config,
                    scale=resume_point.scale,
                    site=site,
                    chunks=held_out,
                    dtype=settings.dtype,
                    metadata={
                        "model_name": source["model"]["name"],
                        "context_size": source["context"],
                        "prepend_bos": prepends_bos,
                        "training": {"tool": "saeclamp train", "command": settings.command, **identity},
                    },
                )
            if not settings.keep_vectors:
                _remove_vectors(settings.out)
    return _read(finished)


def _check_memory(config: TrainingConfig, width: int, device: torch.device) -> None:
    """Raise TrainingError, before anything long begins, for an SAE that is too large to be trained in this memory."""
    # both matrices, their gradients and Adam's two moments; a batch's activations and their gradients; fp32
    needed = 4 * (4 * 2 * width + 2 * config.batch) * config.d_sae
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[1]
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise TrainingError(
            f"{config.d_sae:,} features of width {width}, trained on {config.batch:,} tokens at once, take "
            f"{needed / 1e9:,.0f} GB of memory, and there are {there / 1e9:,.0f} GB: give fewer features, or a smaller "
            "batch."
        )


def _remove_vectors(folder: Path) -> None:
    """Remove the vectors and the progress of their harvest: a run that is exported again begins to harvest anew."""
    for name in (POOL, HELD_OUT):
        # the progress first: without it vectors are made anew, but progress without its vectors is damage
        for suffix in ("json", "rows"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def _clear_unless_begun(folder: Path) -> None:
    """Remove what was refused before training began, so that the folder can be named again."""
    if not (folder / CHECKPOINT).exists():
        _remove_vectors(folder)
        for name in (RUN, LIMITS, "lock"):
            (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> ExportedSAE:
    try:
        metadata = read_json(path)["metadata"]
        training = metadata["training"]
        figures = HeldOutMetrics(**training["held_out"])
        return ExportedSAE(path.parent, metadata["model_name"], figures, float(training["rounding_error"]))
    except (KeyError, TypeError, DamagedFolderError):
        raise DamagedFolderError(
            f"{path} is damaged: delete {path.parent} and start the same command again, which makes it anew."
        ) from None
