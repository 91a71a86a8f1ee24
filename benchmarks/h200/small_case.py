"""
What is short enough for compute-sanitizer: random requests on the kernels, compared with the slow twin; and, for ncu,
launches of known sizes.

    python -m benchmarks.h200.small_case [--dry] [--launches]
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run one or the other."""
    is_dry = "--dry" in sys.argv
    os.environ["TRITON_INTERPRET"] = "1" if is_dry else "0"
    from benchmarks.h200 import bare_imports

    bare_imports.install()
    import torch
    from benchmarks.h200 import parity
    from benchmarks.h200.device import Card, StandIn
    from benchmarks.h200.tables import Shape, Tables, kinds, steer

    device = StandIn() if is_dry else Card()
    if "--launches" not in sys.argv:
        for seed, dtype in enumerate((torch.float32, torch.bfloat16)):
            print(parity.check(device, parity.Case(seed, 72, dtype, bool(seed), parity.SMALL)))
        return
    width, sizes = (64, (2, 4)) if is_dry else (4096, (256, 4096))
    shape = Shape(width, num_features=16 * max(sizes), sae_at=0)
    tables = Tables(device, shape, max(sizes), max(sizes))
    for num_tokens, kind in zip(sizes, ("1 feature each", "16 features each"), strict=True):
        programs = [kinds(shape, nth, num_tokens)[kind] for nth in range(min(num_tokens, 256))]
        numbers = [tables.add(program) for program in programs]
        tables.steering.executor.map_tokens(tables.batch(numbers, num_tokens // len(numbers), first_position=1))
        hidden, residual = torch.randn(2, num_tokens, width, device=device.torch).bfloat16()
        for _ in range(1 if is_dry else 3):
            steer(hidden, residual, 0)
        print(f"edit: {num_tokens} tokens, {kind}")
        for number in numbers:
            tables.steering.programs.remove([number])
    device.wait()


if __name__ == "__main__":
    main()
