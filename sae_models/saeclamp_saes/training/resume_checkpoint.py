"""The checkpoint of a run, from which it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saeclamp_saes.io.atomic import replacing
from saeclamp_saes.io.work_folder import damaged_error
from saeclamp_saes.training.trainer import Trainer


class ResumePoint(NamedTuple):
    """A run's place in the data, and the scale of its vectors."""

    scale: float
    """Factor that gives the vectors a root mean square norm of 1."""
    round: int = 0
    used: int = 0
    """Rows of this round's order that were used."""


def save(path: Path, trainer: Trainer, resume_point: ResumePoint) -> None:
    """Replace the checkpoint, as a whole or not at all."""
    counters = {
        "step": trainer.step_number,
        "scale": resume_point.scale.hex(),
        "round": resume_point.round,
        "used": resume_point.used,
    }
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in trainer.state().items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {name: str(value) for name, value in counters.items()})


def load(path: Path, trainer: Trainer, device: torch.device) -> ResumePoint:
    """Load a checkpoint into a new trainer. Raises DamagedFolderError for a file that is none."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            counters = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, resume_point = (
            int(counters["step"]),
            ResumePoint(float.fromhex(counters["scale"]), int(counters["round"]), int(counters["used"])),
        )
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise damaged_error(path) from None
    for name, tensor in trainer.state().items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise damaged_error(path)
    trainer.load(tensors, step)
    return resume_point
