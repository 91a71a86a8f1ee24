"""SAE entries without weights, and SAEs that are served, for what is decided before the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saeclamp.types import ServerIdentity
from saeclamp_saes import Options, SAEEntry, Site
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_saes.loaders import CheckpointSummary
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import SiteNorms

SERVER = ServerIdentity(version="0", vllm="0", replica="here")


def entry(name: str, layer: int, d_sae: int, *notes: FeatureNote) -> SAEEntry:
    sites = (Site("resid_post", layer),)
    summary = CheckpointSummary(
        "saelens", "sae", "jumprelu", sites, sites, 16, 16, d_sae, "native", None, (Path("weights"),)
    )
    return SAEEntry(name, Path(name), Options(), f"sha-of-{name}", summary, {note.index: note for note in notes})


def served_saes(*saes: tuple[SAEEntry, SiteNorms]) -> dict[str, ServedSAE]:
    return {entry.name: ServedSAE(entry, norms) for entry, norms in saes}


def report(prompt: int, generated: int, act_sum: float, act_max: float) -> dict[str, Any]:
    """What the engine tells of a sequence: two more tokens of the prompt were cached."""
    tally = {"prompt": prompt, "generated": generated, "act_sum": act_sum, "act_max": act_max}
    tally |= {"dose_sum": 0.4, "dose_max": 0.3, "prompt_sinks": 0, "generated_sinks": 0}
    return {
        "failure": None,
        "prompt": [prompt + 2],
        "tallies": [tally],
        "fired": [],
        "unjudged": [],
        "num_positions": 9,
    }
