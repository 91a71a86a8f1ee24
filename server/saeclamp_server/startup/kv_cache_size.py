"""
The size of the KV cache on a CPU, where the user does not say it.

vLLM would take nearly all of the machine's memory for it, whatever the model, and leave none for other programs.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from saeclamp_server.model_info import StartupError
from saeclamp_server.vllm_compat import cpu_block_size

SHARE = 4
"""The cache takes at most one part in this many of the memory that is free at start, or what one sequence needs."""


@dataclass(frozen=True)
class CacheShape:
    """The quantities from which the size of a cache follows."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    num_value_bytes: int
    """Bytes of one number in the cache."""
    block_size: int
    """Tokens of a block, in which the cache is handed out."""
    max_model_len: int
    max_num_seqs: int
    may_need_less: bool = False
    """True if `max_model_len` is to be lowered to what fits (`--max-model-len auto`), or layers keep only a window of it."""

    @property
    def num_block_bytes(self) -> int:
        """Bytes of one block: a key and a value for each of its tokens, in every layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.num_value_bytes * self.block_size

    def num_blocks(self, num_seqs: int) -> int:
        """Blocks for so many sequences of `max_model_len` tokens, and the one that vLLM keeps for itself."""
        return num_seqs * -(-self.max_model_len // self.block_size) + 1


@dataclass(frozen=True)
class CacheSize:
    """The size that was chosen."""

    shape: CacheShape
    num_blocks: int
    reason: str

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.shape.num_block_bytes

    def __str__(self) -> str:
        """Tell the user, and name the flag."""
        num_tokens, length = (self.num_blocks - 1) * self.shape.block_size, self.shape.max_model_len
        return (
            f"KV cache: {_readable(self.num_bytes)} for {num_tokens:,} tokens ({num_tokens / length:.1f} sequences of "
            f"{length:,}), {self.reason}; --kv-cache-memory-bytes sets another size"
        )


def default_cache_size(shape: CacheShape, num_free_bytes: int) -> CacheSize:
    """
    Choose what all sequences need at full length, at most a quarter of the free memory, at least what one needs for certain.

    num_free_bytes: before the model is loaded
    Raises StartupError when not even one sequence fits into the free memory.
    """
    quarter = num_free_bytes // SHARE // shape.num_block_bytes
    if shape.num_blocks(shape.max_num_seqs) <= quarter:
        return CacheSize(shape, shape.num_blocks(shape.max_num_seqs), "as many as may run at once")
    # one block for the sequence, and the one that vLLM keeps for itself
    least = 2 if shape.may_need_less else shape.num_blocks(1)
    if least <= quarter:
        return CacheSize(shape, quarter, "a quarter of the free memory")
    if least * shape.num_block_bytes > num_free_bytes:
        raise StartupError(
            f"One sequence of {shape.max_model_len:,} tokens needs a KV cache of "
            f"{_readable(least * shape.num_block_bytes)}, and {_readable(num_free_bytes)} of memory are free; "
            f"--max-model-len {max(1, quarter - 1) * shape.block_size} would take a quarter of them."
        )
    return CacheSize(shape, least, "the least that serves one")


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def is_sized_by_user(args: Namespace) -> bool:
    """
    Tell whether the user has said how large the cache is to be.

    args: as parsed, with `gpu_memory_utilization` None unless it was given
    """
    given = (args.kv_cache_memory_bytes, args.gpu_memory_utilization, args.num_gpu_blocks_override)
    # vLLM reads an empty variable as none
    return any(value is not None for value in given) or os.environ.get("VLLM_CPU_KVCACHE_SPACE", "") != ""


def cache_shape(args: Namespace) -> CacheShape:
    """Read the shape off the configuration that vLLM makes of its arguments."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.torch_utils import get_dtype_size, kv_cache_dtype_str_to_dtype

    config: Any = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
    model, cache = config.model_config, config.cache_config
    return CacheShape(
        num_layers=model.get_num_layers(config.parallel_config),
        num_kv_heads=model.get_num_kv_heads(config.parallel_config),
        head_size=model.get_head_size(),
        num_value_bytes=get_dtype_size(kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)),
        block_size=cpu_block_size(config),
        max_model_len=model.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        may_need_less=model.original_max_model_len == -1 or model.get_sliding_window() is not None,
    )


def free_memory() -> int:
    """Bytes free on the memory node that vLLM's CPU worker will use, within the limit of the container."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    num_bytes: int = get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory
    return num_bytes
