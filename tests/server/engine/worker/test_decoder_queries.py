"""Of an SAE that is kept in bf16, decoder rows are as long and as near to each other as in fp32."""

from __future__ import annotations

from random import Random

import pytest
from tests.support.random_steps import random_sae, stored_in_bf16

from saeclamp_server.engine.worker.decoder_queries import longest_rows, nearest_rows


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_rows_and_the_nearest_are_those_of_the_same_sae_in_fp32(seed: int) -> None:
    stored = stored_in_bf16(random_sae(Random(seed), 16, 0, (0,)))
    stored = stored.to(dtype=stored.dtype)  # which may have been drawn in bf16
    narrow = stored.narrowed()
    assert longest_rows(narrow, 5) == longest_rows(stored, 5)
    assert nearest_rows(narrow, [1, 3], 4) == nearest_rows(stored, [1, 3], 4)
