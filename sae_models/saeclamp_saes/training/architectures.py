"""The kinds of SAE that can be trained: one table."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.training import losses
from saeclamp_saes.training.activation_functions import CountActive, JumpReLU, batch_top_k, relu, top_k
from saeclamp_saes.training.config import Name, TrainingConfig
from saeclamp_saes.training.training_sae import TrainingSAE

LONG = 50_000
"""Least number of steps of a run that uses the literature's learning rate."""
MOST_HURRIED = 8.0
"""
Largest multiple of that learning rate, in a shorter run. Measured at layer 23 of SmolLM2-135M, 2,048 features, k 32, 391
steps: of multiples of 1, 2.1, 4.4 and 8.8 the largest is the best. 2,930 steps of 4,096 features were well served by 4.5.
"""

Sparsity = Literal["token", "batch", "threshold", "penalty"]


class Architecture(NamedTuple):
    """Traits of a kind of SAE: how it is trained and saved."""

    sparsity: Sparsity
    """Source of the sparsity: the k largest of a token or of a batch, a learned threshold, or a penalty on activations."""
    revives: bool
    """True if dead features get a loss of their own (AuxK)."""
    unit_rows: bool
    """True if the decoder's rows are kept at norm 1."""
    saved_as: Literal["jumprelu", "topk", "standard"]
    """SAELens's name for the saved SAE."""
    calibrated: bool
    """True if one threshold for all features is chosen after training, for k active features a token on average."""
    lr: float
    """Learning rate of a run of `LONG` steps or more."""
    scaled_lr: bool
    """True if `lr` is for 2^14 features and falls with the square root of their number."""
    hurries: bool
    """True if a shorter run gets a multiple of `lr`."""
    beta1: float
    """Adam's first beta."""


ARCHITECTURES: dict[Name, Architecture] = {
    #                          sparsity     revives unit  saved as   calibrated lr   scaled hurries beta1
    "batchtopk": Architecture("batch", True, True, "jumprelu", True, 2e-4, True, True, 0.9),
    "matryoshka": Architecture("batch", True, True, "jumprelu", True, 2e-4, True, True, 0.9),
    "topk": Architecture("token", True, True, "topk", False, 2e-4, True, True, 0.9),
    "jumprelu": Architecture("threshold", True, True, "jumprelu", False, 2e-4, True, False, 0.0),
    "relu": Architecture("penalty", False, False, "standard", False, 3e-4, False, False, 0.9),
}
"""Traits by name. BatchTopK: Bussmann et al. 2024, arXiv 2412.06410. ReLU with L1 is by most measures the worst."""


class ForwardOutput(NamedTuple):
    """Loss, activations and reconstruction of a batch."""

    loss: Tensor
    acts: Tensor
    """(n, d_sae)"""
    reconstruction: Tensor
    """(n, d_in)"""


def forward(config: TrainingConfig, sae: TrainingSAE, x: Tensor, step: int, is_dead: Tensor) -> ForwardOutput:
    """
    Encode and decode a batch, and compute its loss.

    x:       (n, d_in), scaled
    is_dead: (d_sae,) bool
    """
    architecture = ARCHITECTURES[config.architecture]
    pre = sae.pre(x)
    acts = training_activations(config, sae, pre, step)
    loss, reconstruction = losses.matryoshka_mse(sae, x, acts, config.groups)
    if architecture.sparsity == "penalty":
        loss = loss + config.penalty(step) * config.l1 * losses.weighted_l1(sae, acts)
    if architecture.sparsity == "threshold":
        num_active = CountActive.apply(pre, sae.threshold, config.bandwidth)  # type: ignore[no-untyped-call]
        loss = loss + config.penalty(step) * losses.l0_target_loss(num_active, config.k_at(step))
    if architecture.revives:
        missing = (x - reconstruction).detach()
        loss = loss + config.revival * losses.auxk_loss(sae, pre, missing, is_dead)
    return ForwardOutput(loss, acts, reconstruction)


def training_activations(config: TrainingConfig, sae: TrainingSAE, pre: Tensor, step: int) -> Tensor:
    """
    Compute the activations as in training.

    pre:     (n, d_sae)
    returns: (n, d_sae)
    """
    match ARCHITECTURES[config.architecture].sparsity:
        case "token":
            return top_k(pre, config.k_at(step))
        case "batch":
            return batch_top_k(pre, config.k_at(step))
        case "penalty":
            return relu(pre)
        case "threshold":
            acts: Tensor = JumpReLU.apply(pre, sae.threshold, config.bandwidth)  # type: ignore[no-untyped-call]
            return acts


def learning_rate(config: TrainingConfig) -> float:
    """Return the full learning rate: the user's, or the architecture's for a run of that length."""
    architecture = ARCHITECTURES[config.architecture]
    if config.lr is not None:
        return config.lr
    width = (2**14 / config.d_sae) ** 0.5 if architecture.scaled_lr else 1.0
    length = min(MOST_HURRIED, max(1.0, LONG / config.num_steps) ** 0.5) if architecture.hurries else 1.0
    return architecture.lr * width * length


def optimizer(config: TrainingConfig, sae: TrainingSAE) -> torch.optim.Adam:
    """Return Adam over the parameters that the architecture learns."""
    architecture = ARCHITECTURES[config.architecture]
    learned = [
        parameter
        for name, parameter in sae.named_parameters()
        if name != "threshold" or architecture.sparsity == "threshold"
    ]
    return torch.optim.Adam(learned, lr=learning_rate(config), betas=(architecture.beta1, 0.999), eps=1e-8)
