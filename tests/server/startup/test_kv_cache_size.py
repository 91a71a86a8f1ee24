"""What a KV cache takes on a CPU when nobody says, and that it is nobody's business when somebody does."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import pytest

from saeclamp_saes.errors import UserError
from saeclamp_server.startup.kv_cache_size import CacheShape, default_cache_size, is_sized_by_user

GIB = 2**30
# SmolLM2-135M in float32: 30 layers x 3 heads x 64 numbers x (key and value) x 4 bytes = 46,080 bytes a token
SMALL = CacheShape(30, 3, 64, 4, block_size=128, max_model_len=2048, max_num_seqs=8)
# Llama-3.1-8B in bfloat16: 32 layers x 8 heads x 128 numbers x (key and value) x 2 bytes = 131,072 bytes a token
LARGE = CacheShape(32, 8, 128, 2, block_size=128, max_model_len=131072, max_num_seqs=128)
NOT_GIVEN = {"kv_cache_memory_bytes": None, "gpu_memory_utilization": None, "num_gpu_blocks_override": None}


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def test_where_memory_is_plenty_all_sequences_fit_at_full_length() -> None:
    size = default_cache_size(SMALL, 100 * GIB)
    assert size.num_blocks == 8 * 16 + 1  # one is vLLM's own
    assert size.num_bytes == 129 * 128 * 46_080
    assert str(size) == (
        "KV cache: 725.6 MiB for 16,384 tokens (8.0 sequences of 2,048), as many as may run at once; "
        "--kv-cache-memory-bytes sets another size"
    )


def test_a_quarter_of_the_free_memory_is_the_most() -> None:
    size = default_cache_size(replace(SMALL, max_num_seqs=128), 16 * GIB)
    assert size.num_blocks == 728  # 4 GiB / (128 x 46,080 bytes) = 728.18
    assert 4 * GIB - 128 * 46_080 < size.num_bytes <= 4 * GIB
    assert "KV cache: 4.0 GiB for 93,056 tokens (45.4 sequences of 2,048), a quarter of the free memory; " in str(size)


def test_one_sequence_fits_even_if_it_needs_more_than_a_quarter() -> None:
    size = default_cache_size(LARGE, 40 * GIB)  # its 131,072 tokens need 16 GiB
    assert size.num_blocks == 1024 + 1
    assert "KV cache: 16.0 GiB for 131,072 tokens (1.0 sequences of 131,072), the least that serves one; " in str(size)


def test_a_length_that_is_no_multiple_of_a_block_takes_one_more() -> None:
    assert replace(SMALL, max_model_len=2049).num_blocks(3) == 3 * 17 + 1
    assert replace(SMALL, max_model_len=1).num_blocks(3) == 3 * 1 + 1


def test_a_sequence_that_cannot_fit_is_refused_with_a_length_that_can() -> None:
    with pytest.raises(UserError) as raised:
        default_cache_size(LARGE, 8 * GIB)
    assert str(raised.value) == (
        "One sequence of 131,072 tokens needs a KV cache of 16.0 GiB, and 8.0 GiB of memory are free; "
        "--max-model-len 16256 would take a quarter of them."
    )
    assert default_cache_size(replace(LARGE, max_model_len=16256), 8 * GIB).num_bytes == 2 * GIB


def test_where_less_may_do_vllm_is_left_to_judge() -> None:
    size = default_cache_size(replace(LARGE, may_need_less=True), 8 * GIB)
    assert size.num_bytes == 2 * GIB


def test_nothing_said_is_nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_sized_by_user(Namespace(**NOT_GIVEN))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "")  # which vLLM takes for not set
    assert not is_sized_by_user(Namespace(**NOT_GIVEN))


@pytest.mark.parametrize(
    ("name", "value"),
    [("kv_cache_memory_bytes", 2**30), ("gpu_memory_utilization", 0.5), ("num_gpu_blocks_override", 20)],
)
def test_each_of_vllms_flags_is_the_users_choice(name: str, value: float) -> None:
    assert is_sized_by_user(Namespace(**{**NOT_GIVEN, name: value}))


def test_vllms_variable_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert is_sized_by_user(Namespace(**NOT_GIVEN))
