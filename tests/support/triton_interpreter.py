"""Triton's interpreter, with less of what it does again and again."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def take_vocabularies_whole(logprob: ModuleType) -> None:
    """
    Let vLLM's kernels of log-probabilities go over a token's logits in one block, and not in 48 one after the other.

    The interpreter takes as long for an operation on 1,024 numbers as on all, and that was half of all the time.

    logprob: `vllm.v1.worker.gpu.sample.logprob`
    """
    for name in ("_topk_log_softmax_kernel", "_ranks_kernel"):
        setattr(logprob, name, _WholeRows(getattr(logprob, name)))


class _WholeRows:
    """A kernel whose block has room for any vocabulary."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, BLOCK_SIZE, **flags: self._kernel[grid](*args, BLOCK_SIZE=max(BLOCK_SIZE, 2**16), **flags)


def patch_the_language_once_a_launch() -> None:
    """
    Leave `triton.language` alone where a kernel calls a function of its own, which uses the same one.

    A launch goes through all members of it and puts the interpreter's into their places. So does each call within a launch,
    where they are there already, for a third of all the time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    call = interpreter.InterpretedFunction.__call__
    if call.__name__ == "call_within_launch":
        return

    def call_within_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_patched = self.fn.__globals__.get("tl") is tl
        return self.rewrite()(*args, **kwargs) if is_patched else call(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call_within_launch
