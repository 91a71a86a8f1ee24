"""Training through the rounds of a mixing buffer, with a log, and checkpoints to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.lm.harvest import ActivationStream
from saeclamp_saes.progress import ProgressCallback
from saeclamp_saes.training import resume_checkpoint
from saeclamp_saes.training.architectures import learning_rate
from saeclamp_saes.training.config import TrainingConfig
from saeclamp_saes.training.log import TrainingLog
from saeclamp_saes.training.mixing_buffer import MixingBuffer
from saeclamp_saes.training.resume_checkpoint import ResumePoint
from saeclamp_saes.training.run_settings import RunSettings
from saeclamp_saes.training.trainer import StepMetrics, Trainer

CHECKPOINT = "checkpoint.safetensors"


def train_loop(
    settings: RunSettings,
    recipe: TrainingConfig,
    pool: MixingBuffer,
    harvest: ActivationStream | None,
    device: torch.device,
    report: ProgressCallback,
) -> tuple[Trainer, ResumePoint]:
    """
    Train to the end, from the checkpoint if there is one.

    Raises TrainingError when the loss is no longer finite, DamagedFolderError for a checkpoint that cannot be read.
    """
    path = settings.out / CHECKPOINT
    if not path.exists():
        pool.fill(harvest, 0, report)
        scale, center = _scale_and_center(pool)
        trainer, place = Trainer(recipe, center.to(device)), ResumePoint(scale)
        resume_checkpoint.save(path, trainer, place)
    else:
        trainer = Trainer(recipe, torch.zeros(pool.table.width, device=device))
        place = resume_checkpoint.load(path, trainer, device)
    log = _Lines(TrainingLog(settings.out, trainer.step_number, settings.tensorboard), settings, recipe, report)
    while trainer.step_number < recipe.num_steps:
        # the checkpoint is at this round's beginning or within it, so what it would need is not overwritten
        pool.fill(harvest, place.round, report)
        with _tf32(device):
            place = _round(settings, recipe, pool, trainer, place, device, log)
        resume_checkpoint.save(path, trainer, place)
    return trainer, place


@contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    """Multiply in TF32 on a GPU: exact enough for gradients, but not for the metrics that are measured afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _round(
    settings: RunSettings,
    recipe: TrainingConfig,
    pool: MixingBuffer,
    trainer: Trainer,
    place: ResumePoint,
    device: torch.device,
    log: _Lines,
) -> ResumePoint:
    """Train on the vectors of a round; return the beginning of the next."""
    order = pool.order(place.round)
    table = pool.table.near(device)
    for used in range(place.used, len(order), recipe.batch):
        x = table.take(order[used : used + recipe.batch]).to(device) * place.scale
        measured = trainer.step(x)
        log.step(trainer.step_number, measured)
        if trainer.step_number == recipe.num_steps:
            break
        if trainer.step_number % settings.save_every == 0:
            resume_checkpoint.save(settings.out / CHECKPOINT, trainer, place._replace(used=used + recipe.batch))
    return ResumePoint(place.scale, place.round + 1)


def _scale_and_center(pool: MixingBuffer) -> tuple[float, Tensor]:
    """Return the factor that gives the vectors a root mean square norm of 1, and the mean of the scaled ones, (width,)."""
    total, squares = torch.zeros(pool.table.width, dtype=torch.float64), 0.0
    for chunk in pool.table.chunks(pool.num_rows):
        # fp64 for the sums over millions of vectors only: converting every number would take minutes
        total += chunk.sum(dim=0)
        squares += float(chunk.square().sum(dim=1).double().sum())
    if not math.isfinite(squares):
        raise TrainingError("The vectors hold numbers that are not finite, so they are damaged: harvest them anew.")
    if squares == 0:
        raise TrainingError("All vectors are zero: there is nothing to train on.")
    scale = (pool.num_rows / squares) ** 0.5
    return scale, (total / pool.num_rows * scale).float()


class _Lines:
    """Writes a line of the log every so many steps, and reports each step with the last line's metrics."""

    def __init__(
        self, log: TrainingLog, settings: RunSettings, recipe: TrainingConfig, report: ProgressCallback
    ) -> None:
        self._log, self._every, self._recipe, self._report = log, settings.log_every, recipe, report
        self._since, self._steps = time.monotonic(), 0
        self._figures: dict[str, float] = {}
        """Metrics of the last line."""

    def step(self, number: int, measured: StepMetrics) -> None:
        self._steps += 1
        if number % self._every == 0 or number == self._recipe.num_steps:
            self._write(number, measured)
        self._report("training", number, self._recipe.num_steps, self._figures)

    def _write(self, number: int, measured: StepMetrics) -> None:
        rate = self._steps * self._recipe.batch / max(1e-9, time.monotonic() - self._since)
        # only for a line, because reading a number waits for the device
        figures = {name: float(value) for name, value in measured._asdict().items()}
        # this way round, so that NaN is caught too
        if not figures["loss"] < float("inf"):
            lower = "--l1 or --lr" if self._recipe.architecture == "relu" else "--lr"
            raise TrainingError(f"Training diverged, because the loss is not finite: lower {lower}.")
        self._log.write(
            {
                "step": number,
                "tokens": number * self._recipe.batch,
                "lr": learning_rate(self._recipe) * self._recipe.rate(number - 1),
                "tokens_per_second": rate,
                **figures,
            }
        )
        self._figures = {**figures, "tokens_per_second": rate}
        self._since, self._steps = time.monotonic(), 0
