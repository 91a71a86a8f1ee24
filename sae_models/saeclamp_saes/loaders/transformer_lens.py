"""Centring: TransformerLens may have changed a model before an SAE was trained on its vectors."""

from __future__ import annotations

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.sites import Point, Site

LAYER_NORM_MODELS = ("gpt2", "pythia", "gpt-neo", "gpt-j", "opt-", "gelu-", "solu-", "attn-only-", "tiny-stories")
"""Parts of the names of models with layer norm: those whose written vectors `center_writing_weights` centres."""

CENTERED: tuple[Point, ...] = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "attn_out_raw",
    "mlp_out",
    "mlp_out_raw",
)
"""Vectors that blocks write, and their sum. After a layer norm, and inside the heads, centring makes no difference."""


def is_centered(
    source: CheckpointSource, site: Site, model_name: object, *, stated: bool | None = None, default: bool | None = None
) -> bool:
    """
    Tell whether the SAE saw the vectors at `site` less their mean over d_in (`center_writing_weights`).

    stated:  whether the files say so; None: they are silent
    default: whether the family's code centred models that have a layer norm; None: not known
    Raises CheckpointError when it matters and nobody says.
    """
    if site.point not in CENTERED:
        return False
    option = source.options.text("center", "yes", "no")
    if option is not None:
        return option == "yes"
    if stated is not None:
        return stated
    if not any(part in str(model_name).lower() for part in LAYER_NORM_MODELS):
        return False
    if default is None:
        raise CheckpointError(
            f"{source.path} does not say whether {model_name}'s vectors were centred, as TransformerLens may do: add "
            "?center=yes (gpt2-small-res-jb, its feature-splitting series and gpt2-small-mlp-tm are) or ?center=no."
        )
    return default
