"""The machine: versions, and how fast it copies and multiplies, which all other figures are to be read by."""

from __future__ import annotations

import os
import platform

import torch
import triton
from benchmarks.h200.device import Call, Card, median
from benchmarks.h200.record import Record


def run(device: Card, record: Record) -> None:
    """Put the versions and the two rates on record."""
    record.put(
        "versions",
        {
            "card": "none" if device.is_dry else torch.cuda.get_device_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "python": platform.python_version(),
        },
    )
    num = (1 << 20) if device.is_dry else (4 << 30)
    source, target = torch.randint(256, (2, num), dtype=torch.uint8, device=device.torch)
    copies = _time(device, lambda: target.copy_(source))
    record.put("copy_tb_per_s", float(f"{2 * num / copies / 1e9:.3g}"))
    size = 64 if device.is_dry else 8192
    left, right = torch.randn(2, size, size, device=device.torch).bfloat16()
    products = _time(device, lambda: left @ right)
    record.put("bf16_tflop_per_s", float(f"{2 * size**3 / products / 1e9:.3g}"))


def _time(device: Card, call: Call) -> float:
    device.milliseconds(call, 3)
    return median([device.milliseconds(call, 5) for _ in range(3)])
