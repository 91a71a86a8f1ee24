"""The builder of the canonical SAE: exact folds of everything that is constant in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.sae import SAE, InputNorm, Kind, TopK, Unit
from saeclamp_saes.sites import Site

CHUNK_ELEMENTS = 1 << 22
"""Elements of a matrix that are worked on in fp64 at once (32 MiB)."""
GATE_TOLERANCE = 1e-4
"""Share of a pre-activation that folding a gate may lose: with b_mag and encoder rows of order 1, exp(r_mag) > 1e-3."""


@dataclass
class SAEBuilder:
    """
    An SAE's tensors, changed in place by folds. Matrices are fp32 rows, one feature a row; vectors are fp64.

    A fold changes the computation as the builder then stands, so the step that the checkpoint's code does last, right
    before its dot product, is folded first.

    Where only shapes are read, the tensors are on the meta device, and most of torch's functions would import its compiler
    there, for a second; what nearly every SAE needs is therefore left out or done in place.
    """

    encoder: Tensor
    """(d_sae, d_in)"""
    b_enc: Tensor
    """(d_sae,)"""
    decoder: Tensor
    """(d_sae, d_out)"""
    b_dec: Tensor
    """(d_out,)"""
    threshold: Tensor | None = None
    """(d_sae,); None for a plain ReLU"""

    def __post_init__(self) -> None:
        # folds are sums over whole rows, and may follow each other: they are rounded once, at the end
        self.b_enc, self.b_dec = self.b_enc.double(), self.b_dec.double()
        self.threshold = None if self.threshold is None else self.threshold.double()

    def gate(self, path: Path, *, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor) -> SAEBuilder:
        """
        Turn a gated encoder into a JumpReLU one: 1[p + b_gate > 0] relu(p exp(r_mag) + b_mag), for p = x @ W_enc.

        Both factors look at the same p, and exp(r_mag) is positive: in terms of q = p exp(r_mag) + b_mag the gate is
        q > b_mag - b_gate exp(r_mag).
        In fp32, q knows p only to within a rounding error of b_mag, over exp(r_mag).

        path: of the checkpoint, for the error
        b_gate, b_mag, r_mag: (d_sae,)
        Raises CheckpointError where that loses more than GATE_TOLERANCE of p, whose scale is that of its own gate or of
        a unit input.
        """
        gain = r_mag.double().exp()
        scale = torch.maximum(b_gate.double().abs(), row_norms(self.encoder))
        lost = b_mag.double().abs() * torch.finfo(torch.float32).eps > GATE_TOLERANCE * gain * scale
        if not lost.is_meta and lost.any():
            feature = int(lost.nonzero()[0])
            raise CheckpointError(
                f"{path}: feature {feature} has the gain exp({r_mag[feature]:g}), too small beside its b_mag "
                f"{b_mag[feature]:g} for one 32-bit activation to keep both, so this gated SAE cannot be read exactly."
            )
        self.encoder.mul_(gain[:, None].to(self.encoder.dtype))
        self.b_enc = b_mag.double()
        self.threshold = b_mag.double() - b_gate.double() * gain
        return self

    def subtract_from_input(self, bias: Tensor) -> SAEBuilder:
        """
        Fold `x - bias` into the encoder's bias. Call it before `scale_input` when the checkpoint scales, then subtracts.

        bias: (d_in,)
        """
        bias = bias.double()
        self.b_enc = self.b_enc.clone().sub_(_of_rows(self.encoder, lambda part: part @ bias))
        return self

    def scale_input(self, factor: float) -> SAEBuilder:
        """Fold a constant that multiplies the input and divides the output; activations keep their units."""
        return self.scale_sides(factor, factor)

    def scale_sides(self, factor_in: float, factor_out: float) -> SAEBuilder:
        """Fold a constant that multiplies the input, and another that divides the output."""
        self.encoder.mul_(factor_in)
        self.decoder.div_(factor_out)
        self.b_dec = self.b_dec / factor_out
        return self

    def whiten(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> SAEBuilder:
        """
        Fold `(x - mean) @ matrix` before encoding, and `@ inverse + mean` after decoding.

        mean: (d_in,); matrix, inverse: (d_in, d_in)
        """
        for rows, turn in ((self.encoder, matrix.T), (self.decoder, inverse)):
            for part in row_chunks(rows):
                part.copy_(part.double() @ turn.double())
        self.b_dec = self.b_dec @ inverse.double() + mean.double()
        return self.subtract_from_input(mean)

    def scale_activations(self, factor: Tensor | float) -> SAEBuilder:
        """
        Measure activations in other units, without changing the SAE's output. Not for TopK with unequal factors,
        which would choose other features.

        factor: (d_sae,) positive, or one for all
        """
        factor = torch.as_tensor(factor, dtype=torch.float64, device=self.b_enc.device).expand_as(self.b_enc)
        single = factor[:, None].to(self.encoder.dtype)
        self.encoder.mul_(single)
        self.decoder.div_(single)
        self.b_enc = self.b_enc * factor
        self.threshold = None if self.threshold is None else self.threshold * factor
        return self

    def decoder_norms(self) -> Tensor:
        """Return the norm of each decoder row, (d_sae,) fp64; 1 for a row of zeros, so that it can be divided by."""
        norms = row_norms(self.decoder)
        return torch.where(norms > 0, norms, 1.0)

    def finish(
        self,
        reads: Site | tuple[Site, ...],
        writes: Site | tuple[Site, ...] | None = None,
        *,
        kind: Kind = "sae",
        architecture: str = "relu",
        top_k: TopK | None = None,
        input_norm: InputNorm | None = None,
        W_skip: Tensor | None = None,
        unit: Unit = "native",
        model_name: Any = None,
    ) -> SAE:
        """
        Make the canonical SAE. `writes` defaults to `reads`.

        W_skip: (d_in, d_out)
        """
        reads = (reads,) if isinstance(reads, Site) else reads
        writes = (writes,) if isinstance(writes, Site) else writes or reads
        threshold = torch.zeros_like(self.b_enc) if self.threshold is None else self.threshold
        if not threshold.is_meta:
            threshold = threshold.clamp_min(0.0)  # relu(p) * (p > t): a negative threshold is a plain ReLU
        return SAE(
            reads=reads,
            writes=writes,
            W_enc=self.encoder.T,
            b_enc=self.b_enc.float(),
            W_dec=self.decoder,
            b_dec=self.b_dec.float(),
            threshold=threshold.float(),
            kind=kind,
            top_k=top_k,
            input_norm=input_norm or InputNorm(),
            W_skip=W_skip,
            architecture=architecture,
            unit=unit,
            model_name=model_name if isinstance(model_name, str) else None,
        )


def row_norms(matrix: Tensor) -> Tensor:
    """Return the norm of each row, (rows,) fp64."""
    return _of_rows(matrix, lambda part: part.norm(dim=1))


def _of_rows(matrix: Tensor, numbers: Callable[[Tensor], Tensor]) -> Tensor:
    """
    Return one number for each row, (rows,) fp64; of a matrix without numbers, none.

    numbers: of an fp64 part of the matrix
    """
    if matrix.is_meta:
        return matrix.new_empty(len(matrix), dtype=torch.float64)
    return torch.cat([numbers(part.double()) for part in row_chunks(matrix)])


def row_chunks(matrix: Tensor) -> Iterator[Tensor]:
    """Split a matrix into runs of rows that are small enough to be copied to fp64."""
    return iter(torch.split(matrix, max(1, CHUNK_ELEMENTS // max(1, matrix.shape[1]))))
