"""Worker process: wiping KV blocks that a failed request has left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saeclamp_server.engine.worker.device_copies import upload


def wipe_blocks(runner: Any, block_ids: Sequence[int]) -> None:
    """
    Fill KV blocks with zeros.

    Attention kernels read whole blocks, also slots that no token has been written to, and NaN times the weight zero of such
    a slot is NaN: so a NaN that stays in a freed block harms whoever gets the block next.

    runner: vLLM's model runner, V1 or V2
    """
    if not block_ids:
        return
    num_blocks = runner.kv_cache_config.num_blocks
    blocks = upload(np.array(block_ids, np.int64), runner.device)
    for cache in runner.kv_caches:
        # a backend may split each of the scheduler's blocks into several of its own; as bytes, because not every type
        # that keys and values are stored in can be filled
        by_block = cache.unflatten(0, (num_blocks, cache.shape[0] // num_blocks)).view(torch.uint8)
        by_block.index_fill_(0, blocks, 0)
