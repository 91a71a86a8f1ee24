"""Are a checkpoint's activations and reconstructions the same in sae-lens and here?"""

from __future__ import annotations

from typing import Any

import torch
from tests.saes.loaders.layouts import Written, tokens
from tests.saes.loaders.layouts.agreement import read
from torch import Tensor

SMALL = {"d_in": 16, "d_sae": 40}
"""In place of the widths that loaders know by heart."""


def assert_agree(theirs: Any, written: Written, options: str = "", unit: Tensor | float = 1.0) -> None:
    """
    Compare activations and reconstructions.

    unit: their activations over ours
    """
    ours = read(written.path, options)
    x = tokens(ours.d_in).float()
    acts = theirs.encode(x)
    assert 0.05 < (acts != 0).float().mean() < 0.95
    torch.testing.assert_close(ours.encode(x) * unit, acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decode(ours.encode(x), x), theirs(x), rtol=1e-4, atol=1e-4)


def assert_other_features(theirs: Any, written: Written, options: str = "") -> None:
    """Assert that other features are active, for the reason that the test gives."""
    ours = read(written.path, options)
    x = tokens(ours.d_in).float()
    assert ((theirs.encode(x) != 0) != (ours.encode(x) != 0)).float().mean() > 0.02
