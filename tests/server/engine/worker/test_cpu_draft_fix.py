"""A request's sampling parameters are repeated for each of its drafts."""

from __future__ import annotations

import pytest
import torch

from saeclamp_server.engine.worker.cpu_draft_fix import expand_batch_to_tokens


@pytest.mark.parametrize(
    ("x", "replace", "expected"),
    [
        (torch.tensor([0.0, 0.7, 1.5]), (0, 1), [1.0, 1.0, 0.7, 1.5, 1.5, 1.5]),
        (torch.tensor([0.25, 1.0, 0.5]), (0, 0), [0.25, 0.25, 1.0, 0.5, 0.5, 0.5]),
        (torch.tensor([5, 9, 7], dtype=torch.int32), (0, 0), [5, 5, 9, 7, 7, 7]),
    ],
)
def test_each_request_s_number_is_there_once_for_each_of_its_tokens(
    x: torch.Tensor, replace: tuple[int, int], expected: list[float]
) -> None:
    found = expand_batch_to_tokens(x, torch.tensor([2, 3, 6], dtype=torch.int32), 6, *replace)
    assert found.dtype == x.dtype
    assert torch.equal(found, torch.tensor(expected, dtype=x.dtype))


def test_a_request_without_drafts_has_no_place() -> None:
    found = expand_batch_to_tokens(torch.tensor([0.7, 0.2, 0.9]), torch.tensor([0, 2, 2], dtype=torch.int32), 2)
    assert torch.equal(found, torch.tensor([0.2, 0.2]))
