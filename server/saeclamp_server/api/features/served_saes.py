"""Labels and calibration curves that lie beside the served SAEs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from saeclamp_saes import SAEEntry
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import labels_path
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.storage import CurveFile
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import QuickCheckResult

logger = logging.getLogger("saeclamp.server")


def load_served_saes(
    saes: Mapping[str, SAEEntry],
    measured: Mapping[str, QuickCheckResult],
    labels: Mapping[str, LabelFile],
) -> dict[str, ServedSAE]:
    """
    Put each SAE together with its norms, fit, labels and calibration curves.

    Curves that cannot be read are reported, and left out.

    labels: of those that have any
    """
    return {name: ServedSAE(sae, *measured[name], labels.get(name), _curves(sae)) for name, sae in saes.items()}


def _curves(sae: SAEEntry) -> Mapping[int, Mapping[str, Any]]:
    folder = sae.path if sae.path.is_dir() else sae.path.parent
    try:
        return CurveFile(folder, sae.sha256).curves
    except CalibrationError as exc:
        logger.warning(f"SAE {sae.name}: its calibration curves are left out. {exc}")
        return {}


async def labels_matching_weights(engine: Any, saes: Mapping[str, SAEEntry]) -> dict[str, LabelFile]:
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
            logger.warning(f"SAE {name}: its labels are left out. {exc}")
            continue
        decoder = (await engine.collective_rpc("decoder_hash", args=(name,)))[0]
        if labels.info.decoder_sha256 != decoder or len(labels) != sae.summary.d_sae:
            logger.warning(f"SAE {name}: its labels in {path} are left out, because they are of other weights.")
            continue
        trusted[name] = labels
    return trusted
