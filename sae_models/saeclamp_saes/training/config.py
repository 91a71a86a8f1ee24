"""The training config. Free of torch, so that the command line shows these defaults without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from saeclamp_saes.errors import TrainingError

Name = Literal["batchtopk", "matryoshka", "topk", "jumprelu", "relu"]
NAMES: tuple[Name, ...] = get_args(Name)
CALIBRATED: tuple[Name, ...] = ("batchtopk", "matryoshka")
"""Architectures that get one threshold for all features after training."""

FEATURES_PER_WIDTH = 8
"""Features per number of the model's width, unless the user says how many features."""
LONGEST_DEAD_WINDOW = 10_000_000
"""Tokens; the usual window, for runs of billions. In a short run it would never pass, and no feature would revive."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that decide the SAE: with the same data and model it is the same, on a CPU to the last bit."""

    d_sae: int
    architecture: Name = "batchtopk"
    k: int = 32
    """Active features a token, on average; of a JumpReLU, the target. Not used by ReLU."""
    tokens: int = 5_000_000
    """Tokens to train on. If the data have fewer, they are read again."""
    batch: int = 2048
    """Tokens of a step."""
    lr: float | None = None
    """Learning rate; None is the architecture's own."""
    l1: float = 0.06
    """Weight of the penalty of a ReLU, for vectors scaled to a root mean square norm of 1."""
    smallest_group: int | None = None
    """Features of the first Matryoshka group, which reconstructs alone; None is 1/32 of all. Each group is twice as large as
    the one before. The main subject of the data becomes one broad feature of a small group, and several of a large one."""
    seed: int = 0
    annealed: float = 0.0
    """Share of the steps over which k falls from four times its value. 0 is none."""
    warm_up: float = 0.05
    """Share of the steps over which the learning rate rises, and the weight of a sparsity penalty."""
    longest_warm_up: int = 1000
    """Bound on the steps of the learning rate's warm-up."""
    decay: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    revival: float = 1 / 32
    """Weight of the loss that revives dead features (AuxK)."""
    clip: float = 1.0
    """Norm that gradients are clipped to."""
    bandwidth: float = 1e-3
    """Width of the kernel that estimates a JumpReLU threshold's gradient, for vectors scaled to a norm of 1."""

    def __post_init__(self) -> None:
        if self.architecture not in NAMES:
            raise TrainingError(f"There is no architecture {self.architecture!r}; there are {', '.join(NAMES)}.")
        for name in ("d_sae", "k", "tokens", "batch"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.k > self.d_sae:
            raise TrainingError(f"{self.k} active features a token cannot be had of {self.d_sae}: lower k.")
        if self.k == self.d_sae and self.architecture in CALIBRATED:
            raise TrainingError(
                f"{self.k} active features a token of {self.d_sae} would be all of them, which no threshold gives: lower k."
            )
        if self.smallest_group is not None and self.architecture != "matryoshka":
            raise TrainingError(
                f"Only matryoshka has groups of features; {self.architecture} has none to set the size of."
            )
        if self.smallest_group is not None and not 0 < self.smallest_group <= self.d_sae:
            raise TrainingError(f"The smallest group must hold 1 to {self.d_sae} features, not {self.smallest_group}.")
        if self.num_steps < 10:
            raise TrainingError(
                f"{self.tokens} tokens make {self.num_steps} steps of {self.batch}: give more tokens, or a smaller batch."
            )

    @property
    def num_steps(self) -> int:
        return -(-self.tokens // self.batch)

    @property
    def groups(self) -> tuple[int, ...]:
        """Numbers n, ascending, for which the first n features reconstruct alone; the last n is all of them."""
        if self.architecture != "matryoshka":
            return (self.d_sae,)
        groups = [self.smallest_group or max(1, self.d_sae // 32)]
        while groups[-1] < self.d_sae:
            groups.append(min(self.d_sae, 2 * groups[-1]))
        return tuple(groups)

    @property
    def dead_window(self) -> int:
        """Tokens without activation after which a feature counts as dead: a sixteenth of the run."""
        return min(LONGEST_DEAD_WINDOW, max(self.batch, self.tokens // 16))

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate in that step (counted from 0)."""
        warm_up = max(1, min(self.longest_warm_up, round(self.warm_up * self.num_steps)))
        decay = max(1, round(self.decay * self.num_steps))
        return min(1.0, (step + 1) / warm_up, (self.num_steps - step) / decay)

    def penalty(self, step: int) -> float:
        """Return the share of the full weight of a sparsity penalty in that step."""
        return min(1.0, (step + 1) / max(1, round(self.warm_up * self.num_steps)))

    def k_at(self, step: int) -> int:
        """Return the number of active features a token in that step."""
        left = 1 - step / max(1, round(self.annealed * self.num_steps))
        return min(self.d_sae, round(self.k * (1 + 3 * max(0.0, left)))) if self.annealed else self.k
