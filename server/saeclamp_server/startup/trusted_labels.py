"""Labels beside the SAEs that are served: those that are of the very weights the engine holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saeclamp_saes import SAEEntry
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import labels_path


async def labels_matching_weights(
    engine: Any, saes: Mapping[str, SAEEntry], report: Callable[[str], None]
) -> dict[str, LabelFile]:
    """
    Open each labelled SAE's labels.

    Those that cannot be read, or are of other weights than the engine holds, are reported and left out.
    """
    trusted: dict[str, LabelFile] = {}
    for name, sae in saes.items():
        path = labels_path(sae.path)
        if not path.exists():
            continue
        try:
            labels = LabelFile(path)
        except LabelError as exc:
            report(f"SAE {name}: its labels are left out. {exc}")
            continue
        decoder = (await engine.collective_rpc("decoder_hash", args=(name,)))[0]
        if labels.info.decoder_sha256 != decoder or len(labels) != sae.summary.d_sae:
            report(f"SAE {name}: its labels in {path} are left out, because they are of other weights.")
            continue
        trusted[name] = labels
    return trusted
