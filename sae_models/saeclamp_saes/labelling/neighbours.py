"""Neighbours: features whose decoder rows point the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes.labelling.column_store import ColumnStore, StoredColumn
from saeclamp_saes.progress import ProgressCallback

NUM_NEIGHBOURS = 5
COSINES_AT_ONCE = 1 << 25
"""Cosines in memory at once (128 MB), of a block of rows with all rows."""


class NeighbourTable(NamedTuple):
    """Neighbours of every feature, largest cosine first."""

    indices: NDArray[Any]
    """(d_sae, num) int32, without the feature itself"""
    cosines: NDArray[Any]
    """(d_sae, num) float32"""


def measure_neighbours(
    folder: Path, W_dec: Tensor, report: ProgressCallback, *, cosines_at_once: int = COSINES_AT_ONCE
) -> NeighbourTable:
    """
    Find every feature's neighbours, or resume an interrupted search.

    folder: folder of this step, which is made
    W_dec:  (d_sae, d_out); a row of zeros has cosine 0 with all
    """
    num = min(NUM_NEIGHBOURS, len(W_dec) - 1)
    columns = ColumnStore(folder, {"indices": StoredColumn("<i4", num), "cosines": StoredColumn("<f4", num)})
    unit = torch.nn.functional.normalize(W_dec, dim=1)
    step = max(1, cosines_at_once // len(W_dec))
    for first in range(columns.num_done, len(W_dec), step):
        cosines = unit[first : first + step] @ unit.T
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, first + own] = -torch.inf
        best = cosines.topk(num)
        columns.append(indices=best.indices.cpu().numpy(), cosines=best.values.cpu().numpy())
        done = first + len(cosines)
        columns.commit(done=done)
        report("neighbours", done, len(W_dec), {})
    return NeighbourTable(*(columns[name].reshape(len(W_dec), num) for name in ("indices", "cosines")))
