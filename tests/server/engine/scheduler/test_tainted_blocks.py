"""Blocks that failed requests leave: out of the prefix cache at once, wiped when nobody holds them, never before."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import torch

from saeclamp_server.engine.scheduler.tainted_blocks import TaintedBlocks
from saeclamp_server.engine.worker.kv_wipe import wipe_blocks


class Manager:
    """vLLM's KV cache manager, as far as it is asked: two groups, and block 0 that stands for no block."""

    def __init__(self, **loaded: tuple[list[int], list[int]]) -> None:
        self.loaded = loaded
        blocks = [SimpleNamespace(is_null=number == 0, ref_cnt=0) for number in range(10)]
        for groups in loaded.values():
            for number in {*groups[0], *groups[1]}:
                blocks[number].ref_cnt += 1
        self.block_pool = SimpleNamespace(blocks=blocks)
        self.evicted: list[set[int]] = []

    def get_block_ids(self, request_id: str) -> tuple[list[int], ...]:
        return self.loaded.get(request_id, ([], []))

    def evict_blocks(self, block_ids: set[int]) -> None:
        self.evicted.append(block_ids)

    def free(self, request_id: str) -> None:
        for number in {block for group in self.loaded.pop(request_id) for block in group}:
            self.block_pool.blocks[number].ref_cnt -= 1


def wiped(blocks: TaintedBlocks) -> list[int]:
    return sorted(blocks.take())


def test_a_failed_requests_blocks_are_wiped_once_when_they_are_free() -> None:
    manager = Manager(bad=([1, 2], [0, 3]), good=([4], [5]))
    blocks = TaintedBlocks(manager)
    blocks.taint(blocks.ids_of("bad"))
    assert manager.evicted[0] == {1, 2, 3}
    assert wiped(blocks) == []
    manager.free("bad")
    blocks.sweep()
    manager.free("good")
    blocks.sweep()
    assert wiped(blocks) == [1, 2, 3]
    assert wiped(blocks) == []


def test_a_block_that_others_hold_is_wiped_when_the_last_of_them_leaves() -> None:
    manager = Manager(bad=([1, 2], []), sharer=([1, 7], []))
    blocks = TaintedBlocks(manager)
    manager_ids: Iterable[int] = blocks.ids_of("bad")
    manager.free("bad")
    blocks.taint(manager_ids)
    assert wiped(blocks) == [2]
    manager.free("sharer")
    blocks.sweep()
    assert wiped(blocks) == [1]


def test_the_blocks_of_a_request_that_left_during_its_step_are_known_until_its_outcome_is() -> None:
    manager = Manager(early=([1, 2], []), late=([3], []))
    blocks = TaintedBlocks(manager)
    for step, name in enumerate(("early", "late"), 7):
        blocks.note_leaving(name, step)
        manager.free(name)
    blocks.forget_left(7)
    assert blocks.ids_of("early") == []
    assert blocks.ids_of("late") == [3]


def test_wiping_zeroes_the_blocks_and_no_others_however_a_backend_splits_them() -> None:
    whole = torch.full((4, 2, 3), float("nan"))
    split = torch.full((8, 5), float("nan"), dtype=torch.bfloat16)
    coded = torch.ones(4, 6, dtype=torch.float8_e4m3fn)
    runner = SimpleNamespace(
        kv_cache_config=SimpleNamespace(num_blocks=4), kv_caches=[whole, split, coded], device=torch.device("cpu")
    )
    wipe_blocks(runner, [1, 3])
    assert whole.isnan().flatten(1).all(dim=1).tolist() == [True, False, True, False]
    assert split.isnan().all(dim=1).tolist() == [True, True, False, False, True, True, False, False]
    assert coded.float().sum(dim=1).tolist() == [6.0, 0.0, 6.0, 0.0]
    assert whole[[1, 3]].eq(0).all()
    wipe_blocks(SimpleNamespace(), [])
