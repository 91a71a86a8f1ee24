"""Rows of an SAE's matrices that are bf16 without having lost anything, and fp32 products with them."""

from __future__ import annotations

import torch
from torch import Tensor

from saeclamp_saes.parts import parts_of

WIDENED_BYTES = 16 << 20
"""Bytes of rows that are copied to fp32 at once: a copy of all might not fit beside a model."""


def exact_bf16(rows: Tensor) -> Tensor | None:
    """
    Copy rows to bf16; None where that would change one of their numbers.

    rows:    (num_rows, width)
    returns: the same, each row in one piece
    """
    narrow = torch.empty(rows.shape, dtype=torch.bfloat16, device=rows.device)
    for run in _runs(rows):
        narrow[run] = rows[run]
        if not torch.equal(narrow[run].to(rows.dtype), rows[run]):
            return None
    return narrow


def project_on(rows: Tensor, x: Tensor) -> Tensor:
    """
    Multiply vectors by each of the rows, in the vectors' type.

    rows:    (num_rows, width), of that type or bf16
    x:       (..., width)
    returns: (..., num_rows)
    """
    if rows.dtype == x.dtype:
        return x @ rows.T
    products = x.new_empty(*x.shape[:-1], len(rows))
    for run in _runs(rows):
        products[..., run] = x @ rows[run].to(x.dtype).T
    return products


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """
    Add up the rows, each times its weight, in the weights' type.

    rows:    (num_rows, width), of that type or bf16
    weights: (..., num_rows)
    returns: (..., width)
    """
    if rows.dtype == weights.dtype:
        return weights @ rows
    total = weights.new_zeros(*weights.shape[:-1], rows.shape[1])
    for run in _runs(rows):
        total += weights[..., run] @ rows[run].to(weights.dtype)
    return total


def _runs(rows: Tensor) -> list[slice]:
    """Cut rows into runs that take at most WIDENED_BYTES in fp32."""
    return parts_of(len(rows), 4 * rows.shape[1], WIDENED_BYTES)
