"""EngineCore process: KV blocks that failed requests have written, until they are wiped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class TaintedBlocks:
    """
    Tainted blocks, which may hold NaN: kept out of the prefix cache, and listed for wiping when they are free.

    They leave the prefix cache at once. A block that other requests still refer to stays as it is: they have the same edits
    and fail too. When nobody refers to it any more, it must be wiped before the next step, in which it may be given away.
    """

    def __init__(self, kv_cache_manager: Any) -> None:
        """`kv_cache_manager` is vLLM's, of one scheduler."""
        self._manager = kv_cache_manager
        self._tainted: set[int] = set()
        self._to_wipe: list[int] = []
        self._left: dict[str, tuple[int, list[int]]] = {}
        """Step number and block ids, by id, of requests that ended while that step of theirs was running."""

    def ids_of(self, request_id: str) -> list[int]:
        """List the block ids of a request, also of one that has ended while a step of its was running."""
        left = self._left.get(request_id)
        if left is not None:
            return left[1]
        return [block for group in self._manager.get_block_ids(request_id) for block in group]

    def note_leaving(self, request_id: str, step: int) -> None:
        """Remember the blocks of a request that ends before the outcome of its last step, `step`, is known."""
        self._left[request_id] = (step, self.ids_of(request_id))

    def forget_left(self, step: int) -> None:
        """Forget the blocks of requests that ended during a step up to this one, whose outcome is known now."""
        self._left = {name: left for name, left in self._left.items() if left[0] > step}

    def taint(self, block_ids: Iterable[int]) -> None:
        """Mark blocks as tainted, and take them out of the prefix cache."""
        # the null block stands for no block, in any request's table
        ids = {block for block in block_ids if not self._manager.block_pool.blocks[block].is_null}
        self._manager.evict_blocks(ids)
        self._tainted |= ids
        self.sweep()

    def sweep(self) -> None:
        """List tainted blocks for wiping that nobody refers to any more; to be called whenever blocks are given back."""
        free = [block for block in self._tainted if not self._manager.block_pool.blocks[block].ref_cnt]
        if free:
            self._manager.evict_blocks({*free})  # a sharer may have cached it again
            self._tainted.difference_update(free)
            self._to_wipe += free

    def take(self) -> list[int]:
        """Return the ids of the blocks to be wiped before the next step, each once."""
        taken, self._to_wipe = self._to_wipe, []
        return taken
