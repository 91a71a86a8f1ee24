"""The trainer: one step of training, and the state that it changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from saeclamp_saes.evaluation import metrics
from saeclamp_saes.training.architectures import ARCHITECTURES, forward, learning_rate, optimizer
from saeclamp_saes.training.config import TrainingConfig
from saeclamp_saes.training.training_sae import TrainingSAE


class StepMetrics(NamedTuple):
    """Metrics of a step's batch; tensors of no dimension, so that nothing waits for the device."""

    loss: Tensor
    explained_variance: Tensor
    l0: Tensor
    dead: Tensor
    """Share of all features that are dead."""


class Trainer:
    """Parameters, Adam's state and counters: all that a checkpoint holds."""

    def __init__(self, config: TrainingConfig, center: Tensor) -> None:
        """
        Begin a training.

        center: (d_in,) mean of the scaled vectors, on the device to train on
        """
        self.config = config
        self.step_number = 0
        self.sae = TrainingSAE(center, config.d_sae, config.seed)
        self._optimizer = optimizer(config, self.sae)
        self._idle = torch.zeros(config.d_sae, dtype=torch.int64, device=center.device)
        """(d_sae,) int64, tokens since each feature was last active"""

    def step(self, x: Tensor) -> StepMetrics:
        """
        Learn from a batch.

        x: (n, d_in), scaled
        """
        architecture = ARCHITECTURES[self.config.architecture]
        is_dead = self._idle >= self.config.dead_window
        self._optimizer.zero_grad(set_to_none=True)
        out = forward(self.config, self.sae, x, self.step_number, is_dead)
        out.loss.backward()  # type: ignore[no-untyped-call]
        if architecture.unit_rows:
            self.sae.turn_only()
        # after turn_only: the part that it removes would count towards the norm
        nn.utils.clip_grad_norm_(self.sae.parameters(), self.config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config) * self.config.rate(self.step_number)
        self._optimizer.step()
        if architecture.unit_rows:
            self.sae.to_unit_rows()
        with torch.no_grad():
            self.sae.threshold.clamp_min_(0.0)
            self._idle = torch.where((out.acts > 0).any(dim=0), 0, self._idle + len(x))
            self.step_number += 1
            missing, varying = x - out.reconstruction, x - x.mean(dim=0)
            return StepMetrics(
                loss=out.loss.detach(),
                explained_variance=metrics.explained_share(missing.square().sum(), varying.square().sum()),
                l0=(out.acts > 0).sum(dim=1).float().mean(),
                dead=is_dead.float().mean(),
            )

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes, by name, but for the step's number."""
        tensors = {f"dictionary.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in slots.items()}
        return {**tensors, "idle": self._idle}

    def load(self, tensors: dict[str, Tensor], step_number: int) -> None:
        """Take over `state()` of that step."""
        self.step_number = step_number
        self._idle = tensors["idle"].to(self._idle.device)
        prefix = "dictionary."
        self.sae.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = (
                    tensor.cpu() if slot == "step" else tensor
                )  # where Adam keeps it
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": slots, "param_groups": groups})
