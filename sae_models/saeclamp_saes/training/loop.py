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
    config: TrainingConfig,
    buffer: MixingBuffer,
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
        buffer.fill(harvest, 0, report)
        scale, center = _scale_and_center(buffer)
        trainer, resume_point = Trainer(config, center.to(device)), ResumePoint(scale)
        resume_checkpoint.save(path, trainer, resume_point)
    else:
        trainer = Trainer(config, torch.zeros(buffer.table.width, device=device))
        resume_point = resume_checkpoint.load(path, trainer, device)
    log = _Lines(TrainingLog(settings.out, trainer.step_number, settings.tensorboard), settings, config, report)
    while trainer.step_number < config.num_steps:
        # the checkpoint is at this round's beginning or within it, so what it would need is not overwritten
        buffer.fill(harvest, resume_point.round, report)
        with _tf32(device):
            resume_point = _round(settings, config, buffer, trainer, resume_point, device, log)
        resume_checkpoint.save(path, trainer, resume_point)
    return trainer, resume_point


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
    config: TrainingConfig,
    buffer: MixingBuffer,
    trainer: Trainer,
    resume_point: ResumePoint,
    device: torch.device,
    log: _Lines,
) -> ResumePoint:
    """Train on the vectors of a round; return the beginning of the next."""
    order = buffer.order(resume_point.round)
    table = buffer.table.near(device)
    for used in range(resume_point.used, len(order), config.batch):
        x = table.take(order[used : used + config.batch]).to(device) * resume_point.scale
        measured = trainer.step(x)
        log.step(trainer.step_number, measured)
        if trainer.step_number == config.num_steps:
            break
        if trainer.step_number % settings.save_every == 0:
            resume_checkpoint.save(settings.out / CHECKPOINT, trainer, resume_point._replace(used=used + config.batch))
    return ResumePoint(resume_point.scale, resume_point.round + 1)


def _scale_and_center(buffer: MixingBuffer) -> tuple[float, Tensor]:
    """Return the factor that gives the vectors a root mean square norm of 1, and the mean of the scaled ones, (width,)."""
    total, squares = torch.zeros(buffer.table.width, dtype=torch.float64), 0.0
    for chunk in buffer.table.chunks(buffer.num_rows):
        # fp64 for the sums over millions of vectors only: converting every number would take minutes
        total += chunk.sum(dim=0)
        squares += float(chunk.square().sum(dim=1).double().sum())
    if not math.isfinite(squares):
        raise TrainingError("The vectors hold numbers that are not finite, so they are damaged: harvest them anew.")
    if squares == 0:
        raise TrainingError("All vectors are zero: there is nothing to train on.")
    scale = (buffer.num_rows / squares) ** 0.5
    return scale, (total / buffer.num_rows * scale).float()


class _Lines:
    """Writes a line of the log every so many steps, and reports each step with the last line's metrics."""

    def __init__(
        self, log: TrainingLog, settings: RunSettings, config: TrainingConfig, report: ProgressCallback
    ) -> None:
        self._log, self._every, self._config, self._report = log, settings.log_every, config, report
        self._since, self._steps = time.monotonic(), 0
        self._figures: dict[str, float] = {}
        """Metrics of the last line."""

    def step(self, number: int, measured: StepMetrics) -> None:
        self._steps += 1
        if number % self._every == 0 or number == self._config.num_steps:
            self._write(number, measured)
        self._report("training", number, self._config.num_steps, self._figures)

    def _write(self, number: int, measured: StepMetrics) -> None:
        rate = self._steps * self._config.batch / max(1e-9, time.monotonic() - self._since)
        # only for a line, because reading a number waits for the device
        figures = {name: float(value) for name, value in measured._asdict().items()}
        # this way round, so that NaN is caught too
        if not figures["loss"] < float("inf"):
            lower = "--l1 or --lr" if self._config.architecture == "relu" else "--lr"
            raise TrainingError(f"Training diverged, because the loss is not finite: lower {lower}.")
        self._log.write(
            {
                "step": number,
                "tokens": number * self._config.batch,
                "lr": learning_rate(self._config) * self._config.rate(number - 1),
                "tokens_per_second": rate,
                **figures,
            }
        )
        self._figures = {**figures, "tokens_per_second": rate}
        self._since, self._steps = time.monotonic(), 0
