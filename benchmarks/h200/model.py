"""
A decoder of Llama 3.1 8B's shape with random weights, as fast as an engine's: fused norms, and a KV cache that is read.

What its tokens are does not matter. At each layer's end there is the op, where vLLM's hooks call it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from benchmarks.h200.tables import steer
from torch import Tensor
from torch.nn import functional


class ModelShape(NamedTuple):
    """Sizes of a decoder."""

    num_layers: int = 32
    width: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 8
    head_width: int = 128
    mlp_width: int = 14336
    vocabulary: int = 128_256
    context: int = 1024
    """Tokens of a request in the KV cache."""
    cache_bytes: int = 8 << 30

    @property
    def kv_width(self) -> int:
        """Width of the keys of a token, and of its values."""
        return self.num_kv_heads * self.head_width


TINY = ModelShape(2, 64, 4, 2, 16, 128, 256, 8, 1 << 20)
"""For the interpreter."""


class _Layer(NamedTuple):
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Decoder:
    """The decoder."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def weights(*size: int) -> Tensor:
            made = torch.empty(*size, dtype=torch.bfloat16, device=device)
            return made.normal_(0, size[0] ** -0.5, generator=generator)

        width = shape.width
        self.shape = shape
        self._layers = [
            _Layer(
                weights(width, width + 2 * shape.kv_width),
                weights(width, width),
                weights(width, 2 * shape.mlp_width),
                weights(shape.mlp_width, width),
            )
            for _ in range(shape.num_layers)
        ]
        self._embedding, self._head = weights(shape.vocabulary, width), weights(width, shape.vocabulary)
        self._gain = torch.ones(width, dtype=torch.bfloat16, device=device)
        self._cache = torch.empty(shape.cache_bytes, dtype=torch.uint8, device=device)

    def decode(self, ids: Tensor, sites: Collection[int]) -> None:
        """
        Run a step of one token each, and put the next ones in the place of `ids`.

        ids:   (batch_size,) int64
        sites: layers that are hooked
        """
        hidden = self._forward(ids, sites, self._read_cache)
        ids.copy_((hidden @ self._head).argmax(dim=1))

    def prefill(self, ids: Tensor, sites: Collection[int]) -> Tensor:
        """Run a prompt, (num_tokens,) int64; returns the last token's logits."""
        return self._forward(ids, sites, self._attend)[-1:] @ self._head

    def _forward(self, ids: Tensor, sites: Collection[int], attention: Callable[[Tensor, int], Tensor]) -> Tensor:
        hidden = self._embedding[ids]
        residual = torch.zeros_like(hidden)
        for number, layer in enumerate(self._layers):
            qkv = _add_norm(hidden, residual, self._gain) @ layer.qkv
            hidden = attention(qkv, number) @ layer.out
            hidden = _gated(_add_norm(hidden, residual, self._gain) @ layer.gate_up) @ layer.down
            if number in sites:
                steer(hidden, residual, number)
        return _add_norm(hidden, residual, self._gain)

    def _read_cache(self, qkv: Tensor, layer: int) -> Tensor:
        """Move as many bytes as attention reads of the cache: half of them read, half of them written."""
        num = len(qkv) * self.shape.context * self.shape.kv_width * 2 * qkv.element_size()
        begin = layer * num % max(1, len(self._cache) - num)
        self._cache[begin : begin + num // 2].copy_(self._cache[begin + num // 2 : begin + num // 2 * 2])
        return qkv[:, : self.shape.width]

    def _attend(self, qkv: Tensor, layer: int) -> Tensor:
        shape = self.shape
        heads = qkv.view(1, len(qkv), -1, shape.head_width).transpose(1, 2)
        query, key, value = heads.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return seen.transpose(1, 2).reshape(len(qkv), -1)


def _add_norm(hidden: Tensor, residual: Tensor, gain: Tensor) -> Tensor:
    """Add `hidden` to `residual` in place, and return the sum's RMS norm."""
    out, width = torch.empty_like(residual), residual.shape[1]
    _add_norm_kernel[(len(out),)](
        hidden, residual, gain, out, hidden.stride(0), width, BLOCK=triton.next_power_of_2(width), num_warps=8
    )
    return out


def _gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    width = gate_up.shape[1] // 2
    out = torch.empty(len(gate_up), width, dtype=gate_up.dtype, device=gate_up.device)
    _gated_kernel[(len(out), triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024)
    return out


@triton.jit
def _add_norm_kernel(
    hidden: tl.tensor,
    residual: tl.tensor,
    gain: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(hidden + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual + row * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + row * width + column, x.to(residual.dtype.element_ty), mask=inside)
    x = x * tl.rsqrt(tl.sum(x * x) / width + 1e-5) * tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_kernel(gate_up: tl.tensor, out: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr) -> None:
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + column, gated.to(out.dtype.element_ty), mask=inside)
