"""The activations that labels found to be the largest, for features that have no entry in the feature book."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saeclamp_saes import SAEEntry
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.table import labels_path, read_max_acts


async def labelled_maxima(
    engine: Any, saes: Mapping[str, SAEEntry], report: Callable[[str], None]
) -> dict[str, Sequence[float | None]]:
    """
    Return each labelled SAE's `max_act` by index, None for features that were never active.

    Labels that cannot be read, or are of other weights than the engine holds, are reported and left out.
    """
    maxima: dict[str, Sequence[float | None]] = {}
    for name, sae in saes.items():
        path = labels_path(sae.path)
        if not path.exists():
            continue
        try:
            info, max_acts = read_max_acts(path)
        except LabelError as exc:
            report(f"SAE {name}: its labels are left out. {exc}")
            continue
        decoder = (await engine.collective_rpc("decoder_hash", args=(name,)))[0]
        if info.decoder_sha256 != decoder or len(max_acts) != sae.summary.d_sae:
            report(f"SAE {name}: its labels in {path} are left out, because they are of other weights.")
            continue
        maxima[name] = [_positive(value) for value in max_acts]
    return maxima


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None
