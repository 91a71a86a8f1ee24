"""
End-to-end SAEs of Apollo Research: pickles, of one run with several SAEs or, as published, of one SAE.

A run's `samples_<n>.pt` beside `final_config.yaml` holds, for a hook such as blocks.5.hook_resid_pre,
blocks-5-hook_resid_pre.encoder.0.weight (d_sae, d_in), .encoder.0.bias, .decoder.weight (d_in, d_sae), .decoder.bias; choose
with `?layer=5` or `?site=`. A published `<name>.pt` beside `<name>.yaml` holds one SAE's encoder.weight and so on.
relu(x W_enc + b_enc); each feature's decoder vector is divided by its norm whenever it is used. The model is loaded with
TransformerLens's `from_pretrained`, which centres gpt2's residual stream.
Source: models/sparsifiers.py, models/transformers.py, loader.py and scripts/upload_to_hf.py of ApolloResearch/e2e_sae.
"""

from __future__ import annotations

from typing import Any

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.loaders.transformer_lens import is_centered
from saeclamp_saes.sae import SAE, InputNorm
from saeclamp_saes.sites import Site, from_transformer_lens

NAME = "e2e"
ENCODER = ".encoder.0.weight"
PUBLISHED = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}


def matches(source: CheckpointSource) -> bool:
    """Recognise tensors called after hooks, or the published four beside a run's configuration."""
    names = source.tensors.shapes.keys()
    return any(name.endswith(ENCODER) for name in names) or (names == PUBLISHED and bool(_config(source).get("saes")))


def read(source: CheckpointSource) -> SAE:
    """Read one SAE and divide its decoder's vectors by their norms. Raises CheckpointError."""
    tensors, cfg = source.tensors, _config(source)
    known, prefix, encoder = _choose(source, cfg)
    d_sae, d_in = matrix_shape(tensors, f"{prefix}{encoder}.weight")
    draft = SAEBuilder(
        encoder=tensors.tensor(f"{prefix}{encoder}.weight", (d_sae, d_in)),
        b_enc=tensors.tensor(f"{prefix}{encoder}.bias", (d_sae,)),
        decoder=tensors.transposed(f"{prefix}decoder.weight", (d_in, d_sae)),
        b_dec=tensors.tensor(f"{prefix}decoder.bias", (d_in,)),
    )
    draft.decoder.div_(draft.decoder_norms()[:, None].to(draft.decoder.dtype))
    site, model_name = source.site(known), cfg.get("tlens_model_name")
    centered = is_centered(source, site, model_name, default=True)
    return draft.finish(site, input_norm=InputNorm(center=centered), model_name=model_name)


def _config(source: CheckpointSource) -> dict[str, Any]:
    return source.config(f"{source.weights.stem}.yaml", "final_config.yaml") or {}


def _choose(source: CheckpointSource, cfg: dict[str, Any]) -> tuple[Site | None, str, str]:
    """Return the site of the chosen SAE, the prefix of its tensors' names, and the name of its encoder."""
    hooks = [name.removesuffix(ENCODER) for name in sorted(source.tensors.shapes) if name.endswith(ENCODER)]
    if not hooks:
        saes = cfg.get("saes")
        positions = saes.get("sae_positions") if isinstance(saes, dict) else None
        hook = positions[0] if isinstance(positions, list) and len(positions) == 1 else positions
        return from_transformer_lens(str(hook)), "", "encoder"
    sites = {hook: from_transformer_lens(hook.replace("-", ".")) for hook in hooks}
    layer, wanted = source.options.integer("layer"), source.options.site("site")
    chosen = [hook for hook in hooks if layer is None or hook.startswith(f"blocks-{layer}-")]
    if len(hooks) > 1 and wanted is not None:
        chosen = [hook for hook in chosen if sites[hook] == wanted]
    if len(chosen) != 1:
        places = ", ".join(hook.replace("-", ".") for hook in hooks)
        raise CheckpointError(
            f"{source.path} holds the SAEs of {places}: choose one with ?layer=N or ?site=resid_post.N."
        )
    return sites[chosen[0]], f"{chosen[0]}.", "encoder.0"
