"""A sample that is discarded takes nothing from its request's seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeclamp_server.engine.worker.cpu_seed_fix import without_generators


def seeded(*rows: int) -> dict[int, torch.Generator]:
    return {row: torch.Generator().manual_seed(row) for row in rows}


def draw(generators: dict[int, torch.Generator]) -> None:
    for generator in generators.values():
        torch.rand(1, generator=generator)


def test_only_rows_that_keep_their_sample_draw_from_their_seed() -> None:
    generators = seeded(0, 2, 3)
    before = dict(generators)
    with without_generators(generators, np.array([True, True, False, True, False])):
        assert generators.keys() == {2}
        draw(generators)
    assert generators == before, "the same generators are back in the same rows"
    fresh = seeded(0, 2, 3)
    assert [torch.equal(generators[row].get_state(), fresh[row].get_state()) for row in (0, 2, 3)] == [
        True,
        False,
        True,
    ]


def test_a_fault_in_between_loses_no_generator() -> None:
    generators = seeded(0, 1)
    with pytest.raises(RuntimeError, match="a fault"), without_generators(generators, np.array([True, False])):
        raise RuntimeError("a fault")
    assert generators.keys() == {0, 1}
